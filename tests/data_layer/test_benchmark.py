"""The command that times the pipeline, on few images: that it runs and compares, not how long it takes."""

import re

import numpy as np
import pytest

from maskdino_jax.data import benchmark
from maskdino_jax.data.benchmark import Timing, report


@pytest.mark.parametrize("own", [False, True])
def test_both_kinds_are_measured_and_agree(capsys, coco_panoptic, own):
    flags = ["--rounds=1", "--limit=2", *([f"--root={coco_panoptic.root}"] if own else [])]
    with pytest.raises(SystemExit) as ended:
        benchmark.main(flags)
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert re.findall(r"^(\w+), CocoDataset", printed, re.MULTILINE) == ["instances", "panoptic"]
    assert printed.count("| samples that differ | 0 of 2 |") == 2
    assert printed.count("| decode the image |") == 2


def test_a_difference_is_counted_and_ends_with_an_error(capsys, monkeypatch):
    real = benchmark.jitter

    def faulty(example, draws, size):
        moved = real(example, draws, size)
        moved.image[0, 0] ^= 1
        return moved

    monkeypatch.setattr(benchmark, "jitter", faulty)
    with pytest.raises(SystemExit) as ended:
        benchmark.main(["--rounds=1", "--limit=1"])
    assert ended.value.code == 1
    assert "| samples that differ | 1 of 1 |" in capsys.readouterr().out


def test_rates_are_medians_of_the_rounds_with_their_spread():
    rounds = [
        Timing(images=10, plain=plain, fast=fast, stages={"a": 3 * fast / 4, "b": fast / 4}, different=0)
        for plain, fast in ((1.0, 0.2), (1.0, 0.1), (2.0, 0.25))
    ]
    lines = list(report(rounds))
    assert "| plain pipeline, images/s | 10.0 (5.0 to 10.0) |" in lines
    assert "| this pipeline, images/s | 50.0 (40.0 to 100.0) |" in lines
    assert "| times as fast | 8.00 (5.00 to 10.00) |" in lines
    assert "| a | 15.00 | 75 % |" in lines
    assert np.isclose(sum(int(line.split("|")[3].split()[0]) for line in lines[-2:]), 100)

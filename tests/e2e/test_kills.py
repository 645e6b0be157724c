"""Killed again and again at random moments, a run ends as one that never was, bit for bit."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.processes import arrays, finish, metrics, same, start

KILLS = int(os.environ.get("MASKDINO_KILLS", "100"))
OPTIONS = ("--config.train.checkpoint_every=1", "--config.train.ema_decay=0.5", "--config.train.keep_checkpoints=1")
LAST = 6
MOST = 20  # kills of one run
pytestmark = pytest.mark.slow


def _killed(workdir: Path, seconds: float) -> bool:
    """Whether a run was killed after so many seconds; one that ends before must have succeeded."""
    run = start(workdir, *OPTIONS)
    try:
        assert run.process.wait(timeout=seconds) == 0, run.said()[-3000:]
    except subprocess.TimeoutExpired:
        run.process.send_signal(signal.SIGKILL)
        run.process.wait()
        return True
    return False


def test_runs_that_are_killed_at_random_moments_end_as_one_that_never_was(tmp_path: Path) -> None:
    """Kills are spread over the whole life of a process: start, compilation, steps, saving, evaluation."""
    finish(start(tmp_path / "compiles", *OPTIONS))
    begin = time.monotonic()
    finish(start(tmp_path / "whole", *OPTIONS))
    duration = time.monotonic() - begin
    expected, results = arrays(tmp_path / "whole", LAST), (tmp_path / "whole/results.json").read_text()
    draw = random.Random(0)
    kills = runs = most = 0
    while kills < KILLS:
        runs, here = runs + 1, 0
        workdir = tmp_path / f"run{runs}"
        begin = time.monotonic()
        while here < MOST and _killed(workdir, draw.uniform(0, 1.1 * duration)):
            here += 1
        if here == 0:
            duration = time.monotonic() - begin  # machines have other work too, now more and now less
        elif here == MOST:
            finish(start(workdir, *OPTIONS))
        kills, most = kills + here, max(most, here)
        same(arrays(workdir, LAST), expected)
        assert (workdir / "results.json").read_text() == results
        assert {line["step"] for line in metrics(workdir)} == set(range(1, LAST + 1))
    print(f"{kills} kills of {runs} runs, at most {most} of one")  # noqa: T201

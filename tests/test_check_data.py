"""`--mode=check-data`: pictures, a report, and an exit status that a script can ask."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdino_jax import runner
from maskdino_jax.config import Config, ConfigError
from tests.e2e.conftest import COCO, smallest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def coco(tmp_path: Path) -> Config:
    """A copy of the eight COCO images that a test may damage."""
    shutil.copytree(COCO, tmp_path / "coco")
    config = smallest()
    config.data.root = str(tmp_path / "coco")
    return config


def test_sound_data_give_true_a_report_a_table_and_a_sheet_of_each_split(coco, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert runner.check_data(coco, tmp_path / "run")
    report = json.loads((tmp_path / "run/check/report.json").read_text())
    assert report["ok"]
    assert report["splits"]["train"]["images"] == report["splits"]["val"]["images"] == 4
    person = next(entry for entry in report["classes"] if entry["name"] == "person")
    annotated = json.loads((COCO / "annotations/panoptic_val2017.json").read_text())["annotations"]
    segments = [segment for entry in annotated for segment in entry["segments_info"] if not segment["iscrowd"]]
    assert person["val"] == sum(segment["category_id"] == person["id"] for segment in segments)
    assert report["splits"]["val"]["objects"] == len(segments)
    for split in ("train", "val"):
        assert np.array(Image.open(tmp_path / f"run/check/{split}.png")).shape[1:] == (1600, 3)
    assert "The data are sound: 0 kinds of errors" in caplog.text
    assert "class without an object" in caplog.text


def test_the_exit_status_of_broken_data_is_one_with_the_fault_on_the_console(coco, tmp_path):
    broken = next((tmp_path / "coco/train2017").glob("*.jpg"))
    broken.write_bytes(broken.read_bytes()[:5000])
    command = ["main.py", "--mode=check-data", "--config=tests/e2e/smallest_config.py", f"--workdir={tmp_path / 'run'}"]
    root = f"--config.data.root={coco.data.root}"
    run = lambda *options: subprocess.run(
        [sys.executable, *command, root, *options],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    stopped = run()
    assert stopped.returncode == 1
    assert f"{broken.name} cannot be read as an image" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert run("--config.data.on_error=skip").returncode == 0


def test_a_wrong_option_is_named_before_anything_is_read(coco, tmp_path):
    coco.data.on_error = "ignore"
    with pytest.raises(ConfigError, match=r"config\.data\.on_error = 'ignore': choose one of stop, skip"):
        runner.check_data(coco, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_training_on_an_unreadable_image_counts_it_in_the_metrics(coco, tmp_path):
    """Four images, one of them broken, are a batch: each step skips one."""
    broken = next((tmp_path / "coco/train2017").glob("*.jpg"))
    broken.write_bytes(broken.read_bytes()[:5000])
    coco.train.steps = 2
    coco.data.on_error = "skip"
    runner.train(coco, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["records_skipped"] for line in lines if "loss" in line] == [1, 1]

"""The command line: mistakes end with one line that says what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


def _main(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.train.bach_size=3"], "unknown option '--config.train.bach_size=3'. The nearest option is"),
        (["--config.train.steps=many"], "--config.train.steps=many"),
        (["train"], "unknown argument 'train'"),
        (["--config=configs/coco_panoptic.py:huge"], "has no variant 'huge': choose r50, "),
        (["--mode=predict"], "--mode=predict needs --images"),
        (["--mode=prepare", "--config.data.root=docs"], "'docs' is none of the data sets that need preparing"),
    ],
)
def test_a_mistake_is_named(arguments: list[str], message: str) -> None:
    ended = _main(*arguments)
    assert ended.returncode != 0
    assert message in ended.stdout + ended.stderr


def test_a_missing_data_root_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    ended = _main(
        "--config=configs/coco_panoptic.py:tiny", "--config.data.root=/no/such/place", f"--workdir={tmp_path / 'run'}"
    )
    assert ended.returncode == 1
    assert "config.data.root = '/no/such/place'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_wrong_value_leaves_no_workdir(tmp_path: Path) -> None:
    ended = _main("--config.train.batch_size=-1", f"--workdir={tmp_path / 'run'}")
    assert "config.train.batch_size = -1: give a whole number of at least 1" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_preparing_says_what_was_made(tmp_path: Path) -> None:
    folder = tmp_path / "annotations/training"
    folder.mkdir(parents=True)
    (tmp_path / "images/training").mkdir(parents=True)
    Image.new("L", (4, 3), 5).save(folder / "ADE_train_00000001.png")
    ended = _main("--mode=prepare", f"--config.data.root={tmp_path}")
    assert ended.returncode == 0
    assert "annotations_detectron2/training: 1 made, 0 there already" in ended.stderr
    with Image.open(tmp_path / "annotations_detectron2/training/ADE_train_00000001.png") as labels:
        assert labels.getextrema() == (4, 4)

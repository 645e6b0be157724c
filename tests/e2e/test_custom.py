"""A folder of a user's own, from its path to predictions with its own class numbers."""

import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from maskdino_jax import Predictor, runner
from maskdino_jax.config import Config
from tests.e2e.conftest import smallest
from tests.test_configs import load

pytestmark = pytest.mark.slow  # compiles a training step of its own

SIDE = 64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YOLO polygons: a square of class 3 and a triangle of class 8 in each of four pictures for either split."""
    root = tmp_path_factory.mktemp("yolo")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 40, (SIDE, SIDE, 3), np.uint8)
            pixels[8:32, 8:32], pixels[40:56, 24:56] = 220, 140
            Image.fromarray(pixels).save(root / f"images/{split}/{number}.png")
            lines = "3 0.125 0.125 0.5 0.125 0.5 0.5 0.125 0.5\n8 0.375 0.875 0.875 0.875 0.625 0.625\n"
            (root / f"labels/{split}/{number}.txt").write_text(lines)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: {3: square, 8: triangle}\n")
    return root


def config_of(root: Path) -> Config:
    config, small = load("custom", "tiny"), smallest(steps=2)
    config.model, config.loss, config.train = small.model, small.loss, small.train
    config.model.decoder.box_init = "mask2box"
    config.train.batch_size = jax.device_count()
    config.data.root, config.data.image_size = str(root), (SIDE, SIDE)
    config.data.eval_short_side = config.data.eval_long_side = SIDE
    config.data.max_instances = 4
    config.inference.score_threshold = 0.0
    return config


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    runner.train(config_of(root), workdir)
    return workdir


def test_training_ends_with_the_average_precision_of_the_folders_classes(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert {name for name in results if name.startswith("segm/AP-")} == {"segm/AP-square", "segm/AP-triangle"}
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum("loss" in line for line in steps) == 2


def test_evaluation_of_the_checkpoint_finds_the_folder_again(run: Path, tmp_path: Path) -> None:
    results = runner.evaluate(run, tmp_path, None)
    assert results == pytest.approx(json.loads((run / "results.json").read_text()))
    written = json.loads((tmp_path / "evaluation/instances_predictions.json").read_text())
    assert {entry["image_id"] for entry in written} == {"0", "1", "2", "3"}


def test_predictions_have_the_folders_numbers_and_names(run: Path, root: Path, tmp_path: Path) -> None:
    runner.predict(run, root / "images/val", tmp_path, None)
    records = json.loads((tmp_path / "predictions/predictions.json").read_text())
    assert [record["file_name"] for record in records] == [f"{number}.png" for number in range(4)]
    assert {entry["category_id"] for record in records for entry in record["instances"]} <= {3, 8}
    found = Predictor.from_checkpoint(run)(root / "images/val/0.png").segments
    assert {(segment.class_id, segment.name) for segment in found} <= {(3, "square"), (8, "triangle")}
    assert found


def test_the_next_run_goes_on_with_the_same_folder(run: Path, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    runner.train(config_of(root), run)
    assert "is trained to step 2 already" in caplog.text
    assert "YOLO with data.yaml" in caplog.text

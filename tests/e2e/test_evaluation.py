"""Evaluation through the runner: files of the official implementation, test-time augmentation and submissions."""

import zipfile
from pathlib import Path

import pytest

from maskdino_jax import runner
from maskdino_jax.checkpoints import torch_files, torch_import
from maskdino_jax.config import Config, ConfigError
from maskdino_jax.model import ModelSpec
from tests.e2e.conftest import smallest
from tests.weights import random_variables


def _config() -> Config:
    config = smallest()
    config.data.classes = "coco_panoptic"
    return config


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official checkpoint of random weights."""
    path = tmp_path_factory.mktemp("official") / "maskdino.pth"
    variables = random_variables(ModelSpec(_config().model, num_classes=133))
    torch_files.write_pth(path, torch_import.to_state_dict(variables, _config().model, 133))
    return path


def test_a_file_scores_what_its_conversion_scores(file: Path, tmp_path: Path) -> None:
    torch_import.convert(file, _config(), tmp_path / "converted")
    converted = runner.evaluate(tmp_path / "converted", tmp_path / "one", None)
    config = _config()
    config.evaluation.tta_short_sides, config.evaluation.tta_long_side = (64,), 96
    config.evaluation.tta_instances = True
    direct = runner.evaluate(file, tmp_path / "two", config)
    assert {name: value for name, value in direct.items() if "TTA" not in name} == converted
    assert {name.partition("-")[0] for name in direct.keys() - converted.keys()} == {
        name.partition("-")[0].replace("/", "_TTA/") for name in converted if name.startswith(("sem_", "bbox", "segm"))
    }


def test_a_file_without_a_config_is_an_error(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not say what model it is of: give --config"):
        runner.evaluate(file, tmp_path, None)


def test_predictions_of_a_file_are_pictures(file: Path, tmp_path: Path) -> None:
    image = min((Path(_config().data.root) / "val2017").glob("*.jpg"))
    [picture] = runner.predict(file, image, tmp_path, _config())
    assert picture.name == f"{image.stem}.png"


def test_a_submission_needs_no_annotation(file: Path, tmp_path: Path) -> None:
    config = _config()
    config.evaluation.submission = "test-dev2017"
    config.data.val.panoptic = config.data.val.instances = ""
    assert runner.evaluate(file, tmp_path, config) == {}
    with zipfile.ZipFile(tmp_path / "panoptic_test-dev2017_maskdino_results.zip") as archive:
        assert len(archive.namelist()) == 1 + 4

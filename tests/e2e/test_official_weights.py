"""From an official checkpoint file to evaluation, prediction and training."""

from pathlib import Path

import jax
import numpy as np
import pytest

from maskdino_jax import Predictor, runner
from maskdino_jax.checkpoints import Reader, torch_files, torch_import
from maskdino_jax.checkpoints.initial import start_from
from maskdino_jax.config import Config
from maskdino_jax.model import ModelSpec
from tests.e2e.conftest import COCO, smallest
from tests.weights import random_variables


def _config(**train: object) -> Config:
    config = smallest(**train)
    config.data.classes = "coco_panoptic"
    return config


@pytest.fixture(scope="module")
def variables() -> dict:
    return random_variables(ModelSpec(_config().model, num_classes=133))


@pytest.fixture(scope="module")
def file(variables: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("official") / "maskdino.pth"
    torch_files.write_pth(path, torch_import.to_state_dict(variables, _config().model, 133))
    return path


def test_a_converted_checkpoint_is_evaluated_and_predicts_as_the_file_does(file: Path, tmp_path: Path) -> None:
    torch_import.convert(file, _config(), tmp_path / "converted")
    results = runner.evaluate(tmp_path / "converted", tmp_path / "evaluation", None)
    assert {"panoptic_seg/PQ", "segm/AP", "bbox/AP", "sem_seg/mIoU"} <= set(results)
    images = sorted((COCO / "val2017").glob("*.jpg"))
    converted = Predictor.from_checkpoint(tmp_path / "converted")(images)
    direct = Predictor.from_torch(file, _config())(images)
    for one, other in zip(converted, direct, strict=True):
        np.testing.assert_array_equal(one.semantic, other.semantic)
        np.testing.assert_array_equal(one.instances.scores, other.instances.scores)


@pytest.mark.torch
def test_a_file_written_by_pytorch_converts_restores_and_predicts(variables: dict, file: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = torch_import.to_state_dict(variables, _config().model, 133)
    saved = {"model": {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, "iteration": 7}
    torch.save(saved, tmp_path / "torch.pth")
    torch_import.convert(tmp_path / "torch.pth", _config(), tmp_path / "converted")
    image = min((COCO / "val2017").glob("*.jpg"))
    found = Predictor.from_checkpoint(tmp_path / "converted")(image)
    np.testing.assert_array_equal(found.panoptic.ids, Predictor.from_torch(file, _config())(image).panoptic.ids)


def test_a_fresh_model_takes_all_weights_of_the_file(file: Path, variables: dict) -> None:
    fresh = random_variables(ModelSpec(_config().model, num_classes=133), seed=1)
    found = start_from(fresh, file, _config())
    for new, old in zip(jax.tree.leaves(found), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(new, old)


def test_weights_of_a_workdir_are_taken_but_for_other_classes(file: Path, variables: dict, tmp_path: Path) -> None:
    config = _config()
    torch_import.convert(file, config, tmp_path)
    fresh = random_variables(ModelSpec(config.model, num_classes=5), seed=1)
    found = start_from(fresh, tmp_path, config)
    assert found["params"]["heads"]["class_embed"]["bias"] is fresh["params"]["heads"]["class_embed"]["bias"]
    pairs = found["params"]["decoder"], variables["params"]["decoder"]
    for new, old in zip(*map(jax.tree.leaves, pairs), strict=True):
        np.testing.assert_array_equal(new, old)
    config.model.hidden_dim = 64
    with pytest.raises(ValueError, match=r"(?s)init_from = .*not those of config\.model"):
        start_from(random_variables(ModelSpec(config.model, num_classes=133)), tmp_path, config)


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.train\.init_from = .*r50\.pth"):
        start_from({}, tmp_path / "r50.pth", _config())


@pytest.mark.slow
def test_training_starts_from_the_file(file: Path, variables: dict, tmp_path: Path) -> None:
    config = _config(steps=1)
    config.train.init_from, config.optimizer.learning_rate = str(file), 0.0
    runner.train(config, tmp_path)
    restored = Reader(tmp_path).variables(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables))
    for old, new in zip(jax.tree.leaves(variables), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(old, new)

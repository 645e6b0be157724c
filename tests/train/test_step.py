"""The step: parts of a batch add up, devices do not matter, and a poisoned step changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from maskdino_jax.config import Config
from maskdino_jax.data import open_dataset, train_batches
from maskdino_jax.model import ModelSpec
from maskdino_jax.structures import Batch
from maskdino_jax.train.loop import place
from maskdino_jax.train.optimizer import build_optimizer
from maskdino_jax.train.step import build_train_step
from tests.e2e.conftest import smallest
from tests.weights import random_variables


def _mesh(devices: int) -> jax.sharding.Mesh:
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def _step(config: Config, devices: int, batch: Batch, poison: bool = False) -> tuple[dict, dict]:
    """State and metrics after one step from the same random weights."""
    mesh, spec = _mesh(devices), ModelSpec(config.model, num_classes=133)
    variables = random_variables(spec)
    if poison:
        variables["params"]["heads"]["class_embed"]["bias"][0] = np.inf
    state = {"step": jnp.int32(0), **variables, "opt": build_optimizer(config.optimizer).init(variables["params"])}
    state = jax.device_put(state, NamedSharding(mesh, P()))
    state, metrics = build_train_step(spec, config, mesh)(state, place(batch, mesh))
    return jax.device_get(state), jax.device_get(metrics)


@pytest.fixture(scope="module")
def batch() -> Batch:
    config = smallest()
    with train_batches(open_dataset(config.data, "train"), config, 0) as batches:
        return next(batches)


@pytest.fixture(scope="module")
def whole(batch: Batch) -> tuple[dict, dict]:
    return _step(_quiet(), 1, batch)


def _quiet(**train: object) -> Config:
    """Without denoising noise and with a step small enough to compare gradients through the update."""
    config = smallest(**train)
    config.model.denoising.mode = "none"
    return config


def test_four_devices_take_the_step_of_one(batch: Batch, whole: tuple[dict, dict]) -> None:
    _, alone = whole
    _, shared = _step(_quiet(), 4, batch)
    assert alone.keys() == shared.keys()
    for name, value in alone.items():
        assert float(shared[name]) == pytest.approx(float(value), rel=1e-4), name


def test_parts_share_the_normaliser_of_the_whole_batch(batch: Batch, whole: tuple[dict, dict]) -> None:
    """Class and box terms do not depend on the drawn points, given the same assignment up to near ties."""
    _, at_once = whole
    _, in_parts = _step(_quiet(accumulate=2), 1, batch)
    assert float(in_parts["loss_ce"]) == pytest.approx(float(at_once["loss_ce"]), rel=0.02)
    assert float(in_parts["loss_bbox"]) == pytest.approx(float(at_once["loss_bbox"]), rel=0.05)
    assert float(in_parts["grad_norm"]) == pytest.approx(float(at_once["grad_norm"]), rel=0.2)


def test_a_step_that_is_not_finite_leaves_the_parameters(batch: Batch) -> None:
    config = _quiet()
    state, metrics = _step(config, 1, batch, poison=True)
    assert not np.isfinite(metrics["loss"])
    assert int(state["step"]) == 1
    before = random_variables(ModelSpec(config.model, num_classes=133))["params"]
    before["heads"]["class_embed"]["bias"][0] = np.inf
    jax.tree.map(np.testing.assert_array_equal, state["params"], before)
    assert not any(np.any(x) for x in jax.tree.leaves(state["opt"]))

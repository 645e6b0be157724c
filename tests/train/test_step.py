"""The step: parts of a batch add up, devices do not matter, and a poisoned step changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
    """Sixteen crops of the four training images."""
    config = smallest()
    with train_batches(open_dataset(config.data, "train"), config, 0) as batches:
        parts = [next(batches) for _ in range(4)]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


@pytest.fixture(scope="module")
def whole(batch: Batch) -> tuple[dict, dict]:
    return _step(smallest(), 1, batch)


def _assert_same_step(found: tuple[dict, dict], expected: tuple[dict, dict]) -> None:
    """Loss terms, gradients (the first moments are a tenth of them) and changes of parameters."""
    (state, metrics), (wanted, numbers) = found, expected
    assert metrics.keys() == numbers.keys()
    for name, value in numbers.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-6), name
    mine, theirs = (optax.tree.get(x["opt"], "mu") for x in (state, wanted))
    compared = 0
    paths, length = jax.tree_util.tree_leaves_with_path, float(optax.tree.norm(theirs))
    for (path, x), y, p, q in zip(
        paths(mine),
        jax.tree.leaves(theirs),
        jax.tree.leaves(state["params"]),
        jax.tree.leaves(wanted["params"]),
        strict=True,
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * length, err_msg=name)
        clear = np.abs(y) > 1e-3 * length  # Adam turns the noise of small gradients into full steps
        np.testing.assert_allclose(p[clear], q[clear], rtol=0, atol=1e-5, err_msg=name)
        compared += clear.sum()
    assert compared > 1000


@pytest.mark.parametrize("devices", [2, 8])
def test_several_devices_take_the_step_of_one(devices: int, batch: Batch, whole: tuple[dict, dict]) -> None:
    _assert_same_step(_step(smallest(), devices, batch), whole)


def test_four_parts_of_four_images_take_the_step_of_sixteen(batch: Batch, whole: tuple[dict, dict]) -> None:
    _assert_same_step(_step(smallest(accumulate=4), 1, batch), whole)


def test_a_step_that_is_not_finite_leaves_the_parameters(batch: Batch) -> None:
    config = smallest()
    state, metrics = _step(config, 1, batch, poison=True)
    assert not np.isfinite(metrics["loss"])
    assert int(state["step"]) == 1
    before = random_variables(ModelSpec(config.model, num_classes=133))["params"]
    before["heads"]["class_embed"]["bias"][0] = np.inf
    jax.tree.map(np.testing.assert_array_equal, state["params"], before)
    assert not any(np.any(x) for x in jax.tree.leaves(state["opt"]))

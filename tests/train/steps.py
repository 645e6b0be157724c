"""One training step of the smallest model on sixteen crops, on any devices, and what it must agree in.

As a program it is one of several processes that take the step together:

    python -m tests.train.steps ADDRESS PROCESSES INDEX FSDP FILE
"""

import pickle
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from maskdino_jax.config import Config
from maskdino_jax.data import open_dataset, train_batches
from maskdino_jax.meshes import make_mesh, replicated, state_sharding
from maskdino_jax.model import ModelSpec
from maskdino_jax.structures import Batch
from maskdino_jax.train.loop import place
from maskdino_jax.train.optimizer import build_optimizer
from maskdino_jax.train.step import build_train_step
from tests.e2e.conftest import smallest
from tests.weights import random_variables

State = tuple[dict, dict]  # state and metrics after the step


def sixteen_crops() -> Batch:
    """Four crops of each of the four training images."""
    config = smallest()
    with train_batches(open_dataset(config.data, "train"), config, 0) as batches:
        parts = [next(batches) for _ in range(4)]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def take_step(config: Config, devices: int, batch: Batch, *, poison: bool = False) -> State:
    """State and metrics after one step from the same random weights; `batch` is this process's part."""
    mesh = make_mesh(config.mesh.fsdp, jax.devices()[:devices])
    spec = ModelSpec(config.model, num_classes=133)
    variables = random_variables(spec)
    if poison:
        variables["params"]["heads"]["class_embed"]["bias"][0] = np.inf
    state = {"step": jnp.int32(0), **variables, "opt": build_optimizer(config.optimizer).init(variables["params"])}
    if config.train.ema_decay:
        state["ema"] = variables["params"]
    state = jax.tree.map(_place, state, state_sharding(state, mesh))
    after, metrics = build_train_step(spec, config, mesh)(state, place(batch, mesh))
    same = lambda x, sharding: x.sharding.is_equivalent_to(sharding, x.ndim)
    assert all(jax.tree.leaves(jax.tree.map(same, after, state_sharding(after, mesh))))
    return jax.device_get(jax.device_put((after, metrics), replicated(mesh)))


def _place(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(np.shape(x), sharding, lambda part: np.asarray(x)[part])


def assert_same_step(found: State, expected: State) -> None:
    """Loss terms, gradients (the first moments are a tenth of them) and changes of parameters."""
    (state, metrics), (wanted, numbers) = found, expected
    assert metrics.keys() == numbers.keys()
    for name, value in numbers.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-6), name
    mine, theirs = (optax.tree.get(x["opt"], "mu") for x in (state, wanted))
    params = zip(jax.tree.leaves(state["params"]), jax.tree.leaves(wanted["params"]), strict=True)
    gradients = zip(jax.tree_util.tree_leaves_with_path(mine), jax.tree.leaves(theirs), strict=True)
    length, compared = float(optax.tree.norm(theirs)), 0
    for ((path, x), y), (p, q) in zip(gradients, params, strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * length, err_msg=name)
        clear = np.abs(y) > 1e-3 * length  # Adam turns the noise of small gradients into full steps
        np.testing.assert_allclose(p[clear], q[clear], rtol=0, atol=1e-5, err_msg=name)
        compared += clear.sum()
    assert compared > 1000


def main(address: str, processes: str, index: str, fsdp: str, file: str) -> None:
    jax.distributed.initialize(address, int(processes), int(index))
    size = 16 // int(processes)
    own = jax.tree.map(lambda x: x[int(index) * size :][:size], sixteen_crops())
    config = smallest(batch_size=16)
    config.mesh.fsdp = int(fsdp)
    done = take_step(config, len(jax.devices()), own)
    Path(file).write_bytes(pickle.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The step: parts of a batch add up, devices and processes do not matter, and a poisoned step changes nothing."""

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskdino_jax.model import ModelSpec
from maskdino_jax.structures import Batch
from maskdino_jax.train.step import image_keys
from tests.e2e.conftest import smallest
from tests.train.steps import State, assert_same_step, sixteen_crops, take_step
from tests.weights import random_variables


@pytest.fixture(scope="module")
def batch() -> Batch:
    return sixteen_crops()


@pytest.fixture(scope="module")
def whole(batch: Batch) -> State:
    return take_step(smallest(), 1, batch)


@pytest.mark.parametrize("fsdp", [1, 2])
def test_two_devices_take_the_step_of_one(fsdp: int, batch: Batch, whole: State) -> None:
    config = smallest()
    config.mesh.fsdp = fsdp
    assert_same_step(take_step(config, 2, batch), whole)


def test_four_parts_of_four_images_take_the_step_of_sixteen(batch: Batch, whole: State) -> None:
    assert_same_step(take_step(smallest(accumulate=4), 1, batch), whole)


def test_bfloat16_takes_nearly_the_same_step_and_keeps_float32_state(batch: Batch, whole: State) -> None:
    """The moving average is checked in passing: it is a tenth of the way from the old to the new parameters."""
    config = smallest(ema_decay=0.9)
    config.model.dtype = "bfloat16"
    state, metrics = take_step(config, 1, batch)
    assert {x.dtype for x in jax.tree.leaves((state["params"], state["ema"]))} == {np.dtype("float32")}
    assert float(metrics["loss"]) == pytest.approx(float(whole[1]["loss"]), rel=0.01)
    mine, theirs = (optax.tree.get(x["opt"], "mu") for x in (state, whole[0]))
    cosine = optax.tree.vdot(mine, theirs) / (optax.tree.norm(mine) * optax.tree.norm(theirs))
    assert cosine > 0.99
    before = random_variables(ModelSpec(config.model, num_classes=133))["params"]
    for old, new, average in zip(*map(jax.tree.leaves, (before, state["params"], state["ema"])), strict=True):
        np.testing.assert_allclose(average, 0.9 * old + 0.1 * new, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices", "fsdp"), [(1, 8, 1), (1, 8, 4), (2, 1, 1), (2, 2, 4)])
def test_other_processes_and_devices_take_the_step_of_one(
    processes: int, devices: int, fsdp: int, whole: State, tmp_path: Path
) -> None:
    """`devices` of each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    files = [tmp_path / f"{index}.pickle" for index in range(processes)]
    command = [sys.executable, "-m", "tests.train.steps", address, str(processes)]
    running = [
        subprocess.Popen([*command, str(index), str(fsdp), str(file)], env=environment, cwd=Path(__file__).parents[2])
        for index, file in enumerate(files)
    ]
    assert [process.wait(timeout=300) for process in running] == [0] * processes
    for file in files:
        assert_same_step(pickle.loads(file.read_bytes()), whole)


def test_every_image_of_every_step_draws_its_own_numbers() -> None:
    draws = [jax.random.key_data(image_keys(seed, jnp.int32(step), 4)) for seed in (0, 1) for step in (0, 1)]
    assert len(np.unique(np.concatenate(draws), axis=0)) == 16


def test_a_step_that_is_not_finite_leaves_the_parameters(batch: Batch) -> None:
    config = smallest()
    state, metrics = take_step(config, 1, batch, poison=True)
    assert not np.isfinite(metrics["loss"])
    assert int(state["step"]) == 1
    before = random_variables(ModelSpec(config.model, num_classes=133))["params"]
    before["heads"]["class_embed"]["bias"][0] = np.inf
    jax.tree.map(np.testing.assert_array_equal, state["params"], before)
    assert not any(np.any(x) for x in jax.tree.leaves(state["opt"]))

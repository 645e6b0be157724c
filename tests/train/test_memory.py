"""What a step needs of memory, known before the first one."""

import functools
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from maskdino_jax.config import Config, ConfigError
from maskdino_jax.data import open_dataset, train_batches
from maskdino_jax.train.memory import (
    Forecast,
    abstract_batch,
    compile_step,
    forecast,
    remedies,
    require_memory,
)
from tests.e2e.conftest import smallest

MIB = 2**20


def _mesh(devices: int = 1) -> Mesh:
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


@pytest.mark.parametrize(("donated", "arrays"), [((), 2), ((0,), 1)])
def test_a_donated_argument_and_the_result_in_its_place_count_once(donated: tuple[int, ...], arrays: int) -> None:
    compiled = jax.jit(lambda x: x + 1, donate_argnums=donated).lower(jnp.zeros(MIB // 4)).compile()
    assert forecast(compiled, _mesh()).needed == pytest.approx(arrays * MIB, rel=0.05)


def test_what_is_computed_in_between_counts() -> None:
    square = jax.jit(lambda x: jnp.sum(jnp.sort(x[:, None] * x[None]))).lower(jnp.zeros(512)).compile()
    assert forecast(square, _mesh()).needed >= MIB  # 512 x 512 floats


def test_the_memory_of_a_machine_is_shared_by_its_cpu_devices() -> None:
    compiled = jax.jit(lambda x: x).lower(jnp.zeros(8)).compile()
    alone, four = (forecast(compiled, _mesh(devices)).available for devices in (1, 4))
    assert four == alone // 4
    assert alone > 2**30


def test_a_step_that_fits_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        require_memory(Forecast(needed=int(13.2 * 2**30), available=int(15.9 * 2**30)), Config(), 1)
    assert [record.getMessage() for record in caplog.records] == ["one step needs 13.2 GiB of 15.9 GiB on each device"]


def test_a_step_that_hardly_fits_is_a_warning_that_says_what_would_help(caplog: pytest.LogCaptureFixture) -> None:
    require_memory(Forecast(needed=98 * MIB, available=100 * MIB), Config(), 1)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "--config.train.remat=" in warning


def test_a_step_that_does_not_fit_is_an_error_that_says_what_would_help() -> None:
    config = Config()
    with pytest.raises(ConfigError, match=r"needs 20.0 GiB of 16.0 GiB on each device. Give --config.*, or"):
        require_memory(Forecast(needed=20 * 2**30, available=16 * 2**30), config, 1)
    config.train.remat, config.train.accumulate, config.model.dtype = "all", config.train.batch_size, "bfloat16"
    with pytest.raises(ConfigError, match=r"Give a smaller config.data.image_size"):
        require_memory(Forecast(needed=20 * 2**30, available=16 * 2**30), config, 1)


def test_where_memory_is_unknown_nothing_is_refused() -> None:
    require_memory(Forecast(needed=2**60, available=None), Config(), 1)
    require_memory(None, Config(), 1)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "devices", "parts"), [(16, 1, 4, 2), (12, 1, 4, 3), (16, 2, 2, 4), (16, 4, 4, None)]
)
def test_more_parts_are_proposed_if_they_divide_among_the_devices(
    batch_size: int, accumulate: int, devices: int, parts: int | None
) -> None:
    config = Config()
    config.train.batch_size, config.train.accumulate = batch_size, accumulate
    found = [option for option in remedies(config, devices) if "accumulate" in option]
    assert [option.split()[0] for option in found] == ([f"--config.train.accumulate={parts}"] if parts else [])


def test_options_that_are_on_are_not_proposed() -> None:
    config = Config()
    assert any("bfloat16" in option for option in remedies(config, 1))
    config.model.dtype, config.train.remat = "bfloat16", "all"
    assert not [option for option in remedies(config, 1) if "bfloat16" in option or "remat" in option]


def test_the_step_is_compiled_for_the_batches_that_come() -> None:
    config = smallest()
    with train_batches(open_dataset(config.data, "train"), config, 0) as batches:
        batch = next(batches)
    expected = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), jax.tree.map(np.asarray, batch))
    assert abstract_batch(config) == expected


def test_what_is_to_be_computed_again_is_not_kept_on_a_cpu_either() -> None:
    """Eight layers of 2048 hidden numbers for each of 4096 rows: 32 MiB each, of which one exists at a time."""
    config, temporary = Config(), {}
    weights, rows = jax.ShapeDtypeStruct((8, 64, 2048), jnp.float32), jax.ShapeDtypeStruct((4096, 64), jnp.float32)
    layer = lambda x, w: jnp.tanh(jax.nn.relu(x @ w) @ w.T)

    def loss(layer: Callable, weights: jax.Array, x: jax.Array) -> jax.Array:
        for index in range(8):
            x = layer(x, weights[index])
        return x.sum()

    for config.train.remat, one in (("none", layer), ("all", jax.checkpoint(layer))):
        traced = jax.jit(jax.grad(functools.partial(loss, one))).trace(weights, rows)
        step = compile_step(traced, config, _mesh())
        temporary[config.train.remat] = step.memory_analysis().temp_size_in_bytes
    assert temporary["none"] > 8 * 32 * MIB
    assert temporary["all"] < 4 * 32 * MIB

"""Compile the training step before the first batch, and compare the memory that it needs with what a device has."""

import dataclasses
import functools
import logging
import os

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.stages import Compiled, Traced

from maskdino_jax.config import Config, ConfigError
from maskdino_jax.model import ModelSpec
from maskdino_jax.structures import Batch, Targets
from maskdino_jax.train.step import State, build_train_step, init_state

_GIB = 2**30
_TIGHT = 0.95  # share of a device's memory above which little else fits

# XLA's CPU compiler drops the barriers around what is to be computed twice, and then finds out that it is the same.
_KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """Bytes of memory on each device."""

    needed: int  # state, batch, everything in between, and the program
    available: int | None  # None: unknown

    def __str__(self) -> str:
        of = "" if self.available is None else f" of {self.available / _GIB:.1f} GiB"
        return f"{self.needed / _GIB:.1f} GiB{of}"


def abstract_batch(config: Config) -> Batch:
    """Shapes and types of every training batch, over all devices and hosts."""
    b, n, (h, w) = config.train.batch_size, config.data.max_instances, config.data.image_size
    shape = jax.ShapeDtypeStruct
    return Batch(
        images=shape((b, h, w, 3), jnp.uint8),
        targets=Targets(
            labels=shape((b, n), jnp.int32),
            boxes=shape((b, n, 4), jnp.float32),
            masks=shape((b, n, h, w // 8), jnp.uint8) if config.model.masks else None,
            is_thing=shape((b, n), jnp.bool),
            valid=shape((b, n), jnp.bool),
        ),
        records=shape((b,), jnp.int32),
        dropped=shape((b,), jnp.int32),
        skipped=shape((b,), jnp.int32),
    )


def abstract_state(spec: ModelSpec, config: Config) -> State:
    """Shapes and types of the training state."""
    return jax.eval_shape(functools.partial(init_state, spec, config))


def trace_step(spec: ModelSpec, config: Config, mesh: Mesh) -> Traced:
    """`build_train_step` for the state and the batches of this config, of which only the shapes are known yet."""
    return build_train_step(spec, config, mesh).trace(abstract_state(spec, config), abstract_batch(config))


def compile_step(traced: Traced, config: Config, mesh: Mesh) -> Compiled:
    """The program of `trace_step`, which takes a state and a batch of just those shapes."""
    twice_on_cpu = config.train.remat != "none" and mesh.devices.flat[0].platform == "cpu"
    return traced.lower().compile(compiler_options=_KEEP_BARRIERS if twice_on_cpu else None)


def bytes_needed(step: Compiled) -> int | None:
    """What one call of a compiled step needs on each device; None where the compiler does not say."""
    found = step.memory_analysis()
    if found is None:
        return None
    results = found.output_size_in_bytes - found.alias_size_in_bytes  # the new state takes the place of the old
    return found.argument_size_in_bytes + results + found.temp_size_in_bytes + found.generated_code_size_in_bytes


def forecast(step: Compiled, mesh: Mesh) -> Forecast | None:
    """`bytes_needed` beside what there is; None where the compiler does not say.

    On a GPU `available` is what JAX may allocate, by default three quarters of the memory; on a CPU the memory of the
    machine, divided by the CPU devices of this process.
    """
    needed = bytes_needed(step)
    if needed is None:
        return None
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        known = hasattr(os, "sysconf")  # not on Windows
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else None
        return Forecast(needed=needed, available=machine and machine // len(mesh.local_devices))
    return Forecast(needed=needed, available=(device.memory_stats() or {}).get("bytes_limit"))


def require_memory(found: Forecast | None, config: Config, devices: int) -> None:
    """Log the forecast; warn where it is tight.

    Raises:
        ConfigError: one step needs more than a device has; names the options that would help and are not yet on.
    """
    if found is None:
        return
    logging.info("one step needs %s on each device", found)
    if found.available is None or found.needed <= _TIGHT * found.available:
        return
    options = remedies(config, devices)
    advice = f"Give {', or '.join(options)}" if options else "Give a smaller config.data.image_size"
    message = f"one step needs {found} on each device. {advice}; see docs/training.md."
    if found.needed > found.available:
        raise ConfigError(message)
    logging.warning("memory is tight: %s", message)


def remedies(config: Config, devices: int) -> list[str]:
    """Options that save memory and are not yet on, first those that leave the result as it is."""
    options = []
    if config.train.remat != "all":
        options.append("--config.train.remat=all")
    images = config.train.batch_size // devices
    smaller = [parts for parts in range(config.train.accumulate + 1, images + 1) if images % parts == 0]
    if smaller:
        options.append(f"--config.train.accumulate={smaller[0]} (the same batch in smaller parts)")
    if config.model.dtype == "float32":
        options.append("--config.model.dtype=bfloat16")
    return options

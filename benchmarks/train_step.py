"""Compile a training step without running it, and say what it costs: operations, memory, gathers, sorts, callbacks.

    python -m benchmarks.train_step --config=configs/coco_instance.py:r50
    python -m benchmarks.train_step --config=configs/coco_instance.py:r50 --all
    python -m benchmarks.train_step --gpu --batch=16 --all

It needs neither data nor weights. Any option is overridden, as in `--config.train.remat=all`. `--all` makes the table
of docs/training.md: the memory of every `config.model.dtype` and `config.train.remat`, a minute or two each. `--gpu`
compiles for an H200, which need not be there; the matching is then on the device, as JAX cannot lower a callback for a
host that is not there.
"""

import contextlib
import copy
import itertools
import logging
import os
import sys
import time

if "--gpu" in sys.argv:
    os.environ["JAX_PLATFORMS"] = "cpu"  # with a GPU, JAX would look for its driver

import jax
from absl import app, flags
from jax.sharding import AxisType, Mesh
from jax.stages import Compiled, Traced
from ml_collections import config_flags

from benchmarks import audit, cost_model
from benchmarks.absent_gpu import absent_gpus
from maskdino_jax.config import Config
from maskdino_jax.losses.mask_loss import chunk_size
from maskdino_jax.model import ModelSpec
from maskdino_jax.train.memory import bytes_needed, compile_step, trace_step

# An image of COCO has 7.3 objects, matched in 11 prediction sets; 30 denoising slots answer for them in 10 sets.
TYPICAL_ROWS = 400

_MIB, _GIB = 2**20, 2**30


def trace(config: Config, mesh: Mesh) -> Traced:
    """The step of `config` with 80 classes; seconds."""
    return trace_step(ModelSpec(config.model, cost_model.CLASSES), config, mesh)


def one_device() -> Mesh:
    return jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])


def flops(traced: Traced, config: Config, rows: int, mesh: Mesh) -> float:
    """Operations for one image with this many pairs of a query and a target in all prediction sets."""
    turns = -(-rows // chunk_size(mesh.devices.flat[0].platform))
    return audit.flops(traced.jaxpr.jaxpr, turns) / config.train.batch_size


def temporary(step: Compiled, config: Config) -> float:
    """Bytes for one image that are neither state nor batch."""
    return step.memory_analysis().temp_size_in_bytes / config.train.batch_size


def report(config: Config, rows: int, mesh: Mesh) -> str:
    """What one step costs, a line for each finding."""
    traced = trace(config, mesh)
    step = compile_step(traced, config, mesh)
    stages, images = cost_model.train_step(config, rows), config.train.batch_size
    does, should = flops(traced, config, rows, mesh), sum(stage.flops * stage.times for stage in stages.values())
    gather = audit.largest_gather(step)
    sort = max(audit.largest_sort(step), audit.largest_sort(traced.jaxpr.jaxpr), key=lambda sort: sort.size)
    lines = [
        *(f"  {name:<40} {stage.flops / 1e9:7.1f} GFLOP x {stage.times}" for name, stage in stages.items()),
        f"operations of an image: {does / 1e9:.0f} GFLOP, {does / should:.3f} of the model above",
        f"largest gather: {gather.size / images / _MIB:.1f} MiB of an image; {gather.where[:200]}",
        f"largest sort: {sort.size} elements; {sort.where[:200]}",
        f"host callbacks: {audit.host_callbacks(step)}",
        f"temporary memory of an image: {temporary(step, config) / _GIB:.2f} GiB",
        f"a step needs {bytes_needed(step) / _GIB:.1f} GiB",
    ]
    return "\n".join(lines)


def table(config: Config, mesh: Mesh) -> str:
    """Temporary memory of an image for every compute type and choice of remat, and what each computes."""
    lines = ["| `model.dtype` | `train.remat` | temporary memory of an image, GiB | GFLOP of an image | compiled in |"]
    lines.append("|---|---|---|---|---|")
    for dtype, remat in itertools.product(("float32", "bfloat16"), ("none", "transformer", "backbone", "all")):
        own = copy.deepcopy(config)
        own.model.dtype, own.train.remat = dtype, remat
        start = time.perf_counter()
        traced = trace(own, mesh)
        step = compile_step(traced, own, mesh)
        cells = f"{temporary(step, own) / _GIB:.2f} | {flops(traced, own, _ROWS.value, mesh) / 1e9:.0f}"
        lines.append(f"| {dtype} | {remat} | {cells} | {time.perf_counter() - start:.0f} s |")
        logging.info("%s", lines[-1])
    return "\n".join(lines)


def main(_: list[str]) -> None:
    logging.getLogger("jax").setLevel(logging.WARNING)
    config: Config = _CONFIG.value
    config.train.batch_size = _BATCH.value
    if _GPU.value:
        config.loss.matcher = "device"
    with absent_gpus() if _GPU.value else contextlib.nullcontext(one_device()) as mesh:
        kind = mesh.devices.flat[0].device_kind
        logging.info("jax %s, %s, %d images on one device", jax.__version__, kind, _BATCH.value)
        logging.info("%s", table(config, mesh) if _ALL.value else report(config, _ROWS.value, mesh))


if __name__ == "__main__":
    # Not when imported: the package's own command line has flags of the same names.
    _CONFIG = config_flags.DEFINE_config_file("config", "configs/coco_instance.py:r50", "Config file and variant.")
    _BATCH = flags.DEFINE_integer("batch", 1, "Images.")
    _ROWS = flags.DEFINE_integer("rows", TYPICAL_ROWS, "Pairs of an image whose masks are compared, in all sets.")
    _GPU = flags.DEFINE_bool("gpu", False, "Compile for an H200 that need not be there.")
    _ALL = flags.DEFINE_bool("all", False, "Memory of every type and every choice of remat.")
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    app.run(main)

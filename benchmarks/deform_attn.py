"""Time multi-scale deformable attention on a GPU: the Pallas kernel, the XLA definition and a plain gather.

    python benchmarks/deform_attn.py --output=docs/benchmarks

Every implementation is first compared with the plain gather in float64; a wrong one ends the run before anything is
timed. Writes one JSON file per device and logs a table. `--smoke` runs tiny shapes on any device, to test this script.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import logging
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from maskdino_kernels import ms_deform_attn

from maskdino_jax.ops.deform_attn import deform_attn

LEVELS_1024 = ((128, 128), (64, 64), (32, 32), (16, 16))  # strides 8 to 64 of an image of 1024 x 1024
HEADS, CHANNELS, POINTS = 8, 32, 4
INPUT_SETS = 4  # taken in turn, so that no run finds its input in the cache
GATE_QUERIES = 512
# Largest norm of the error over the norm of the float64 result.
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-3}

logger = logging.getLogger("benchmark")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    batch: int
    queries: int  # 0: every token is a query and looks around itself, as in the encoder; else boxes of the decoder
    dtype: str
    levels: tuple[tuple[int, int], ...] = LEVELS_1024


CASES = [
    Case(name=name, batch=batch, queries=queries, dtype=dtype)
    for name, batch, queries in (("encoder", 16, 0), ("encoder", 1, 0), ("decoder", 16, 400), ("decoder", 1, 300))
    for dtype in ("bfloat16", "float32")
]
SMOKE_CASES = [Case(name="decoder", batch=1, queries=5, dtype="bfloat16", levels=((4, 4),))]


@functools.partial(jax.jit, static_argnums=0)
def make_inputs(case: Case, seed: int) -> tuple[jax.Array, ...]:
    """Value, offsets, logits, references and the gradient of the result.

    Offsets are odd multiples of 1/128 pixel and references lie on the grid of the finest level, whose sides are powers
    of two: no sample lies on a pixel's centre line, where the gradient jumps and float32 and float64 may disagree.
    """
    keys = jax.random.split(jax.random.key(seed), 6)
    tokens = sum(height * width for height, width in case.levels)
    q = case.queries or tokens
    samples = len(case.levels) * POINTS
    value = jax.random.normal(keys[0], (case.batch, tokens, HEADS, CHANNELS)).astype(case.dtype)
    offsets = jax.random.normal(keys[1], (case.batch, q, HEADS, len(case.levels), POINTS, 2)) * 2
    offsets = jnp.round(offsets * 64) / 64 + 1 / 128
    logits = jax.random.normal(keys[2], (case.batch, q, HEADS, samples))
    if case.queries:
        finest = case.levels[0][0]
        centres = (jax.random.randint(keys[3], (case.batch, q, 2), 0, finest) + 0.5) / finest
        extents = 2.0 ** -jax.random.randint(keys[4], (case.batch, q, 2), 1, 4)
        references = jnp.concatenate([centres, extents], axis=-1)
    else:
        grids = [
            jnp.stack(jnp.meshgrid((jnp.arange(w) + 0.5) / w, (jnp.arange(h) + 0.5) / h), axis=-1).reshape(-1, 2)
            for h, w in case.levels
        ]
        references = jnp.broadcast_to(jnp.concatenate(grids), (case.batch, tokens, 2))
    grad = jax.random.normal(keys[5], (case.batch, q, HEADS * CHANNELS)).astype(case.dtype)
    return value, offsets, logits, references, grad


def plain_gather(value, offsets, logits, references, level_sizes):
    """The same operation as one writes it first: gather all corners of all samples, then add them up."""
    b, q, m, _, p, _ = offsets.shape
    sizes = jnp.array([(width, height) for height, width in level_sizes])
    starts = [sum(h * w for h, w in level_sizes[:i]) for i in range(len(level_sizes))]
    references = references[:, :, None, None, None]
    if references.shape[-1] == 4:
        offsets = offsets / p * references[..., 2:] * 0.5 * sizes[:, None]
    points = references[..., :2] * sizes[:, None] + offsets - 0.5
    # [b, q, m, l, p, corner, (x, y)]
    corners = jnp.floor(points)[..., None, :] + jnp.array([(0, 0), (1, 0), (0, 1), (1, 1)], points.dtype)
    inside = jnp.all((corners >= 0) & (corners < sizes[:, None, None]), axis=-1)
    weights = jnp.where(inside, jnp.prod(1 - jnp.abs(points[..., None, :] - corners), axis=-1), 0)
    weights *= jax.nn.softmax(logits, axis=-1).reshape(b, q, m, -1, p, 1)
    column, row = jnp.moveaxis(jnp.clip(corners, 0, sizes[:, None, None] - 1).astype(jnp.int32), -1, 0)
    tokens = jnp.array(starts)[:, None, None] + row * sizes[:, None, None, 0] + column
    tokens = tokens.transpose(0, 2, 1, 3, 4, 5).reshape(b, m, -1, 1)
    rows = value.astype(offsets.dtype).transpose(0, 2, 1, 3)  # before the gather, so that its gradient adds up exactly
    found = jnp.take_along_axis(rows, tokens, axis=2, mode="promise_in_bounds")
    found = found.reshape(b, m, q, -1, value.shape[-1]) * weights.transpose(0, 2, 1, 3, 4, 5).reshape(b, m, q, -1, 1)
    return found.sum(axis=3).transpose(0, 2, 1, 3).reshape(b, q, -1).astype(value.dtype)


def implementations(on_gpu: bool) -> dict[str, Callable]:
    """By name; without a GPU the kernel is interpreted, which has no gradient."""
    pallas = (
        functools.partial(deform_attn, impl="pallas") if on_gpu else functools.partial(ms_deform_attn, interpret=True)
    )
    return {"pallas": pallas, "xla": deform_attn, "plain gather": plain_gather}


def make_run(attend: Callable, case: Case, backward: bool) -> Callable:
    """A function of the inputs: the result and, if wanted, the gradients by value, offsets and logits."""

    def forward(value, offsets, logits, references, grad):
        return attend(value, offsets, logits, references, case.levels)

    def forward_and_backward(value, offsets, logits, references, grad):
        out, pull = jax.vjp(lambda *x: attend(*x, references, case.levels), value, offsets, logits)
        return out, *pull(grad)

    return jax.jit(forward_and_backward if backward else forward)


def check(attends: dict[str, Callable], case: Case, backward: bool) -> None:
    """Compare one image and the first queries of a case with the plain gather in float64.

    Raises:
        RuntimeError: an error is beyond `TOLERANCE`.
    """
    value, *rest = make_inputs(dataclasses.replace(case, batch=1), seed=100)
    inputs = (value, *(a[:, :GATE_QUERIES] for a in rest))
    with jax.enable_x64(True):
        wide = [a.astype(jnp.float64) for a in inputs]
        exact = [np.asarray(a) for a in jax.tree.leaves(make_run(plain_gather, case, backward)(*wide))]
    for name, attend in attends.items():
        results = [np.asarray(a, np.float64) for a in jax.tree.leaves(make_run(attend, case, backward)(*inputs))]
        errors = [float(np.linalg.norm(a - e) / np.linalg.norm(e)) for a, e in zip(results, exact, strict=True)]
        if not max(errors) <= TOLERANCE[case.dtype]:  # also when an error is NaN
            raise RuntimeError(f"{name} is wrong on {case}: errors {errors}, allowed {TOLERANCE[case.dtype]}")


def measure(run: Callable, inputs: list, warmups: int, repetitions: int) -> dict[str, float]:
    """Milliseconds of one call: median and interquartile range. A repetition runs every input set once."""
    compiled = run.lower(*inputs[0]).compile()
    for i in range(warmups):
        jax.block_until_ready(compiled(*inputs[i % len(inputs)]))
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        jax.block_until_ready([compiled(*x) for x in inputs])
        times.append((time.perf_counter() - start) * 1000 / len(inputs))
    low, median, high = statistics.quantiles(times, n=4)
    return {"median_ms": median, "iqr_ms": high - low, "temp_bytes": compiled.memory_analysis().temp_size_in_bytes}


def measure_case(case: Case, on_gpu: bool, warmups: int, repetitions: int) -> list[dict]:
    rows = []
    for backward in (False, True):
        attends = implementations(on_gpu)
        if backward and not on_gpu:
            del attends["pallas"]
        check(attends, case, backward)
        inputs = [jax.block_until_ready(make_inputs(case, seed)) for seed in range(INPUT_SETS)]
        for name, attend in attends.items():
            row = {"implementation": name, "pass": "forward+backward" if backward else "forward"}
            row |= dataclasses.asdict(case)
            try:
                row |= measure(make_run(attend, case, backward), inputs, warmups, repetitions)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                row["error"] = "out of memory"
            rows.append(row)
            logger.info(_line(row, reference=next((r for r in rows if r["pass"] == row["pass"]), row)))
    return rows


def _line(row: dict, reference: dict) -> str:
    label = f"{row['name']:8} b{row['batch']:<3} {row['dtype']:9} {row['pass']:17} {row['implementation']:13}"
    if "error" in row:
        return f"{label} {row['error']}"
    ratio = row["median_ms"] / reference["median_ms"] if "median_ms" in reference else float("nan")
    memory = row["temp_bytes"] / 2**20
    return f"{label} {row['median_ms']:9.3f} ms  ± {row['iqr_ms']:7.3f}  x {ratio:6.2f}  {memory:9.1f} MiB temporary"


def main(argv: list[str]) -> pathlib.Path:
    """Run the benchmark; returns the file written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder of the JSON file")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on any device; the times mean nothing")
    args = parser.parse_args(argv)
    device = jax.devices()[0]
    on_gpu = device.platform == "gpu"
    if not on_gpu and not args.smoke:
        parser.error(
            f"JAX sees no GPU, only {device.device_kind!r}. Install JAX with CUDA, or test this script by --smoke."
        )
    warmups, repetitions = (1, 2) if args.smoke else (10, 50)
    logger.info("The ratio x compares with the first implementation of the same case and pass.")
    rows = []
    for case in SMOKE_CASES if args.smoke else CASES:
        rows += measure_case(case, on_gpu, warmups, repetitions)
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python benchmarks/deform_attn.py", *argv]),
        "device": device.device_kind,
        "driver": device.client.platform_version,
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "jaxlib": jaxlib.__version__},
        "warmups": warmups,
        "repetitions": repetitions,
        "input_sets": INPUT_SETS,
        "results": rows,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / f"deform_attn_{device.device_kind.lower().replace(' ', '_')}{'_smoke' * args.smoke}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    logger.info("written to %s", path)
    return path


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1:])

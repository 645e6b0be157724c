"""Time multi-scale deformable attention against other ways to write it, in one run, after checking all of them.

    python benchmarks/deform_attn.py --output=docs/benchmarks               # NVIDIA GPU: kernel, definition, PyTorch
    taskset -c 1 python benchmarks/deform_attn.py --cpu --output=docs/benchmarks   # any CPU, one core
    python benchmarks/deform_attn.py --sweep --output=kernels/tiles.json    # NVIDIA GPU: its entry of the tile table

Every implementation is first compared with the plain gather in float64; a wrong one ends the run before anything is
timed. Writes a JSON file for each device, and a table in Markdown. `--smoke` tests this script with tiny shapes.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import logging
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator

if "--cpu" in sys.argv:
    os.environ["JAX_PLATFORMS"] = "cpu"
# PyTorch needs the memory that JAX does not use.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from deform_attn_peers import grid_sample, plain_gather, run_torch, torch_peers
from maskdino_kernels import tiles

from maskdino_jax.ops.deform_attn import deform_attn

LEVELS_1024 = ((128, 128), (64, 64), (32, 32), (16, 16))  # strides 8 to 64 of an image of 1024 x 1024
LEVELS_512 = ((64, 64), (32, 32), (16, 16), (8, 8))
LEVELS_SWIN = ((256, 256), *LEVELS_1024)
HEADS, CHANNELS, POINTS = 8, 32, 4
INPUT_SETS = 1 if "--cpu" in sys.argv else 4  # taken in turn, so that no run finds its input in the cache
GATE_QUERIES = 512
SECONDS, FEWEST = 3.0, 3  # measuring one implementation ends after so long and so often, or all repetitions
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
SWEEP = [(block, warps) for block in (16, 32, 64, 128) for warps in (1, 2, 4, 8)]
# Largest norm of the error over the norm of the float64 result.
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-3, "float16": 1e-3}

logger = logging.getLogger("benchmark")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    batch: int
    queries: int  # 0: every token is a query and looks around itself, as in the encoder; else boxes of the decoder
    dtype: str
    levels: tuple[tuple[int, int], ...] = LEVELS_1024


CASES = [
    Case(name=name, batch=batch, queries=queries, dtype=dtype, levels=levels)
    for name, batch, queries, levels in (
        ("encoder", 16, 0, LEVELS_1024),
        ("encoder", 1, 0, LEVELS_1024),
        ("encoder, 5 levels", 2, 0, LEVELS_SWIN),
        ("decoder", 16, 400, LEVELS_1024),
        ("decoder", 1, 300, LEVELS_1024),
    )
    for dtype in ("bfloat16", "float32")
]
CPU_CASES = [Case(name="encoder", batch=1, queries=0, dtype="float32", levels=LEVELS_512)]
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


def implementations(on_gpu: bool) -> dict[str, Callable]:
    """By name, ours first. On a GPU without PyTorch its peers are missing."""
    definition = {"xla": functools.partial(deform_attn, impl="xla")}
    plain = {"grid sample": grid_sample, "one gather": plain_gather}
    if not on_gpu:
        return definition | plain
    ordered = {"deterministic": functools.partial(deform_attn, impl="deterministic")}
    return {"pallas": functools.partial(deform_attn, impl="pallas")} | definition | ordered | plain | torch_peers()


def make_run(name: str, attend: Callable, case: Case, backward: bool) -> Callable:
    """A function of the inputs: the result and, if wanted, the gradients by value, offsets and logits."""
    if name.startswith("torch"):
        return lambda *arrays: run_torch(attend, arrays, case.levels, backward)

    def forward(value, offsets, logits, references, grad):
        return (attend(value, offsets, logits, references, case.levels),)

    def forward_and_backward(value, offsets, logits, references, grad):
        out, pull = jax.vjp(lambda *x: attend(*x, references, case.levels), value, offsets, logits)
        return out, *pull(grad)

    return jax.jit(forward_and_backward if backward else forward)


def wait(results) -> None:
    for result in jax.tree.leaves(results):
        if isinstance(result, jax.Array):
            result.block_until_ready()
        else:
            sys.modules["torch"].cuda.synchronize()


def check(attends: dict[str, Callable], case: Case, backward: bool) -> None:
    """Compare one image and the first queries of a case with the plain gather in float64.

    Raises:
        RuntimeError: an error is beyond `TOLERANCE`.
    """
    value, *rest = make_inputs(dataclasses.replace(case, batch=1), seed=100)
    inputs = (value, *(a[:, :GATE_QUERIES] for a in rest))
    with jax.enable_x64(True):
        wide = [a.astype(jnp.float64) for a in inputs]
        exact = [np.asarray(a) for a in make_run("", plain_gather, case, backward)(*wide)]
    for name, attend in attends.items():
        results = make_run(name, attend, case, backward)(*inputs)
        results = [
            np.asarray(a if isinstance(a, jax.Array) else a.detach().double().cpu(), np.float64) for a in results
        ]
        errors = [float(np.linalg.norm(a - e) / np.linalg.norm(e)) for a, e in zip(results, exact, strict=True)]
        if not max(errors) <= TOLERANCE[case.dtype]:  # also when an error is NaN
            raise RuntimeError(f"{name} is wrong on {case}: errors {errors}, allowed {TOLERANCE[case.dtype]}")


def measure(runs: dict[str, Callable], inputs: list, repetitions: int, clock: Callable) -> dict[str, dict[str, float]]:
    """Milliseconds of one call of each: median and interquartile range. They take turns, so that noise meets all."""
    calls, rows = {}, {}
    for name, run in runs.items():
        try:
            call = run if name.startswith("torch") else run.lower(*inputs[0]).compile()
            rows[name] = {} if call is run else {"temp_bytes": call.memory_analysis().temp_size_in_bytes}
            for _ in range(2):
                wait(call(*inputs[0]))
            calls[name] = call
        except RuntimeError as error:  # of JAX and of PyTorch
            if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error):
                raise
            rows[name] = {"error": "out of memory"}
    times, spent = {name: [] for name in calls}, dict.fromkeys(calls, 0.0)
    for repetition in range(repetitions):
        for name, call in calls.items():
            if spent[name] > SECONDS and repetition >= FEWEST:
                continue
            begin = time.perf_counter()
            # Not timed: the one before may have given the allocator's memory back to the system, and getting 14 MB
            # again costs a CPU as much as our forward pass itself.
            wait(call(*inputs[-1]))
            start = clock()
            wait([call(*x) for x in inputs])
            times[name].append((clock() - start) * 1000 / len(inputs))
            spent[name] += time.perf_counter() - begin
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        rows[name] |= {"median_ms": median, "iqr_ms": high - low, "repetitions": len(values)}
    return rows


def floor_ms(case: Case, backward: bool) -> float:
    """The least time that an H200 could take, from its clocks and widths; measured on it is none of this.

    Memory moves 4.3 TB/s. A forward pass looks up 6.5 cache lines for 8 rows of bfloat16, one a clock in each of 132
    cores at 1.98 GHz. A backward pass adds each row, 4 sectors of 32 bytes, in 96 slices of the cache at 1.7 GHz.
    """
    tokens = sum(height * width for height, width in case.levels)
    queries, size = case.queries or tokens, 2 if case.dtype == "bfloat16" else 4
    samples = case.batch * queries * HEADS * len(case.levels) * POINTS
    values, results = (case.batch * n * HEADS * CHANNELS for n in (tokens, queries))
    moved = (values + results) * size + samples * 12
    forward = max(moved / 4.3e12, 4 * samples * (size / 2) * 6.5 / 8 / (132 * 1.98e9))
    if not backward:
        return forward * 1000
    moved += values * 4 + results * size + samples * 12
    return (forward + max(moved / 4.3e12, 4 * samples * 4 / (96 * 1.7e9))) * 1000


def measure_case(case: Case, attends: dict[str, Callable], repetitions: int, clock: Callable) -> Iterator[dict]:
    inputs = [jax.block_until_ready(make_inputs(case, seed)) for seed in range(INPUT_SETS)]
    for backward in (False, True):
        check(attends, case, backward)
        runs = {name: make_run(name, attend, case, backward) for name, attend in attends.items()}
        rows = measure(runs, inputs, repetitions, clock)
        ours = next(iter(rows.values()))
        for name, row in rows.items():
            row = dataclasses.asdict(case) | {"implementation": name, "pass": PASSES[backward]} | row
            if "median_ms" in row and "median_ms" in ours:
                row["ratio"] = row["median_ms"] / ours["median_ms"]
            if "H200" in jax.devices()[0].device_kind and "median_ms" in row:
                row["share_of_floor"] = floor_ms(case, backward) / row["median_ms"]
            logger.info(_table_line(row))
            yield row


PASSES = ("forward", "forward+backward")
HEADER = """| case | images | type | pass | implementation | ms | ± | times ours | floor / time | temporary MiB |
|---|---|---|---|---|---|---|---|---|---|"""


def _table_line(row: dict) -> str:
    cells = [row["name"], row["batch"], row["dtype"], row["pass"], row["implementation"]]
    if "error" in row:
        return f"| {' | '.join(map(str, [*cells, row['error'], '', '', '', '']))} |"
    cells += [f"{row['median_ms']:.3f}", f"{row['iqr_ms']:.3f}", f"{row['ratio']:.2f}" if "ratio" in row else ""]
    cells += [f"{row['share_of_floor']:.0%}" if "share_of_floor" in row else ""]
    cells += [f"{row['temp_bytes'] / 2**20:.1f}" if "temp_bytes" in row else ""]
    return f"| {' | '.join(map(str, cells))} |"


def sweep(path: pathlib.Path, cases: list[Case], repetitions: int) -> None:
    """Time the kernel with every tile and write the fastest of each workload into the table at `path`."""
    table = json.loads(path.read_text()) if path.exists() else json.loads(tiles.PATH.read_text())
    entry = dict(table["default"])
    attends = {"pallas": functools.partial(deform_attn, impl="pallas")}
    for case in cases:
        inputs = [jax.block_until_ready(make_inputs(case, seed)) for seed in range(INPUT_SETS)]
        queries = inputs[0][1].shape[1]
        for backward in (False, True):
            found = {}
            for block, warps in SWEEP:
                tile = tiles.Tile(block, warps)
                with tiles.override(tile, backward=backward):
                    try:
                        check(attends, case, backward)
                        run = make_run("pallas", attends["pallas"], case, backward)
                        row = measure({"pallas": run}, inputs, repetitions, time.perf_counter)["pallas"]
                    except jax.errors.JaxRuntimeError as error:  # too large for the GPU's registers or shared memory
                        logger.info("%s %s does not run: %.100s", case.name, tile, error)
                        continue
                found[tile] = row["median_ms"]
                logger.info("%s %s %s %.3f ms", case.name, PASSES[backward], tile, row["median_ms"])
            best = min(found, key=found.get)
            entry[tiles.workload(queries, backward=backward)] = dataclasses.asdict(best)
    table[jax.devices()[0].device_kind] = entry
    path.write_text(json.dumps(table, indent=1) + "\n")
    logger.info("written to %s", path)


def write_report(folder: pathlib.Path, name: str, argv: list[str], rows: list[dict], unit: str) -> pathlib.Path:
    device = jax.devices()[0]
    versions = {"python": platform.python_version(), "jax": jax.__version__, "jaxlib": jaxlib.__version__}
    if "torch" in sys.modules:
        versions["torch"] = sys.modules["torch"].__version__
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python benchmarks/deform_attn.py", *argv]),
        "device": device.device_kind
        if device.platform == "gpu"
        else f"CPU {platform.processor() or platform.machine()}",
        "driver": device.client.platform_version,
        "versions": versions,
        "unit": unit,
        "input_sets": INPUT_SETS,
        "results": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    about = [f"{report['device']}, {', '.join(f'{k} {v}' for k, v in versions.items())}, {report['date']}."]
    about += [f"Median and interquartile range of {unit}; `times ours` compares with the first row of its group.", ""]
    about += [f"    {report['command']}", "", HEADER, *map(_table_line, rows)]
    path.with_suffix(".md").write_text("\n".join(["# Deformable attention", "", *about]) + "\n")
    logger.info("written to %s", path)
    return path


def main(argv: list[str]) -> pathlib.Path:
    """Run the benchmark; returns the file written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder; of --sweep the file of the table")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--cpu", action="store_true", help="compare what runs without a GPU, in CPU time")
    mode.add_argument("--sweep", action="store_true", help="find the fastest tiles of the kernel on this GPU")
    mode.add_argument("--smoke", action="store_true", help="tiny shapes, on any device; the times mean nothing")
    args = parser.parse_args(argv)
    device = jax.devices()[0]
    on_gpu = device.platform == "gpu"
    if not (on_gpu or args.cpu or args.smoke):
        parser.error(
            f"JAX sees no GPU, only {device.device_kind!r}. Install JAX with CUDA, compare what runs on a CPU by "
            "--cpu, or test this script by --smoke."
        )
    if args.sweep:
        sweep(args.output, [case for case in CASES if case.dtype == "bfloat16" and len(case.levels) == 4], 10)
        return args.output
    cases, repetitions = (SMOKE_CASES, 2) if args.smoke else (CPU_CASES, 15) if args.cpu else (CASES, 50)
    clock, unit = time.perf_counter, "a call, milliseconds"
    if args.cpu:  # other programs on the machine then do not count
        clock, unit = time.process_time, "a call, milliseconds of CPU time"
    name = "cpu" if args.cpu else device.device_kind.lower().replace(" ", "_") + "_smoke" * args.smoke
    logger.info("%s", HEADER)
    rows = [row for case in cases for row in measure_case(case, implementations(on_gpu), repetitions, clock)]
    return write_report(args.output, f"deform_attn_{name}", argv, rows, unit)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1:])

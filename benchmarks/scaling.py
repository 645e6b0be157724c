"""Memory of the divided training state, and weak scaling by simulation: what many GPUs lose by waiting for each other.

    python -m benchmarks.scaling --root=datasets/coco

Two costs are measured here, on one core of this machine: matching the images of a GPU with SciPy, and making a training
image. The time of a step on a GPU and the speed of the network are assumptions, given as flags and printed with the
result. Each simulated step waits for the slowest matching of all GPUs, for the part of the gradients' sum that the
backward pass does not hide, and, if a host's queue of batches has run dry, for its loader.
"""

import functools
import math
import statistics
import sys
import time

import jax
import numpy as np
from absl import app, flags
from jax.sharding import AbstractMesh, AxisType
from scipy.optimize import linear_sum_assignment

from configs.coco_panoptic import get_config
from maskdino_jax.data import open_dataset
from maskdino_jax.data.augmentation import augment
from maskdino_jax.data.batching import sample
from maskdino_jax.meshes import state_sharding
from maskdino_jax.model import ModelSpec
from maskdino_jax.train.step import init_state

_ROOT = flags.DEFINE_string("root", "datasets/coco", "COCO folder; some images of it suffice.")
_STEP = flags.DEFINE_float("step_ms", 215.0, "Assumed: a step of 16 images on one GPU, ms.")
_BACKWARD = flags.DEFINE_float("backward_share", 0.6, "Assumed: share of a step that can hide the sum of gradients.")
_PARAMETERS = flags.DEFINE_float("parameters", 44e6, "Trained parameters; their gradients are float32.")
_IN_HOST = flags.DEFINE_float("host_gb_s", 370.0, "Assumed: speed of a sum over the GPUs of a host, GB/s.")
_BETWEEN = flags.DEFINE_float("network_gb_s", 50.0, "Assumed: speed between hosts for each GPU, GB/s.")
_CORES = flags.DEFINE_integer("cores", 12, "Loader processes for each GPU.")
_STEPS = flags.DEFINE_integer("steps", 2000, "Simulated steps.")

IMAGES, SETS, QUERIES, MEAN_OBJECTS, MOST_OBJECTS = 16, 11, 300, 7.3, 93
PER_HOST, QUEUE = 8, 3  # GPUs; batches that the loader is ahead at most


def object_counts(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Objects of an image: a geometric tail with COCO's mean and maximum."""
    return np.minimum(rng.geometric(1 / MEAN_OBJECTS, size), MOST_OBJECTS)


def matching_seconds(rng: np.random.Generator) -> dict[int, float]:
    """Median time to match one prediction set of an image, for some numbers of objects."""
    found = {}
    for count in (1, 5, 10, 20, 40, 70, MOST_OBJECTS):
        costs = rng.normal(size=(30, QUERIES, count))
        times = []
        for cost in costs:
            start = time.perf_counter()
            linear_sum_assignment(cost)
            times.append(time.perf_counter() - start)
        found[count] = statistics.median(times)
    return found


def loading_seconds() -> list[float]:
    """Times to make a training image, one core."""
    config = get_config("r50")
    config.data.format, config.data.classes = "coco_instances", "coco_instances"
    config.data.train.annotations = "annotations/instances_train2017.json"
    config.data.root = _ROOT.value
    dataset = open_dataset(config.data, "train")
    times = []
    for turn in range(3):
        for record in range(len(dataset)):
            rng = np.random.default_rng((turn, record))
            start = time.perf_counter()
            sample(augment(dataset[record], rng, config.data), record, config.data.max_instances)
            times.append(time.perf_counter() - start)
    return times


def state_mebibytes(model: str, fsdp: int) -> float:
    """Parameters, optimizer state and moving average on each of `fsdp` devices that divide them."""
    config = get_config(model)
    config.train.ema_decay = 0.9999
    state = jax.eval_shape(functools.partial(init_state, ModelSpec(config.model, 133), config))
    mesh = AbstractMesh((1, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(state_sharding(state, mesh)), strict=True)
    return sum(math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, place in leaves) / 2**20


def simulate(gpus: int, rng: np.random.Generator, matching: dict[int, float], loading: np.ndarray) -> np.ndarray:
    """Parts of the mean step in ms: compute, matching, gradients, loader."""
    step, hosts = _STEP.value / 1e3, max(gpus // PER_HOST, 1)
    size = 4 * _PARAMETERS.value
    inside = 2 * size * (1 - 1 / min(gpus, PER_HOST)) / (_IN_HOST.value * 1e9)
    between = 2 * size / PER_HOST * (1 - 1 / hosts) / (_BETWEEN.value * 1e9)
    exposed = max(inside + between - _BACKWARD.value * step, 0)
    parts = np.zeros(4)
    ahead = np.full(gpus, QUEUE * step)  # seconds of work that each loader has in its queue
    for _ in range(_STEPS.value):
        counts = object_counts(rng, (gpus, IMAGES))
        solve = SETS * np.interp(counts, list(matching), list(matching.values())).sum(axis=1)
        load = rng.choice(loading, (gpus, IMAGES)).sum(axis=1) / _CORES.value
        ahead = ahead - load
        wait = max(-ahead.min(), 0)
        duration = step + solve.max() + exposed
        ahead = np.minimum(ahead + wait + duration, QUEUE * step)
        parts += step, solve.max(), exposed, wait
    return 1e3 * parts / _STEPS.value


def main(_: list[str]) -> None:
    rng = np.random.default_rng(0)
    matching, loading = matching_seconds(rng), np.array(loading_seconds())
    say = lambda text: sys.stdout.write(text + "\n")
    say("| state on each device, MiB | fsdp=1 | 2 | 4 | 8 |\n|---|---|---|---|---|")
    for model in ("r50", "swin_l"):
        say(f"| {model} | " + " | ".join(f"{state_mebibytes(model, fsdp):.0f}" for fsdp in (1, 2, 4, 8)) + " |")
    say("")
    say("measured: matching one set of 300 queries, objects: microseconds")
    say("  " + ", ".join(f"{count}: {1e6 * seconds:.0f}" for count, seconds in matching.items()))
    low, middle, high = np.percentile(1e3 * loading, (5, 50, 95))
    say(f"measured: making an image, ms: median {middle:.1f}, 5 to 95 % {low:.1f} to {high:.1f}")
    say(
        f"assumed: {_STEP.value:.0f} ms a step of {IMAGES} images, {_IN_HOST.value:.0f} GB/s in a host, "
        f"{_BETWEEN.value:.0f} GB/s between hosts, {_CORES.value} loader processes for each GPU\n"
    )
    say("| GPUs | step, ms | compute | slowest matching | gradients not hidden | loader | efficiency |")
    say("|---|---|---|---|---|---|---|")
    for gpus in (1, 8, 64, 512):
        parts = simulate(gpus, rng, matching, loading)
        cells = " | ".join(f"{part:.1f}" for part in parts)
        say(f"| {gpus} | {parts.sum():.1f} | {cells} | {100 * parts[0] / parts.sum():.1f} % |")


if __name__ == "__main__":
    app.run(main)

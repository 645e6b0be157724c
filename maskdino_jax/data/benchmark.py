"""Time the training pipeline on one core, beside the plain one, and see that both give the same.

    python -m maskdino_jax.data.benchmark --root=/data/coco

reads the COCO layout below `root`: `train2017`, `annotations/instances_train2017.json`, and with them
`annotations/panoptic_train2017.json` and `panoptic_train2017` if they are there. `--images`, `--annotations`,
`--panoptic_annotations` and `--panoptic` name others. Without any, it reads the nuclei that come with the package.

Times are seconds of the processor, as the operating system counts them for this process, so that other programs
disturb as little as possible.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from maskdino_jax.config import DataConfig, SplitConfig
from maskdino_jax.data.batching import Sample, sample
from maskdino_jax.data.dataset import Dataset
from maskdino_jax.data.datasets import open_dataset
from maskdino_jax.data.files import find
from maskdino_jax.data.plain import plain_sample
from maskdino_jax.data.transforms import Draws, Example, draw, jitter, move_image, placed

T = TypeVar("T")

_NUCLEI = SplitConfig(
    images="train",
    annotations="annotations/panoptic_train.json",
    panoptic="panoptic_train",
    instances="annotations/instances_train.json",
)
_COCO = SplitConfig(
    images="train2017",
    annotations="annotations/panoptic_train2017.json",
    panoptic="panoptic_train2017",
    instances="annotations/instances_train2017.json",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """What one round through the images took, in seconds of the processor."""

    images: int
    plain: float
    fast: float
    stages: dict[str, float]  # of the fast one, taken apart
    different: int  # images of which the two pipelines made different samples


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a table for each kind of annotations; the exit status is 1 if the two pipelines disagree."""
    options = _parser().parse_args(arguments)
    disagree = False
    for kind, data in _configs(options):
        dataset = open_dataset(data, "train")
        images = range(min(len(dataset), options.limit))
        measure(dataset, data, images[:3], 0)  # first calls load and allocate
        rounds = [measure(dataset, data, images, seed) for seed in range(options.rounds)]
        sys.stdout.write("\n".join([f"{kind}, {dataset!r}", *report(rounds), "", ""]))
        disagree |= any(one.different for one in rounds)
    sys.exit(int(disagree))


def measure(dataset: Dataset, data: DataConfig, images: Sequence[int], seed: int) -> Timing:
    """Send each image through both pipelines, one after the other, with the same random numbers."""
    spent: dict[str, float] = defaultdict(float)
    clock = functools.partial(_clock, spent)
    stages: dict[str, float] = defaultdict(float)
    different = 0
    for index in images:
        draws = draw(np.random.default_rng((seed, index)), data)
        arguments = draws, data.image_size, index, data.max_instances
        expected = clock("plain", lambda arguments=arguments: plain_sample(dataset[arguments[2]], *arguments))
        found = clock("fast", lambda arguments=arguments: _fast(dataset[arguments[2]], *arguments))
        different += not _equal(found, expected)
        for name, seconds in _stages(dataset, index, draws, data).items():
            stages[name] += seconds
    return Timing(
        images=len(images), plain=spent["plain"], fast=spent["fast"], stages=dict(stages), different=different
    )


def report(rounds: Sequence[Timing]) -> Iterator[str]:
    """Lines of a table in Markdown: images a second, and where the time goes."""
    rate = lambda name: sorted(one.images / getattr(one, name) for one in rounds)
    gain = sorted(one.plain / one.fast for one in rounds)
    spread = lambda values, digits: (
        f"{statistics.median(values):.{digits}f} ({values[0]:.{digits}f} to {values[-1]:.{digits}f})"
    )
    yield "| | median of the rounds (lowest to highest) |"
    yield "|---|---|"
    yield f"| plain pipeline, images/s | {spread(rate('plain'), 1)} |"
    yield f"| this pipeline, images/s | {spread(rate('fast'), 1)} |"
    yield f"| times as fast | {spread(gain, 2)} |"
    compared, different = sum(one.images for one in rounds), sum(one.different for one in rounds)
    yield f"| samples that differ | {different} of {compared} |"
    yield ""
    yield "| stage | ms for an image | share |"
    yield "|---|---|---|"
    mean = {name: statistics.median(one.stages[name] / one.images for one in rounds) for name in rounds[0].stages}
    for name, seconds in mean.items():
        yield f"| {name} | {1000 * seconds:.2f} | {100 * seconds / sum(mean.values()):.0f} % |"


def _fast(example: Example, draws: Draws, size: tuple[int, int], record: int, max_instances: int) -> Sample:
    return sample(jitter(example, draws, size), record, max_instances)


def _stages(dataset: Dataset, index: int, draws: Draws, data: DataConfig) -> dict[str, float]:
    """The same in parts, each run by itself."""
    spent: dict[str, float] = defaultdict(float)
    clock = functools.partial(_clock, spent)
    clock("decode the image", lambda: dataset.image(index))
    example = clock("read", lambda: dataset[index])
    geometry = placed(example.image.shape[:2], draws, data.image_size)
    image = clock("flip, resize and cut it", lambda: move_image(example.image, geometry))
    objects, kept = clock("move the objects", lambda: example.objects.move(geometry))
    moved = Example(image=image, labels=example.labels[kept], is_thing=example.is_thing[kept], objects=objects)
    clock("rasterise and pack them", lambda: sample(moved, index, data.max_instances))
    decode = spent.pop("decode the image")
    return {"decode the image": decode, "read the annotations": spent.pop("read") - decode, **spent}


def _clock(spent: dict[str, float], name: str, function: Callable[[], T]) -> T:
    started = time.process_time()
    result = function()
    spent[name] += time.process_time() - started
    return result


def _equal(found: Sample, expected: Sample) -> bool:
    fields = [field.name for field in dataclasses.fields(Sample)]
    return all(np.array_equal(getattr(found, name), getattr(expected, name)) for name in fields)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m maskdino_jax.data.benchmark", description=__doc__.split("\n")[0])
    parser.add_argument("--root", default="", help="Folder of the data set; none: the nuclei of the package.")
    parser.add_argument("--images", help="Folder of images, below the root.")
    parser.add_argument("--annotations", help="COCO instances JSON.")
    parser.add_argument("--panoptic_annotations", help="COCO panoptic JSON.")
    parser.add_argument("--panoptic", help="Folder of panoptic PNG.")
    parser.add_argument("--limit", type=int, default=100, help="Images of a round.")
    parser.add_argument("--rounds", type=int, default=5, help="Rounds, each with other random numbers.")
    return parser


def _configs(options: argparse.Namespace) -> Iterator[tuple[str, DataConfig]]:
    """Instances and panoptic, what there is of it, with the crops of the official recipe."""
    layout = _COCO if options.root else _NUCLEI
    images = options.images or layout.images
    instances = SplitConfig(images=images, annotations=options.annotations or layout.instances)
    panoptic = SplitConfig(
        images=images,
        annotations=options.panoptic_annotations or layout.annotations,
        panoptic=options.panoptic or layout.panoptic,
    )
    root = Path(options.root) if options.root else Path(__file__).parent / "samples" / "nuclei"
    for kind, split in (("instances", instances), ("panoptic", panoptic)):
        if find(root, split.annotations):
            data = DataConfig(root=str(root), format=f"coco_{kind}", train=split, keep_empty=True)
            yield kind, data


if __name__ == "__main__":
    main()

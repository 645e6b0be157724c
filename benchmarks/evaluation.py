"""Time and memory of box AP, mask AP and PQ on a synthetic data set, beside pycocotools.

    python -m benchmarks.evaluation --images=5000 --detections=100

Each measurement is a process of its own: the first makes images one by one and scores them as they come, the second
gives all of them to pycocotools. Making the images is not timed. Seconds are those of the processor, one thread.
Objects are ellipses of 80 classes, 7 in an image of 640 x 480 pixels on average; half of the detections lie near an
object, the others anywhere.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import app, flags
from pycocotools import mask as coco_mask

_IMAGES = flags.DEFINE_integer("images", 5000, "Number of images.")
_DETECTIONS = flags.DEFINE_integer("detections", 100, "Detections in each image.")
_CASE = flags.DEFINE_string("case", None, "Run one case and print a JSON line; without it, run all.")

HEIGHT, WIDTH, CLASSES, OBJECTS = 480, 640, 80, 7
CASES = ("making the images", "bbox fast", "bbox pycocotools", "segm fast", "segm pycocotools", "panoptic")
_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)

Entry = dict[str, Any]


def ellipses(rng: np.random.Generator, boxes: np.ndarray, classes: np.ndarray, image_id: int) -> list[Entry]:
    """Entries with box and mask; boxes are x, y, width, height."""
    centres, radii = boxes[:, None, :2] + boxes[:, None, 2:] / 2, boxes[:, None, 2:] / 2
    outlines = centres + radii * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=-1)
    outlines = outlines.clip(0, (WIDTH, HEIGHT)).reshape(len(boxes), 2 * len(_ANGLES))
    runs = coco_mask.frPyObjects(list(outlines.tolist()), HEIGHT, WIDTH) if len(boxes) else []
    return [
        {"image_id": image_id, "category_id": int(category), "bbox": box.tolist(), "segmentation": mask}
        for category, box, mask in zip(classes, boxes, runs, strict=True)
    ]


def image(number: int) -> tuple[list[Entry], list[Entry]]:
    """Objects and detections of one image, the same for the same number."""
    rng = np.random.default_rng(number)
    sides = lambda count: np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
    place = lambda size: np.concatenate([rng.uniform(0, 1, size.shape) * ((WIDTH, HEIGHT) - size), size], axis=1)
    boxes, classes = place(sides(rng.poisson(OBJECTS))), None
    classes = rng.integers(0, CLASSES, len(boxes))
    objects = ellipses(rng, boxes, classes, number)
    for entry in objects:
        entry |= {"area": float(coco_mask.area(entry["segmentation"])), "iscrowd": int(rng.random() < 0.01)}
    near = _DETECTIONS.value // 2 if len(boxes) else 0
    chosen = rng.integers(0, max(len(boxes), 1), near)
    noise = rng.normal(0, 0.1, (near, 4)) * np.tile(boxes[chosen, 2:], 2) if near else np.zeros((0, 4))
    moved = boxes[chosen] + noise if near else np.zeros((0, 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], 2)
    far = place(sides(_DETECTIONS.value - near))
    labels = np.concatenate([classes[chosen] if near else [], rng.integers(0, CLASSES, len(far))])
    detections = ellipses(rng, np.concatenate([moved, far]), labels, number)
    for entry, score in zip(detections, rng.random(len(detections)).tolist(), strict=True):
        entry["score"] = score
    return objects, detections


class _Objects:
    """Ground truth for pycocotools."""

    categories = tuple({"id": number, "name": str(number)} for number in range(CLASSES))

    def __init__(self, objects: dict[int, list[Entry]]) -> None:
        self._objects = objects

    def __getitem__(self, image_id: int | str) -> list[Entry]:
        return self._objects[image_id]


def fast(kind: str, images: Iterator[tuple[list[Entry], list[Entry]]], clock: Callable) -> dict[str, float]:
    from maskdino_jax.evaluation.matching import Candidates, assign, boxes_overlap, candidates, masks_overlap
    from maskdino_jax.evaluation.precision import curves, summarize

    overlap = {"bbox": boxes_overlap, "segm": masks_overlap}[kind]
    found = [clock(lambda x=x: candidates(*x, kind, overlap)) for x in images]
    names = [str(number) for number in range(CLASSES)]

    def finish() -> dict[str, float]:
        joined = Candidates.joined(found)
        return summarize(curves(joined, assign(joined), range(CLASSES)), names)

    return clock(finish)


def by_pycocotools(kind: str, images: Iterator[tuple[list[Entry], list[Entry]]], clock: Callable) -> dict[str, float]:
    from maskdino_jax.evaluation import reference

    objects, results = {}, []
    for number, (truth, detections) in enumerate(images):
        objects[number] = truth
        results += detections
    return clock(lambda: reference.score(_Objects(objects), results, range(len(objects)), kind))


def panoptic(number: int, clock: Callable) -> Any:
    """Counts of one image: 12 segments against the same ones moved by some pixels."""
    from maskdino_jax.evaluation.panoptic_quality import count
    from maskdino_jax.evaluation.regions import Regions

    rng = np.random.default_rng(number)
    centres = rng.uniform(0, 1, (12, 2)) * (HEIGHT / 8, WIDTH / 8)
    rows, columns = np.mgrid[: HEIGHT // 8, : WIDTH // 8]
    nearest = np.argmin((rows[..., None] - centres[:, 0]) ** 2 + (columns[..., None] - centres[:, 1]) ** 2, axis=-1)
    ids = (nearest + 1).astype(np.int32).repeat(8, axis=0).repeat(8, axis=1)
    labels, segments, crowd = rng.integers(0, CLASSES, 12), np.arange(1, 13), np.zeros(12, bool)
    sides = [Regions(x, segments, labels, crowd) for x in (ids, np.roll(ids, rng.integers(0, 9, 2), (0, 1)))]
    return clock(lambda: count(*sides, CLASSES))


def run_case(case: str) -> None:
    spent = 0.0

    def clock(function: Callable[[], Any]) -> Any:
        nonlocal spent
        start = time.process_time()
        result = function()
        spent += time.process_time() - start
        return result

    numbers, value = range(_IMAGES.value), None
    kind, _, engine = case.partition(" ")
    if case == "panoptic":
        total = [panoptic(number, clock) for number in numbers]
        value = float(sum(x.iou.sum() for x in total) / sum(x.matched.sum() for x in total))
    elif engine in ("fast", "pycocotools"):
        score = fast if engine == "fast" else by_pycocotools
        value = score(kind, map(image, numbers), clock)["AP"]
    else:
        for number in numbers:
            image(number)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # MiB; on Linux it is given in KiB
    sys.stdout.write(json.dumps({"case": case, "seconds": spent, "peak_mib": peak, "value": value}) + "\n")


def main(_: list[str]) -> None:
    if _CASE.value is not None:
        run_case(_CASE.value)
        return
    sys.stdout.write(f"{_IMAGES.value} images, {_DETECTIONS.value} detections each\n\n")
    sys.stdout.write("| case | seconds | peak memory, MiB | value |\n|---|---|---|---|\n")
    for case in CASES:
        options = [f"--images={_IMAGES.value}", f"--detections={_DETECTIONS.value}", f"--case={case}"]
        command = [sys.executable, "-m", "benchmarks.evaluation", *options]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        value = "" if found["value"] is None else f"{found['value']:.12f}"
        sys.stdout.write(f"| {case} | {found['seconds']:.1f} | {found['peak_mib']:.0f} | {value} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    app.run(main)

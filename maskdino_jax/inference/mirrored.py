"""Test-time augmentation of instances: an image and its mirror image, merged into one list.

The model works without suppression, so that no rule for merging is published. This one keeps its idea that an object
has one detection: those of the two views that are of one class and cover the same pixels are one, whose score is the
mean of both. What only one view has found was given nothing by the other one, and its score is halved.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from maskdino_jax.inference.postprocess import Pending, Postprocessor
from maskdino_jax.inference.results import Instances, Segments
from maskdino_jax.structures import EvalBatch, Outputs

_SAME = 0.5  # IoU from which two detections of a class are one, COCO's most lenient threshold


class Mirrored:
    """In place of a `Postprocessor` for instances: `begin` asks the device, `finish` does the host's part."""

    def __init__(
        self, predict: Callable[[EvalBatch], Outputs], postprocessor: Postprocessor, task: str, most: int
    ) -> None:
        """`task`: "instance" or "detection"; `most`: how many are kept of an image."""
        self._predict, self._postprocessor, self._task, self._most = predict, postprocessor, task, most

    def begin(self, batch: EvalBatch) -> list[Pending]:
        """Start on the valid images of a batch, in its order."""
        begin = lambda view: self._postprocessor.begin(self._predict(view), view, (self._task,))
        views = [begin(view) for view in (batch, _mirrored_batch(batch))]
        return [
            dataclasses.replace(plain, found={"plain": plain.found, "mirrored": other.found})
            for plain, other in zip(*views, strict=True)
        ]

    def finish(self, pending: Pending) -> Segments:
        """Wait for the device and make the result."""
        plain, other = (
            self._postprocessor.finish(dataclasses.replace(pending, found=pending.found[view]))
            for view in ("plain", "mirrored")
        )
        width = pending.frame.original_size[1]
        merged = merge(plain.instances, mirrored(other.instances, width), self._most)
        return dataclasses.replace(plain, instances=merged)


def _mirrored_batch(batch: EvalBatch) -> EvalBatch:
    """Each image mirrored where it lies: it keeps its corner of the canvas."""
    images = batch.images.copy()
    for image, (height, width) in zip(images, batch.sizes, strict=True):
        image[:height, :width] = image[:height, :width][:, ::-1].copy()
    return dataclasses.replace(batch, images=images)


def mirrored(instances: Instances, width: int) -> Instances:
    """The instances of an image of `width` pixels as those of its mirror image."""
    boxes = instances.boxes.copy()
    boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    bits = instances.bits
    if bits is not None:  # one at a time: unpacked, all of them are a byte for each pixel
        bits = np.empty_like(bits)
        for index in range(len(bits)):
            bits[index] = np.packbits(instances.mask(index)[:, ::-1], axis=-1)
    return dataclasses.replace(instances, boxes=boxes, bits=bits)


def merge(first: Instances, second: Instances, most: int) -> Instances:
    """The `most` best of two lists of the same image, best first.

    A detection of `first`, the best one first, takes the closest one of `second` that has its class and is not taken
    yet, if their IoU is at least one half. Of such a pair the better one stays, with the mean of both scores.
    """
    partner = np.full(len(first), -1)
    free = np.ones(len(second), bool)
    for index in range(len(first)):
        places = np.flatnonzero(free & (second.labels == first.labels[index]))
        if len(places):
            overlaps = _overlaps(first, index, second, places)
            if overlaps.max() >= _SAME:
                partner[index] = places[overlaps.argmax()]
                free[partner[index]] = False
    paired = partner >= 0
    scores = np.concatenate([first.scores, second.scores]) / 2
    sums = scores[: len(first)][paired] + scores[len(first) :][partner[paired]]
    worse = second.scores[partner[paired]] > first.scores[paired]
    kept = np.ones(len(scores), bool)
    kept[np.flatnonzero(paired)[worse]] = False
    kept[len(first) + partner[paired][~worse]] = False
    scores[: len(first)][paired] = sums
    scores[len(first) :][partner[paired]] = sums
    places = np.flatnonzero(kept)
    places = places[np.argsort(-scores[places], kind="stable")[:most]]
    join = lambda one, other: None if one is None else np.concatenate([one, other])[places]
    rows = {name: join(value, getattr(second, name)) for name, value in vars(first).items() if name != "width"}
    return dataclasses.replace(first, **rows | {"scores": scores[places]})


def _overlaps(first: Instances, index: int, second: Instances, places: Int[np.ndarray, "p"]) -> Float[np.ndarray, "p"]:
    """IoU of one detection with some of another list: of masks, or of boxes where there are none."""
    if first.bits is None:
        one, others = first.boxes[index], second.boxes[places]
        sides = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        area = lambda boxes: np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)
        union = area(one) + area(others) - shared
    else:
        one, others = first.bits[index], second.bits[places]
        count = lambda bits: np.bitwise_count(bits).sum(axis=(-2, -1), dtype=np.int64)
        shared = count(one & others)
        union = count(one) + count(others) - shared
    return shared / np.maximum(union, 1e-9)

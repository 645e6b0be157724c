"""Pad examples of one size to static shapes: `Sample` for one image, `Batch` for several."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from maskdino_jax.data.objects import Boxes
from maskdino_jax.data.transforms import Example
from maskdino_jax.structures import Batch, Targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One training image, not yet padded to `max_instances`. Loader processes send these: packed, small."""

    image: UInt8[np.ndarray, "h w 3"]
    labels: Int[np.ndarray, "n"]
    boxes: Float[np.ndarray, "n 4"]  # as in `Targets`
    masks: UInt8[np.ndarray, "n h w8"] | None  # as in `Targets`
    is_thing: Bool[np.ndarray, "n"]
    record: int
    dropped: int
    skipped: int


def sample(example: Example, record: int, max_instances: int, keep_empty: bool = True, *, skipped: int = 0) -> Sample:
    """Rasterise and pack the objects of a cropped example, keeping the largest `max_instances` in their order.

    Unless `keep_empty`, objects without a pixel in the crop are no targets. Objects that are boxes have no masks.
    """
    height, width = example.image.shape[:2]
    if isinstance(example.objects, Boxes):
        masks, corners = None, example.objects.corners.astype(np.float32)
        areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    else:
        masks, corners, areas = example.objects.rasters()
    present = len(corners) if keep_empty else np.count_nonzero(areas)
    kept = np.sort(np.argsort(-areas, kind="stable")[: min(present, max_instances)])
    return Sample(
        image=example.image,
        labels=example.labels[kept].astype(np.int32),
        boxes=_normalized(corners[kept], height, width),
        masks=masks if masks is None or len(kept) == len(masks) else masks[kept],
        is_thing=example.is_thing[kept],
        record=record,
        dropped=present - len(kept),
        skipped=skipped,
    )


def collate(samples: Sequence[Sample], max_instances: int) -> Batch:
    """Stack samples of one image size; objects come first, then filler up to `max_instances`."""

    def padded(arrays: Sequence[Shaped[np.ndarray, "n ..."]]) -> Shaped[np.ndarray, "b m ..."]:
        rows = np.zeros((len(arrays), max_instances, *arrays[0].shape[1:]), arrays[0].dtype)
        for row, array in zip(rows, arrays, strict=True):
            row[: len(array)] = array
        return rows

    return Batch(
        images=np.stack([sample.image for sample in samples]),
        targets=Targets(
            labels=padded([sample.labels for sample in samples]),
            boxes=padded([sample.boxes for sample in samples]),
            masks=None if samples[0].masks is None else padded([sample.masks for sample in samples]),
            is_thing=padded([sample.is_thing for sample in samples]),
            valid=padded([np.ones(len(sample.labels), bool) for sample in samples]),
        ),
        records=np.array([sample.record for sample in samples], np.int32),
        dropped=np.array([sample.dropped for sample in samples], np.int32),
        skipped=np.array([sample.skipped for sample in samples], np.int32),
    )


def _normalized(corners: Float[np.ndarray, "n 4"], height: int, width: int) -> Float[np.ndarray, "n 4"]:
    """x0, y0, x1, y1 in pixels -> centre and size as shares of the crop, float32."""
    low, high = corners[:, :2], corners[:, 2:]
    size = np.array([width, height, width, height], np.float32)
    return np.concatenate([(low + high) / 2, high - low], axis=1) / size

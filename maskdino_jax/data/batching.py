"""Pad examples of one size to static shapes: `Sample` for one image, `Batch` for several."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from maskdino_jax.data.objects import Boxes, Objects
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


def pack_mask(mask: Bool[np.ndarray, "*n h w"]) -> UInt8[np.ndarray, "*n h w8"]:
    """Eight pixels of a row in a byte, the first one in the highest bit."""
    return np.packbits(mask, axis=-1)


def unpack_mask(packed: UInt8[np.ndarray, "*n h w8"]) -> Bool[np.ndarray, "*n h w"]:
    """The inverse of `pack_mask` for widths that are multiples of 8."""
    return np.unpackbits(packed, axis=-1).astype(bool)


def sample(example: Example, record: int, max_instances: int, keep_empty: bool = True) -> Sample:
    """Rasterise and pack the objects of a cropped example, keeping the largest `max_instances` in their order.

    Unless `keep_empty`, objects without a pixel in the crop are no targets. Objects that are boxes have no masks.
    """
    height, width = example.image.shape[:2]
    if isinstance(example.objects, Boxes):
        masks, corners = None, example.objects.corners.astype(np.float32)
        areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    else:
        masks, corners, areas = _rasters(example.objects, height, width)
    present = len(corners) if keep_empty else np.count_nonzero(areas)
    kept = np.sort(np.argsort(-areas, kind="stable")[: min(present, max_instances)])
    return Sample(
        image=example.image,
        labels=example.labels[kept].astype(np.int32),
        boxes=_normalized(corners[kept], height, width),
        masks=None if masks is None else masks[kept],
        is_thing=example.is_thing[kept],
        record=record,
        dropped=present - len(kept),
    )


def _rasters(
    objects: Objects, height: int, width: int
) -> tuple[UInt8[np.ndarray, "n h w8"], Float[np.ndarray, "n 4"], Int[np.ndarray, "n"]]:
    """Packed masks, boxes as corners in pixels, and areas. Masks are made one at a time, see `objects`."""
    count = len(objects)
    masks = np.empty((count, height, width // 8), np.uint8)
    corners = np.empty((count, 4), np.float32)
    areas = np.empty(count, np.int64)
    for index in range(count):
        mask, corners[index] = objects.raster(index)
        masks[index] = pack_mask(mask)
        areas[index] = np.count_nonzero(mask)
    return masks, corners, areas


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
    )


def _normalized(corners: Float[np.ndarray, "n 4"], height: int, width: int) -> Float[np.ndarray, "n 4"]:
    """x0, y0, x1, y1 in pixels -> centre and size as shares of the crop, float32."""
    low, high = corners[:, :2], corners[:, 2:]
    size = np.array([width, height, width, height], np.float32)
    return np.concatenate([(low + high) / 2, high - low], axis=1) / size

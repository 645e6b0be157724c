"""Large-scale jittering written straight from its definition, with Pillow, Shapely and pycocotools on whole images.

Nobody trains with this: it is what `benchmark` and the tests hold the fast pipeline against.
"""

import numpy as np
import shapely
from jaxtyping import Bool, Float32, Int, Shaped, UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from maskdino_jax.data.batching import Sample
from maskdino_jax.data.masks import Box, Mask, mask_box
from maskdino_jax.data.objects import Outline, RunLengths, Segments
from maskdino_jax.data.runs import decode_runs, parse_runs
from maskdino_jax.data.transforms import PADDING, Draws, Example

_SMALLEST_SIDE = 1e-5  # pixels, of the box of an outline


def plain_sample(example: Example, draws: Draws, size: tuple[int, int], record: int, max_instances: int) -> Sample:
    """What `batching.sample` makes of `transforms.jitter`, with masks as whole arrays on the way."""
    height, width = example.image.shape[:2]
    factor = min(size[0] * draws.scale / height, size[1] * draws.scale / width)
    new = round(height * factor), round(width * factor)
    y, x = (round(max(side - window, 0) * draws.position) for side, window in zip(new, size, strict=True))
    look = Look(flip=draws.flip, new=new, corner=(y, x), size=size)
    image = look.at(example.image, Image.Resampling.BILINEAR, PADDING)
    if isinstance(example.objects, Segments):
        ids = look.at(example.objects.source, Image.Resampling.NEAREST, -1)
        masks = [ids == number for number in example.objects.ids]
        found = [(mask, mask_box(mask)) for mask in masks]
    else:
        found = [_instance(shape, (height, width), look) for shape in example.objects.shapes]
    kept = [position for position, one in enumerate(found) if one is not None]
    masks = np.array([found[position][0] for position in kept], bool).reshape(-1, *size)
    boxes = np.array([found[position][1] for position in kept], np.float32).reshape(-1, 4)
    return _packed(image, masks, boxes, example.labels[kept], example.is_thing[kept], record, max_instances)


class Look:
    """Flip, resize to `new`, cut out `size` at `corner` (y, x), pad."""

    def __init__(self, *, flip: bool, new: tuple[int, int], corner: tuple[int, int], size: tuple[int, int]):
        self.flip, self.new, self.corner, self.size = flip, new, corner, size

    def at(
        self, pixels: Shaped[np.ndarray, "h w *c"], filter: Image.Resampling, padding: int
    ) -> Shaped[np.ndarray, "h2 w2 *c"]:
        """The whole image, flipped and resized by Pillow, then cut and padded."""
        flipped = np.ascontiguousarray(pixels[:, ::-1] if self.flip else pixels)
        resized = np.asarray(Image.fromarray(flipped).resize(self.new[::-1], filter))
        (y, x), (height, width) = self.corner, self.size
        crop = resized[y : y + height, x : x + width]
        border = [(0, height - crop.shape[0]), (0, width - crop.shape[1]), *[(0, 0)] * (crop.ndim - 2)]
        return np.pad(crop, border, constant_values=padding)


def _instance(shape: Outline | RunLengths, original: tuple[int, int], look: Look) -> tuple[Mask, Box] | None:
    """Mask and box of one object; None if it is not in the window."""
    if isinstance(shape, RunLengths):
        mask = look.at(decode_runs(shape.lengths, *original).astype(np.uint8), Image.Resampling.NEAREST, 0) > 0
        return (mask, mask_box(mask)) if mask.any() else None
    (height, width), (y, x) = look.size, look.corner
    window = shapely.box(x, y, x + width, y + height)
    pieces = []
    for polygon in shape.polygons:
        points = polygon.copy()
        if look.flip:
            points[:, 0] = original[1] - points[:, 0]
        points[:, 0] *= look.new[1] / original[1]
        points[:, 1] *= look.new[0] / original[0]
        cut = shapely.Polygon(points).buffer(0.0).intersection(window)
        for piece in getattr(cut, "geoms", [cut]):
            if isinstance(piece, shapely.Polygon) and not piece.is_empty and piece.is_valid:
                pieces.append(np.array(piece.exterior.coords)[:-1] - (x, y))
    if not pieces:
        return None
    vertices = np.concatenate(pieces).astype(np.float32)
    box = np.concatenate([vertices.min(axis=0), vertices.max(axis=0)])
    if not np.all(box[2:] - box[:2] > _SMALLEST_SIDE):
        return None
    mask = np.zeros(look.size, bool)
    for piece in pieces:
        (runs,) = coco_mask.frPyObjects([piece.ravel().tolist()], height, width)
        mask |= decode_runs(parse_runs(runs), height, width)
    return mask, box


def _packed(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Bool[np.ndarray, "n h w"],
    boxes: Float32[np.ndarray, "n 4"],
    labels: Int[np.ndarray, "n"],
    is_thing: Bool[np.ndarray, "n"],
    record: int,
    max_instances: int,
) -> Sample:
    """The largest `max_instances` objects, in their order."""
    height, width = image.shape[:2]
    largest = np.sort(np.argsort(-masks.sum(axis=(1, 2)), kind="stable")[:max_instances])
    x0, y0, x1, y1 = boxes[largest].T
    centres = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], axis=1)
    return Sample(
        image=image,
        labels=labels[largest].astype(np.int32),
        boxes=(centres / np.array([width, height, width, height], np.float32)).astype(np.float32),
        masks=np.packbits(masks[largest], axis=-1),
        is_thing=is_thing[largest],
        record=record,
        dropped=len(masks) - len(largest),
        skipped=0,
    )

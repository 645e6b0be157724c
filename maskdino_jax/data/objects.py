"""The annotated objects of one image in the form their file has: outlines and run lengths, or a map of segment ids.

Both kinds answer the same questions, so that transforms and batching need not tell them apart: how they look after a
change of geometry, and mask and box of each object. Masks are made one at a time; a crowded 1024 x 1024 image would
otherwise hold hundreds of megabytes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import shapely
from jaxtyping import Bool, Float, Float32, Int
from pycocotools import mask as coco_mask

from maskdino_jax.data.geometry import Geometry
from maskdino_jax.data.runs import decode_runs, encode_runs, parse_runs

_SMALLEST_SIDE = 1e-5  # pixels; an outline is kept if its box is larger both ways, as in the reference
_NO_SEGMENT = -1  # padding of an id map; ids are 24 bits without sign, so no segment matches

Mask = Bool[np.ndarray, "h w"]
Box = Float32[np.ndarray, "4"]  # x0, y0, x1, y1 in pixels


class Objects(Protocol):
    """The objects of one image."""

    def __len__(self) -> int: ...

    def move(self, geometry: Geometry) -> tuple["Objects", Int[np.ndarray, "n"]]:
        """The objects in the window, and the positions that these have in `self`."""
        ...

    def raster(self, index: int) -> tuple[Mask, Box]:
        """Mask and box of one object."""
        ...


@dataclasses.dataclass(frozen=True)
class Outline:
    """One object as polygons; each polygon is [v, 2] vertices (x, y) in pixels."""

    polygons: tuple[Float[np.ndarray, "v 2"], ...]

    def move(self, geometry: Geometry) -> "Outline | None":
        """Clip the polygons to the window; only outer rings are kept, and no piece that is a line or a point."""
        (y, x), (height, width) = geometry.offset, geometry.window
        window = shapely.box(x, y, x + width, y + height)
        pieces = []
        for polygon in self.polygons:
            whole = shapely.Polygon(geometry.move_points(polygon)).buffer(0.0)  # mends outlines that cross themselves
            clipped = whole.intersection(window)
            pieces += [
                shapely.get_coordinates(piece.exterior)[:-1] - (x, y)  # the last vertex repeats the first
                for piece in getattr(clipped, "geoms", [clipped])
                if isinstance(piece, shapely.Polygon) and not piece.is_empty and piece.is_valid
            ]
        moved = Outline(tuple(pieces))
        if not pieces:
            return None
        x0, y0, x1, y1 = moved.box()
        return moved if x1 - x0 > _SMALLEST_SIDE and y1 - y0 > _SMALLEST_SIDE else None

    def box(self) -> Box:
        """The extent of the vertices, without the +1 of boxes taken from masks."""
        vertices = np.concatenate(self.polygons).astype(np.float32)
        return np.concatenate([vertices.min(axis=0), vertices.max(axis=0)])

    def raster(self, size: tuple[int, int]) -> tuple[Mask, Box]:
        runs = coco_mask.frPyObjects([polygon.ravel() for polygon in self.polygons], *size)
        return decode_runs(parse_runs(coco_mask.merge(runs)), *size), self.box()


@dataclasses.dataclass(frozen=True)
class RunLengths:
    """One object as run lengths of its mask, see `runs`."""

    lengths: Int[np.ndarray, "runs"]

    def move(self, geometry: Geometry) -> "RunLengths | None":
        moved = geometry.move_map(decode_runs(self.lengths, *geometry.original), padding=False)
        return RunLengths(encode_runs(moved)) if moved.any() else None

    def raster(self, size: tuple[int, int]) -> tuple[Mask, Box]:
        mask = decode_runs(self.lengths, *size)
        return mask, mask_box(mask)


@dataclasses.dataclass(frozen=True)
class Instances:
    """Objects of instance annotations, which may overlap. Those outside of the window are dropped."""

    size: tuple[int, int]  # height, width of the image
    shapes: tuple[Outline | RunLengths, ...]

    def __len__(self) -> int:
        return len(self.shapes)

    def move(self, geometry: Geometry) -> tuple["Instances", Int[np.ndarray, "n"]]:
        moved = [shape.move(geometry) for shape in self.shapes]
        kept = [position for position, shape in enumerate(moved) if shape is not None]
        return Instances(geometry.window, tuple(moved[position] for position in kept)), np.array(kept, int)

    def raster(self, index: int) -> tuple[Mask, Box]:
        return self.shapes[index].raster(self.size)


@dataclasses.dataclass(frozen=True)
class Segments:
    """Segments of a panoptic map. Those outside of the window stay as objects with an empty mask and a zero box.

    The reference keeps them too: they are part of what the published panoptic checkpoints were trained on.
    """

    id_map: Int[np.ndarray, "h w"]
    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def move(self, geometry: Geometry) -> tuple["Segments", Int[np.ndarray, "n"]]:
        return Segments(geometry.move_map(self.id_map, _NO_SEGMENT), self.ids), np.arange(len(self.ids))

    def raster(self, index: int) -> tuple[Mask, Box]:
        mask = self.id_map == self.ids[index]
        return mask, mask_box(mask)


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Objects of which only boxes are known: they have no `raster`. Those outside of the window are dropped."""

    corners: Float[np.ndarray, "n 4"]  # x0, y0, x1, y1 in pixels, inside the image

    @classmethod
    def from_coco(cls, boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> "Boxes":
        """Of (x, y, width, height), cut off at the borders of an image of `size` (height, width)."""
        low, extent = np.array(boxes, np.float64).reshape(-1, 2, 2).transpose(1, 0, 2)
        height, width = size
        return cls(np.concatenate([low, low + extent], axis=1).clip(0, (width, height, width, height)))

    def __len__(self) -> int:
        return len(self.corners)

    def move(self, geometry: Geometry) -> tuple["Boxes", Int[np.ndarray, "n"]]:
        """A resize and a crop keep rectangles rectangles, so that this equals clipping the four corners' outline."""
        (y, x), (height, width) = geometry.offset, geometry.window
        points = geometry.move_points(self.corners.reshape(-1, 2)).reshape(-1, 2, 2) - (x, y)
        ends = np.stack([points.min(axis=1), points.max(axis=1)], axis=1).clip(0, (width, height))  # a flip swaps them
        kept = np.flatnonzero(((ends[:, 1] - ends[:, 0]) > _SMALLEST_SIDE).all(axis=1))
        return Boxes(ends[kept].reshape(-1, 4)), kept


def mask_box(mask: Mask) -> Box:
    """First and one past the last row and column of a mask, as x0, y0, x1, y1; zeros if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)

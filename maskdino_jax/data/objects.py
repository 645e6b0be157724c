"""The annotated objects of one image in the form their file has: outlines and run lengths, or a map of segment ids.

Both kinds answer the same questions, so that transforms and batching need not tell them apart: how they look after a
change of geometry, and the masks, boxes and areas of all of them. Masks are made as bits; those of a crowded
1024 x 1024 image would otherwise take hundreds of megabytes.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8

from maskdino_jax.data.clipping import clip
from maskdino_jax.data.geometry import Geometry
from maskdino_jax.data.label_maps import map_rasters
from maskdino_jax.data.masks import Box, Mask, Rasters, mask_box, pack_mask, packed_areas, packed_box, unpack_mask
from maskdino_jax.data.polygons import fill
from maskdino_jax.data.runs import decode_box, decode_runs, encode_runs

_SMALLEST_SIDE = 1e-5  # pixels; an outline is kept if its box is larger both ways, as in the reference
_NO_SEGMENT = -1  # padding of an id map; ids are 24 bits without sign, so no segment matches


class Objects(Protocol):
    """The objects of one image."""

    def __len__(self) -> int: ...

    @property
    def nbytes(self) -> int:
        """Of the arrays that describe them."""
        ...

    def move(self, geometry: Geometry) -> tuple["Objects", Int[np.ndarray, "n"]]:
        """The objects in the window, and the positions that these have in `self`."""
        ...

    def raster(self, index: int) -> tuple[Mask, Box]:
        """Mask and box of one object."""
        ...

    def rasters(self) -> Rasters:
        """Packed masks, boxes and areas of all objects."""
        ...


@dataclasses.dataclass(frozen=True)
class Outline:
    """One object as polygons; each polygon is [v, 2] vertices (x, y) in pixels."""

    polygons: tuple[Float[np.ndarray, "v 2"], ...]

    @property
    def nbytes(self) -> int:
        return sum(polygon.nbytes for polygon in self.polygons)

    def box(self) -> Box:
        """The extent of the vertices, without the +1 of boxes taken from masks."""
        vertices = np.concatenate(self.polygons).astype(np.float32)
        return np.concatenate([vertices.min(axis=0), vertices.max(axis=0)])

    def raster(self, size: tuple[int, int]) -> tuple[Mask, Box]:
        height, width = size
        packed = np.zeros((1, height, -(-width // 8)), np.uint8)
        fill(self.polygons, [0] * len(self.polygons), packed, width)
        return unpack_mask(packed[0])[:, :width], self.box()


@dataclasses.dataclass(frozen=True)
class RunLengths:
    """One object as run lengths of its mask, see `runs`."""

    lengths: Int[np.ndarray, "runs"]

    @property
    def nbytes(self) -> int:
        return self.lengths.nbytes

    def move(self, geometry: Geometry) -> "Patch | None":
        (x, y), mask = decode_box(self.lengths, geometry.original[0])
        rows = np.flatnonzero((geometry.rows >= y) & (geometry.rows < y + mask.shape[0]))
        columns = np.flatnonzero((geometry.columns >= x) & (geometry.columns < x + mask.shape[1]))
        if len(rows) == 0 or len(columns) == 0:
            return None
        left, before = divmod(int(columns[0]), 8)
        moved = np.zeros((len(mask), before + len(columns)), bool)
        moved[:, before:] = np.take(mask, geometry.columns[columns] - x, axis=1)
        bits = pack_mask(moved)[geometry.rows[rows] - y]
        return Patch(int(rows[0]), left, bits) if bits.any() else None

    def raster(self, size: tuple[int, int]) -> tuple[Mask, Box]:
        mask = decode_runs(self.lengths, *size)
        return mask, mask_box(mask)


@dataclasses.dataclass(frozen=True)
class Patch:
    """One object as the packed part of its mask that is not empty."""

    top: int  # row
    left: int  # byte
    bits: UInt8[np.ndarray, "h w8"]

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes

    def move(self, geometry: Geometry) -> "Patch | None":
        mask, _ = self.raster(geometry.original)
        return RunLengths(encode_runs(mask)).move(geometry)

    def raster(self, size: tuple[int, int]) -> tuple[Mask, Box]:
        height, width = size
        packed = np.zeros((height, -(-width // 8)), np.uint8)
        self.place(packed)
        return unpack_mask(packed)[:, :width], self.box()

    def box(self) -> Box:
        return packed_box(self.bits) + np.array([8 * self.left, self.top] * 2, np.float32)

    def place(self, packed: UInt8[np.ndarray, "h w8"]) -> None:
        """Write it into an empty mask."""
        height, width = self.bits.shape
        packed[self.top : self.top + height, self.left : self.left + width] = self.bits


@dataclasses.dataclass(frozen=True)
class Instances:
    """Objects of instance annotations, which may overlap. Those outside of the window are dropped."""

    size: tuple[int, int]  # height, width of the image
    shapes: tuple[Outline | RunLengths | Patch, ...]

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def nbytes(self) -> int:
        return sum(shape.nbytes for shape in self.shapes)

    def move(self, geometry: Geometry) -> tuple["Instances", Int[np.ndarray, "n"]]:
        moved = [None if isinstance(shape, Outline) else shape.move(geometry) for shape in self.shapes]
        polygons, owners = self._polygons()
        pieces, parents = clip(
            [geometry.move_points(polygon) for polygon in polygons], geometry.offset, geometry.window
        )
        parts = {}
        for piece, parent in zip(pieces, parents, strict=True):
            parts.setdefault(owners[parent], []).append(piece)
        for position, polygons in parts.items():
            outline = Outline(tuple(polygons))
            x0, y0, x1, y1 = outline.box()
            if x1 - x0 > _SMALLEST_SIDE and y1 - y0 > _SMALLEST_SIDE:
                moved[position] = outline
        kept = [position for position, shape in enumerate(moved) if shape is not None]
        return Instances(geometry.window, tuple(moved[position] for position in kept)), np.array(kept, int)

    def raster(self, index: int) -> tuple[Mask, Box]:
        return self.shapes[index].raster(self.size)

    def rasters(self) -> Rasters:
        height, width = self.size
        masks = np.zeros((len(self), height, -(-width // 8)), np.uint8)
        boxes = np.zeros((len(self), 4), np.float32)
        fill(*self._polygons(), masks, width)
        for index, shape in enumerate(self.shapes):
            if isinstance(shape, Outline):
                boxes[index] = shape.box()
            elif isinstance(shape, Patch):
                shape.place(masks[index])
                boxes[index] = shape.box()
            else:
                mask, boxes[index] = shape.raster(self.size)
                masks[index] = pack_mask(mask)
        return Rasters(masks, boxes, packed_areas(masks))

    def _polygons(self) -> tuple[list[Float[np.ndarray, "v 2"]], list[int]]:
        """All polygons, and the position of the outline that each belongs to."""
        outlines = [(position, shape) for position, shape in enumerate(self.shapes) if isinstance(shape, Outline)]
        owned = [(polygon, position) for position, shape in outlines for polygon in shape.polygons]
        return [polygon for polygon, _ in owned], [position for _, position in owned]


@dataclasses.dataclass(frozen=True)
class Segments:
    """Segments of a panoptic map. Those outside of the window stay as objects with an empty mask and a zero box.

    The reference keeps them too: they are part of what the published panoptic checkpoints were trained on.
    """

    source: Int[np.ndarray, "h w"]
    ids: tuple[int, ...]
    geometry: Geometry | None = None  # what has become of `source`; None: it is as in its file

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        return self.source.nbytes

    @functools.cached_property
    def id_map(self) -> Int[np.ndarray, "h w"]:
        """The map after the change of geometry, -1 beyond its border. Masks are made without it."""
        return self.source if self.geometry is None else self.geometry.move_map(self.source, _NO_SEGMENT)

    def move(self, geometry: Geometry) -> tuple["Segments", Int[np.ndarray, "n"]]:
        return Segments(self.id_map, self.ids, geometry), np.arange(len(self.ids))

    def raster(self, index: int) -> tuple[Mask, Box]:
        mask = self.id_map == self.ids[index]
        return mask, mask_box(mask)

    def rasters(self) -> Rasters:
        return map_rasters(self.source, self.ids, self.geometry or Geometry.still(self.source.shape))


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

    @property
    def nbytes(self) -> int:
        return self.corners.nbytes

    def move(self, geometry: Geometry) -> tuple["Boxes", Int[np.ndarray, "n"]]:
        """A resize and a crop keep rectangles rectangles, so that this equals clipping the four corners' outline."""
        (y, x), (height, width) = geometry.offset, geometry.window
        points = geometry.move_points(self.corners.reshape(-1, 2)).reshape(-1, 2, 2) - (x, y)
        ends = np.stack([points.min(axis=1), points.max(axis=1)], axis=1).clip(0, (width, height))  # a flip swaps them
        kept = np.flatnonzero(((ends[:, 1] - ends[:, 0]) > _SMALLEST_SIDE).all(axis=1))
        return Boxes(ends[kept].reshape(-1, 4)), kept

"""Large images in overlapping tiles: where the tiles lie, and how their results become those of the image.

Each tile is an image of its own for the model, which sees small objects larger that way. What is cut by the borders of
tiles is put together again by `joining`; the other pixels need no rule.

* Instances and detections: the same object seen in two tiles is one, its mask the union of what they see of it.
* Panoptic maps: each pixel is decided by one tile, the one whose border is farther away. Things are joined as
  instances are, and keep what other tiles see of them where no other thing is; the stuff of a class is one segment.
* Semantic maps: each pixel is decided by one tile. There is nothing to join.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.inference.cropped_masks import Rectangle
from maskdino_jax.inference.joining import Map, Part, join_instances, join_panoptic, parts_of
from maskdino_jax.inference.results import Segments

Span = tuple[int, int]  # the end exclusive


class Tile(NamedTuple):
    """A part of an image that the model sees on its own."""

    shown: Rectangle
    own: Rectangle  # the pixels that it decides: those of all tiles divide the image

    def pixels(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        """What it shows of an image."""
        return image[self.shown.inside(Rectangle(0, 0, *image.shape[:2]))]


def tiles(height: int, width: int, size: int, overlap: float) -> list[Tile]:
    """Tiles that cover an image, row by row; one alone if the image is no larger than a tile.

    Args:
        size: side of a tile in pixels; 0: one tile, the image.
        overlap: share of a side that neighbours have in common at least; they lie evenly, so that it may be more.

    Raises:
        ValueError: `size` is negative or 1, or `overlap` is not above 0 and at most 0.5.
    """
    if size < 0 or size == 1:
        raise ValueError(f"slice_size = {size}: give the side of a tile in pixels, or 0 for images as a whole.")
    if not 0 < overlap <= 0.5:
        raise ValueError(f"slice_overlap = {overlap}: give a share above 0 and up to 0.5.")
    rows, columns = (list(_spans(side, size or side, overlap)) for side in (height, width))
    box = lambda row, column: Rectangle(row[0], column[0], row[1], column[1])
    return [Tile(box(row, column), box(own_row, own_column)) for row, own_row in rows for column, own_column in columns]


def _spans(side: int, size: int, overlap: float) -> Iterator[tuple[Span, Span]]:
    """Along one axis: the tiles, and what each decides, up to the middle of what it shares with a neighbour."""
    if side <= size:
        yield (0, side), (0, side)
        return
    shared = math.ceil(overlap * size)
    count = math.ceil((side - shared) / (size - shared))
    starts = [place * (side - size) // (count - 1) for place in range(count)]  # at most size - shared apart
    borders = [0, *((before + size + start) // 2 for before, start in itertools.pairwise(starts)), side]
    for start, own in zip(starts, itertools.pairwise(borders), strict=True):
        yield (start, start + size), own


class Mosaic:
    """The results of an image out of those of its tiles, as they come in.

    Until then it keeps the objects, cut to their boxes, and 4 bytes for each pixel of a tile's panoptic map.
    """

    def __init__(self, catalog: Catalog, size: tuple[int, int], layout: list[Tile]) -> None:
        """`size`: height, width of the image."""
        self._catalog, self._size, self._layout = catalog, size, layout
        self._parts: list[list[Part]] = []  # of each tile
        self._masks = True  # whether they have masks
        self._maps: list[Map] = []
        self._semantic: Int32[np.ndarray, "h w"] | None = None
        self._only: Segments | None = None  # of a tile that is the image
        self._added = 0

    @property
    def complete(self) -> bool:
        """Whether the results of all tiles are here."""
        return self._added == len(self._layout)

    def add(self, found: Segments) -> None:
        """The results of the next tile."""
        shown, own = self._layout[self._added]
        self._added += 1
        if len(self._layout) == 1:
            self._only = found
            return
        if found.instances is not None:
            self._parts.append(parts_of(found.instances, shown))
            self._masks = found.instances.bits is not None
        if found.panoptic is not None:
            self._maps.append(Map(shown, own, found.panoptic))
        if found.semantic is not None:
            if self._semantic is None:
                self._semantic = np.empty(self._size, np.int32)
            self._semantic[own.inside(Rectangle(0, 0, *self._size))] = found.semantic[own.inside(shown)]

    def result(self) -> Segments:
        """The results of the image."""
        if self._only is not None:
            return self._only
        shown = [tile.shown for tile in self._layout]
        objects = join_instances(self._parts, shown, self._size, masks=self._masks) if self._parts else None
        return Segments(
            catalog=self._catalog,
            instances=objects,
            panoptic=join_panoptic(self._maps, self._size) if self._maps else None,
            semantic=self._semantic,
        )

"""One change of geometry, a flip, a resize and a crop, for points and for label maps."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int, Shaped
from PIL import Image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """Flip, resize to `scaled`, then look through a window; every size is height, width in pixels.

    The window may be larger than the image: what lies beyond, right and below, is padding.
    """

    original: tuple[int, int]
    flip: bool  # horizontally
    scaled: tuple[int, int]
    offset: tuple[int, int]  # y, x of the window's corner in the scaled image
    window: tuple[int, int]
    flip_last: bool = False  # the reference's semantic pipeline: maps are resized first, and by another rule

    @classmethod
    def still(cls, size: tuple[int, int]) -> "Geometry":
        """Nothing changes."""
        return cls(original=size, flip=False, scaled=size, offset=(0, 0), window=size)

    def move_points(self, points: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "p 2"]:
        """Flip and resize (x, y) points. Subtract `offset` after clipping to get window coordinates."""
        x, y = points[:, 0], points[:, 1]
        (height, width), (new_height, new_width) = self.original, self.scaled
        if self.flip:
            x = width - x
        return np.stack([x * (new_width / width), y * (new_height / height)], axis=1)

    def move_map(self, labels: Shaped[np.ndarray, "h w"], padding: int) -> Shaped[np.ndarray, "h2 w2"]:
        """Nearest-neighbour resize of a map of labels, seen through the window.

        A nearest filter picks one source row for each row and one source column for each column, so only the pixels
        in the window are gathered; the result equals flipping, resizing and cropping the whole map.
        """
        moved = np.full(self.window, padding, labels.dtype)
        rows, columns = self.rows, self.columns
        seen, places = distinct(rows)
        moved[: len(rows), : len(columns)] = np.take(labels[seen], columns, axis=1)[places]
        return moved

    @functools.cached_property
    def rows(self) -> Int[np.ndarray, "h2"]:
        """The source row of each row that the window shows of a map, not of its padding; they only grow."""
        return self._nearest(0)[self.offset[0] :][: self.window[0]]

    @functools.cached_property
    def columns(self) -> Int[np.ndarray, "w2"]:
        """The source column of each column that the window shows."""
        columns = self._nearest(1)
        if self.flip:
            columns = columns[::-1] if self.flip_last else self.original[1] - 1 - columns
        return columns[self.offset[1] :][: self.window[1]]

    def _nearest(self, axis: int) -> Int[np.ndarray, "new"]:
        """The source index of each pixel of the scaled map, before any flip.

        The reference resizes maps with two libraries: Pillow takes the source pixel under the centre of each new one
        (read off a ramp that it resizes itself), PyTorch the one under its left or upper edge.
        """
        old, new = self.original[axis], self.scaled[axis]
        if self.flip_last:
            return np.arange(new) * old // new
        ramp = Image.fromarray(np.arange(old, dtype=np.int32)[None])
        return np.asarray(ramp.resize((new, 1), Image.Resampling.NEAREST))[0]


def distinct(rows: Int[np.ndarray, "r"]) -> tuple[Int[np.ndarray, "d"], Int[np.ndarray, "r"]]:
    """The different ones of ascending numbers, and the place of each number among them."""
    new = np.diff(rows, prepend=-1) > 0
    return rows[new], np.cumsum(new) - 1

"""Fill polygons exactly as pycocotools does (`frPyObjects` and `decode`), straight into packed masks.

pycocotools rounds the vertices to fifths of a pixel, walks along each edge, and notes where it passes the middle of a
column of pixels. There the mask changes between outside and inside. These places alone are computed here, for all edges
at once and with the same floating-point operations.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

_FIFTHS = 5  # steps to a pixel
_MIDDLE = 2  # the middle of column n lies between steps 5 n + 2 and 5 n + 3


def fill(
    polygons: Sequence[Float[np.ndarray, "v 2"]],
    owners: Sequence[int],
    masks: UInt8[np.ndarray, "n h w8"],
    width: int,
) -> None:
    """Add polygons of (x, y) vertices in pixels to packed masks of `width` columns, each to the mask of its owner."""
    height = masks.shape[1]
    which, column, row = _crossings(polygons, width)
    row = np.clip(np.ceil((row + 0.5) / _FIFTHS - 0.5), 0, height).astype(int)
    byte, bit = column >> 3, (128 >> (column & 7)).astype(np.uint8)
    ends = np.searchsorted(which, np.arange(len(polygons) + 1)).tolist()
    for owner, start, end in zip(owners, ends[:-1], ends[1:], strict=True):
        if start == end:
            continue
        rows, bytes_ = row[start:end], byte[start:end]
        top, bottom = int(rows.min()), int(rows.max())  # from `bottom` on everything is outside again
        left, right = int(bytes_.min()), int(bytes_.max()) + 1
        stride = -(-(right - left) // 8) * 8  # in words of 8 bytes
        changes = np.zeros((bottom - top + 1, stride), np.uint8)
        np.bitwise_xor.at(changes.reshape(-1), (rows - top) * stride + (bytes_ - left), bit[start:end])
        inside = np.bitwise_xor.accumulate(changes[:-1].view(np.uint64), axis=0).view(np.uint8)
        masks[owner, top:bottom, left:right] |= inside[:, : right - left]


def _crossings(
    polygons: Sequence[Float[np.ndarray, "v 2"]], width: int
) -> tuple[Int[np.ndarray, "c"], Int[np.ndarray, "c"], Int[np.ndarray, "c"]]:
    """Polygon, column and height (in fifths of a pixel) of each passage through the middle of a column."""
    lengths = np.array([len(polygon) for polygon in polygons], int)
    points = np.concatenate([np.zeros((0, 2)), *polygons])
    steps = (_FIFTHS * points + 0.5).astype(int)  # towards zero, as in C
    following = np.arange(1, len(steps) + 1)
    following[np.cumsum(lengths) - 1] = np.cumsum(lengths) - lengths  # the last vertex leads to the first
    (x0, y0), (x1, y1) = steps.T, steps[following].T

    low, high = np.minimum(x0, x1), np.maximum(x0, x1)
    first = np.maximum(-((_MIDDLE - low) // _FIFTHS), 0)
    last = np.minimum((high - _MIDDLE - 1) // _FIFTHS, width - 1)
    counts = np.maximum(last - first + 1, 0)
    edge = np.repeat(np.arange(len(steps)), counts)
    column = first[edge] + np.arange(len(edge)) - (np.cumsum(counts) - counts)[edge]

    flat = np.abs(x1 - x0) >= np.abs(y1 - y0)
    back = np.where(flat, x0 > x1, y0 > y1)  # edges are walked along in the direction in which their longer side grows
    x0, x1 = np.where(back, x1, x0), np.where(back, x0, x1)
    y0, y1 = np.where(back, y1, y0), np.where(back, y0, y1)
    row = np.empty(len(edge), int)
    for kind, passage in ((flat, _along_columns), (~flat, _along_rows)):
        chosen = np.flatnonzero(kind[edge])
        part = edge[chosen]
        row[chosen] = passage(x0[part], y0[part], x1[part], y1[part], _FIFTHS * column[chosen] + _MIDDLE)
    return np.repeat(np.arange(len(lengths)), lengths)[edge], column, row


_Steps = Int[np.ndarray, "c"]


def _along_columns(x0: _Steps, y0: _Steps, x1: _Steps, y1: _Steps, x: _Steps) -> _Steps:
    """The smaller height at steps `x` and `x + 1` of edges that are walked along column by column."""
    slope = (y1 - y0) / (x1 - x0)
    height = lambda step: (y0 + slope * step + 0.5).astype(int)
    return np.minimum(height(x - x0), height(x - x0 + 1))


def _along_rows(x0: _Steps, y0: _Steps, x1: _Steps, y1: _Steps, x: _Steps) -> _Steps:
    """The height before the step in which edges that are walked along row by row pass from `x` to `x + 1`, or back."""
    slope = (x1 - x0) / (y1 - y0)
    right = x1 > x0
    passed = lambda step: ((x0 + slope * step + 0.5).astype(int) > x) == right
    step = np.ceil((x + 0.5 - x0) / slope).astype(int)  # of the first that has passed, up to rounding
    step = np.where(passed(step - 1), step - 1, np.where(passed(step), step, step + 1))
    return y0 + step - 1

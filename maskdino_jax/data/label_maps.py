"""Masks of all segments of a label map at once, seen through a change of geometry, without a mask of full size."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int, Shaped, UInt8

from maskdino_jax.data.geometry import Geometry, distinct
from maskdino_jax.data.masks import Rasters, packed_areas, packed_box


def map_rasters(labels: Int[np.ndarray, "h w"], ids: Sequence[int], geometry: Geometry) -> Rasters:
    """Packed mask, box and area of each id; zeros for one that is nowhere in the window.

    A nearest filter repeats or leaves out whole rows, so that rows are packed before they are repeated. Each segment is
    looked for only where the map has it.
    """
    height, width = geometry.window
    masks = np.zeros((len(ids), height, -(-width // 8)), np.uint8)
    boxes = np.zeros((len(ids), 4), np.float32)
    seen, places = distinct(geometry.rows)
    positions, extents = index_map(labels, ids)
    gathered = np.full((len(seen), 8 * masks.shape[2]), len(ids), positions.dtype)
    gathered[:, : len(geometry.columns)] = np.take(positions[seen], geometry.columns, axis=1)
    for index, (x0, y0, x1, y1) in enumerate(extents.tolist()):
        first, last = np.searchsorted(seen, (y0, y1))
        columns = np.flatnonzero((geometry.columns >= x0) & (geometry.columns < x1))
        if first == last or len(columns) == 0:
            continue
        left, right = int(columns[0]) // 8, int(columns[-1]) // 8 + 1
        bits = np.packbits(gathered[first:last, 8 * left : 8 * right] == index, axis=1)
        top, bottom = np.searchsorted(places, (first, last))
        masks[index, top:bottom, left:right] = bits[places[top:bottom] - first]
        boxes[index] = _box_in_window(bits, 8 * left, first, places)
    return Rasters(masks, boxes, packed_areas(masks))


def index_map(
    labels: Int[np.ndarray, "h w"], ids: Sequence[int]
) -> tuple[Shaped[np.ndarray, "h w"], Int[np.ndarray, "n 4"]]:
    """For each pixel the position of its label in `ids`, `len(ids)` if it is none of them, as small as can be.

    And the box of each id, x0, y0, x1, y1; zeros if it is nowhere. Labels are compared run by run, not pixel by pixel.
    """
    height, width = labels.shape
    pixels, starts = _runs(labels)
    lengths = np.diff(starts, append=pixels.size)
    order = np.argsort(ids)
    known = np.append(np.array(ids, pixels.dtype)[order], -1)  # one more, for labels beyond the last
    place = np.searchsorted(known[:-1], pixels[starts])
    runs = np.where(known[place] == pixels[starts], np.append(order, len(ids))[place], len(ids))

    boxes = np.zeros((len(ids) + 1, 4), int)
    by_index = np.argsort(runs.astype(np.uint16), kind="stable")
    first = np.flatnonzero(np.diff(runs[by_index], prepend=-1))
    y, x0 = np.divmod(starts[by_index], width)
    ends = (np.minimum, x0), (np.minimum, y), (np.maximum, x0 + lengths[by_index]), (np.maximum, y + 1)
    boxes[runs[by_index][first]] = np.stack([function.reduceat(values, first) for function, values in ends], axis=1)

    kind = np.uint8 if len(ids) < 2**8 else np.uint16
    return np.repeat(runs.astype(kind), lengths).reshape(height, width), boxes[:-1]


def present_labels(labels: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "n"]:
    """The different labels of a map, in ascending order."""
    pixels, starts = _runs(labels)
    return np.unique(pixels[starts])


def _runs(labels: Int[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "r"]]:
    """All pixels in one row, and where another label begins; each run lies in one row of the map."""
    pixels = np.ascontiguousarray(labels).reshape(-1)
    changes = np.empty(pixels.size, bool)
    np.not_equal(pixels[1:], pixels[:-1], out=changes[1:])
    changes[:: labels.shape[1]] = True
    return pixels, np.flatnonzero(changes)


def _box_in_window(
    bits: UInt8[np.ndarray, "d w8"], left: int, first: int, places: Int[np.ndarray, "r"]
) -> Float32[np.ndarray, "4"]:
    """The box of packed rows once they are repeated; the first of them is the distinct row `first`."""
    box = packed_box(bits)
    if not box.any():
        return box
    x0, y0, x1, y1 = box.astype(int)
    top, bottom = np.searchsorted(places, (first + y0, first + y1))
    return np.array([left + x0, top, left + x1, bottom], np.float32)

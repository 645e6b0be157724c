"""Masks as bits: eight pixels of a row in a byte, the first one in the highest bit."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

Mask = Bool[np.ndarray, "h w"]
Box = Float32[np.ndarray, "4"]  # x0, y0, x1, y1 in pixels


class Rasters(NamedTuple):
    """What the objects of an image cover."""

    masks: UInt8[np.ndarray, "n h w8"]
    boxes: Float32[np.ndarray, "n 4"]  # x0, y0, x1, y1 in pixels
    areas: Int[np.ndarray, "n"]  # pixels of each mask


def pack_mask(mask: Bool[np.ndarray, "*n h w"]) -> UInt8[np.ndarray, "*n h w8"]:
    """Bits of a mask; rows end with zeros if their width is no multiple of 8."""
    return np.packbits(mask, axis=-1)


def unpack_mask(packed: UInt8[np.ndarray, "*n h w8"]) -> Bool[np.ndarray, "*n h w"]:
    """The inverse of `pack_mask` for widths that are multiples of 8."""
    return np.unpackbits(packed, axis=-1).view(bool)


def mask_box(mask: Mask) -> Box:
    """First and one past the last row and column of a mask, as x0, y0, x1, y1; zeros if it is empty."""
    return _box(np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0)))


def packed_box(packed: UInt8[np.ndarray, "h w8"]) -> Box:
    """`mask_box` of a packed mask."""
    columns = np.unpackbits(np.bitwise_or.reduce(packed, axis=0))
    return _box(np.flatnonzero(packed.any(axis=1)), np.flatnonzero(columns))


def packed_areas(packed: UInt8[np.ndarray, "n h w8"]) -> Int[np.ndarray, "n"]:
    """Pixels of each packed mask."""
    words = packed.view(np.uint64) if packed.shape[2] % 8 == 0 else packed
    return np.bitwise_count(words).sum(axis=(1, 2), dtype=np.int64)


def _box(rows: Int[np.ndarray, "r"], columns: Int[np.ndarray, "c"]) -> Box:
    if len(rows) == 0:
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)

"""COCO run lengths and masks, in NumPy: pycocotools 2.0.11 decodes in a way that NumPy has deprecated."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int


def parse_runs(segmentation: Mapping[str, Any]) -> Int[np.ndarray, "runs"]:
    """Lengths of the runs of {"size": [h, w], "counts": ...}, counts compressed (text or bytes) or a plain list.

    Raises:
        ValueError: the runs do not add up to the size.
    """
    height, width = segmentation["size"]
    counts = segmentation["counts"]
    lengths = np.array(counts, np.int64) if isinstance(counts, list) else _decompress(counts)
    if np.any(lengths < 0) or lengths.sum() != height * width:
        raise ValueError(
            f"the run lengths {str(counts)[:40]!r} cover {lengths.sum()} pixels of the {height} x {width} in its size. "
            "Correct segmentation.counts or segmentation.size."
        )
    return lengths


def decode_runs(lengths: Int[np.ndarray, "runs"], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Runs of zeros and ones alternate down the columns, zeros first."""
    ones = np.arange(len(lengths)) % 2 == 1
    return np.ascontiguousarray(np.repeat(ones, lengths).reshape(width, height).T)


def decode_box(lengths: Int[np.ndarray, "runs"], height: int) -> tuple[tuple[int, int], Bool[np.ndarray, "h2 w2"]]:
    """The part of a mask of `height` rows that is not empty, and its corner (x, y)."""
    ends = np.cumsum(lengths)
    starts, ends = (ends - lengths)[1::2], ends[1::2]  # of the ones
    starts, ends = starts[ends > starts], ends[ends > starts]
    if len(starts) == 0:
        return (0, 0), np.zeros((0, 0), bool)
    left, right = int(starts[0]) // height, (int(ends[-1]) - 1) // height + 1
    top, bottom = 0, height
    if np.all(starts // height == (ends - 1) // height):  # no run goes from the end of a column to the next one
        top, bottom = int((starts % height).min()), int(((ends - 1) % height).max()) + 1
    # Zeros and ones in turns, from the first of these columns to the last
    borders = np.empty(2 * len(starts) + 2, int)
    borders[0], borders[1:-1:2], borders[2:-1:2], borders[-1] = left * height, starts, ends, right * height
    turns = np.diff(borders)
    columns = np.repeat(np.arange(len(turns)) % 2 == 1, turns).reshape(-1, height)
    return (left, top), np.ascontiguousarray(columns[:, top:bottom].T)


def encode_runs(mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "runs"]:
    """The inverse of `decode_runs`."""
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    zeros_first = [0, 0] if pixels[0] else [0]
    return np.diff(np.concatenate([zeros_first, changes, [pixels.size]]))


def _decompress(text: str | bytes) -> Int[np.ndarray, "runs"]:
    """Undo COCO's compression.

    A character holds 5 bits, low ones first, above an offset of 48; bit 5 says that the number goes on, bit 4 of the
    last character is its sign. From the fourth number on, each is the difference from the number two before it.
    """
    codes = np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    last = (codes & 32) == 0
    if len(codes) == 0 or not last[-1]:
        return np.zeros(0, np.int64)  # cut short: `parse_runs` finds the pixels missing
    first = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    digits = np.diff(np.append(first, len(codes)))
    shifts = 5 * (np.arange(len(codes)) - np.repeat(first, digits))
    numbers = np.add.reduceat((codes & 31) << shifts, first)
    negative = (codes[last] & 16) != 0
    numbers -= np.where(negative, np.int64(1) << 5 * digits, 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers

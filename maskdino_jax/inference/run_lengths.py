"""COCO's compressed run lengths out of packed bits, for all masks of an image at once.

A run ends where a pixel differs from the one above it. Packed rows show this for eight pixels by one XOR, and only the
few bytes that are not zero are looked at any further.
"""

from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

_DIGIT = 5  # bits in a character
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).view(bool)  # of each byte, first pixel first


def encode_bits(bits: UInt8[np.ndarray, "n h w8"], width: int) -> list[dict[str, Any]]:
    """Entries {"size": [h, w], "counts": text} of masks.

    Args:
        bits: 8 pixels of a row in a byte, the first one in the highest bit.
        width: pixels of a row; the bits beyond are zero.
    """
    return _encode(bits, (bits.shape[1], width), (0, 0)) if len(bits) else []


def encode_crop(bits: UInt8[np.ndarray, "h w8"], corner: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """The entry of a mask of which only a rectangle is given; all pixels outside of it are zero.

    Args:
        corner: row and column of the image that the rectangle begins at.
        size: height and width of the image.
    """
    return _encode(bits[None], size, corner)[0]


def _encode(bits: UInt8[np.ndarray, "n h w8"], image: tuple[int, int], corner: tuple[int, int]) -> list[dict[str, Any]]:
    """Entries of at least one mask, all given in the same rectangle."""
    count, size = len(bits), image[0] * image[1]
    owner, ends = _changes(bits, image, corner)
    # Of each mask: zeros up to its first change, ..., and what is left after its last one.
    per_mask = np.bincount(owner, minlength=count)
    first = np.cumsum(per_mask + 1) - per_mask - 1
    borders = np.full(len(ends) + count, size)
    borders[np.arange(len(ends)) + owner] = ends
    lengths = np.diff(borders, prepend=0)
    lengths[first] = borders[first]
    texts = _compressed(lengths, first)
    return [{"size": list(image), "counts": text} for text in texts]


def _changes(
    bits: UInt8[np.ndarray, "n h w8"], image: tuple[int, int], corner: tuple[int, int]
) -> tuple[Int[np.ndarray, "changes"], Int[np.ndarray, "changes"]]:
    """The masks that change and where: at pixels counted down the columns, in this order, but for the last one's end.

    Every column is taken to begin and to end with zeros; where a run goes on in the next column, both columns have
    a change at the same place, and these two are dropped.
    """
    count, rows, row_bytes = bits.shape
    (height, width), (top, left) = image, corner
    edges = np.zeros((count, rows + 1, row_bytes), np.uint8)
    edges[:, :-1] = bits
    edges[:, 1:] ^= bits
    flat = edges.ravel()
    places = np.flatnonzero(flat != 0)  # ten times faster than of bytes
    which, pixel = np.nonzero(_BITS[flat[places]])
    row, column = np.divmod(places, row_bytes)
    mask, row = np.divmod(row, rows + 1)
    step = height * width + 1
    keys = (mask * step + row + top + (8 * column + left) * height)[which] + pixel * height
    keys.sort()
    twice = keys[1:] == keys[:-1]
    keep = np.ones(len(keys), bool)
    keep[1:] &= ~twice
    keep[:-1] &= ~twice
    owner, ends = np.divmod(keys[keep], step)
    inside = ends < step - 1
    return owner[inside], ends[inside]


def _compressed(lengths: Int[np.ndarray, "runs"], first: Int[np.ndarray, "n"]) -> list[str]:
    """The inverse of what `data.runs` undoes: from its fourth number on, a mask has differences from two before."""
    place = np.arange(len(lengths)) - np.repeat(first, np.diff(first, append=len(lengths)))
    numbers = lengths.copy()
    later = np.flatnonzero(place > 2)
    numbers[later] -= lengths[later - 2]
    bits = int(np.abs(numbers).max()).bit_length() + 1  # and a sign
    turns = np.arange(-(-bits // _DIGIT))
    digits = (numbers[:, None] >> _DIGIT * turns).astype(np.int32)
    # The last digit of a number is the first one whose highest bit is the sign of all that is left.
    used = np.argmax(digits >> _DIGIT == -(digits >> _DIGIT - 1 & 1), axis=1) + 1
    more = turns < used[:, None] - 1
    text = ((digits & 31 | more * 32) + 48)[turns < used[:, None]].astype(np.uint8).tobytes().decode("ascii")
    ends = np.cumsum(used)[np.append(first[1:], len(lengths)) - 1]
    return [text[start:end] for start, end in zip(np.append(0, ends[:-1]), ends, strict=True)]

"""Pillow's bilinear resize of a photograph, of which only a window is wanted: the same bytes, less work.

Pillow resizes in two passes, along the rows and then along the columns, and rounds to bytes after each. Where the image
grows, a byte is made of two neighbours `a` and `b`, as `floor(a + (b - a) * share + 1/2)` with a share that Pillow
rounds to 22 bits; in this order in every version of Pillow. Pillow itself cannot be asked for a window: it takes the
borders as float32, which is not exact. Here both passes are products with small matrices, for the pixels that the
window shows.

They are float32, and still exact. The byte changes with the share only at ties, where `(b - a) * share` is a half: at
fractions of denominators up to 510. Any share between the same two ties gives the same bytes, so that each is replaced
by the middle of its interval. Ties of denominators m and n are at least 2 / mn apart, so that a sum keeps away from
halves by 1/1020, thirty times more than float32 errs by. Pillow's share may be a tie itself, but it has 22 bits: then
the denominator is a power of two up to 256, with which float32 does not err at all.

Images that shrink have other sums, and seldom much to cut off: Pillow resizes them whole.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8
from PIL import Image

_BITS = 22  # of Pillow's weights, which are rounded to integers
_BLOCK = 8  # rows or columns made by one product; more would multiply more zeros, fewer would be more calls
_HALF = np.float32(0.5)


def _ties() -> Float[np.ndarray, "t"]:
    """Shares at which some difference of two bytes comes to a half, with 0 and 1, in ascending order."""
    halves = [(np.arange(difference) + 0.5) / difference for difference in range(1, 256)]
    return np.unique(np.concatenate([[0], *halves, [1]]))


_TIES = _ties()


def resize_window(
    image: UInt8[np.ndarray, "h w 3"],
    scaled: tuple[int, int],
    offset: tuple[int, int],
    out: UInt8[np.ndarray, "h2 w2 3"],
    *,
    flip: bool = False,
) -> None:
    """Fill `out` with what a window at `offset` (y, x) shows of the image, flipped first, resized to `scaled`.

    Equals `Image.resize(scaled, BILINEAR)[y : y + h2, x : x + w2]`, byte for byte; the window lies inside.
    """
    (y, x), (height, width) = offset, out.shape[:2]
    if scaled[0] > image.shape[0] and scaled[1] > image.shape[1]:
        rows = _bands(image.shape[0], scaled[0], y, y + height)
        columns = _bands(image.shape[1], scaled[1], x, x + width)
        _grow(image, rows, _mirrored(columns, image.shape[1]) if flip else columns, out)
        return
    picture = Image.fromarray(image)
    if flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    out[:] = np.asarray(picture.resize(scaled[::-1], Image.Resampling.BILINEAR))[y : y + height, x : x + width]


class _Bands(NamedTuple):
    """What rows, or columns, are made of: each block of them, of `k` consecutive ones of the image."""

    starts: Int[np.ndarray, "blocks"]  # the first of them
    weights: Float32[np.ndarray, "blocks n k"]

    @property
    def seen(self) -> slice:
        """All that are needed."""
        return slice(int(self.starts.min()), int(self.starts.max()) + self.weights.shape[2])


def _bands(old: int, new: int, first: int, last: int) -> _Bands:
    """For rows `first` to `last` of `new` made of `old` < `new`; the last block may have rows that are not used."""
    upper, share = _shares(old, new, first, last)
    end = np.minimum(upper + 2, old)  # the last row has none below it, and its share is zero
    begins = upper[::_BLOCK]
    ends = end[np.minimum(np.arange(_BLOCK - 1, len(end) + _BLOCK - 1, _BLOCK), len(end) - 1)]
    count = int((ends - begins).max())
    starts = np.minimum(begins, old - count)
    block, row = np.divmod(np.arange(len(upper)), _BLOCK)
    place = upper - starts[block]
    weights = np.zeros((len(starts), _BLOCK, count + 1), np.float32)
    weights[block, row, place] = 1 - share
    weights[block, row, place + 1] = share
    return _Bands(starts, weights[:, :, :count])


def _shares(old: int, new: int, first: int, last: int) -> tuple[Int[np.ndarray, "rows"], Float[np.ndarray, "rows"]]:
    """The upper of the two source rows that a row is made of, and the share of the lower one, see above.

    Pillow's rounded weights of both add up to 2^22: they are fractions of an odd denominator and a power of two below
    2^22, so that no weight is half-way between two integers. At the borders the outer row weighs nothing.
    """
    centre = (np.arange(first, last) + 0.5) * (old / new)
    upper = np.maximum((centre - 0.5).astype(int), 0)
    lower = np.minimum((centre + 1.5).astype(int), old) - 1
    share_upper = 1 - np.abs(upper - centre + 0.5)
    share_lower = np.where(lower > upper, np.maximum(1 - np.abs(upper + 1 - centre + 0.5), 0), 0)
    share = np.floor(0.5 + share_lower / (share_upper + share_lower) * 2**_BITS) / 2**_BITS
    place = np.searchsorted(_TIES, share)
    return upper, np.where(share == _TIES[place], share, (_TIES[place - 1] + _TIES[place]) / 2)


def _mirrored(columns: _Bands, width: int) -> _Bands:
    """The same columns of the flipped image, made of the image as it is."""
    return _Bands(width - columns.weights.shape[2] - columns.starts, columns.weights[:, :, ::-1])


def _grow(image: UInt8[np.ndarray, "h w 3"], rows: _Bands, columns: _Bands, out: UInt8[np.ndarray, "h2 w2 3"]) -> None:
    """Both passes. What lies between them is bytes, too: a quarter of the memory, which stays in the cache.

    The half that is added before rounding down is added to what comes in, for weights add up to one.
    """
    seen = np.add(image[rows.seen, columns.seen], _HALF)
    seen = seen.reshape(len(seen), -1)
    blocks, _, count = columns.weights.shape
    weights = np.zeros((blocks, count, 3, _BLOCK, 3), np.float32)
    for channel in range(3):
        weights[:, :, channel, :, channel] = columns.weights.transpose(0, 2, 1)
    weights = weights.reshape(blocks, 3 * count, 3 * _BLOCK)
    made = np.empty((len(seen), 3 * _BLOCK), np.float32)
    # One block is not used: rows a multiple of 1 kB apart would drive each other out of the cache
    wide = np.empty((len(seen), 3 * _BLOCK * (blocks + 1)), np.uint8)
    for block, start in enumerate((3 * (columns.starts - columns.seen.start)).tolist()):
        np.matmul(seen[:, start : start + 3 * count], weights[block], out=made)
        np.copyto(wide[:, 3 * _BLOCK * block : 3 * _BLOCK * (block + 1)], made, casting="unsafe")  # rounds down
    wide = wide[:, : 3 * out.shape[1]]

    count = rows.weights.shape[2]
    seen, made = (np.empty((length, wide.shape[1]), np.float32) for length in (count, _BLOCK))
    for block, start in enumerate((rows.starts - rows.seen.start).tolist()):
        part = out[_BLOCK * block : _BLOCK * (block + 1)]
        np.add(wide[start : start + count], _HALF, out=seen)
        np.matmul(rows.weights[block], seen, out=made)
        np.copyto(part, made[: len(part)].reshape(part.shape), casting="unsafe")

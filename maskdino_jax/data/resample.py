"""Pillow's bilinear resize of a photograph, of which only a window is wanted: the same bytes, less work.

Pillow resizes in two passes and rounds to bytes between them; each pass multiplies bytes by weights of 22 bits. Where
an image grows in height, the pass along the rows comes first in every version of Pillow. A crop of the result needs it
for the rows that the crop shows, and then the pass along the columns for the pixels that it shows. Pillow can be asked
for the former. For the latter it takes the borders of a window as float32, which is not exact; `_grow_rows` does the
same integer arithmetic. Where the height shrinks, the order of the passes depends on Pillow's version (since 13 also on
the sizes), and there is seldom much to cut off: Pillow resizes the whole image.
"""

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

_BITS = 22  # of Pillow's weights, which are rounded to integers
_ROWS = 16  # computed at a time: they and what they are made of stay in the processor's cache
_TOP = np.uint32(24)  # Pillow's sums have a byte above 22 bits, with weights four times as large above 24


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
    old, new = image.shape[0], scaled[0]
    grows = new > old
    first, last = _source_rows(old, new, y, y + height) if grows else (0, old)
    picture = Image.fromarray(image[first:last])
    if flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.resize((scaled[1], picture.height if grows else new), Image.Resampling.BILINEAR)
    wide = np.asarray(picture.crop((x, 0, x + width, picture.height)))
    if grows:
        _grow_rows(wide, first, old, new, y, out)
    else:
        out[:] = wide[y : y + height]


def _weights(old: int, new: int, first: int, last: int) -> tuple[Int[np.ndarray, "rows"], Int[np.ndarray, "rows"]]:
    """For rows `first` to `last` of `new` made of `old` < `new`: the upper of two source rows, the lower one's weight.

    The weights of both add up to 2^22: they are fractions of an odd denominator and a power of two below 2^22, so that
    no weight is half-way between two integers. At the borders the outer row weighs nothing.
    """
    centre = (np.arange(first, last) + 0.5) * (old / new)
    upper = np.maximum((centre - 0.5).astype(int), 0)
    lower = np.minimum((centre + 1.5).astype(int), old) - 1
    share_upper = 1 - np.abs(upper - centre + 0.5)
    share_lower = np.where(lower > upper, np.maximum(1 - np.abs(upper + 1 - centre + 0.5), 0), 0)
    return upper, (0.5 + share_lower / (share_upper + share_lower) * (1 << _BITS)).astype(np.uint32)


def _source_rows(old: int, new: int, first: int, last: int) -> tuple[int, int]:
    upper, _ = _weights(old, new, first, last)
    return int(upper[0]), min(int(upper[-1]) + 2, old)


def _grow_rows(
    wide: UInt8[np.ndarray, "rows w 3"], above: int, old: int, new: int, y: int, out: UInt8[np.ndarray, "h2 w 3"]
) -> None:
    """The second pass for the rows from `y` on; `wide` starts at source row `above`.

    With weights k below and 2^22 - k above, a sum is `upper * 2^22 + (lower - upper) * k + half`. Everything is
    multiplied by four, so that its highest byte is the result; negative slopes wrap around and come back. The last row
    of the image has none below it: there k is zero, whatever the slope.
    """
    height, width = out.shape[0], 3 * wide.shape[1]
    upper, weights = _weights(old, new, y, y + height)
    upper, weights = upper - above, (4 * weights).astype(np.uint32)[:, None]
    rows = wide.reshape(len(wide), width)
    base, slope, total, offset = (np.empty((_ROWS + 1, width), np.uint32) for _ in range(4))
    for start in range(0, height, _ROWS):
        part = slice(start, min(start + _ROWS, height))
        first, pairs = int(upper[start]), int(upper[part][-1] - upper[start]) + 1
        seen = rows[first : first + pairs + 1]
        count, ready = len(seen), part.stop - part.start
        np.copyto(base[:count], seen)
        np.subtract(base[1:count], base[: count - 1], out=slope[: count - 1])
        np.left_shift(base[:pairs], _TOP, out=base[:pairs])
        np.add(base[:pairs], np.uint32(1 << 23), out=base[:pairs])
        which = upper[part] - first
        np.take(slope, which, axis=0, out=total[:ready], mode="clip")  # "clip": NumPy copies less
        np.multiply(total[:ready], weights[part], out=total[:ready])
        np.take(base, which, axis=0, out=offset[:ready], mode="clip")
        np.add(total[:ready], offset[:ready], out=total[:ready])
        np.right_shift(total[:ready], _TOP, out=total[:ready])
        np.copyto(out[part], total[:ready].reshape(-1, *out.shape[1:]), casting="unsafe")

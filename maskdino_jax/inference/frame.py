"""Where an image lies on its canvas, and the interpolation that brings masks back to the size of the file."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

BUCKET = 128  # results are computed on sides that are multiples of this, so that few programs serve all sizes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Taps:
    """A resize of one axis: output i is the sum over j of weights[i, j] * input[first[i] + j].

    Outputs beyond the true size have weights of zero. Taps never reach beyond the part of the input that counts.
    """

    first: Int[Array | np.ndarray, "n"]
    weights: Float[Array | np.ndarray, "n taps"]

    def __call__(self, x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
        """`x` resized along `axis`."""
        shape = [-1 if place == axis % x.ndim else 1 for place in range(x.ndim)]
        parts = [
            jnp.take(x, self.first + tap, axis=axis, mode="clip") * self.weights[:, tap].reshape(shape)
            for tap in range(self.weights.shape[1])
        ]
        return functools.reduce(jnp.add, parts)

    def mirrored(self, length: int) -> "Taps":
        """The first `length` outputs in reverse order."""
        flip = lambda x: np.concatenate([x[:length][::-1], x[length:]])
        return Taps(flip(self.first), flip(self.weights))


@dataclasses.dataclass(frozen=True)
class Frame:
    """An image of `size` in the top left corner of its `extent`, the part of the canvas that counts (the image and the
    padding that boxes are shares of), and `original_size` of the file. Height, width in pixels."""

    size: tuple[int, int]
    original_size: tuple[int, int]
    extent: tuple[int, int]
    stride: int = 4  # pixels of the canvas to one of the mask logits

    @property
    def target(self) -> tuple[int, int]:
        """Height and width that results are computed at: the original size rounded up."""
        return tuple(-(-side // BUCKET) * BUCKET for side in self.original_size)

    def to_original(self, target: tuple[int, int]) -> tuple[Taps, Taps]:
        """Rows and columns from mask logits to the file: enlarged to the extent, cropped to the image, resized; then
        zeros up to `target`."""
        return tuple(
            _composed(extent // self.stride, extent, used, original, length)
            for extent, used, original, length in self._sides(target)
        )

    def to_canvas(self, canvas: tuple[int, int]) -> tuple[Taps, Taps]:
        """Rows and columns from mask logits to the extent, the rest of the `canvas` zero."""
        return tuple(
            _bilinear(extent // self.stride, extent, side) for extent, side in zip(self.extent, canvas, strict=True)
        )

    def canvas_to_original(self, target: tuple[int, int]) -> tuple[Taps, Taps]:
        """Rows and columns from the canvas to the file: cropped to the image, resized; then zeros up to `target`."""
        return tuple(_bilinear(used, original, length) for _, used, original, length in self._sides(target))

    def _sides(self, target: tuple[int, int]) -> zip:
        return zip(self.extent, self.size, self.original_size, target, strict=True)


def _positions(source: int, target: int) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """The two source pixels that each target pixel lies between, and the share of the second.

    Pixel centres at one half, clamped at the borders, no smoothing where it shrinks.
    """
    position = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    low = np.floor(position).astype(np.int64)
    return low, np.minimum(low + 1, source - 1), position - low


def _gather(
    entries: list[tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]], taps: int, source: int, length: int
) -> Taps:
    """Taps out of (pixel, weight) pairs, `length` of them; all pixels of one output lie within `taps` of the lowest."""
    count = len(entries[0][0])
    first: Int32[np.ndarray, "n"] = np.zeros(length, np.int32)
    weights: Float32[np.ndarray, "n taps"] = np.zeros((length, taps), np.float32)
    lowest = np.minimum(entries[0][0], max(source - taps, 0))
    total = np.zeros((count, taps))
    for pixel, weight in entries:
        np.add.at(total, (np.arange(count), pixel - lowest), weight)
    first[:count], weights[:count] = lowest, total
    for values in (first, weights):
        values.setflags(write=False)  # callers share them
    return Taps(first, weights)


@functools.lru_cache(maxsize=1024)
def _bilinear(source: int, target: int, length: int) -> Taps:
    """From the first `source` pixels to `target`, followed by zeros up to `length`."""
    low, high, share = _positions(source, target)
    return _gather([(low, 1 - share), (high, share)], 2, source, length)


@functools.lru_cache(maxsize=1024)
def _composed(source: int, canvas: int, used: int, target: int, length: int) -> Taps:
    """Two resizes as one: `source` to `canvas`, keep the first `used`, to `target`.

    The official order of work enlarges mask logits to the padded canvas, crops the padding off and resizes to the
    original image. Bilinear resizing is linear and acts on rows and columns separately, and a crop selects pixels, so
    that the whole chain is one weighted sum, the same numbers without the large intermediate. Two neighbours on a
    canvas that is not smaller than the source lie between at most three source pixels.
    """
    low, high, share = _positions(used, target)
    source_low, source_high, source_share = _positions(source, canvas)
    entries = []
    for pixel, weight in ((low, 1 - share), (high, share)):
        entries.append((source_low[pixel], weight * (1 - source_share[pixel])))
        entries.append((source_high[pixel], weight * source_share[pixel]))
    return _gather(entries, 3, source, length)

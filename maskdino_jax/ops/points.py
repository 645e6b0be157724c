"""Bilinear sampling of maps at points, and the choice of the points at which a mask is most uncertain.

Points are (x, y) in [0, 1]: 0 is the left or upper edge of the map and 1 the right or lower one, so the centre of
pixel i lies at (i + 0.5) / size (`align_corners=False` elsewhere). Beyond the edge a map counts as zero; points within
half a pixel of it therefore blend with zero.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped, UInt8


def sample_map(features: Float[Array, "b h w d"], points: Float[Array, "b p 2"]) -> Float[Array, "b p d"]:
    """Feature vectors at the points of each image, float32; differentiable in the features."""
    b, h, w, d = features.shape
    x, y, weight = _corners(points, h, w)
    index = (y * w + x).reshape(b, -1, 1)
    values = jnp.take_along_axis(features.reshape(b, h * w, d), index, axis=1, mode="clip")
    return jnp.sum(weight[..., None] * values.reshape(b, -1, 4, d), axis=2)


def sample_masks(logits: Float[Array, "*b h w"], points: Float[Array, "*b p 2"]) -> Float[Array, "*b p"]:
    """Value of each map at its own points, float32; differentiable in the maps."""
    *lead, h, w = logits.shape
    x, y, weight = _corners(points, h, w)
    return jnp.sum(weight * _gather(logits.reshape(*lead, h * w), y * w + x), axis=-1)


def sample_packed(masks: UInt8[Array, "*#b h w8"], points: Float[Array, "*#b p 2"]) -> Float[Array, "*b p"]:
    """Value in [0, 1] of packed binary masks at points; only the bytes that hold the wanted pixels are read.

    Args:
        masks: 8 pixels of a row in a byte, the first in the highest bit; the width is 8 times that of the array.
        points: leading axes broadcast against those of the masks, so that many masks share one set of points.
    """
    *lead, h, w8 = masks.shape
    x, y, weight = _corners(points, h, w8 * 8)
    byte = _gather(masks.reshape(*lead, h * w8), y * w8 + x // 8)
    bit = (byte >> (7 - x % 8).astype(jnp.uint8)) & 1
    return jnp.sum(weight * bit, axis=-1)


def _gather(flat: Shaped[Array, "*#b t"], index: Int[Array, "*#b p 4"]) -> Shaped[Array, "*b p 4"]:
    # All four corners in one gather: its gradient is one scatter into the map instead of four.
    *lead, p, four = index.shape
    values = jnp.take_along_axis(flat, index.reshape(*lead, p * four), axis=-1, mode="clip")
    return values.reshape(*values.shape[:-1], p, four)


def _corners(
    points: Float[Array, "*b p 2"], h: int, w: int
) -> tuple[Int[Array, "*b p 4"], Int[Array, "*b p 4"], Float[Array, "*b p 4"]]:
    """Column, row and weight of the four pixels around each point; outside ones have weight 0 and a legal index."""
    size = jnp.array([w, h], jnp.float32)
    position = points.astype(jnp.float32)[..., None, :] * size - 0.5
    step = jnp.array([[0, 0], [1, 0], [0, 1], [1, 1]], jnp.float32)
    pixel = jnp.floor(position) + step
    share = 1 - jnp.abs(position - pixel)
    weight = jnp.where((pixel >= 0) & (pixel < size), share, 0)
    index = jnp.clip(pixel, 0, size - 1).astype(jnp.int32)
    return index[..., 0], index[..., 1], weight[..., 0] * weight[..., 1]


def uncertain_points(
    logits: Float[Array, "*b h w"],
    candidates: Float[Array, "*b c 2"],
    others: Float[Array, "*b r 2"],
    count: int,
) -> Float[Array, "*b p 2"]:
    """The `count` candidates where the mask is least decided (logit nearest to 0), then all `others`.

    Importance sampling of PointRend (Kirillov et al. 2020, section 3.2): the boundary is where a mask has something to
    learn; the uniform `others` keep the rest of the map in the loss. The choice passes no gradient.
    """
    values = sample_masks(jax.lax.stop_gradient(logits), candidates)
    chosen = smallest(jnp.abs(values), count)
    return jnp.concatenate([jnp.take_along_axis(candidates, chosen[..., None], axis=-2), others], axis=-2)


def smallest(values: Float[Array, "*b c"], count: int) -> Int[Array, "*b k"]:
    """Indices of the `count` smallest of non-negative float32 values, ascending; of equal values the first.

    A threshold found by bisection instead of a sort: non-negative floats order like the integers of the same bits, so
    31 counts, one for each bit, give the value at rank `count` exactly.
    """
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)

    def settle(step: Int[Array, ""], limit: Int[Array, "*b 1"]) -> Int[Array, "*b 1"]:
        higher = limit | (1 << (30 - step))
        return jnp.where(jnp.sum(bits < higher, axis=-1, keepdims=True) < count, higher, limit)

    limit = jax.lax.fori_loop(0, 31, settle, jnp.zeros_like(bits[..., :1]))
    below, equal = bits < limit, bits == limit
    room = count - jnp.sum(below, axis=-1, keepdims=True)
    chosen = below | (equal & (jnp.cumsum(equal, axis=-1) <= room))
    # The n-th chosen one writes its index to place n; all others write beyond the end, each to a place of its own.
    index = jnp.broadcast_to(jnp.arange(bits.shape[-1], dtype=jnp.int32), bits.shape)
    place = jnp.where(chosen, jnp.cumsum(chosen, axis=-1) - 1, count + index)
    write = lambda places, x: jnp.zeros(count, x.dtype).at[places].set(x, mode="drop", unique_indices=True)
    return jax.vmap(write)(place.reshape(-1, bits.shape[-1]), index.reshape(-1, bits.shape[-1])).reshape(
        *bits.shape[:-1], count
    )

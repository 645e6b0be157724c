"""Bilinear sampling of maps at points, and the choice of the points at which a mask is most uncertain.

Points are (x, y) in [0, 1]: 0 is the left or upper edge of the map and 1 the right or lower one, so the centre of
pixel i lies at (i + 0.5) / size (`align_corners=False` elsewhere). Beyond the edge a map counts as zero; points within
half a pixel of it therefore blend with zero.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8


def sample_map(features: Float[Array, "b h w d"], points: Float[Array, "b p 2"]) -> Float[Array, "b p d"]:
    """Feature vectors at the points of each image, float32; differentiable in the features."""
    b, h, w, d = features.shape
    flat = features.reshape(b, h * w, d)
    total = jnp.zeros((b, points.shape[1], d), jnp.float32)
    for x, y, weight in _corners(points, h, w):
        values = jnp.take_along_axis(flat, (y * w + x)[..., None], axis=1, mode="clip")
        total += weight[..., None] * values
    return total


def sample_masks(logits: Float[Array, "*b h w"], points: Float[Array, "*b p 2"]) -> Float[Array, "*b p"]:
    """Value of each map at its own points, float32; differentiable in the maps."""
    *lead, h, w = logits.shape
    corners = _corners(points, h, w)
    # All four corners in one gather: its gradient is one scatter into the map instead of four.
    index = jnp.concatenate([y * w + x for x, y, _ in corners], axis=-1)
    weight = jnp.concatenate([weight for _, _, weight in corners], axis=-1)
    values = jnp.take_along_axis(logits.reshape(*lead, h * w), index, axis=-1, mode="clip")
    return (weight * values).reshape(*lead, 4, points.shape[-2]).sum(axis=-2)


def sample_packed(masks: UInt8[Array, "*#b h w8"], points: Float[Array, "*#b p 2"]) -> Float[Array, "*b p"]:
    """Value in [0, 1] of packed binary masks at points; only the bytes that hold the wanted pixels are read.

    Args:
        masks: 8 pixels of a row in a byte, the first in the highest bit; the width is 8 times that of the array.
        points: leading axes broadcast against those of the masks, so that many masks share one set of points.
    """
    *lead, h, w8 = masks.shape
    flat = masks.reshape(*lead, h * w8)
    total = 0.0
    for x, y, weight in _corners(points, h, w8 * 8):
        byte = jnp.take_along_axis(flat, y * w8 + x // 8, axis=-1, mode="clip")
        bit = (byte >> (7 - x % 8).astype(jnp.uint8)) & 1
        total += weight * bit
    return total


def _corners(points: Float[Array, "*b p 2"], h: int, w: int) -> list[tuple[Array, Array, Array]]:
    """Column, row and weight of the four pixels around each point; outside ones have weight 0 and a legal index."""
    size = jnp.array([w, h], jnp.float32)
    position = points.astype(jnp.float32) * size - 0.5
    low = jnp.floor(position)
    part = position - low
    corners = []
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = low[..., 0] + dx, low[..., 1] + dy
            share = jnp.where(dx, part[..., 0], 1 - part[..., 0]) * jnp.where(dy, part[..., 1], 1 - part[..., 1])
            inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
            column = jnp.clip(x, 0, w - 1).astype(jnp.int32)
            row = jnp.clip(y, 0, h - 1).astype(jnp.int32)
            corners.append((column, row, jnp.where(inside, share, 0)))
    return corners


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
    chosen: Int[Array, "*b c"] = jax.lax.top_k(-jnp.abs(values), count)[1]
    nearest = jnp.take_along_axis(candidates, chosen[..., None], axis=-2)
    return jnp.concatenate([nearest, others], axis=-2)

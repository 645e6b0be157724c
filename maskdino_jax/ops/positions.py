"""Sinusoidal position embeddings of pixels and boxes."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_TEMPERATURE = 10_000.0
_SCALE = 2 * math.pi


def _frequencies(dim: int) -> np.ndarray:
    """Divisors of `dim` interleaved sine and cosine features: each pair shares one frequency."""
    return _TEMPERATURE ** (2 * (np.arange(dim) // 2) / dim)


def map_sine_embedding(
    height: int, width: int, dim: int, extent: Int[Array, "b 2"] | None = None
) -> Float[np.ndarray, "1 h w d"] | Float[Array, "b h w d"]:
    """Embedding of the pixels of a feature map, rows first: `dim / 2` features of y, then of x (Carion et al. 2020).

    Pixels count from 1 and the last one sits at 2 pi (up to an epsilon): no half-pixel shift. A constant of the shape,
    or with `extent`, the (height, width) that each image occupies, one map for each image.
    """
    frequencies = _frequencies(dim // 2)
    if extent is None:
        xp, rows, columns, used = np, np.float64(height), np.float64(width), 1
    else:
        xp, used = jnp, extent.shape[0]
        rows, columns = (extent[:, axis, None].astype(jnp.float32) for axis in (0, 1))
        frequencies = frequencies.astype(np.float32)

    def axis(pixels: int, size: Any) -> Any:
        angle = xp.broadcast_to(np.arange(1, pixels + 1) / (size + 1e-6) * _SCALE, (used, pixels))
        angle = angle[..., None] / frequencies
        pairs = xp.stack([xp.sin(angle[..., 0::2]), xp.cos(angle[..., 1::2])], axis=-1)
        return pairs.reshape(used, pixels, dim // 2)

    shape = (used, height, width, dim // 2)
    y = xp.broadcast_to(axis(height, rows)[:, :, None], shape)
    x = xp.broadcast_to(axis(width, columns)[:, None], shape)
    return xp.concatenate([y, x], axis=-1).astype(np.float32)


def box_sine_embedding(boxes: Float[Array, "*b 4"], dim: int) -> Float[Array, "*b d"]:
    """Embedding of cxcywh boxes in [0, 1] as `4 * dim` features in the order y, x, width, height (DAB-DETR, eq. 2)."""
    values = boxes[..., jnp.array([1, 0, 2, 3])].astype(jnp.float32)
    angle = values[..., None] * _SCALE / _frequencies(dim).astype(np.float32)
    pairs = jnp.stack([jnp.sin(angle[..., 0::2]), jnp.cos(angle[..., 1::2])], axis=-1)
    return pairs.reshape(*boxes.shape[:-1], 4 * dim)

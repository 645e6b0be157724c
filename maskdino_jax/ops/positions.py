"""Sinusoidal position embeddings of pixels and boxes."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_TEMPERATURE = 10_000.0
_SCALE = 2 * math.pi


def _frequencies(dim: int) -> np.ndarray:
    """Divisors of `dim` interleaved sine and cosine features: each pair shares one frequency."""
    return _TEMPERATURE ** (2 * (np.arange(dim) // 2) / dim)


def map_sine_embedding(height: int, width: int, dim: int) -> Float[np.ndarray, "h w d"]:
    """Embedding of the pixels of a feature map, rows first: `dim / 2` features of y, then of x (Carion et al. 2020).

    Pixels count from 1 and the last one sits at 2 pi (up to an epsilon): no half-pixel shift. A constant of the shape.
    """
    frequencies = _frequencies(dim // 2)

    def axis(size: int) -> np.ndarray:
        angle = (np.arange(1, size + 1) / (size + 1e-6) * _SCALE)[:, None] / frequencies
        return np.stack([np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])], axis=-1).reshape(size, -1)

    rows = np.broadcast_to(axis(height)[:, None], (height, width, dim // 2))
    columns = np.broadcast_to(axis(width)[None], (height, width, dim // 2))
    return np.concatenate([rows, columns], axis=-1).astype(np.float32)


def box_sine_embedding(boxes: Float[Array, "*b 4"], dim: int) -> Float[Array, "*b d"]:
    """Embedding of cxcywh boxes in [0, 1] as `4 * dim` features in the order y, x, width, height (DAB-DETR, eq. 2)."""
    values = boxes[..., jnp.array([1, 0, 2, 3])].astype(jnp.float32)
    angle = values[..., None] * _SCALE / _frequencies(dim).astype(np.float32)
    pairs = jnp.stack([jnp.sin(angle[..., 0::2]), jnp.cos(angle[..., 1::2])], axis=-1)
    return pairs.reshape(*boxes.shape[:-1], 4 * dim)

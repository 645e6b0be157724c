"""Bilinear resizing with half-pixel centres and clamped borders, never antialiased."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize_bilinear(maps: Float[Array, "b h w d"], size: tuple[int, int]) -> Float[Array, "b h2 w2 d"]:
    """Resize feature maps to `size` (height, width), as `interpolate(align_corners=False)` of other frameworks."""
    for axis, target in enumerate(size, start=1):
        if maps.shape[axis] != target:
            maps = _resize_axis(maps, axis, target)
    return maps


def _resize_axis(maps: Float[Array, "b h w d"], axis: int, target: int) -> Float[Array, "b h2 w2 d"]:
    """Each result lies between two pixels; taking these is cheaper than the matrix product of `jax.image.resize`."""
    last = maps.shape[axis] - 1
    position = np.clip((np.arange(target) + 0.5) * ((last + 1) / target) - 0.5, 0, last)
    low = np.floor(position).astype(np.int32)
    share = np.expand_dims((position - low).astype(np.float32), [other for other in range(4) if other != axis])
    take = lambda index: jnp.take(maps, index, axis=axis, mode="clip")
    return (take(low) * (1 - share) + take(np.minimum(low + 1, last)) * share).astype(maps.dtype)

"""Bilinear resizing with half-pixel centres and clamped borders, never antialiased."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize_bilinear(maps: Float[Array, "b h w d"], size: tuple[int, int]) -> Float[Array, "b h2 w2 d"]:
    """Resize feature maps to `size` (height, width), as `interpolate(align_corners=False)` of other frameworks."""
    for axis, target in enumerate(size, start=1):
        if target % maps.shape[axis]:
            maps = _resize_axis(maps, axis, target)
        elif target != maps.shape[axis]:
            maps = _enlarge_axis(maps, axis, target // maps.shape[axis])
    return maps


def _enlarge_axis(maps: Float[Array, "b h w d"], axis: int, factor: int) -> Float[Array, "b h2 w2 d"]:
    """Each pixel becomes `factor` ones, which lie between it and a neighbour: no gather, and no scatter backwards."""
    size = maps.shape[axis]
    cut = lambda start, stop: jax.lax.slice_in_dim(maps, start, stop, axis=axis)
    before = jnp.concatenate([cut(0, 1), cut(0, size - 1)], axis=axis)
    after = jnp.concatenate([cut(1, size), cut(size - 1, size)], axis=axis)
    offsets = ((np.arange(factor) + 0.5) / factor - 0.5).astype(np.float32)
    results = [maps * (1 - abs(offset)) + (before if offset < 0 else after) * abs(offset) for offset in offsets]
    shape = (*maps.shape[:axis], size * factor, *maps.shape[axis + 1 :])
    return jnp.stack(results, axis=axis + 1).reshape(shape).astype(maps.dtype)


def _resize_axis(maps: Float[Array, "b h w d"], axis: int, target: int) -> Float[Array, "b h2 w2 d"]:
    """Each result lies between two pixels; taking these is cheaper than the matrix product of `jax.image.resize`."""
    last = maps.shape[axis] - 1
    position = np.clip((np.arange(target) + 0.5) * ((last + 1) / target) - 0.5, 0, last)
    low = np.floor(position).astype(np.int32)
    share = np.expand_dims((position - low).astype(np.float32), [other for other in range(4) if other != axis])
    take = lambda index: jnp.take(maps, index, axis=axis, mode="clip")
    return (take(low) * (1 - share) + take(np.minimum(low + 1, last)) * share).astype(maps.dtype)

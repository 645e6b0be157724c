"""Bilinear resizing with half-pixel centres and clamped borders, never antialiased."""

import jax
from jaxtyping import Array, Float


def resize_bilinear(maps: Float[Array, "b h w d"], size: tuple[int, int]) -> Float[Array, "b h2 w2 d"]:
    """Resize feature maps to `size` (height, width), as `interpolate(align_corners=False)` of other frameworks."""
    if maps.shape[1:3] == size:
        return maps
    shape = (maps.shape[0], *size, maps.shape[3])
    return jax.image.resize(maps, shape, method="bilinear", antialias=False)

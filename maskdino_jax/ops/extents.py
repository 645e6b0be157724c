"""Maps of which each image occupies the top left part only: its extent, (height, width) in pixels of the map."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped


def inside(size: tuple[int, int], extent: Int[Array, "b 2"]) -> Bool[Array, "b h w"]:
    """Which pixels of a map of `size` lie within the extent."""
    rows = jnp.arange(size[0]) < extent[:, :1]
    columns = jnp.arange(size[1]) < extent[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def keep_inside(maps: Shaped[Array, "b h w c"], extent: Int[Array, "b 2"] | None) -> Shaped[Array, "b h w c"]:
    """Zeros beyond the extent: what a convolution over the extent alone would see there. None changes nothing."""
    if extent is None:
        return maps
    return jnp.where(inside(maps.shape[1:3], extent)[..., None], maps, 0)


def repeat_border(maps: Shaped[Array, "b h w c"], extent: Int[Array, "b 2"] | None) -> Shaped[Array, "b h w c"]:
    """Each pixel beyond the extent takes the value of the nearest one within: what resizing clamps to."""
    if extent is None:
        return maps
    rows = jnp.minimum(jnp.arange(maps.shape[1]), extent[:, :1] - 1)
    columns = jnp.minimum(jnp.arange(maps.shape[2]), extent[:, 1:] - 1)
    maps = jnp.take_along_axis(maps, rows[:, :, None, None], axis=1)
    return jnp.take_along_axis(maps, columns[:, None, :, None], axis=2)


def halved(extent: Int[Array, "b 2"] | None) -> Int[Array, "b 2"] | None:
    """The extent on a map of half the resolution, rounded up."""
    return None if extent is None else (extent + 1) // 2

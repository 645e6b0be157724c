"""The gradient by the values of deformable attention as sums in a fixed order, which any device repeats bit for bit.

A GPU scatters by atomic additions in whatever order its threads arrive, and float32 sums depend on their order. Here
samples are sorted by the cell of four pixels that they lie in, and each cell adds up its own, one after the other.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def add_samples(
    x: Float[Array, "k b m q"],
    y: Float[Array, "k b m q"],
    weight: Float[Array, "k b m q"],
    grad: Float[Array, "b m q d"],
    level_sizes: tuple[tuple[int, int], ...],
) -> Float[Array, "b m t d"]:
    """Add each query's gradient to the four pixels around each of its samples, times their bilinear weights.

    Takes as many steps as the fullest cell of a level has samples, each over all cells of the level: of samples spread
    evenly a few times the work of a scatter, but `k * q` steps if all of them lie in one cell. A sort comes on top.

    Args:
        x, y: pixel coordinates on the sample's level; `k` counts levels and points, level-major.
        weight: factor of the sample.
        grad: what is added.
        level_sizes: (height, width) of each level in pixels; they lie one after the other on axis `t`.

    Returns:
        float32 sums; samples outside the level count nothing.
    """
    points = x.shape[0] // len(level_sizes)
    over_images_and_heads = jax.vmap(jax.vmap(_add_to_level, (1, 1, 1, 0, None, None)), (1, 1, 1, 0, None, None))
    levels = [
        over_images_and_heads(*(a[i * points : (i + 1) * points] for a in (x, y, weight)), grad, height, width)
        for i, (height, width) in enumerate(level_sizes)
    ]
    return jnp.concatenate(levels, axis=2)


def _add_to_level(x, y, weight, grad, height: int, width: int) -> Array:
    """One image, head and level: samples [p, q], gradients [q, d], result [height * width, d]."""
    cells = (height + 1) * (width + 1)  # also those that reach over the border by half
    x, y, weight = x.ravel(), y.ravel(), weight.ravel()
    x, y = jnp.clip(x, -2, width + 1), jnp.clip(y, -2, height + 1)
    column, row = jnp.floor(x).astype(jnp.int32), jnp.floor(y).astype(jnp.int32)
    outside = (column < -1) | (column >= width) | (row < -1) | (row >= height)
    cell = jnp.where(outside, cells, (row + 1) * (width + 1) + column + 1)
    order = jnp.argsort(cell, stable=True)
    first = jnp.searchsorted(cell[order], jnp.arange(cells + 1))
    right, down = x - column, y - row
    factors = weight[:, None] * jnp.stack(
        [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], -1
    )
    upper_left, upper_right, lower_left, lower_right = _sum_cells(order, first, factors, grad).reshape(
        4, height + 1, width + 1, -1
    )
    # A pixel is a corner of four cells.
    pixels = lower_right[:-1, :-1] + lower_left[:-1, 1:] + upper_right[1:, :-1] + upper_left[1:, 1:]
    return pixels.reshape(height * width, -1)


def _sum_cells(order, first, factors, grad) -> Array:
    """Sums [4, c, d] over the samples `order[first[i]:first[i + 1]]` of cell i, times factors [n, 4] of its corners."""
    begin, end = first[:-1], first[1:]

    def add_next(step, total):
        at = begin + step
        sample = order[jnp.minimum(at, order.size - 1)]
        factor = jnp.where((at < end)[:, None], factors[sample], 0)
        return total + factor.T[:, :, None] * grad[sample % grad.shape[0]]

    zeros = jnp.zeros((4, begin.size, grad.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, jnp.max(end - begin), add_next, zeros)

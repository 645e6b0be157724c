"""The definition of multi-scale deformable attention and of its gradients, in operations that every device has.

`deform_attn` says what is computed. Here each sample is a few gathers of rows of channels: the form that is fast on a
CPU and takes little memory on a GPU.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from maskdino_jax.ops.ordered_sum import add_samples

LevelSizes = tuple[tuple[int, int], ...]

# Rows of channels by token index, separately for each image and head. As batch axes of one gather, images stay on the
# device that holds them.
_read = lambda rows, index: rows.at[index].get(mode="promise_in_bounds")
_gather_where_they_lie = jax.vmap(jax.vmap(_read, in_axes=1, out_axes=1))  # [b, t, m, d] by [b, q, m]
_gather = jax.vmap(jax.vmap(_read))  # [b, m, t, d] by [b, m, q]
_scatter_add = jax.vmap(jax.vmap(lambda rows, index, x: rows.at[index].add(x, mode="promise_in_bounds")))


def forward(
    value: Float[Array, "b t m d"],
    offsets: Float[Array, "b q m l p 2"],
    logits: Float[Array, "b q m l*p"],
    references: Float[Array, "b q r"],
    level_sizes: LevelSizes,
) -> Float[Array, "b q m*d"]:
    """The result of `deform_attn`, which says what the arguments are."""
    # One sample of all queries at a time: gathering all of them at once would make an array of l * p * 4 times the
    # size of the result, 23 GB in a layer of 16 images of 1024 x 1024.
    b, q, m, _, p, _ = offsets.shape
    offsets, logits, references = (a.astype(jnp.float32) for a in (offsets, logits, references))
    largest = logits.max(axis=-1)
    norm = jnp.exp(logits - largest[..., None]).sum(axis=-1)
    x, y, logits = _samples(offsets, logits, references, level_sizes)

    def add_sample(total, sample):
        (x, y, logit), (height, width, start) = sample
        weight = jnp.exp(logit - largest) / norm
        for row, weight_y, _ in _neighbours(y, height):
            for column, weight_x, _ in _neighbours(x, width):
                found = _gather_where_they_lie(value, start + row * width + column)
                total += (weight * weight_y * weight_x)[..., None] * found.astype(jnp.float32)
        return total, None

    zeros = jnp.zeros((b, q, m, value.shape[-1]), jnp.float32)
    total, _ = jax.lax.scan(add_sample, zeros, ((x, y, logits), _levels(level_sizes, p)))
    return total.reshape(b, q, -1).astype(value.dtype)


def backward(
    value: Float[Array, "b t m d"],
    offsets: Float[Array, "b q m l p 2"],
    logits: Float[Array, "b q m l*p"],
    references: Float[Array, "b q r"],
    grad: Float[Array, "b q m*d"],
    level_sizes: LevelSizes,
    ordered: bool,
) -> tuple[Array, Array, Array, Array]:
    """Gradients by the first four arguments, given `grad` by the result; `ordered` ones repeat bit for bit on a GPU."""
    b, t, m, d = value.shape
    p = offsets.shape[4]
    weigh = functools.partial(_weighted_samples, level_sizes=level_sizes)
    samples, pull = jax.vjp(weigh, offsets, logits, references)
    rows = value.transpose(0, 2, 1, 3)
    grad = grad.astype(jnp.float32).reshape(b, -1, m, d).transpose(0, 2, 1, 3)

    def pull_sample(grad_rows, sample):
        (x, y, weight), (height, width, start) = sample
        by_x, by_y, by_weight = 0.0, 0.0, 0.0
        for row, weight_y, slope_y in _neighbours(y, height):
            for column, weight_x, slope_x in _neighbours(x, width):
                token = start + row * width + column
                found = _gather(rows, token).astype(jnp.float32)
                # A dot product: XLA's CPU backend adds up a product's last axis several times slower.
                agreement = jnp.einsum("bmqd,bmqd->bmq", found, grad, precision=jax.lax.Precision.HIGHEST)
                by_weight += weight_y * weight_x * agreement
                by_x += weight_y * slope_x * agreement
                by_y += slope_y * weight_x * agreement
                if not ordered:
                    grad_rows = _scatter_add(grad_rows, token, (weight * weight_y * weight_x)[..., None] * grad)
        return grad_rows, (weight * by_x, weight * by_y, by_weight)

    zeros = None if ordered else jnp.zeros((b, m, t, d), jnp.float32)
    grad_rows, grad_samples = jax.lax.scan(pull_sample, zeros, (samples, _levels(level_sizes, p)))
    if ordered:
        grad_rows = add_samples(*samples, grad, level_sizes)
    return grad_rows.transpose(0, 2, 1, 3).astype(value.dtype), *pull(grad_samples)


def _samples(offsets, logits, references, level_sizes):
    """Pixel coordinates x and y, and logit, of every sample: three float32 arrays [l * p, b, q, m]."""
    offsets, logits, references = (a.astype(jnp.float32) for a in (offsets, logits, references))
    p = offsets.shape[4]
    height, width, _ = (a[:, None, None, None] for a in _levels(level_sizes, p))
    logits = logits.transpose(3, 0, 1, 2)
    # The order in which XLA copies the offsets once; reshaped first they would be copied twice.
    offsets = offsets.transpose(5, 3, 4, 0, 1, 2).reshape(2, *logits.shape)

    def pixel(axis, size):
        centre = references[..., axis, None]
        if references.shape[-1] == 2:
            return centre * size + offsets[axis] - 0.5
        return (centre + offsets[axis] * references[..., 2 + axis, None] * (0.5 / p)) * size - 0.5

    return pixel(0, width), pixel(1, height), logits


def _weighted_samples(offsets, logits, references, level_sizes):
    """Pixel coordinates x and y, and weight, of every sample: three float32 arrays [l * p, b, m, q]."""
    *points, logits = _samples(offsets, logits, references, level_sizes)
    return tuple(a.transpose(0, 1, 3, 2) for a in (*points, jax.nn.softmax(logits, axis=0)))


def _neighbours(x: Array, size: Array) -> Iterator[tuple[Array, Array, Array]]:
    """The two pixels beside a coordinate on one axis: index, weight and derivative of the weight by the coordinate.

    Pixels beyond the border get weight and derivative zero and the index of a pixel that exists.
    """
    x = jnp.clip(x, -2, size + 1)  # both are outside from here on; larger numbers do not fit into integers
    lower = jnp.floor(x).astype(jnp.int32)
    upper_weight = x - lower
    for index, weight, slope in ((lower, 1 - upper_weight, -1.0), (lower + 1, upper_weight, 1.0)):
        inside = (index >= 0) & (index < size)
        yield jnp.clip(index, 0, size - 1), jnp.where(inside, weight, 0), jnp.where(inside, slope, 0)


def _levels(level_sizes, points):
    """Height, width and first token of the level that each of the l * p samples of a head looks at."""
    rows, start = [], 0
    for height, width in level_sizes:
        rows += [(height, width, start)] * points
        start += height * width
    return tuple(jnp.array(column, jnp.int32) for column in zip(*rows, strict=True))

"""Multi-scale deformable attention: the definition, and the only door to the GPU kernels in `maskdino_kernels`.

Each head of each query looks at `p` points on each of `l` feature levels and adds up what it finds there (Deformable
DETR, Zhu et al. 2021, section 4.1, eq. 3). Levels are flattened row by row and lie one after the other on axis `t`.
A pixel's value sits at its centre, half a pixel from its border, and everything beyond the image is zero.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LevelSizes = tuple[tuple[int, int], ...]


def deform_attn(
    value: Float[Array, "b t m d"],
    offsets: Float[Array, "b q m l p 2"],
    logits: Float[Array, "b q m l*p"],
    references: Float[Array, "b q 2"] | Float[Array, "b q 4"],
    level_sizes: LevelSizes,
    impl: str = "xla",
) -> Float[Array, "b q m*d"]:
    """Sample `value` at the offset points of every query and average with softmax weights.

    With a reference point (x, y) offsets are pixels of the level they look at. With a reference box (cxcywh) they are
    shares of the box: an offset of `p` moves a sample by half the box, from its centre to its border.

    Args:
        value: projected tokens of all levels, heads apart; float32 or bfloat16.
        offsets: (x, y) of each sample relative to the reference.
        logits: one for each sample; the softmax runs over all levels and points together, level-major.
        references: points or boxes divided by the width and height of the image, the same for all levels.
        level_sizes: (height, width) of each level in pixels.
        impl: `xla` runs on every device, `pallas` is the GPU kernel. Both have the same gradients.

    Returns:
        The heads side by side, in the type of `value`. Coordinates, weights and sums are float32 whatever that type.

    Raises:
        ValueError: the levels do not add up to `t`, or `impl` is unknown or does not run here.
    """
    tokens = sum(height * width for height, width in level_sizes)
    if len(level_sizes) != offsets.shape[3] or tokens != value.shape[1]:
        raise ValueError(
            f"level_sizes {level_sizes} are {len(level_sizes)} levels of {tokens} tokens together, but offsets have "
            f"{offsets.shape[3]} levels and value has {value.shape[1]} tokens. Pass the (height, width) of every level."
        )
    if impl not in ("xla", "pallas"):
        raise ValueError(f"config.model.deform_attn is {impl!r}: use 'xla' (any device) or 'pallas' (NVIDIA GPU).")
    if impl == "pallas" and jax.default_backend() != "gpu":
        raise ValueError(
            f"config.model.deform_attn is 'pallas', a GPU kernel, but JAX runs on {jax.default_backend()!r}. "
            "Pass --config.model.deform_attn=xla, or install JAX with CUDA (the extra cuda12 or cuda13)."
        )
    return _attend(value, offsets, logits, references, level_sizes, impl)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(value, offsets, logits, references, level_sizes, impl):
    if impl == "pallas":
        return _kernel()(value, offsets, logits, references, level_sizes)
    return _forward(value, offsets, logits, references, level_sizes)


def _kernel():
    from maskdino_kernels import ms_deform_attn  # here, so that the package works without Pallas

    return ms_deform_attn


def _attend_forward(value, offsets, logits, references, level_sizes, impl):
    # Only the arguments are kept for the backward pass: sample positions and weights are cheaper to compute again
    # than to store, six layers of them.
    inputs = (value, offsets, logits, references)
    return _attend(*inputs, level_sizes, impl), inputs


def _attend_backward(level_sizes, impl, inputs, grad):
    del impl  # one backward for all forwards
    value, *position_inputs = inputs
    samples, pull = jax.vjp(functools.partial(_samples, level_sizes=level_sizes), *position_inputs)
    grad_value, grad_samples = _backward(value, samples, level_sizes, grad)
    return grad_value, *pull(grad_samples)


_attend.defvjp(_attend_forward, _attend_backward)


def _samples(offsets, logits, references, level_sizes):
    """Pixel coordinates x and y, and weight, of every sample: three float32 arrays [l * p, b, m, q]."""
    offsets, logits, references = (a.astype(jnp.float32) for a in (offsets, logits, references))
    b, q, m, levels, p, _ = offsets.shape
    sizes = jnp.array([(width, height) for height, width in level_sizes], jnp.float32)[:, None]  # [l, 1, (x, y)]
    references = references[:, :, None, None, None]
    if references.shape[-1] == 2:
        pixels = references * sizes + offsets - 0.5
    else:
        centres, extents = references[..., :2], references[..., 2:]
        pixels = (centres + offsets * extents * (0.5 / p)) * sizes - 0.5
    points = pixels.reshape(b, q, m, levels * p, 2).transpose(4, 3, 0, 2, 1)
    return points[0], points[1], jax.nn.softmax(logits, axis=-1).transpose(3, 0, 2, 1)


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


# Rows of channels by token index, separately for each image and head. As batch axes of one gather, images stay on the
# device that holds them.
_gather = jax.vmap(jax.vmap(lambda rows, index: rows.at[index].get(mode="promise_in_bounds")))
_scatter_add = jax.vmap(jax.vmap(lambda rows, index, x: rows.at[index].add(x, mode="promise_in_bounds")))


def _forward(value, offsets, logits, references, level_sizes):
    # One sample of all queries at a time: gathering all of them at once would make an array of l * p * 4 times the
    # size of the result, 23 GB in a layer of 16 images of 1024 x 1024.
    b, q, m, _, p, _ = offsets.shape
    rows = value.transpose(0, 2, 1, 3)

    def add_sample(total, sample):
        (x, y, weight), (height, width, start) = sample
        for row, weight_y, _ in _neighbours(y, height):
            for column, weight_x, _ in _neighbours(x, width):
                found = _gather(rows, start + row * width + column)
                total += (weight * weight_y * weight_x)[..., None] * found.astype(jnp.float32)
        return total, None

    samples = _samples(offsets, logits, references, level_sizes)
    zeros = jnp.zeros((b, m, q, value.shape[-1]), jnp.float32)
    total, _ = jax.lax.scan(add_sample, zeros, (samples, _levels(level_sizes, p)))
    return total.transpose(0, 2, 1, 3).reshape(b, q, -1).astype(value.dtype)


def _backward(value, samples, level_sizes, grad):
    """Gradients by `value` and by the three arrays of `_samples`, given the gradient by the result."""
    b, t, m, d = value.shape
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
                grad_rows = _scatter_add(grad_rows, token, (weight * weight_y * weight_x)[..., None] * grad)
        return grad_rows, (weight * by_x, weight * by_y, by_weight)

    points = samples[0].shape[0] // len(level_sizes)
    zeros = jnp.zeros((b, m, t, d), jnp.float32)
    grad_rows, grad_samples = jax.lax.scan(pull_sample, zeros, (samples, _levels(level_sizes, points)))
    return grad_rows.transpose(0, 2, 1, 3).astype(value.dtype), grad_samples

"""Multi-scale deformable attention and its gradients as two Pallas kernels, lowered through Triton.

Softmax, sample positions, bilinear interpolation and weighted sum happen in registers; nothing but the result is
written. The backward pass computes all of them again, rather than read them. The mathematics is that of Deformable DETR
(Zhu et al. 2021, eq. 3), half-pixel centres, zeros outside. Everything here is specific to Triton; `ms_deform_attn`
prepares what it gets.

Arrays come with the queries last, so that the threads of a block read one number of neighbouring queries from
neighbouring addresses. k counts the l * p samples of a query and head, r the 2 or 4 numbers of a reference:
value [b, t, m, d], offsets [b, m, 2 * k, q], logits [b, m, k, q], references [b, r, q]; d is a power of two and q a
multiple of the tile's block.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from maskdino_kernels.relaxed_atomics import add_rows
from maskdino_kernels.tiles import Tile

LevelSizes = tuple[tuple[int, int], ...]


def forward(value, offsets, logits, references, *, level_sizes: LevelSizes, tile: Tile, interpret: bool) -> jax.Array:
    """The result, [b, q, m, d] in the type of `value`."""
    specs = _specs(value, offsets, references, tile.block)
    return pl.pallas_call(
        functools.partial(_forward_kernel, level_sizes=level_sizes),
        grid=_grid(value, offsets, tile.block),
        in_specs=[specs[name] for name in ("value", "offsets", "logits", "references")],
        out_specs=specs["result"],
        out_shape=_result_shape(value, offsets),
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
        name="ms_deform_attn",
    )(value, offsets, logits, references)


def backward(
    value, offsets, logits, references, grad, *, level_sizes: LevelSizes, tile: Tile, interpret: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Gradients by the four arrays, given that by the result; float32, by the references for each head [b, m, r, q].

    Additions to a pixel happen in no fixed order: the last bits of the first gradient may differ between runs.
    """
    specs = _specs(value, offsets, references, tile.block)
    b, _, m, _ = value.shape
    r, q = references.shape[1:]
    shapes = (value.shape, offsets.shape, logits.shape, (b, m, r, q))
    by_reference = pl.BlockSpec((None, None, r, tile.block), lambda i, head, image: (image, head, 0, i))
    return pl.pallas_call(
        functools.partial(_backward_kernel, level_sizes=level_sizes, interpret=interpret),
        grid=_grid(value, offsets, tile.block),
        in_specs=[specs[name] for name in ("value", "offsets", "logits", "references", "result", "value")],
        out_specs=[specs["value"], specs["offsets"], specs["logits"], by_reference],
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        input_output_aliases={5: 0},  # the kernel adds to zeros
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
        name="ms_deform_attn_backward",
    )(value, offsets, logits, references, grad, jnp.zeros(value.shape, jnp.float32))


def _grid(value, offsets, block: int) -> tuple[int, int, int]:
    # Blocks of one head and image run side by side, so that its tokens stay in the cache.
    return offsets.shape[-1] // block, value.shape[2], value.shape[0]


def _result_shape(value, offsets) -> jax.ShapeDtypeStruct:
    b, _, m, d = value.shape
    return jax.ShapeDtypeStruct((b, offsets.shape[-1], m, d), value.dtype)


def _specs(value, offsets, references, block: int) -> dict[str, pl.BlockSpec]:
    """What a program of the grid sees: the queries of its block, all tokens of its image, both of its head alone."""
    _, t, _, d = value.shape
    samples, r = offsets.shape[2] // 2, references.shape[1]
    return {
        "value": pl.BlockSpec((None, t, None, d), lambda i, head, image: (image, 0, head, 0)),
        "offsets": pl.BlockSpec((None, None, 2 * samples, block), lambda i, head, image: (image, head, 0, i)),
        "logits": pl.BlockSpec((None, None, samples, block), lambda i, head, image: (image, head, 0, i)),
        "references": pl.BlockSpec((None, r, block), lambda i, head, image: (image, 0, i)),
        "result": pl.BlockSpec((None, block, None, d), lambda i, head, image: (image, i, head, 0)),
    }


def _forward_kernel(value_ref, offsets_ref, logits_ref, references_ref, out_ref, *, level_sizes):
    points = logits_ref.shape[0] // len(level_sizes)
    largest, norm = _largest_logit(logits_ref), 0.0
    total = jnp.zeros(out_ref.shape, jnp.float32)
    for k, start, size in _samples(level_sizes, points):
        weight = jnp.exp(_row(logits_ref, k) - largest)
        norm += weight
        x, y = (_pixel(offsets_ref, references_ref, k, axis, size, points) for axis in (0, 1))
        for token, weight_y, weight_x, _, _ in _corners(x, y, start, size):
            found = value_ref[token, :].astype(jnp.float32)
            total += (weight * weight_y * weight_x)[:, None] * found
    out_ref[...] = (total / norm[:, None]).astype(out_ref.dtype)


def _backward_kernel(
    value_ref, offsets_ref, logits_ref, references_ref, grad_ref, _, *outputs, level_sizes, interpret
):  # fmt: skip
    by_value_ref, by_offsets_ref, by_logits_ref, by_references_ref = outputs
    samples, r = logits_ref.shape[0], references_ref.shape[0]
    points = samples // len(level_sizes)
    grad = grad_ref[...].astype(jnp.float32)
    largest = _largest_logit(logits_ref)
    norm = sum(jnp.exp(_row(logits_ref, k) - largest) for k in range(samples))
    weights, by_weights, by_references = [], [], [0.0] * r
    for k, start, size in _samples(level_sizes, points):
        weight = jnp.exp(_row(logits_ref, k) - largest) / norm
        x, y = (_pixel(offsets_ref, references_ref, k, axis, size, points) for axis in (0, 1))
        by_weight, by_pixel = 0.0, [0.0, 0.0]
        for token, weight_y, weight_x, slope_y, slope_x in _corners(x, y, start, size):
            agreement = jnp.sum(value_ref[token, :].astype(jnp.float32) * grad, axis=1)
            by_weight += weight_y * weight_x * agreement
            by_pixel[0] += weight_y * slope_x * agreement
            by_pixel[1] += slope_y * weight_x * agreement
            share = weight * weight_y * weight_x
            add_rows(by_value_ref, token, share[:, None] * grad, share != 0, interpret=interpret)
        for axis in (0, 1):
            pulled = _pull_pixel(weight * by_pixel[axis], offsets_ref, references_ref, k, axis, size, points)
            by_offsets_ref[2 * k + axis, :] = pulled[0]
            for i, by_reference in zip(range(axis, r, 2), pulled[1:], strict=True):
                by_references[i] += by_reference
        weights.append(weight)
        by_weights.append(by_weight)
    mean = sum(weight * by_weight for weight, by_weight in zip(weights, by_weights, strict=True))
    for k in range(samples):
        by_logits_ref[k, :] = weights[k] * (by_weights[k] - mean)
    for i in range(r):
        by_references_ref[i, :] = by_references[i]


def _samples(level_sizes: LevelSizes, points: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Index of each sample, and first token and (width, height) of the level that it looks at."""
    start = 0
    for level, (height, width) in enumerate(level_sizes):
        for point in range(points):
            yield level * points + point, start, (width, height)
        start += height * width


def _row(ref, index: int) -> jax.Array:
    return ref[index, :].astype(jnp.float32)


def _largest_logit(logits_ref) -> jax.Array:
    return functools.reduce(jnp.maximum, (_row(logits_ref, k) for k in range(logits_ref.shape[0])))


def _pixel(offsets_ref, references_ref, k: int, axis: int, size: tuple[int, int], points: int) -> jax.Array:
    """Coordinate of sample `k` on one axis (0 is x) in pixels of a level of (width, height) `size`."""
    offset, centre = _row(offsets_ref, 2 * k + axis), _row(references_ref, axis)
    if references_ref.shape[0] == 2:
        return centre * size[axis] + offset - 0.5
    return (centre + offset * _row(references_ref, 2 + axis) * (0.5 / points)) * size[axis] - 0.5


def _pull_pixel(by_pixel, offsets_ref, references_ref, k: int, axis: int, size: tuple[int, int], points: int):
    """Gradients by offset, centre and, of a box, extent, given that by the coordinate of `_pixel`."""
    by_centre = by_pixel * size[axis]
    if references_ref.shape[0] == 2:
        return by_pixel, by_centre
    by_move = by_centre * (0.5 / points)
    offset, extent = _row(offsets_ref, 2 * k + axis), _row(references_ref, 2 + axis)
    return by_move * extent, by_centre, by_move * offset


def _corners(x, y, start: int, size: tuple[int, int]) -> Iterator[tuple[jax.Array, ...]]:
    """The four pixels around a sample: token, weights on y and x, and derivatives of these by y and x."""
    width, height = size
    for row, weight_y, slope_y in _neighbours(y, height):
        for column, weight_x, slope_x in _neighbours(x, width):
            yield start + row * width + column, weight_y, weight_x, slope_y, slope_x


def _neighbours(x: jax.Array, size: int) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
    """Index, weight and its derivative of the two pixels beside a coordinate; beyond the border zeros, a legal index.

    Loads then need no mask, which costs the GPU more instructions than the wasted reads.
    """
    x = jnp.clip(x, -2.0, size + 1.0)  # both are outside from here on; larger numbers do not fit into integers
    floor = jnp.floor(x)
    lower, upper_weight = floor.astype(jnp.int32), x - floor
    for index, weight, slope in ((lower, 1 - upper_weight, -1.0), (lower + 1, upper_weight, 1.0)):
        inside = (index >= 0) & (index < size)
        yield jnp.clip(index, 0, size - 1), jnp.where(inside, weight, 0.0), jnp.where(inside, slope, 0.0)

"""Multi-scale deformable attention for NVIDIA GPUs, forward: one Pallas kernel, lowered through Triton.

Softmax, sample positions, bilinear interpolation and weighted sum happen in registers; nothing but the result is
written. The mathematics is that of Deformable DETR (Zhu et al. 2021, eq. 3), half-pixel centres, zeros outside.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

LevelSizes = tuple[tuple[int, int], ...]

BLOCK = 32  # queries of one program: with 4 warps, 4 lanes share a query and read a 64-byte row 16 bytes each
WARPS = 4
DTYPES = ("float32", "bfloat16")


def ms_deform_attn(
    value: jax.Array,
    offsets: jax.Array,
    logits: jax.Array,
    references: jax.Array,
    level_sizes: LevelSizes,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Sample `value` at the offset points of every query and average with softmax weights.

    Has no derivative of its own: differentiate `maskdino_jax.ops.deform_attn`, which calls it.

    Args:
        value: [b, t, m, d] float32 or bfloat16; d is a power of two. The levels lie one after the other on axis t.
        offsets: [b, q, m, l, p, 2] as (x, y): pixels of the level, or shares of the reference box.
        logits: [b, q, m, l * p], level-major.
        references: [b, q, 2] points or [b, q, 4] boxes (cxcywh) divided by the width and height of the image.
        level_sizes: (height, width) of each level in pixels.
        interpret: run the kernel as plain JAX operations on any device. For tests: it is slow.

    Returns:
        [b, q, m * d] in the type of `value`; sums and coordinates are float32.

    Raises:
        ValueError: a shape or type that the kernel does not support.
    """
    _check(value, offsets, level_sizes)
    b, t, m, d = value.shape
    q, p = offsets.shape[1], offsets.shape[4]
    k, r = len(level_sizes) * p, references.shape[-1]  # samples of a query and head, numbers of a reference
    # Queries last: the threads of a block read one number of neighbouring queries from neighbouring addresses. The
    # added queries of the last block look at the corner of the image and are cut off at the end.
    tail = -q % BLOCK
    offsets = offsets.reshape(b, q, m, 2 * k).transpose(0, 2, 3, 1)
    offsets, logits, references = (
        jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, tail)])
        for a in (offsets, logits.transpose(0, 2, 3, 1), references.transpose(0, 2, 1))
    )
    out = pl.pallas_call(
        functools.partial(_kernel, level_sizes=level_sizes, points=p),
        # Blocks of one head and image run side by side, so that its tokens stay in the cache.
        grid=((q + tail) // BLOCK, m, b),
        in_specs=[
            pl.BlockSpec((None, t, None, d), lambda i, head, image: (image, 0, head, 0)),
            pl.BlockSpec((None, None, 2 * k, BLOCK), lambda i, head, image: (image, head, 0, i)),
            pl.BlockSpec((None, None, k, BLOCK), lambda i, head, image: (image, head, 0, i)),
            pl.BlockSpec((None, r, BLOCK), lambda i, head, image: (image, 0, i)),
        ],
        out_specs=pl.BlockSpec((None, BLOCK, None, d), lambda i, head, image: (image, i, head, 0)),
        out_shape=jax.ShapeDtypeStruct((b, q + tail, m, d), value.dtype),
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="ms_deform_attn",
    )(value, offsets, logits, references)
    return out[:, :q].reshape(b, q, m * d)


def _check(value: jax.Array, offsets: jax.Array, level_sizes: LevelSizes) -> None:
    tokens, channels = value.shape[1], value.shape[3]
    levels, expected = offsets.shape[3], sum(height * width for height, width in level_sizes)
    if expected != tokens or len(level_sizes) != levels:
        raise ValueError(
            f"level_sizes {level_sizes} are {len(level_sizes)} levels of {expected} tokens together, but offsets have "
            f"{levels} levels and value has {tokens} tokens. Pass the (height, width) of every level."
        )
    if channels & (channels - 1):
        raise ValueError(f"value has {channels} channels a head, the kernel needs a power of two: use impl='xla'.")
    if value.dtype.name not in DTYPES:
        raise ValueError(f"value is {value.dtype.name}, the kernel takes {' or '.join(DTYPES)}: cast it.")


def _kernel(value_ref, offsets_ref, logits_ref, references_ref, out_ref, *, level_sizes, points):
    """Queries of one head and image: value [t, d], offsets [2 * k, block], logits [k, block], references [r, block]."""
    samples = len(level_sizes) * points
    largest = functools.reduce(jnp.maximum, (_row(logits_ref, k) for k in range(samples)))
    total, norm = jnp.zeros(out_ref.shape, jnp.float32), jnp.zeros(largest.shape, jnp.float32)
    start = 0
    for level, (height, width) in enumerate(level_sizes):
        for k in range(level * points, (level + 1) * points):
            weight = jnp.exp(_row(logits_ref, k) - largest)
            norm += weight
            x = _pixel(offsets_ref, references_ref, k, 0, width, points)
            y = _pixel(offsets_ref, references_ref, k, 1, height, points)
            for row, weight_y in _neighbours(y, height):
                for column, weight_x in _neighbours(x, width):
                    found = value_ref[start + row * width + column, :].astype(jnp.float32)
                    total += (weight * weight_y * weight_x)[:, None] * found
        start += height * width
    out_ref[...] = (total / norm[:, None]).astype(out_ref.dtype)


def _row(ref, index: int) -> jax.Array:
    return ref[index, :].astype(jnp.float32)


def _pixel(offsets_ref, references_ref, k: int, axis: int, size: int, points: int) -> jax.Array:
    """Coordinate of sample `k` on one axis (0 is x) in pixels of a level that is `size` pixels long on it."""
    offset, centre = _row(offsets_ref, 2 * k + axis), _row(references_ref, axis)
    if references_ref.shape[0] == 2:
        return centre * size + offset - 0.5
    return (centre + offset * _row(references_ref, 2 + axis) * (0.5 / points)) * size - 0.5


def _neighbours(x: jax.Array, size: int) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Index and weight of the two pixels beside a coordinate; beyond the border a weight of zero and a legal index.

    Loads then need no mask, which costs the GPU more instructions than the wasted reads.
    """
    x = jnp.clip(x, -2.0, size + 1.0)  # both are outside from here on; larger numbers do not fit into integers
    floor = jnp.floor(x)
    lower, upper_weight = floor.astype(jnp.int32), x - floor
    for index, weight in ((lower, 1 - upper_weight), (lower + 1, upper_weight)):
        inside = (index >= 0) & (index < size)
        yield jnp.clip(index, 0, size - 1), jnp.where(inside, weight, 0.0)

"""Multi-scale deformable attention on an NVIDIA GPU, forward and backward, whatever kernel language is behind it.

Checks the arguments, brings them into the layout of the kernels and keeps every image on the device that holds it.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from maskdino_kernels import tiles, triton_kernels

LevelSizes = tuple[tuple[int, int], ...]

DTYPES = ("float32", "bfloat16", "float16")
COMPUTE_CAPABILITY = 8.0
NOWHERE = -4.0  # a reference so far outside that every sample, and every box around it, misses the image


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

    JAX cannot differentiate it: `ms_deform_attn_backward` gives the gradients.

    Args:
        value: [b, t, m, d] float32, bfloat16 or float16. The levels lie one after the other on axis t.
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
    b, _, m, d = value.shape
    q = offsets.shape[1]
    if not (b and q):
        return jnp.zeros((b, q, m * d), value.dtype)
    return _by_image(_forward, level_sizes, interpret)(value, offsets, logits, references)


def ms_deform_attn_backward(
    value: jax.Array,
    offsets: jax.Array,
    logits: jax.Array,
    references: jax.Array,
    grad: jax.Array,
    level_sizes: LevelSizes,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Gradients by the first four arguments, given `grad` [b, q, m * d] by the result of `ms_deform_attn`.

    The gradient by `value` is summed in float32 by atomic additions: its last bits may differ from run to run.

    Returns:
        Arrays of the shapes and types of the first four arguments.

    Raises:
        ValueError: a shape or type that the kernel does not support.
    """
    _check(value, offsets, level_sizes)
    if not (value.shape[0] and offsets.shape[1]):
        return tuple(jnp.zeros(a.shape, a.dtype) for a in (value, offsets, logits, references))
    return _by_image(_backward, level_sizes, interpret)(value, offsets, logits, references, grad)


def unsupported(dtype: jax.typing.DTypeLike) -> str | None:
    """Why the kernels do not run on the GPU at hand with values of that type; None if they do."""
    if jnp.dtype(dtype).name not in DTYPES:
        return f"values are {jnp.dtype(dtype).name}, the kernel takes {', '.join(DTYPES)}"
    device = jax.local_devices()[0]
    try:
        capability = float(device.compute_capability)
    except (AttributeError, ValueError):
        return f"{device.device_kind} is no NVIDIA GPU"
    if capability < COMPUTE_CAPABILITY:
        return f"{device.device_kind} has compute capability {capability}, the kernel needs {COMPUTE_CAPABILITY}"
    return None


def _check(value: jax.Array, offsets: jax.Array, level_sizes: LevelSizes) -> None:
    tokens = value.shape[1]
    levels, expected = offsets.shape[3], sum(height * width for height, width in level_sizes)
    if expected != tokens or len(level_sizes) != levels:
        raise ValueError(
            f"level_sizes {level_sizes} are {len(level_sizes)} levels of {expected} tokens together, but offsets have "
            f"{levels} levels and value has {tokens} tokens. Pass the (height, width) of every level."
        )
    if value.dtype.name not in DTYPES:
        raise ValueError(f"value is {value.dtype.name}, the kernel takes {', '.join(DTYPES)}: cast it.")


@functools.cache
def _by_image(function: Callable, level_sizes: LevelSizes, interpret: bool) -> Callable:
    """Split `function` over devices along the images, its first axis everywhere, and along nothing else.

    XLA cannot look into a kernel. Without being told it would gather all images on every device.
    """

    def run(*arrays):
        return function(*arrays, level_sizes, interpret)

    def partition(mesh, arguments, results):
        specs = [a.sharding.spec for a in arguments]
        by_image = NamedSharding(mesh, PartitionSpec(next((spec[0] for spec in specs if spec and spec[0]), None)))
        return mesh, run, jax.tree.map(lambda _: by_image, results), tuple(by_image for _ in arguments)

    def rule(mesh, arguments, results):
        del mesh
        names = (f"axis{i}" for i in itertools.count())  # a name that occurs once ties no axes together
        shapes = [
            ", ".join(" ".join(["image", *itertools.islice(names, len(a.shape) - 1)]) for a in side)
            for side in (arguments, results)
        ]
        return " -> ".join(shapes)

    split = custom_partitioning(run)
    split.def_partition(partition=partition, sharding_rule=rule)
    return split


def _forward(value, offsets, logits, references, level_sizes, interpret):
    d, q = value.shape[3], offsets.shape[1]
    tile = tiles.choose(q, backward=False)
    arrays = _prepare(value, offsets, logits, references, tile.block)
    out = triton_kernels.forward(*arrays, level_sizes=level_sizes, tile=tile, interpret=interpret)
    return out[:, :q, :, :d].reshape(*out.shape[:1], q, -1)


def _backward(value, offsets, logits, references, grad, level_sizes, interpret):
    b, _, m, d = value.shape
    q = offsets.shape[1]
    tile = tiles.choose(q, backward=True)
    arrays = _prepare(value, offsets, logits, references, tile.block)
    grad = jnp.pad(grad.reshape(b, q, m, d), ((0, 0), (0, -q % tile.block), (0, 0), (0, arrays[0].shape[3] - d)))
    by_value, by_offsets, by_logits, by_references = triton_kernels.backward(
        *arrays, grad, level_sizes=level_sizes, tile=tile, interpret=interpret
    )
    return (
        by_value[..., :d].astype(value.dtype),
        by_offsets[..., :q].transpose(0, 3, 1, 2).reshape(offsets.shape).astype(offsets.dtype),
        by_logits[..., :q].transpose(0, 3, 1, 2).astype(logits.dtype),
        by_references[..., :q].sum(axis=1).transpose(0, 2, 1).astype(references.dtype),
    )


def _prepare(value, offsets, logits, references, block: int) -> tuple[jax.Array, ...]:
    """The arguments of the kernels: queries last, a whole number of blocks of them; channels a power of two."""
    b, _, m, d = value.shape
    q = offsets.shape[1]
    tail = ((0, 0),) * 3 + ((0, -q % block),)
    offsets = jnp.pad(offsets.reshape(b, q, m, -1).transpose(0, 2, 3, 1), tail)
    logits = jnp.pad(logits.transpose(0, 2, 3, 1), tail)
    references = jnp.pad(references.transpose(0, 2, 1), tail[1:], constant_values=NOWHERE)
    value = jnp.pad(value, ((0, 0),) * 3 + ((0, (1 << (d - 1).bit_length()) - d),))
    return value, offsets, logits, references

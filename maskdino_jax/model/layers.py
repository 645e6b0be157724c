"""Building blocks: convolution with a norm, MLP, attention, and the initialisers of the official model."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from maskdino_jax.config import ModelConfig
from maskdino_jax.model.keys import Keys
from maskdino_jax.model.levels import Levels
from maskdino_jax.ops.deform_attn import deform_attn
from maskdino_jax.ops.extents import halved, inside, keep_inside

EPSILON = 1e-5  # of every norm
_BLOCK = 1024  # tokens whose hidden vectors of 2048 floats fit into the cache of a CPU core, 8 MiB


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def relu(x: Float[Array, "*s"], dtype: DTypeLike = jnp.float32) -> Float[Array, "*s"]:
    """What is positive of `x`. The derivative is read off the result as `dtype`, the type in which the next layer
    takes it and keeps it.

    `jax.nn.relu` reads it off `x`: XLA then keeps the outputs of convolutions as well.
    """
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_jvp(dtype: DTypeLike, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    result = relu(*primals, dtype)
    return result, jnp.where(result.astype(dtype) > 0, tangents[0], 0)


class Frozen(nnx.Variable):
    """A statistic that is stored with the parameters and never trained."""


def uniform_fan_in(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Uniform in plus or minus one over the square root of the fan-in."""
    bound = 1 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def uniform_bias(fan_in: int) -> Callable[..., jax.Array]:
    """Bias initialiser that goes with `uniform_fan_in`."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def dot_general(x: Array, kernel: Array, dimension_numbers: Any, **options: Any) -> Array:
    """`jax.lax.dot_general`; on a CPU, products of bfloat16 are quick only if they are returned in float32."""
    plain = functools.partial(jax.lax.dot_general, dimension_numbers=dimension_numbers, **options)
    if x.dtype != jnp.bfloat16:
        return plain(x, kernel)
    wide = lambda x, kernel: plain(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)
    return jax.lax.platform_dependent(x, kernel, cpu=wide, default=plain)


def linear(fan_in: int, fan_out: int, *, init: str = "fan_in", dtype: DTypeLike, rngs: Keys) -> nnx.Linear:
    """Linear layer. `init`: fan_in (heads), xavier (transformer stacks) or zeros (last layer of the box head)."""
    if init == "zeros":
        kernel_init, bias_init = nnx.initializers.zeros_init(), nnx.initializers.zeros_init()
    elif init == "xavier":
        kernel_init, bias_init = nnx.initializers.xavier_uniform(), uniform_bias(fan_in)
    else:
        kernel_init, bias_init = uniform_fan_in, uniform_bias(fan_in)
    return nnx.Linear(
        fan_in,
        fan_out,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dot_general=dot_general,
        dtype=dtype,
        rngs=rngs,
    )


def layer_norm(dim: int, *, dtype: DTypeLike, rngs: Keys) -> nnx.LayerNorm:
    """LayerNorm of the last axis, with the epsilon of PyTorch."""
    return nnx.LayerNorm(dim, epsilon=EPSILON, dtype=dtype, rngs=rngs)


def group_norm(dim: int, *, dtype: DTypeLike, rngs: Keys) -> nnx.GroupNorm:
    """GroupNorm of 32 contiguous groups, or as many as divide `dim`."""
    # The fast variance, a difference of two sums over a whole map, would be wrong from the fifth digit on.
    return nnx.GroupNorm(
        dim, num_groups=math.gcd(32, dim), epsilon=EPSILON, use_fast_variance=False, dtype=dtype, rngs=rngs
    )


class FrozenBatchNorm(nnx.Module):
    """Batch norm with stored statistics and stored scale and bias: an affine map per channel, never trained."""

    def __init__(self, dim: int) -> None:
        self.scale = Frozen(jnp.ones(dim))
        self.bias = Frozen(jnp.zeros(dim))
        self.mean = Frozen(jnp.zeros(dim))
        self.var = Frozen(jnp.ones(dim))

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        scale = self.scale[...] * jax.lax.rsqrt(self.var[...] + EPSILON)
        shift = self.bias[...] - self.mean[...] * scale
        return x.astype(jnp.float32) * scale + shift


class BatchNorm(nnx.Module):
    """Batch norm over all images of the batch, on whatever devices they are, with running statistics for inference.

    The statistics follow the convention of PyTorch: a share of 0.1 of the new value, variances without bias.
    """

    def __init__(self, dim: int) -> None:
        self.scale = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))
        self.mean = Frozen(jnp.zeros(dim))
        self.var = Frozen(jnp.ones(dim))

    def __call__(self, x: Float[Array, "b h w d"], training: bool) -> Float[Array, "b h w d"]:
        mean, var = self.mean[...], self.var[...]
        wide = x.astype(jnp.float32)
        if training:
            count = x.size // x.shape[-1]
            mean = jnp.mean(wide, axis=(0, 1, 2))
            var = jnp.mean(jnp.square(wide - mean), axis=(0, 1, 2))
            keep = lambda old, new: 0.9 * old + 0.1 * jax.lax.stop_gradient(new)
            self.mean[...] = keep(self.mean[...], mean)
            self.var[...] = keep(self.var[...], var * (count / max(count - 1, 1)))
        scale = self.scale[...] * jax.lax.rsqrt(var + EPSILON)
        return (wide - mean) * scale + self.bias[...]


class ConvNorm(nnx.Module):
    """Convolution padded symmetrically, then a norm: frozen_bn, batch_norm or group_norm.

    The result is float32 whatever the type of the convolution: what shortcuts add up would collect the rounding.
    """

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        kernel: int,
        *,
        stride: int = 1,
        bias: bool = False,
        norm: str,
        init: Callable[..., jax.Array],
        dtype: DTypeLike,
        rngs: Keys,
    ) -> None:
        pad = kernel // 2
        self.conv = nnx.Conv(
            fan_in,
            fan_out,
            (kernel, kernel),
            strides=stride,
            padding=((pad, pad), (pad, pad)),
            use_bias=bias,
            kernel_init=init,
            dtype=dtype,
            rngs=rngs,
        )
        if norm == "frozen_bn":
            self.norm = FrozenBatchNorm(fan_out)
        elif norm == "batch_norm":
            self.norm = BatchNorm(fan_out)
        else:
            self.norm = group_norm(fan_out, dtype=jnp.float32, rngs=rngs)
        self.kernel, self.stride = kernel, stride

    def __call__(
        self, x: Float[Array, "b h w c"], extent: Int[Array, "b 2"] | None = None, *, training: bool = False
    ) -> Float[Array, "b h2 w2 d"]:
        """`extent`: the part of the map that counts; the result inside does not depend on what lies beyond."""
        if self.kernel > 1:
            x = keep_inside(x, extent)
        x = self.conv(x)
        if isinstance(self.norm, BatchNorm):
            return self.norm(x, training)
        if isinstance(self.norm, nnx.GroupNorm) and extent is not None:
            counted = inside(x.shape[1:3], halved(extent) if self.stride == 2 else extent)
            return self.norm(x, mask=jnp.broadcast_to(counted[..., None], x.shape))
        return self.norm(x)


class MLP(nnx.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, dims: tuple[int, ...], *, last: str = "fan_in", init: str = "fan_in", rngs: Keys) -> None:
        steps = list(itertools.pairwise(dims))
        inits = [init] * (len(steps) - 1) + [last]
        self.layers = nnx.List(
            [linear(a, b, init=i, dtype=jnp.float32, rngs=rngs) for (a, b), i in zip(steps, inits, strict=True)]
        )

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        for layer in self.layers[:-1]:
            x = relu(layer(x))
        return self.layers[-1](x)


class FeedForward(nnx.Module):
    """The two linear layers of a transformer block."""

    def __init__(self, dim: int, hidden: int, *, dtype: DTypeLike, rngs: Keys) -> None:
        self.linear1 = linear(dim, hidden, init="xavier", dtype=dtype, rngs=rngs)
        self.linear2 = linear(hidden, dim, init="xavier", dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.linear2(relu(self.linear1(x), self.linear2.dtype))


def by_blocks(function: Callable[[Array], Array], tokens: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """`function` of each token; on a CPU a few at a time, so that what it computes in between stays in the cache."""

    def in_blocks(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % _BLOCK), (0, 0)))
        blocks = padded.reshape(x.shape[0], -1, _BLOCK, x.shape[-1]).swapaxes(0, 1)
        done = jax.lax.map(function, blocks).swapaxes(0, 1)
        return done.reshape(padded.shape)[:, : x.shape[1]]

    return jax.lax.platform_dependent(tokens, cpu=in_blocks, default=function)


def apply(
    module: nnx.Module, function: Callable[..., PyTree[Array]], *arrays: Shaped[Array, "..."], remat: bool
) -> PyTree[Array]:
    """`function(module, *arrays)`; with `remat` the backward pass computes again what the module computes in between.

    What `deform_attn` returns is kept even so: it is small, and sampling it again costs more than all the rest.
    """
    if not remat:
        return function(module, *arrays)
    graph, params, frozen = nnx.split(module, nnx.Param, Frozen)

    # Statistics that a norm of the module updates must leave the function as results.
    def call(params: Any, frozen: Any, *arrays: Array) -> tuple[PyTree[Array], Any]:
        inner = nnx.merge(graph, params, frozen, copy=True)
        return function(inner, *arrays), nnx.state(inner, Frozen)

    policy = jax.checkpoint_policies.save_only_these_names("deform_attn")
    result, frozen = jax.checkpoint(call, policy=policy)(params, frozen, *arrays)
    nnx.update(module, frozen)
    return result


class SelfAttention(nnx.Module):
    """Multi-head attention among queries; positions enter queries and keys, not values."""

    def __init__(self, dim: int, num_heads: int, *, dtype: DTypeLike, rngs: Keys) -> None:
        # The official projections are one [dim, 3 * dim] matrix, whose fans set the range of the initialiser.
        packed = nnx.initializers.uniform(2 * math.sqrt(6 / (4 * dim)))
        init = lambda *args: packed(*args) - math.sqrt(6 / (4 * dim))
        zeros = nnx.initializers.zeros_init()
        project = lambda kernel_init: nnx.Linear(
            dim, dim, kernel_init=kernel_init, bias_init=zeros, dot_general=dot_general, dtype=dtype, rngs=rngs
        )
        self.query, self.key, self.value = project(init), project(init), project(init)
        self.out = project(nnx.initializers.xavier_uniform())
        self.num_heads = num_heads

    def __call__(
        self, x: Float[Array, "b q d"], positions: Float[Array, "b q d"], blocked: Bool[Array, "q q"] | None
    ) -> Float[Array, "b q d"]:
        heads = lambda y: y.reshape(*y.shape[:-1], self.num_heads, -1)
        query, key, value = self.query(x + positions), self.key(x + positions), self.value(x)
        mask = None if blocked is None else ~blocked[None, None]
        mixed = jax.nn.dot_product_attention(heads(query), heads(key), heads(value), mask=mask)
        return self.out(mixed.reshape(x.shape))


def _offset_bias(num_heads: int, num_levels: int, num_points: int) -> jax.Array:
    """Point p of head m starts p + 1 pixels from the reference, in the m-th of the directions around it."""
    angle = 2 * math.pi * jnp.arange(num_heads) / num_heads
    direction = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    direction = direction / jnp.abs(direction).max(axis=-1, keepdims=True)
    steps = jnp.arange(1, num_points + 1)[:, None]
    grid = direction[:, None, None] * steps
    return jnp.broadcast_to(grid, (num_heads, num_levels, num_points, 2)).reshape(-1)


class DeformableAttention(nnx.Module):
    """Multi-scale deformable attention (Zhu et al. 2021, eq. 3) with pixel or box references."""

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: Keys) -> None:
        dim, shape = config.hidden_dim, (config.num_heads, config.encoder.num_levels, config.num_points)
        samples = math.prod(shape)
        zeros, xavier = nnx.initializers.zeros_init(), nnx.initializers.xavier_uniform()
        bias = lambda *_: _offset_bias(*shape)
        # Offsets and weights stay float32: bfloat16 would lose a thirtieth of a pixel at 8 pixels' distance.
        self.sampling_offsets = nnx.Linear(dim, samples * 2, kernel_init=zeros, bias_init=bias, rngs=rngs)
        self.attention_weights = nnx.Linear(dim, samples, kernel_init=zeros, bias_init=zeros, rngs=rngs)
        project = lambda: nnx.Linear(
            dim, dim, kernel_init=xavier, bias_init=zeros, dot_general=dot_general, dtype=dtype, rngs=rngs
        )
        self.value_proj, self.output_proj = project(), project()
        self.shape = shape
        self.impl = config.deform_attn

    def __call__(
        self,
        queries: Float[Array, "b q d"],
        references: Float[Array, "b q r"],
        memory: Float[Array, "b t d"],
        levels: Levels,
    ) -> Float[Array, "b q d"]:
        """`references`: xy (r = 2) or cxcywh (r = 4), shares of the extent."""
        shape = (*queries.shape[:2], *self.shape)
        offsets = self.sampling_offsets(queries).reshape(*shape, 2)
        weights = self.attention_weights(queries).reshape(*shape[:3], -1)
        value = self.value_proj(memory)
        references = references.astype(jnp.float32)
        if levels.extents is not None:
            value = jnp.where(levels.used()[..., None], value, 0)
            offsets, references = _to_pixels(offsets, references, levels.extents)
        value = value.reshape(*value.shape[:2], self.shape[0], -1)
        mixed = checkpoint_name(
            deform_attn(value, offsets, weights, references, levels.sizes, impl=self.impl), "deform_attn"
        )
        return self.output_proj(mixed)


def _to_pixels(
    offsets: Float[Array, "b q m l p 2"], references: Float[Array, "b q r"], extents: Int[Array, "b l 2"]
) -> tuple[Float[Array, "b q m l p 2"], Float[Array, "b q 2"]]:
    """Offsets in pixels from the corner of the canvas, and that corner as the reference of all."""
    corner = jnp.zeros_like(references[..., :2])
    sizes = extents[:, None, None, :, None, ::-1].astype(jnp.float32)
    offsets, references = offsets.astype(jnp.float32), references[:, :, None, None, None]
    if references.shape[-1] == 2:
        return references * sizes + offsets, corner
    return (references[..., :2] + offsets * references[..., 2:] * (0.5 / offsets.shape[-2])) * sizes, corner

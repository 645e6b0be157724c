"""A backbone of one's own: ConvNeXt (Liu et al. 2022), by default the one called T. docs/swap_a_part.md explains it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from maskdino_jax.config import BackboneConfig
from maskdino_jax.model.keys import Keys
from maskdino_jax.model.layers import apply, layer_norm, linear
from maskdino_jax.model.swin import branch_factors
from maskdino_jax.ops.extents import halved, keep_inside

_INIT = nnx.initializers.truncated_normal(0.02)


class Block(nnx.Module):
    """A 7 x 7 convolution of each channel, then an MLP of each pixel, beside a shortcut."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: Keys) -> None:
        self.depthwise = nnx.Conv(
            dim, dim, (7, 7), padding=3, feature_group_count=dim, kernel_init=_INIT, dtype=dtype, rngs=rngs
        )
        self.norm = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.expand = linear(dim, 4 * dim, dtype=dtype, rngs=rngs)
        self.reduce = linear(4 * dim, dim, dtype=dtype, rngs=rngs)
        self.layer_scale = nnx.Param(jnp.full(dim, 1e-6))

    def __call__(
        self, x: Float[Array, "b h w d"], extent: Int[Array, "b 2"] | None, factor: Float[Array, "b"] | None
    ) -> Float[Array, "b h w d"]:
        """`factor` of the branch for each image, None: 1. Convolutions see zeros beyond `extent`, as on its border."""
        y = self.norm(self.depthwise(keep_inside(x, extent)))
        y = self.reduce(jax.nn.gelu(self.expand(y), approximate=False)) * self.layer_scale[...]
        return x + (y if factor is None else factor[:, None, None, None] * y)


class Shrink(nnx.Module):
    """Patches of `side` x `side` pixels become one: the stem with 4, the step between stages with 2."""

    def __init__(self, fan_in: int, dim: int, side: int, *, dtype: DTypeLike, rngs: Keys) -> None:
        window = {"kernel_size": (side, side), "strides": side, "padding": "VALID"}
        self.conv = nnx.Conv(fan_in, dim, **window, kernel_init=_INIT, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(dim if side == 4 else fan_in, dtype=dtype, rngs=rngs)
        self.side = side

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return self.norm(self.conv(x)) if self.side == 4 else self.conv(self.norm(x))


class ConvNeXt(nnx.Module):
    """Feature maps `res2` to `res5` at strides 4, 8, 16 and 32: `depths` blocks of `width`, 2, 4 and 8 times it."""

    def __init__(self, config: BackboneConfig, *, dtype: DTypeLike, rngs: Keys) -> None:
        self.channels = {f"res{index + 2}": config.width * 2**index for index in range(4)}
        own = {"dtype": dtype, "rngs": rngs}
        shrinks, stages, norms, fan_in = [], [], [], 3
        for depth, dim in zip(config.depths, self.channels.values(), strict=True):
            shrinks.append(Shrink(fan_in, dim, 4 if fan_in == 3 else 2, **own))
            stages.append(nnx.List([Block(dim, **own) for _ in range(depth)]))
            norms.append(layer_norm(dim, **own))
            fan_in = dim
        self.shrinks, self.stages, self.norms = nnx.List(shrinks), nnx.List(stages), nnx.List(norms)
        self.drop_path = config.drop_path

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        extents: Int[Array, "b 2"] | None = None,
        keys: Key[Array, "b"] | None = None,
        *,
        remat: bool = False,
    ) -> dict[str, Float[Array, "b h2 w2 c"]]:
        """As `maskdino_jax.model.resnet.ResNet`; `keys` draw which blocks are skipped in training."""
        depth = sum(len(blocks) for blocks in self.stages)
        factors = None if keys is None else iter(branch_factors(keys, depth, self.drop_path)[:, 0])
        x, extent, maps = images, None if extents is None else extents // 2, {}
        for name, shrink, blocks, norm in zip(self.channels, self.shrinks, self.stages, self.norms, strict=True):
            x, extent = shrink(x).astype(jnp.float32), halved(extent)
            for block in blocks:
                factor = None if factors is None else next(factors)
                call = lambda block, x, extent=extent, factor=factor: block(x, extent, factor)
                x = apply(block, call, x, remat=remat)
            maps[name] = norm(x)
        return maps

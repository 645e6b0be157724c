"""Swin Transformer backbone (Liu et al. 2021): attention within windows, which every second block shifts, NHWC."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from maskdino_jax.config import BackboneConfig
from maskdino_jax.model.keys import Keys
from maskdino_jax.model.layers import apply, layer_norm, linear, uniform_bias, uniform_fan_in
from maskdino_jax.ops.extents import halved, keep_inside

_PATCH = 4  # side of a patch in pixels
_HEAD_DIM = 32
_BLOCKED = -100.0  # added to the logit of a pair that must not meet; the official value


def to_windows(maps: Shaped[Array, "b h w d"], window: int, shift: int) -> Shaped[Array, "b g t d"]:
    """The tokens of each window, row after row: zeros fill up the last windows, then the map is rolled by `shift`."""
    maps = jnp.pad(maps, ((0, 0), (0, -maps.shape[1] % window), (0, -maps.shape[2] % window), (0, 0)))
    if shift:
        maps = jnp.roll(maps, (-shift, -shift), axis=(1, 2))
    batch, height, width, dim = maps.shape
    maps = maps.reshape(batch, height // window, window, width // window, window, dim).swapaxes(2, 3)
    return maps.reshape(batch, -1, window * window, dim)


def from_windows(
    windows: Shaped[Array, "b g t d"], size: tuple[int, int], window: int, shift: int
) -> Shaped[Array, "b h w d"]:
    """The inverse of `to_windows` for a map of `size`."""
    (batch, _, _, dim), (rows, columns) = windows.shape, (-(-side // window) for side in size)
    maps = windows.reshape(batch, rows, columns, window, window, dim).swapaxes(2, 3)
    maps = maps.reshape(batch, rows * window, columns * window, dim)
    if shift:
        maps = jnp.roll(maps, (shift, shift), axis=(1, 2))
    return maps[:, : size[0], : size[1]]


def strangers(
    size: tuple[int, int], extent: Int[Array, "b 2"] | None, window: int, shift: int
) -> Bool[Array, "#b g t t"]:
    """Which pairs of tokens share a shifted window although they are not neighbours.

    Rolling puts the first `shift` rows below the last ones. So the rows before `shift`, those after it, and those
    beyond the padded extent (the extent rounded up to whole windows, whose zeros take part in attention) are three
    kinds that never meet; columns likewise. On a larger canvas the last rows of an image then attend to each other,
    and so do the first ones: the same as on a canvas of its own, where both meet in one window and are kept apart.
    """
    extent = jnp.array([size]) if extent is None else extent
    ends = -(-extent // window) * window

    def kinds(axis: int) -> Int[Array, "#b _"]:
        places = jnp.arange(-(-size[axis] // window) * window)
        return (places >= shift).astype(jnp.int32) + (places >= ends[:, axis, None])

    kind = 3 * kinds(0)[:, :, None] + kinds(1)[:, None, :]
    kind = to_windows(kind[..., None], window, shift)[..., 0]
    return kind[..., :, None] != kind[..., None, :]


@functools.cache
def relative_position_index(window: int) -> Int[np.ndarray, "t t"]:
    """Row of the bias table for each pair of tokens of a window: one row for each difference of rows and columns."""
    y, x = (places.ravel() for places in np.mgrid[:window, :window])
    difference = lambda places: places[:, None] - places[None, :] + window - 1
    return difference(y) * (2 * window - 1) + difference(x)


class WindowAttention(nnx.Module):
    """Multi-head attention within windows, with a learned bias for each relative position (eq. 4)."""

    def __init__(self, dim: int, num_heads: int, window: int, *, dtype: DTypeLike, rngs: Keys) -> None:
        self.qkv = linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.proj = linear(dim, dim, dtype=dtype, rngs=rngs)
        init = nnx.initializers.normal(0.02)  # the official one is cut at 100 deviations
        self.relative_position_bias_table = nnx.Param(init(rngs.params(), ((2 * window - 1) ** 2, num_heads)))
        self.num_heads, self.window = num_heads, window

    def __call__(
        self, x: Float[Array, "b g t d"], blocked: Bool[Array, "#b #g t t"] | None = None
    ) -> Float[Array, "b g t d"]:
        """`blocked`: pairs (query, key) that must not meet."""
        qkv = self.qkv(x).reshape(*x.shape[:3], 3, self.num_heads, -1)
        query, key, value = (qkv[..., part, :, :] for part in range(3))
        # Logits, bias and softmax stay float32: the bias is small beside logits that bfloat16 would round.
        logits = jnp.einsum("bgimd,bgjmd->bgmij", query, key, preferred_element_type=jnp.float32)
        bias = self.relative_position_bias_table[...][relative_position_index(self.window)]
        logits = logits * query.shape[-1] ** -0.5 + bias.transpose(2, 0, 1)
        if blocked is not None:
            logits = logits + jnp.where(blocked, _BLOCKED, 0.0)[:, :, None]
        weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        return self.proj(jnp.einsum("bgmij,bgjmd->bgimd", weights, value).reshape(x.shape))


class Mlp(nnx.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: Keys) -> None:
        self.fc1 = linear(dim, 4 * dim, dtype=dtype, rngs=rngs)
        self.fc2 = linear(4 * dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Block(nnx.Module):
    """Window attention, then the MLP, each behind a norm and beside a shortcut."""

    def __init__(self, dim: int, num_heads: int, window: int, shift: int, *, dtype: DTypeLike, rngs: Keys) -> None:
        self.norm1 = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.attn = WindowAttention(dim, num_heads, window, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, dtype=dtype, rngs=rngs)
        self.window, self.shift = window, shift

    def __call__(
        self,
        x: Float[Array, "b h w d"],
        extent: Int[Array, "b 2"] | None,
        blocked: Bool[Array, "#b g t t"] | None,
        factors: Float[Array, "2 b"] | None,
    ) -> Float[Array, "b h w d"]:
        """`blocked`: `strangers` of this map, heeded by shifted blocks; `factors`: of the two branches, None: 1."""
        attention, mlp = (1, 1) if factors is None else factors[:, :, None, None, None]
        # The padding of the map and what lies beyond the extent enter as zeros after the norm, and take part.
        y = to_windows(keep_inside(self.norm1(x), extent), self.window, self.shift)
        y = self.attn(y, blocked if self.shift else None)
        x = x + attention * from_windows(y, x.shape[1:3], self.window, self.shift)
        return x + mlp * self.mlp(self.norm2(x))


class PatchEmbed(nnx.Module):
    """A linear map and a norm for each patch of 4 x 4 pixels."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: Keys) -> None:
        self.proj = nnx.Conv(
            3,
            dim,
            (_PATCH, _PATCH),
            strides=_PATCH,
            padding="VALID",
            kernel_init=uniform_fan_in,
            bias_init=uniform_bias(3 * _PATCH**2),
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = layer_norm(dim, dtype=dtype, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h4 w4 d"]:
        return self.norm(self.proj(images))


class PatchMerging(nnx.Module):
    """Four neighbours become one token of twice the channels; a zero row or column completes odd sizes."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: Keys) -> None:
        self.norm = layer_norm(4 * dim, dtype=dtype, rngs=rngs)
        self.reduction = nnx.Linear(
            4 * dim, 2 * dim, use_bias=False, kernel_init=uniform_fan_in, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Float[Array, "b h w d"], extent: Int[Array, "b 2"] | None) -> Float[Array, "b h2 w2 d2"]:
        x = keep_inside(x, extent)
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        batch, height, width, dim = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, dim)
        x = x.transpose(0, 1, 3, 4, 2, 5)  # the left column first, each from top to bottom
        return self.reduction(self.norm(x.reshape(batch, height // 2, width // 2, 4 * dim)))


class Stage(nnx.Module):
    """Blocks of one resolution, every second one shifted by half a window, and the merging that follows if any."""

    def __init__(
        self, dim: int, num_heads: int, window: int, depth: int, merge: bool, *, dtype: DTypeLike, rngs: Keys
    ) -> None:
        self.blocks = nnx.List(
            [Block(dim, num_heads, window, index % 2 * (window // 2), dtype=dtype, rngs=rngs) for index in range(depth)]
        )
        self.downsample = PatchMerging(dim, dtype=dtype, rngs=rngs) if merge else None
        self.window = window

    def __call__(
        self,
        x: Float[Array, "b h w d"],
        extent: Int[Array, "b 2"] | None,
        factors: Float[Array, "n 2 b"] | None,
        *,
        remat: bool = False,
    ) -> Float[Array, "b h w d"]:
        """`factors`: of the two branches of each block; `remat`: see `Swin`."""
        blocked = strangers(x.shape[1:3], extent, self.window, self.window // 2)
        for index, block in enumerate(self.blocks):
            own = None if factors is None else factors[index]
            x = apply(block, lambda block, x, own=own: block(x, extent, blocked, own), x, remat=remat)
        return x


class Swin(nnx.Module):
    """Feature maps `res2` to `res5` at strides 4, 8, 16 and 32."""

    def __init__(self, config: BackboneConfig, *, dtype: DTypeLike, rngs: Keys) -> None:
        self.patch_embed = PatchEmbed(config.width, dtype=dtype, rngs=rngs)
        self.channels: dict[str, int] = {}
        stages = []
        for index, depth in enumerate(config.depths):
            dim, last = config.width * 2**index, index == len(config.depths) - 1
            stages.append(Stage(dim, dim // _HEAD_DIM, config.window, depth, not last, dtype=dtype, rngs=rngs))
            setattr(self, f"norm{index}", layer_norm(dim, dtype=dtype, rngs=rngs))
            self.channels[f"res{index + 2}"] = dim
        self.layers = nnx.List(stages)
        self.drop_path = config.drop_path

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        extents: Int[Array, "b 2"] | None = None,
        keys: Key[Array, "b"] | None = None,
        *,
        remat: bool = False,
    ) -> dict[str, Float[Array, "b h2 w2 c"]]:
        """`extents`: what each image occupies of the canvas, in pixels; `keys`: given in training, None otherwise.

        `remat`: the backward pass computes each block again instead of keeping more than its input.
        Within the extent the maps are those of the image on a canvas of that size; beyond it, they mean nothing.
        """
        depths = [len(stage.blocks) for stage in self.layers]
        factors = None if keys is None else branch_factors(keys, sum(depths), self.drop_path)
        # Shortcuts stay float32, as under PyTorch's mixed precision: 48 sums in bfloat16 would add up their rounding.
        x = self.patch_embed(images).astype(jnp.float32)
        extent = None if extents is None else extents // _PATCH
        maps, first = {}, 0
        for index, (name, stage) in enumerate(zip(self.channels, self.layers, strict=True)):
            own = None if factors is None else factors[first : first + depths[index]]
            x = stage(x, extent, own, remat=remat)
            maps[name] = getattr(self, f"norm{index}")(x)
            if stage.downsample is not None:
                x, extent = stage.downsample(x, extent).astype(jnp.float32), halved(extent)
            first += depths[index]
        return maps


def branch_factors(keys: Key[Array, "b"], depth: int, rate: float) -> Float[Array, "n 2 b"]:
    """Stochastic depth (Huang et al. 2016): 0 skips a branch of a block for one image, 1 / (chance of 1) keeps it.

    The chance to be skipped grows linearly from 0 in the first of `depth` blocks to `rate` in the last.
    """
    kept = 1 - np.linspace(0, rate, depth, dtype=np.float32)[:, None, None]
    draw = lambda key: jax.random.bernoulli(key, kept[..., 0], (depth, 2))
    chosen = jax.vmap(draw, out_axes=-1)(keys)
    return jnp.where(chosen, 1 / np.maximum(kept, np.finfo(np.float32).tiny), 0.0)  # never kept: no division by 0

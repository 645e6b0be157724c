"""Pixel decoder: deformable transformer encoder over several scales, then mask features at a quarter of the image."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maskdino_jax.config import ModelConfig
from maskdino_jax.model.layers import ConvNorm, DeformableAttention, FeedForward, layer_norm
from maskdino_jax.ops.positions import map_sine_embedding
from maskdino_jax.ops.resize import resize_bilinear

LevelSizes = tuple[tuple[int, int], ...]
_FAN_IN_UNIFORM = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")


def token_centres(level_sizes: LevelSizes) -> Float[np.ndarray, "t 2"]:
    """Normalised (x, y) of the centre of every token, level after level, row after row."""
    grids = []
    for height, width in level_sizes:
        y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
        grids.append(np.stack([x, y], axis=-1).reshape(-1, 2))
    return np.concatenate(grids).astype(np.float32)


def flatten_levels(maps: list[Float[Array, "b _ _ d"]]) -> Float[Array, "b t d"]:
    """Feature maps as one sequence of tokens, level after level, row after row."""
    return jnp.concatenate([level.reshape(level.shape[0], -1, level.shape[-1]) for level in maps], axis=1)


class EncoderLayer(nnx.Module):
    """Deformable self-attention and feed-forward, each followed by its norm."""

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        dim = config.hidden_dim
        self.self_attn = DeformableAttention(config, dtype=dtype, rngs=rngs)
        self.norm1 = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.ffn = FeedForward(dim, config.encoder.ffn_dim, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(dim, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "b t d"],
        positions: Float[Array, "t d"],
        references: Float[Array, "b t 2"],
        level_sizes: LevelSizes,
    ) -> Float[Array, "b t d"]:
        tokens = self.norm1(tokens + self.self_attn(tokens + positions, references, tokens, level_sizes))
        return self.norm2(tokens + self.ffn(tokens))


class PixelDecoder(nnx.Module):
    """Backbone maps to encoded maps of all levels and per-pixel mask features (section 3.3; Mask2Former, section 3.2).

    `input_proj[i]` belongs to the i-th level from fine to coarse, whatever the token order; levels beyond the
    backbone's come from stride-2 convolutions, the first of the raw res5 map, each next of the one before.
    """

    def __init__(self, config: ModelConfig, channels: dict[str, int], *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        dim, encoder = config.hidden_dim, config.encoder
        self.in_features = encoder.in_features
        self.reverse = encoder.order == "coarse_to_fine"
        project = lambda fan_in, kernel, stride=1: ConvNorm(
            fan_in,
            dim,
            kernel,
            stride=stride,
            bias=True,
            norm="group_norm",
            init=nnx.initializers.xavier_uniform(),
            dtype=dtype,
            rngs=rngs,
        )
        levels = [project(channels[name], 1) for name in self.in_features]
        for extra in range(encoder.num_levels - len(levels)):
            levels.append(project(channels["res5"] if extra == 0 else dim, 3, stride=2))
        self.input_proj = nnx.List(levels)
        self.level_embed = nnx.Param(jax.random.normal(rngs.params(), (encoder.num_levels, dim)))
        self.layers = nnx.List([EncoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(encoder.layers)])
        conv = lambda fan_in, kernel: ConvNorm(
            fan_in, dim, kernel, norm="group_norm", init=_FAN_IN_UNIFORM, dtype=dtype, rngs=rngs
        )
        self.lateral = conv(channels["res2"], 1)
        self.smooth = conv(dim, 3)
        self.mask_features = nnx.Conv(dim, dim, (1, 1), kernel_init=_FAN_IN_UNIFORM, dtype=dtype, rngs=rngs)

    def __call__(
        self, features: dict[str, Float[Array, "b _ _ _"]]
    ) -> tuple[list[Float[Array, "b _ _ d"]], Float[Array, "b h4 w4 d"]]:
        """Encoded maps from coarse to fine or fine to coarse, in the encoder's token order, and the mask features."""
        maps = [proj(features[name]) for proj, name in zip(self.input_proj, self.in_features, strict=False)]
        source = features["res5"]
        for proj in self.input_proj[len(maps) :]:
            source = proj(source)
            maps.append(source)
        if self.reverse:
            maps = maps[::-1]
        maps = self._encode(maps)

        finest = maps[-1] if self.reverse else maps[0]
        size = features["res2"].shape[1:3]
        merged = self.lateral(features["res2"]) + resize_bilinear(finest, size)
        return maps, self.mask_features(nnx.relu(self.smooth(merged)))

    def _encode(self, maps: list[Float[Array, "b _ _ d"]]) -> list[Float[Array, "b _ _ d"]]:
        sizes = tuple(level.shape[1:3] for level in maps)
        batch, dim = maps[0].shape[0], maps[0].shape[-1]
        sines = [map_sine_embedding(*size, dim).reshape(-1, dim) for size in sizes]
        positions = jnp.concatenate([sine + self.level_embed[level] for level, sine in enumerate(sines)])
        centres = jnp.asarray(token_centres(sizes))
        references = jnp.broadcast_to(centres, (batch, *centres.shape))
        tokens = flatten_levels(maps)
        positions = positions.astype(tokens.dtype)
        for layer in self.layers:
            tokens = layer(tokens, positions, references, sizes)
        ends = np.cumsum([height * width for height, width in sizes])[:-1]
        parts = jnp.split(tokens, ends, axis=1)
        return [part.reshape(batch, *size, dim) for part, size in zip(parts, sizes, strict=True)]

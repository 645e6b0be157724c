"""Pixel decoder: deformable transformer encoder over several scales, then mask features at a quarter of the image."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from maskdino_jax.config import BACKBONE_FEATURES, ModelConfig
from maskdino_jax.model.keys import Keys
from maskdino_jax.model.layers import ConvNorm, DeformableAttention, FeedForward, apply, by_blocks, layer_norm, relu
from maskdino_jax.model.levels import Levels
from maskdino_jax.ops.extents import halved, repeat_border
from maskdino_jax.ops.positions import map_sine_embedding
from maskdino_jax.ops.resize import resize_bilinear

_FAN_IN_UNIFORM = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")


class EncoderLayer(nnx.Module):
    """Deformable self-attention and feed-forward, each followed by its norm."""

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: Keys) -> None:
        dim = config.hidden_dim
        self.self_attn = DeformableAttention(config, dtype=dtype, rngs=rngs)
        self.norm1 = layer_norm(dim, dtype=jnp.float32, rngs=rngs)
        self.ffn = FeedForward(dim, config.encoder.ffn_dim, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(dim, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "b t d"],
        positions: Float[Array, "#b t d"],
        references: Float[Array, "b t 2"],
        levels: Levels,
        *,
        remat: bool = False,
    ) -> Float[Array, "b t d"]:
        tokens = self.norm1(tokens + self.self_attn(tokens + positions, references, tokens, levels))
        after = lambda x: self.norm2(x + self.ffn(x))
        # What is computed again in a loop, XLA computes early for all layers, and keeps.
        return after(tokens) if remat else by_blocks(after, tokens)


class PixelDecoder(nnx.Module):
    """Backbone maps to encoded maps of all levels and per-pixel mask features (section 3.3; Mask2Former, section 3.2).

    `input_proj[i]` belongs to the i-th level from fine to coarse, whatever the token order; levels beyond the
    backbone's come from stride-2 convolutions, the first of the raw res5 map, each next of the one before.
    """

    def __init__(self, config: ModelConfig, channels: dict[str, int], *, dtype: DTypeLike, rngs: Keys) -> None:
        dim, encoder = config.hidden_dim, config.encoder
        self.in_features = encoder.in_features
        self.reverse = encoder.order == "coarse_to_fine"
        # The official code reverses the added levels but not their positions, which shows where there are several.
        swapped = self.reverse and not encoder.aligned_positions
        self.misplaced = encoder.num_levels - len(encoder.in_features) if swapped else 0
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
        self,
        features: dict[str, Float[Array, "b _ _ _"]],
        extents: Int[Array, "b 2"] | None = None,
        *,
        remat: bool = False,
    ) -> tuple[Float[Array, "b t d"], Levels, Float[Array, "b h4 w4 d"]]:
        """Encoded tokens in the encoder's order with their levels, and the mask features.

        `extents`: what each image occupies of the canvas, in pixels of the input; `remat`: the backward pass computes
        the encoder's layers again instead of keeping more than their inputs.
        """
        scaled = lambda stride: None if extents is None else extents // stride
        extent_of = {name: scaled(4 * 2**i) for i, name in enumerate(BACKBONE_FEATURES)}
        found = [extent_of[name] for name in self.in_features]
        maps = [
            proj(features[name], extent_of[name]) for proj, name in zip(self.input_proj, self.in_features, strict=False)
        ]
        source, extent = features["res5"], extent_of["res5"]
        for proj in self.input_proj[len(maps) :]:
            source, extent = proj(source, extent), halved(extent)
            maps.append(source)
            found.append(extent)
        sizes = tuple(level.shape[1:3] for level in maps)
        levels = Levels(sizes, None if extents is None else jnp.stack(found, axis=1), extents)
        if self.reverse:
            maps, levels = maps[::-1], reversed(levels)
        tokens = self._encode(levels.flatten(maps), levels, remat)

        encoded, finest = levels.unflatten(tokens), -1 if self.reverse else 0
        border = None if extents is None else levels.extents[:, finest]
        enlarged = resize_bilinear(repeat_border(encoded[finest], border), features["res2"].shape[1:3])
        merged = self.lateral(features["res2"], extent_of["res2"]) + enlarged
        smooth = relu(self.smooth(merged, extent_of["res2"]), self.mask_features.dtype)
        return tokens, levels, self.mask_features(smooth)

    def _encode(self, tokens: Float[Array, "b t d"], levels: Levels, remat: bool) -> Float[Array, "b t d"]:
        positions = self._positions(levels, tokens.shape[-1]).astype(tokens.dtype)
        centres = jnp.asarray(levels.centres())
        references = jnp.broadcast_to(centres, (tokens.shape[0], *centres.shape[1:]))
        encode = lambda layer, tokens: layer(tokens, positions, references, levels, remat=remat)
        for layer in self.layers:
            tokens = apply(layer, encode, tokens, remat=remat)
        return tokens

    def _positions(self, levels: Levels, dim: int) -> Float[Array, "#b t d"]:
        order = list(range(len(levels.sizes)))
        if self.misplaced:
            if levels.extents is not None:
                raise ValueError(
                    "config.model.encoder.aligned_positions = False depends on the canvas: evaluate with "
                    "config.data.eval_canvas=exact, or train with aligned positions."
                )
            order[: self.misplaced] = order[: self.misplaced][::-1]
        parts = []
        for place, level in enumerate(order):
            extent = None if levels.extents is None else levels.extents[:, level]
            sine = map_sine_embedding(*levels.sizes[level], dim, extent)
            parts.append(sine.reshape(sine.shape[0], -1, dim) + self.level_embed[place])
        return jnp.concatenate(parts, axis=1)

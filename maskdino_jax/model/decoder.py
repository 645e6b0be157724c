"""Transformer decoder with iterative box refinement; each layer's predictions are supervised (section 3.2)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from maskdino_jax.config import ModelConfig
from maskdino_jax.model.heads import PredictionHeads
from maskdino_jax.model.keys import Keys
from maskdino_jax.model.layers import MLP, DeformableAttention, FeedForward, SelfAttention, apply, layer_norm
from maskdino_jax.model.levels import Levels
from maskdino_jax.ops.boxes import logit
from maskdino_jax.ops.positions import box_sine_embedding


class DecoderLayer(nnx.Module):
    """Self-attention, deformable cross-attention around the query's box, feed-forward; a norm after each."""

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: Keys) -> None:
        dim = config.hidden_dim
        self.self_attn = SelfAttention(dim, config.num_heads, dtype=dtype, rngs=rngs)
        self.self_norm = layer_norm(dim, dtype=jnp.float32, rngs=rngs)
        self.cross_attn = DeformableAttention(config, dtype=dtype, rngs=rngs)
        self.cross_norm = layer_norm(dim, dtype=jnp.float32, rngs=rngs)
        self.ffn = FeedForward(dim, config.decoder.ffn_dim, dtype=dtype, rngs=rngs)
        self.ffn_norm = layer_norm(dim, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self,
        queries: Float[Array, "b q d"],
        positions: Float[Array, "b q d"],
        boxes: Float[Array, "b q 4"],
        memory: Float[Array, "b t d"],
        levels: Levels,
        blocked: Bool[Array, "q q"] | None,
    ) -> Float[Array, "b q d"]:
        queries = self.self_norm(queries + self.self_attn(queries, positions, blocked))
        queries = self.cross_norm(queries + self.cross_attn(queries + positions, boxes, memory, levels))
        return self.ffn_norm(queries + self.ffn(queries))


class Decoder(nnx.Module):
    """All layers, with the boxes that guide them.

    Two boxes leave each layer. The reference of the next layer is refined by the layer's raw output and carries no
    gradient; the predicted box is refined by the normed output, starting from the previous reference with its
    gradient, so that each box loss trains two layers ("look forward twice", DINO, section 3.5).
    """

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: Keys) -> None:
        dim = config.hidden_dim
        self.ref_point_head = MLP((2 * dim, dim, dim), init="xavier", last="xavier", rngs=rngs)
        self.layers = nnx.List([DecoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.decoder.layers)])

    def __call__(
        self,
        content: Float[Array, "b q d"],
        anchors: Float[Array, "b q 4"],
        memory: Float[Array, "b t d"],
        levels: Levels,
        blocked: Bool[Array, "q q"] | None,
        heads: PredictionHeads,
        *,
        remat: bool = False,
    ) -> tuple[list[Float[Array, "b q d"]], list[Float[Array, "b q 4"]]]:
        """What the heads read, queries and boxes in float32: of the decoder's input and after each layer.

        `anchors` are boxes before the sigmoid; `blocked[i, j]` keeps query i from attending to query j. `remat`: the
        backward pass computes the layers again instead of keeping more than their inputs.
        """
        decode = lambda layer, *own: layer(*own, memory, levels, blocked)
        queries = content.astype(jnp.float32)  # the norms keep it so: bfloat16 would add up its rounding
        boxes = jax.nn.sigmoid(anchors)
        all_queries, all_boxes = [queries], [boxes]
        previous = boxes
        for layer in self.layers:
            sine = box_sine_embedding(boxes, content.shape[-1] // 2)
            positions = self.ref_point_head(sine)
            queries = apply(layer, decode, queries, positions, boxes, remat=remat)
            # The heads norm once more what is normed here: the released weights were trained so.
            normed = heads.norm(queries)
            all_queries.append(normed)
            all_boxes.append(jax.nn.sigmoid(heads.box_embed(normed) + logit(previous)))
            previous = jax.nn.sigmoid(heads.box_embed(queries) + logit(boxes))
            boxes = jax.lax.stop_gradient(previous)
        return all_queries, all_boxes

"""Unified query selection: the best encoder tokens give content queries, anchor boxes and masks (section 3.4)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from maskdino_jax.model.heads import PredictionHeads, mask_logits
from maskdino_jax.model.layers import layer_norm, linear
from maskdino_jax.model.pixel_decoder import LevelSizes, token_centres
from maskdino_jax.ops.boxes import logit, masks_to_boxes
from maskdino_jax.structures import Predictions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """What the decoder starts from, and the selected tokens' own predictions for their loss."""

    content: Float[Array, "b q d"]
    anchors: Float[Array, "b q 4"]  # before the sigmoid
    predictions: Predictions


def proposals(level_sizes: LevelSizes) -> tuple[Float[np.ndarray, "t 4"], Bool[np.ndarray, "t"]]:
    """One box around every token, before the sigmoid, and whether all its coordinates lie inside (0.01, 0.99).

    Its side is 0.05 * 2**level in the order of the decoder, whichever way that runs: the released weights depend on it.
    Boxes too close to the border are plus infinity in every coordinate.
    """
    sides = np.concatenate([np.full((h * w, 2), 0.05 * 2.0**level) for level, (h, w) in enumerate(level_sizes)])
    boxes = np.concatenate([token_centres(level_sizes), sides.astype(np.float32)], axis=-1)
    valid = ((boxes > 0.01) & (boxes < 0.99)).all(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        before = np.where(valid[:, None], np.log(boxes / (1 - boxes)), np.inf)
    return before.astype(np.float32), valid


class QuerySelection(nnx.Module):
    """Scores every token with the class head and keeps the `num_queries` best."""

    def __init__(self, dim: int, num_queries: int, box_init: str, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.enc_output = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.enc_output_norm = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.num_queries = num_queries
        self.box_init = box_init

    def __call__(
        self,
        memory: Float[Array, "b t d"],
        level_sizes: LevelSizes,
        mask_features: Float[Array, "b h4 w4 d"],
        heads: PredictionHeads,
    ) -> Selection:
        """`memory` and `level_sizes` in the decoder's order.

        Raises:
            ValueError: fewer tokens than queries.
        """
        if memory.shape[1] < self.num_queries:
            raise ValueError(
                f"config.model.decoder.num_queries = {self.num_queries}: an image of levels {level_sizes} has only "
                f"{memory.shape[1]} tokens to select from. Use larger images or fewer queries."
            )
        before, valid = proposals(level_sizes)
        tokens = self.enc_output_norm(self.enc_output(memory * valid[:, None].astype(memory.dtype)))
        tokens = tokens.astype(jnp.float32)
        scores = heads.class_embed(tokens).max(axis=-1)
        _, best = jax.lax.top_k(scores, self.num_queries)
        chosen = jnp.take_along_axis(tokens, best[..., None], axis=1)
        # The box head sees only the chosen tokens: it acts on each token alone, so this changes nothing but the cost.
        anchors = heads.box_embed(chosen) + jnp.asarray(before)[best]
        predictions = heads(chosen, jax.nn.sigmoid(anchors))
        if self.box_init != "none":
            # Mask-enhanced anchor boxes: the box of each selected token's own mask.
            masks = mask_logits(predictions.mask_embed, mask_features) > 0
            anchors = logit(masks_to_boxes(masks, self.box_init))
        stop = jax.lax.stop_gradient
        return Selection(content=stop(chosen), anchors=stop(anchors), predictions=predictions)

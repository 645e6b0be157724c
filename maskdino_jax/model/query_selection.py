"""Where the decoder starts from: the best encoder tokens (unified query selection, section 3.4), or learned queries."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from maskdino_jax.model.heads import PredictionHeads, mask_logits
from maskdino_jax.model.keys import Keys
from maskdino_jax.model.layers import layer_norm, linear
from maskdino_jax.model.levels import Levels
from maskdino_jax.ops.boxes import logit, masks_to_boxes
from maskdino_jax.ops.extents import inside
from maskdino_jax.structures import Predictions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """What the decoder starts from, and the selected tokens' own predictions for their loss."""

    content: Float[Array, "b q d"]
    anchors: Float[Array, "b q 4"]  # before the sigmoid
    predictions: Predictions | None  # None: the queries are learned


def proposals(
    levels: Levels,
) -> tuple[Float[Array, "#b t 4"], Bool[Array, "#b t"]] | tuple[Float[np.ndarray, "#b t 4"], Bool[np.ndarray, "#b t"]]:
    """One box around every token, before the sigmoid, and whether all its coordinates lie inside (0.01, 0.99).

    Its side is 0.05 * 2**level in the order of the decoder, whichever way that runs: the released weights depend on it.
    Boxes too close to the border are plus infinity in every coordinate.
    """
    centres = levels.centres()
    xp = np if isinstance(centres, np.ndarray) else jnp
    sides = np.concatenate([np.full((h * w, 2), 0.05 * 2.0**level) for level, (h, w) in enumerate(levels.sizes)])
    boxes = xp.concatenate([centres, xp.broadcast_to(sides.astype(np.float32), centres.shape)], axis=-1)
    valid = ((boxes > 0.01) & (boxes < 0.99)).all(axis=-1)
    safe = xp.where(valid[..., None], boxes, np.float32(0.5))
    return xp.where(valid[..., None], xp.log(safe / (1 - safe)), np.float32(np.inf)), valid


class LearnedQueries(nnx.Module):
    """One content vector and one anchor box for each query, the same for every image."""

    def __init__(self, dim: int, num_queries: int, *, rngs: Keys) -> None:
        self.content = nnx.Param(jax.random.normal(rngs.params(), (num_queries, dim)))
        self.anchors = nnx.Param(jax.random.normal(rngs.params(), (num_queries, 4)))

    def __call__(self, batch: int) -> Selection:
        rows = lambda x: jnp.broadcast_to(x[...], (batch, *x.shape))
        return Selection(content=rows(self.content), anchors=rows(self.anchors), predictions=None)


class QuerySelection(nnx.Module):
    """Scores every token with the class head and keeps the `num_queries` best."""

    def __init__(self, dim: int, num_queries: int, box_init: str, *, dtype: DTypeLike, rngs: Keys) -> None:
        self.enc_output = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.enc_output_norm = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.num_queries = num_queries
        self.box_init = box_init

    def __call__(
        self,
        memory: Float[Array, "b t d"],
        levels: Levels,
        mask_features: Float[Array, "b h4 w4 d"],
        heads: PredictionHeads,
    ) -> Selection:
        """`memory` and `levels` in the decoder's order.

        Raises:
            ValueError: fewer tokens than queries.
        """
        if memory.shape[1] < self.num_queries:
            raise ValueError(
                f"config.model.decoder.num_queries = {self.num_queries}: an image of levels {levels.sizes} has only "
                f"{memory.shape[1]} tokens to select from. Use larger images or fewer queries."
            )
        before, valid = proposals(levels)
        tokens = self.enc_output_norm(self.enc_output(jnp.where(valid[..., None], memory, 0)))
        tokens = tokens.astype(jnp.float32)
        scores = heads.class_embed(tokens).max(axis=-1)
        if levels.extents is not None:
            scores = jnp.where(levels.used(), scores, -jnp.inf)
        _, best = jax.lax.top_k(scores, self.num_queries)
        chosen = jnp.take_along_axis(tokens, best[..., None], axis=1)
        before = jnp.broadcast_to(before, (memory.shape[0], *before.shape[1:]))
        # The box head sees only the chosen tokens: it acts on each token alone, so this changes nothing but the cost.
        anchors = heads.box_embed(chosen) + jnp.take_along_axis(before, best[..., None], axis=1)
        predictions = heads(chosen, jax.nn.sigmoid(anchors))
        if self.box_init != "none":
            anchors = logit(self._boxes_of_masks(predictions, mask_features, levels))
        stop = jax.lax.stop_gradient
        return Selection(content=stop(chosen), anchors=stop(anchors), predictions=predictions)

    def _boxes_of_masks(
        self, predictions: Predictions, mask_features: Float[Array, "b h4 w4 d"], levels: Levels
    ) -> Float[Array, "b q 4"]:
        """Mask-enhanced anchor boxes: the box of each selected token's own mask (section 3.4)."""
        masks = mask_logits(predictions.mask_embed, mask_features) > 0
        if levels.image is None:
            return masks_to_boxes(masks, self.box_init)
        extent = levels.image // 4
        boxes = masks_to_boxes(masks & inside(masks.shape[2:], extent)[:, None], self.box_init)
        canvas, used = jnp.array(masks.shape[2:], jnp.float32), extent.astype(jnp.float32)
        return boxes * jnp.tile((canvas / used)[:, None, ::-1], 2)

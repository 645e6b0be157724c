"""The prediction heads: one class, one box and one mask head serve the encoder's tokens and every decoder layer."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from maskdino_jax.model.keys import Keys
from maskdino_jax.model.layers import MLP, layer_norm, linear
from maskdino_jax.structures import Predictions


class PredictionHeads(nnx.Module):
    """Class scores, box refinements and mask embeddings of query vectors, computed in float32."""

    def __init__(self, dim: int, num_classes: int, *, rngs: Keys) -> None:
        self.norm = layer_norm(dim, dtype=jnp.float32, rngs=rngs)
        self.class_embed = linear(dim, num_classes, dtype=jnp.float32, rngs=rngs)
        self.box_embed = MLP((dim, dim, dim, 4), last="zeros", rngs=rngs)
        self.mask_embed = MLP((dim, dim, dim, dim), rngs=rngs)

    def __call__(self, queries: Float[Array, "*b q d"], boxes: Float[Array, "*b q 4"]) -> Predictions:
        """Classes and masks of `queries` after the shared norm, beside boxes found elsewhere."""
        normed = self.norm(queries)
        return Predictions(logits=self.class_embed(normed), boxes=boxes, mask_embed=self.mask_embed(normed))


def mask_logits(embed: Float[Array, "b q d"], features: Float[Array, "b h4 w4 d"]) -> Float[Array, "b q h4 w4"]:
    """Masks as dot products of query and pixel embeddings, accumulated in float32."""
    embed = embed.astype(features.dtype)
    return jnp.einsum("bqd,bhwd->bqhw", embed, features, preferred_element_type=jnp.float32)

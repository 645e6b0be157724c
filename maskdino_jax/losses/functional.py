"""Loss formulas, unreduced: weights, sums and normalisers live in `criterion.py`. All of it in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from maskdino_jax.ops.boxes import cxcywh_to_xyxy, giou

FOCAL_ALPHA = 0.25  # weight of positives, 0.75 for negatives
FOCAL_GAMMA = 2


def binary_cross_entropy(logits: Float[Array, "*b"], labels: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """-y ln p - (1 - y) ln(1 - p) with p the sigmoid of the logit, without forming p."""
    logits = logits.astype(jnp.float32)
    return jax.nn.softplus(logits) - logits * labels


def focal_loss(logits: Float[Array, "*b"], labels: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Cross entropy that fades where the answer is right already (Lin et al. 2017, equation 5)."""
    probs = jax.nn.sigmoid(logits.astype(jnp.float32))
    wrong = probs * (1 - labels) + (1 - probs) * labels
    alpha = FOCAL_ALPHA * labels + (1 - FOCAL_ALPHA) * (1 - labels)
    return alpha * wrong**FOCAL_GAMMA * binary_cross_entropy(logits, labels)


def dice_loss(logits: Float[Array, "*b p"], labels: Float[Array, "*b p"]) -> Float[Array, "*b"]:
    """One minus the soft Dice overlap of each mask, with the customary +1 smoothing (V-Net, section 3)."""
    probs = jax.nn.sigmoid(logits.astype(jnp.float32))  # bfloat16 sums over 12544 points lose bits
    overlap = 2 * jnp.sum(probs * labels, axis=-1)
    total = jnp.sum(probs, axis=-1) + jnp.sum(labels, axis=-1)
    return 1 - (overlap + 1) / (total + 1)


def l1_loss(boxes: Float[Array, "*b 4"], goals: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """Sum of the four absolute differences."""
    return jnp.sum(jnp.abs(boxes.astype(jnp.float32) - goals), axis=-1)


def giou_loss(boxes: Float[Array, "*b 4"], goals: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """One minus the generalised intersection over union of cxcywh boxes."""
    return 1 - giou(cxcywh_to_xyxy(boxes.astype(jnp.float32)), cxcywh_to_xyxy(goals))

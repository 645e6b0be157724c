"""Costs of assigning each query to each target (Mask DINO, section 3.4: classes, boxes and masks together)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from maskdino_jax.config import TermsConfig
from maskdino_jax.losses.functional import FOCAL_ALPHA, FOCAL_GAMMA
from maskdino_jax.ops.boxes import cxcywh_to_xyxy, pairwise_giou
from maskdino_jax.ops.points import sample_map, sample_packed
from maskdino_jax.structures import Predictions, Targets


def matching_cost(
    predictions: Predictions,
    targets: Targets,
    mask_features: Float[Array, "b h4 w4 d"],
    points: Float[Array, "b p 2"],
    weights: TermsConfig,
) -> Float[Array, "b q n"]:
    """Weighted cost of one prediction set; columns of filler targets hold numbers without meaning.

    Masks are compared at `points`, shared by all queries and targets of an image. Mask logits are linear in the mask
    features and so is bilinear sampling; hence features sampled at the points and multiplied with the mask embeddings
    are exactly the full masks sampled at the points, without any full mask being computed.
    """
    features = sample_map(mask_features, points)
    embed = predictions.mask_embed.astype(jnp.float32)
    mask, dice = mask_costs(jnp.einsum("bqd,bpd->bqp", embed, features), sample_packed(targets.masks, points[:, None]))
    boxes = predictions.boxes.astype(jnp.float32)
    overlap = pairwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets.boxes))
    return (
        weights.classification * class_cost(predictions.logits, targets.labels)
        + weights.mask * mask
        + weights.dice * dice
        + weights.box * box_cost(boxes, targets.boxes)
        - weights.giou * overlap
    )


def class_cost(logits: Float[Array, "*b q k"], labels: Int[Array, "*b n"]) -> Float[Array, "*b q n"]:
    """Focal loss of the target's class as a positive less that as a negative, in (-inf, inf)."""
    logits = jnp.take_along_axis(logits.astype(jnp.float32), labels[..., None, :], axis=-1)
    probs = jax.nn.sigmoid(logits)
    # 1e-8 and not the logit form: the official cost saturates there, and a tie broken otherwise is another match.
    positive = FOCAL_ALPHA * (1 - probs) ** FOCAL_GAMMA * -jnp.log(probs + 1e-8)
    negative = (1 - FOCAL_ALPHA) * probs**FOCAL_GAMMA * -jnp.log(1 - probs + 1e-8)
    return positive - negative


def box_cost(boxes: Float[Array, "*b q 4"], goals: Float[Array, "*b n 4"]) -> Float[Array, "*b q n"]:
    """Sum of the four absolute differences of cxcywh boxes."""
    return jnp.sum(jnp.abs(boxes[..., :, None, :] - goals[..., None, :, :]), axis=-1)


def mask_costs(
    logits: Float[Array, "*b q p"], labels: Float[Array, "*b n p"]
) -> tuple[Float[Array, "*b q n"], Float[Array, "*b q n"]]:
    """Mean cross entropy and Dice loss over the points, for all pairs.

    softplus(-x) t + softplus(x) (1 - t) = softplus(x) - x t, so the cross entropy is one sum for each query and one
    matrix product; the overlap of Dice is a second product.
    """
    entropy = jnp.sum(jax.nn.softplus(logits), axis=-1)[..., None] - _products(logits, labels)
    probs = jax.nn.sigmoid(logits)
    total = jnp.sum(probs, axis=-1)[..., None] + jnp.sum(labels, axis=-1)[..., None, :]
    return entropy / logits.shape[-1], 1 - (2 * _products(probs, labels) + 1) / (total + 1)


def _products(first: Float[Array, "*b q p"], second: Float[Array, "*b n p"]) -> Float[Array, "*b q n"]:
    return jnp.einsum("...qp,...np->...qn", first, second)

"""Costs of assigning each query to each target (Mask DINO, section 3.4: classes, boxes and masks together)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskdino_jax.config import TermsConfig
from maskdino_jax.losses.functional import FOCAL_ALPHA, FOCAL_GAMMA
from maskdino_jax.ops.boxes import cxcywh_to_xyxy, pairwise_giou
from maskdino_jax.ops.points import sample_map, sample_packed
from maskdino_jax.structures import Predictions, Targets


def matching_cost(
    predictions: Predictions,
    targets: Targets,
    mask_features: Float[Array, "b h4 w4 d"],
    points: Float[Array, "b p 2"] | None,
    weights: TermsConfig,
    *,
    things_mean: bool = False,
) -> Float[Array, "b q n"]:
    """Weighted cost of one prediction set; columns of filler targets hold numbers without meaning.

    Masks are compared at `points`, shared by all queries and targets of an image. Mask logits are linear in the mask
    features and so is bilinear sampling; hence features sampled at the points and multiplied with the mask embeddings
    are exactly the full masks sampled at the points, without any full mask being computed.

    Args:
        points: None if the targets have no masks; then classes and boxes decide.
        things_mean: the box costs of stuff are replaced by their mean over the things of the image (section 3.6), as
            stuff has no box worth the name; but their level stays comparable with that of things.
    """
    boxes = predictions.boxes.astype(jnp.float32)
    overlap = pairwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets.boxes))
    distance = box_cost(boxes, targets.boxes)
    if things_mean:
        distance, overlap = (_stuff_at_mean(x, targets.is_thing & targets.valid) for x in (distance, overlap))
    classes = class_cost(predictions.logits, targets.labels)
    cost = weights.classification * classes + weights.box * distance - weights.giou * overlap
    if points is None:
        return cost
    logits = jnp.einsum("bqd,bpd->bqp", predictions.mask_embed.astype(jnp.float32), sample_map(mask_features, points))
    mask, dice = mask_costs(logits, sample_packed(targets.masks, points[:, None]))
    return cost + weights.mask * mask + weights.dice * dice


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


def _stuff_at_mean(cost: Float[Array, "b q n"], things: Bool[Array, "b n"]) -> Float[Array, "b q n"]:
    """Columns that are not of things hold the mean of those that are, 0 if there are none."""
    things = things[:, None]
    entries = jnp.maximum(jnp.sum(things, axis=-1, keepdims=True) * cost.shape[1], 1)
    mean = jnp.sum(jnp.where(things, cost, 0), axis=(1, 2), keepdims=True) / entries
    return jnp.where(things, cost, mean)


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

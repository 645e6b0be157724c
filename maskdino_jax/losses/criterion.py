"""The training loss: match once, then five terms for every prediction set (Mask DINO, sections 3.3 and 3.4).

All terms are sums over the objects of the whole batch, divided by the number of its objects. The batch is one global
program whatever the number of devices, so this equals the official mean over devices of local sums divided by the
mean number of objects on a device.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from maskdino_jax.config import LossConfig, ModelConfig
from maskdino_jax.losses.costs import matching_cost
from maskdino_jax.losses.functional import binary_cross_entropy, dice_loss, focal_loss, giou_loss, l1_loss
from maskdino_jax.losses.matcher import match
from maskdino_jax.ops.points import sample_masks, sample_packed, uncertain_points
from maskdino_jax.structures import DenoisingPlan, Matches, Predictions, Targets, TrainOutputs

Terms = dict[str, Float[Array, ""]]

# Uniform points in [0, 1)^2: (use, index of the prediction set, shape) -> array. The uses are `matching`, `candidates`
# and `uniform`, and the latter two with the prefix `denoising_`.
Draw = Callable[[str, Int[Array, ""], tuple[int, ...]], Float[Array, "..."]]

_USES = ("matching", "candidates", "uniform", "denoising_candidates", "denoising_uniform")
_TERMS = ("loss_ce", "loss_mask", "loss_dice", "loss_bbox", "loss_giou")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Row i of an image says that query `query[i]` answers for target `target[i]`, where `valid`."""

    query: Int[Array, "*l b r"]
    target: Int[Array, "*l b r"]
    valid: Bool[Array, "*l b r"]


@dataclasses.dataclass(frozen=True)
class _Scale:
    """What sums are divided by, and which class loss there is."""

    num_objects: Float[Array, ""]
    num_parts: int
    softmax: bool


def criterion(
    outputs: TrainOutputs,
    targets: Targets,
    key: PRNGKeyArray,
    loss: LossConfig,
    model: ModelConfig,
    *,
    num_objects: Float[Array, ""],
    num_parts: int = 1,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], Terms]:
    """Total loss and its weighted terms; the total is their sum.

    Args:
        outputs: float32 or bfloat16; everything here is computed in float32.
        key: source of the points at which masks are compared.
        model: where the queries come from, what the class scores are, and what is denoised.
        num_objects: existing targets of the whole batch (all devices, all accumulated parts), at least 1.
        num_parts: equal parts of the batch whose terms are added up; these outputs are one of them.
        mesh: its axis "data" divides the images; see `matcher.match`.

    Returns:
        Terms by the official names: `loss_ce`, `loss_mask`, `loss_dice`, `loss_bbox` and `loss_giou`, with no suffix
        for the last layer, `_i` for decoder set i (0 is the input of the first layer), `_interm` for the encoder, and
        `_dn` or `_dn_i` for the denoising slots. With learned queries there is no `_interm` and no `_dn_0`.
    """

    def draw(use: str, index: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, _USES.index(use)), index), shape)

    sizes = {"num_objects": num_objects, "num_parts": num_parts}
    terms = weighted_terms(outputs, targets, draw, loss, model, **sizes, mesh=mesh)
    return sum(terms.values()), terms


def weighted_terms(
    outputs: TrainOutputs,
    targets: Targets,
    draw: Draw,
    loss: LossConfig,
    model: ModelConfig,
    *,
    num_objects: Float[Array, ""],
    num_parts: int = 1,
    mesh: Mesh | None = None,
) -> Terms:
    """The terms of `criterion` with points from a given source."""
    # Converted here and not in the loop over prediction sets, so that their gradients add up in float32.
    features = outputs.mask_features.astype(jnp.float32)
    matches = match_all(outputs.matching, targets, features, draw, loss, mesh)
    sets, _, n = matches.query.shape
    pairs = Pairs(query=matches.query, target=jnp.broadcast_to(jnp.arange(n), matches.query.shape), valid=matches.valid)
    counted = jnp.ones(outputs.matching.logits.shape[1:3], bool)
    selected = model.decoder.query_source == "encoder"
    depth = sets - 1 - selected  # the last decoder set; after it may come the encoder's
    suffixes = [*(f"_{i}" for i in range(depth)), "", *(["_interm"] if selected else [])]
    scale = _Scale(num_objects, num_parts, model.class_scores == "softmax")
    terms = _named(_values(outputs.matching, pairs, counted, targets, features, draw, loss, scale), suffixes, loss)
    if outputs.denoising is not None:
        pairs, counted = _denoising_pairs(outputs.plan, depth + 1)
        prefixed = lambda use, index, shape: draw(f"denoising_{use}", index, shape)
        masks = model.denoising.mode == "masks"
        groups = jnp.maximum(outputs.plan.num_groups, 1)  # without groups every sum is zero
        scale = dataclasses.replace(scale, num_objects=num_objects * groups)
        values = _values(outputs.denoising, pairs, counted, targets, features, prefixed, loss, scale, masks=masks)
        suffixes = [*(f"_dn_{i}" for i in range(depth)), "_dn"]
        skipped = 0 if selected else 1  # the official code has no loss for noised queries that met no layer yet
        terms |= _named(values[skipped:], suffixes[skipped:], loss, masks=masks)
    return terms


def match_all(
    predictions: Predictions,
    targets: Targets,
    mask_features: Float[Array, "b h4 w4 d"],
    draw: Draw,
    loss: LossConfig,
    mesh: Mesh | None = None,
) -> Matches:
    """Optimal assignment of each of the stacked prediction sets, each on its own; passes no gradient."""
    predictions, mask_features = jax.lax.stop_gradient((predictions, mask_features))
    sets, b = predictions.logits.shape[:2]

    def cost(item: tuple[Array, Predictions]) -> Array:
        index, one = item
        points = draw("matching", index, (b, loss.num_points, 2))
        return matching_cost(one, targets, mask_features, points, loss.costs)

    # One set after the other: the logits of a set at all points take b * q * p floats.
    costs = jax.lax.map(cost, (jnp.arange(sets), predictions))
    return match(costs, targets.valid.sum(axis=1), mesh)


def _denoising_pairs(plan: DenoisingPlan, sets: int) -> tuple[Pairs, Bool[Array, "b s"]]:
    """Slots answer for the targets they were made of; slots of complete groups count in the class loss."""
    shape = (sets, *plan.known.shape)
    pairs = Pairs(
        query=jnp.broadcast_to(jnp.arange(shape[-1]), shape),
        target=jnp.broadcast_to(plan.target, shape),
        valid=jnp.broadcast_to(plan.known, shape),
    )
    return pairs, jnp.broadcast_to(plan.active, plan.known.shape)


def _named(values: Float[Array, "l c"], suffixes: list[str], loss: LossConfig, masks: bool = True) -> Terms:
    w = loss.weights
    weights = dict(zip(_TERMS, (w.classification, w.mask, w.dice, w.box, w.giou), strict=True))
    return {
        name + suffix: weights[name] * values[i, j]
        for i, suffix in enumerate(suffixes)
        for j, name in enumerate(_TERMS)
        if masks or name not in ("loss_mask", "loss_dice")
    }


def _values(
    predictions: Predictions,
    pairs: Pairs,
    counted: Bool[Array, "b q"],
    targets: Targets,
    features: Float[Array, "b h4 w4 d"],
    draw: Draw,
    loss: LossConfig,
    scale: _Scale,
    *,
    masks: bool = True,
) -> Float[Array, "l 5"]:
    """The terms of each prediction set, in the order of `_TERMS`, without their weights."""

    def one_set(item: tuple[Array, Predictions, Pairs]) -> Array:
        index, one, own = item
        if scale.softmax:
            classes = _softmax_term(one, own, counted, targets, loss, scale)
        else:
            classes = _focal_sum(one, own, counted, targets) / scale.num_objects
        mask_sums = _mask_sums(one, own, targets, features, draw, index, loss) if masks else (0.0, 0.0)
        sums = jnp.stack([*mask_sums, *_box_sums(one, own, targets)])
        return jnp.concatenate([classes[None], sums / scale.num_objects])

    # Full mask maps exist for one prediction set at a time: they are computed again in the backward pass. The points
    # are kept, for choosing them costs more than storing them.
    keep = jax.checkpoint_policies.save_only_these_names("points")
    index = jnp.arange(predictions.logits.shape[0])
    return jax.lax.map(jax.checkpoint(one_set, policy=keep), (index, predictions, pairs))


def _focal_sum(
    predictions: Predictions, pairs: Pairs, counted: Bool[Array, "b q"], targets: Targets
) -> Float[Array, ""]:
    """Focal loss over all classes of the counted queries; a query without a target is a negative for every class."""
    losses = focal_loss(predictions.logits, _goals(predictions, pairs, targets))
    return jnp.sum(jnp.where(counted[..., None], losses, 0))


def _softmax_term(
    predictions: Predictions,
    pairs: Pairs,
    counted: Bool[Array, "b q"],
    targets: Targets,
    loss: LossConfig,
    scale: _Scale,
) -> Float[Array, ""]:
    """Weighted mean cross entropy of the counted queries; the last column is the answer of those without a target.

    The mean is over the queries here and not over objects, as in DETR (Carion et al. 2020, section A.2).
    """
    goals = _goals(predictions, pairs, targets)
    missing = 1 - goals.sum(axis=-1)
    goals = goals.at[..., -1].set(missing)
    weights = jnp.where(counted, jnp.where(missing > 0, loss.no_object_weight, 1.0), 0.0)
    entropy = -jnp.sum(goals * jax.nn.log_softmax(predictions.logits.astype(jnp.float32)), axis=-1)
    # Without an active slot there is nothing to average.
    return jnp.sum(weights * entropy) / jnp.maximum(weights.sum(), 1e-6) / scale.num_parts


def _goals(predictions: Predictions, pairs: Pairs, targets: Targets) -> Float[Array, "b q k"]:
    """One-hot class of each query's target; zeros where it has none."""
    _, q, k = predictions.logits.shape
    queries = jax.nn.one_hot(pairs.query, q) * pairs.valid[..., None]
    labels = jax.nn.one_hot(jnp.take_along_axis(targets.labels, pairs.target, axis=1), k)
    return jnp.einsum("brq,brk->bqk", queries, labels)


def _box_sums(predictions: Predictions, pairs: Pairs, targets: Targets) -> tuple[Float[Array, ""], Float[Array, ""]]:
    boxes, goals = _rows(predictions.boxes, pairs.query), _rows(targets.boxes, pairs.target)
    total = lambda losses: jnp.sum(jnp.where(pairs.valid, losses, 0))
    return total(l1_loss(boxes, goals)), total(giou_loss(boxes, goals))


def _mask_sums(
    predictions: Predictions,
    pairs: Pairs,
    targets: Targets,
    features: Float[Array, "b h4 w4 d"],
    draw: Draw,
    index: Int[Array, ""],
    loss: LossConfig,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross entropy and Dice at points that are mostly uncertain ones (PointRend), for the answering queries only."""
    embed = _rows(predictions.mask_embed, pairs.query).astype(jnp.float32)
    logits = jnp.einsum("brd,bhwd->brhw", embed, features)
    masks = jnp.take_along_axis(targets.masks, pairs.target[..., None, None], axis=1)
    rows, uncertain = pairs.query.shape, int(loss.importance_ratio * loss.num_points)
    candidates = draw("candidates", index, (*rows, int(loss.oversample_ratio * loss.num_points), 2))
    uniform = draw("uniform", index, (*rows, loss.num_points - uncertain, 2))
    points = checkpoint_name(uncertain_points(logits, candidates, uniform, uncertain), "points")
    sampled, labels = sample_masks(logits, points), sample_packed(masks, points)
    entropy = jnp.mean(binary_cross_entropy(sampled, labels), axis=-1)
    total = lambda losses: jnp.sum(jnp.where(pairs.valid, losses, 0))
    return total(entropy), total(dice_loss(sampled, labels))


def _rows(values: Array, index: Int[Array, "b r"]) -> Array:
    """Row `index` of each image's [b, q, ...] values."""
    return jnp.take_along_axis(values, index[..., None], axis=1)

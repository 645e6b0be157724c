"""The training loss: match once, then five terms for every prediction set (Mask DINO, sections 3.3 and 3.4).

All terms are sums over the objects of the whole batch, divided by the number of its objects. The batch is one global
program whatever the number of devices, so this equals the official mean over devices of local sums divided by the
mean number of objects on a device.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from maskdino_jax.config import LossConfig, ModelConfig
from maskdino_jax.losses.costs import matching_cost
from maskdino_jax.losses.functional import focal_loss, giou_loss, l1_loss
from maskdino_jax.losses.mask_loss import Draw, Rows, chunk_size, mask_losses
from maskdino_jax.losses.matcher import match
from maskdino_jax.meshes import images_spec
from maskdino_jax.structures import DenoisingPlan, Matches, Predictions, Targets, TrainOutputs

Terms = dict[str, Float[Array, ""]]

_USES = ("matching", "candidates", "uniform")
_TERMS = ("loss_ce", "loss_mask", "loss_dice", "loss_bbox", "loss_giou")
_IMAGES = 4  # whose costs are computed at a time: 13 MB of features at 12,544 points for each


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Row i of an image says that query `query[i]` answers for target `target[i]`, where `valid`."""

    query: Int[Array, "*l b r"]
    target: Int[Array, "*l b r"]
    valid: Bool[Array, "*l b r"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Group:
    """Prediction sets that are treated alike: those that are matched, or those of the denoising slots."""

    suffixes: list[str]
    predictions: Predictions  # [l, b, q, ...]
    pairs: Pairs
    counted: Bool[Array, "b q"]  # queries with a class loss
    num_objects: Float[Array, ""]  # what sums are divided by
    num_answers: Float[Array, ""]  # how many queries of the whole batch answer for a target
    num_counted: Float[Array, ""]  # how many of them are counted
    masks: bool


def criterion(
    outputs: TrainOutputs,
    targets: Targets,
    keys: Key[Array, "b"],
    loss: LossConfig,
    model: ModelConfig,
    *,
    counts: Int[Array, "c"],
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], Terms]:
    """Total loss and its weighted terms, whose sum it is. Gradients flow through the total alone.

    Args:
        outputs: float32 or bfloat16; everything here is computed in float32.
        keys: one for each image; source of the points at which masks are compared.
        model: where the queries come from, what the class scores are, and what is denoised.
        counts: number of targets of each image of the whole batch, of which the images here may be a part; the losses
            of all parts add up to that of the batch.
        mesh: divides the images, and each device matches and compares masks of its own.

    Returns:
        Terms by the official names: `loss_ce`, `loss_mask`, `loss_dice`, `loss_bbox` and `loss_giou`, with no suffix
        for the last layer, `_i` for decoder set i (0 is the input of the first layer), `_interm` for the encoder, and
        `_dn` or `_dn_i` for the denoising slots. With learned queries there is no `_interm` and no `_dn_0`.
    """
    return criterion_at(outputs, targets, keys, uniform, loss, model, counts=counts, mesh=mesh)


def uniform(use: str, key: Key[Array, ""], index: Int[Array, ""], count: int) -> Float[Array, "c 2"]:
    """The points of an image: a function of its key, the use and the index alone."""
    return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, _USES.index(use)), index), (count, 2))


def criterion_at(
    outputs: TrainOutputs,
    targets: Targets,
    sources: Any,
    draw: Draw,
    loss: LossConfig,
    model: ModelConfig,
    *,
    counts: Int[Array, "c"],
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], Terms]:
    """`criterion` at the points that `draw` makes of an image's element of `sources`, a tree with a leading axis b.

    The rows of `mask_loss.Rows` are the targets of matching set 0, of set 1 and so on, then the slots of denoising
    set 0 (1 with learned queries) and so on.
    """
    features = outputs.mask_features
    matches = match_all(outputs.matching, targets, features, sources, draw, loss, mesh)
    groups = [_matched(outputs, matches, counts, model)]
    if outputs.denoising is not None:
        groups.append(_denoised(outputs, counts, model))
    mask_total, mask_values = _mask_terms(groups, targets, features, sources, draw, loss, mesh)
    weights = loss.weights
    total, terms = mask_total, {}
    for group, (entropy, dice) in zip(groups, mask_values, strict=True):
        classes = _class_values(group, targets, loss, softmax=model.class_scores == "softmax")
        boxes, overlaps = _box_values(group, targets, things_only=loss.box_loss_things_only)
        own = (weights.classification * classes, weights.mask * entropy, weights.dice * dice)
        own = (*own, weights.box * boxes, weights.giou * overlaps)
        total = total + sum(jnp.sum(own[i]) for i in (0, 3, 4))
        for name, values in zip(_TERMS, own, strict=True):
            if group.masks or name not in ("loss_mask", "loss_dice"):
                terms |= {name + suffix: values[i] for i, suffix in enumerate(group.suffixes)}
    return total, jax.lax.stop_gradient(terms)


def _per_device(function: Callable, mesh: Mesh | None, in_axes: tuple[int, ...], out_axis: int) -> Callable:
    """Let each device work on its own images, without waiting for the others. The axes are those of the images.

    Nothing is exchanged inside, so there is nothing to check about which values agree among devices.
    """
    if mesh is None:
        return function
    in_specs = tuple(images_spec(mesh, axis) for axis in in_axes)
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=images_spec(mesh, out_axis), check_vma=False)


def match_all(
    predictions: Predictions,
    targets: Targets,
    mask_features: Float[Array, "b h4 w4 d"],
    sources: Any,
    draw: Draw,
    loss: LossConfig,
    mesh: Mesh | None = None,
) -> Matches:
    """Optimal assignment of each of the stacked prediction sets, each on its own; passes no gradient."""

    def local(predictions: Predictions, targets: Targets, features: Array, sources: Any) -> Matches:
        def one_set(item: tuple[Array, Predictions]) -> Array:
            index, one = item

            def one_image(image: tuple) -> Array:
                own, target, feature, source = image
                points = None if target.masks is None else draw("matching", source, index, loss.num_points)
                alone = jax.tree.map(lambda x: x[None], (own, target, feature, points))
                return matching_cost(*alone, loss.costs, things_mean=loss.match_box_things_mean)[0]

            return jax.lax.map(one_image, (one, targets, features, sources), batch_size=_IMAGES)

        costs = jax.lax.map(one_set, (jnp.arange(predictions.logits.shape[0]), predictions))
        return match(costs, targets.valid.sum(axis=1), impl=loss.matcher)

    inputs = jax.lax.stop_gradient((predictions, targets, mask_features))
    return _per_device(local, mesh, (1, 0, 0, 0), 1)(*inputs, sources)


def _matched(outputs: TrainOutputs, matches: Matches, counts: Int[Array, "c"], model: ModelConfig) -> _Group:
    sets, _, n = matches.query.shape
    queries = outputs.matching.logits.shape[2]
    selected = model.decoder.query_source == "encoder"
    last = sets - 1 - selected  # the last decoder set; after it may come the encoder's
    return _Group(
        suffixes=[*(f"_{i}" for i in range(last)), "", *(["_interm"] if selected else [])],
        predictions=outputs.matching,
        pairs=Pairs(
            query=matches.query, target=jnp.broadcast_to(jnp.arange(n), matches.query.shape), valid=matches.valid
        ),
        counted=jnp.ones(outputs.matching.logits.shape[1:3], bool),
        num_objects=jnp.maximum(counts.sum(), 1).astype(jnp.float32),
        num_answers=jnp.minimum(counts, queries).sum().astype(jnp.float32),
        num_counted=jnp.float32(len(counts) * queries),
        masks=model.masks,
    )


def _denoised(outputs: TrainOutputs, counts: Int[Array, "c"], model: ModelConfig) -> _Group:
    """Slots answer for the targets they were made of; slots of complete groups count in the class loss."""
    plan: DenoisingPlan = outputs.plan
    # With learned queries the official code has no loss for noised queries that met no layer yet.
    first = 0 if model.decoder.query_source == "encoder" else 1
    predictions = jax.tree.map(lambda x: x[first:], outputs.denoising)
    last = outputs.denoising.logits.shape[0] - 1
    shape = (last + 1 - first, *plan.known.shape)
    return _Group(
        suffixes=[*(f"_dn_{i}" for i in range(first, last)), "_dn"],
        predictions=predictions,
        pairs=Pairs(
            query=jnp.broadcast_to(jnp.arange(shape[-1]), shape),
            target=jnp.broadcast_to(plan.target, shape),
            valid=jnp.broadcast_to(plan.known, shape),
        ),
        counted=jnp.broadcast_to(plan.active, plan.known.shape),
        # Without groups every sum is zero.
        num_objects=jnp.maximum(counts.sum() * plan.num_groups, 1).astype(jnp.float32),
        num_answers=(counts.sum() * plan.num_groups).astype(jnp.float32),
        num_counted=(len(counts) * plan.active.sum()).astype(jnp.float32),
        masks=model.masks and model.denoising.mode == "masks",
    )


def _mask_terms(
    groups: list[_Group],
    targets: Targets,
    features: Float[Array, "b h4 w4 d"],
    sources: Any,
    draw: Draw,
    loss: LossConfig,
    mesh: Mesh | None,
) -> tuple[Float[Array, ""], list[Float[Array, "2 l"]]]:
    """Weighted total of all mask losses, and for each group the cross entropy and the Dice loss of its sets."""
    parts = [_rows_of(group) for group in groups if group.masks]
    if not parts:
        return jnp.float32(0), [jnp.zeros((2, len(group.suffixes))) for group in groups]
    rows = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    local = lambda *inputs: mask_losses(*inputs, draw, loss, chunk_size(platform))
    inputs = (rows, features, targets.masks, sources)
    total, *losses = _per_device(local, mesh, (0, 0, 0, 0), 0)(*inputs)
    values, start = [], 0
    for group in groups:
        sets, b, r = group.pairs.query.shape
        if not group.masks:
            values.append(jnp.zeros((2, sets)))
            continue
        own = jnp.stack([x[:, start : start + sets * r].reshape(b, sets, r) for x in losses])
        values.append(own.sum(axis=(1, 3)) / group.num_objects)
        start += sets * r
    return total.sum(), values


def _rows_of(group: _Group) -> Rows:
    """The answering queries of all sets of an image in one list."""
    sets, b, r = group.pairs.query.shape
    listed = lambda x: jnp.moveaxis(x, 0, 1).reshape(b, sets * r, *x.shape[3:])
    embed = jax.vmap(_rows)(group.predictions.mask_embed, group.pairs.query)
    return Rows(
        embed=listed(embed).astype(jnp.float32),
        target=listed(group.pairs.target),
        valid=listed(group.pairs.valid),
        share=jnp.broadcast_to(1 / group.num_objects, (b, sets * r)),
    )


def _class_values(group: _Group, targets: Targets, loss: LossConfig, *, softmax: bool) -> Float[Array, "l"]:
    """Focal loss over all classes for each object; a query without a target is a negative for every class.

    With `softmax` it is the weighted mean cross entropy of the queries, whose last column is the answer of those
    without a target, as in DETR (Carion et al. 2020, section A.2).
    """

    def one_set(predictions: Predictions, pairs: Pairs) -> Float[Array, ""]:
        goals = _goals(predictions, pairs, targets)
        if not softmax:
            return jnp.sum(jnp.where(group.counted[..., None], focal_loss(predictions.logits, goals), 0))
        missing = 1 - goals.sum(axis=-1)
        entropy = -jnp.sum(
            goals.at[..., -1].set(missing) * jax.nn.log_softmax(predictions.logits.astype(jnp.float32)), axis=-1
        )
        weights = jnp.where(missing > 0, loss.no_object_weight, 1.0)
        return jnp.sum(jnp.where(group.counted, weights * entropy, 0))

    sums = jax.vmap(one_set)(group.predictions, group.pairs)
    if not softmax:
        return sums / group.num_objects
    weight = group.num_answers + loss.no_object_weight * (group.num_counted - group.num_answers)
    return sums / jnp.maximum(weight, 1e-6)  # without an active slot there is nothing to average


def _goals(predictions: Predictions, pairs: Pairs, targets: Targets) -> Float[Array, "b q k"]:
    """One-hot class of each query's target; zeros where it has none."""
    _, q, k = predictions.logits.shape
    queries = jax.nn.one_hot(pairs.query, q) * pairs.valid[..., None]
    labels = jax.nn.one_hot(jnp.take_along_axis(targets.labels, pairs.target, axis=1), k)
    return jnp.einsum("brq,brk->bqk", queries, labels)


def _box_values(group: _Group, targets: Targets, *, things_only: bool) -> tuple[Float[Array, "l"], Float[Array, "l"]]:
    """L1 and generalised IoU loss for each object; with `things_only` those of stuff are left out of the sums."""

    def one_set(predictions: Predictions, pairs: Pairs) -> tuple[Float[Array, ""], Float[Array, ""]]:
        boxes, goals = _rows(predictions.boxes, pairs.query), _rows(targets.boxes, pairs.target)
        trained = pairs.valid
        if things_only:
            trained &= jnp.take_along_axis(targets.is_thing, pairs.target, axis=1)
        total = lambda losses: jnp.sum(jnp.where(trained, losses, 0)) / group.num_objects
        return total(l1_loss(boxes, goals)), total(giou_loss(boxes, goals))

    return jax.vmap(one_set)(group.predictions, group.pairs)


def _rows(values: Array, index: Int[Array, "b r"]) -> Array:
    """Row `index` of each image's [b, q, ...] values."""
    return jnp.take_along_axis(values, index[..., None], axis=1)

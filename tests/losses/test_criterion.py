"""The whole loss against a plain loop over objects, and the laws that padding and sharding must keep."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from maskdino_jax.config import LossConfig, TermsConfig
from maskdino_jax.losses import functional
from maskdino_jax.losses.criterion import criterion, match_all, weighted_terms
from maskdino_jax.ops.points import sample_masks, uncertain_points
from maskdino_jax.structures import DenoisingPlan, Outputs, Targets
from tests.losses.scenes import CLASSES, make_outputs, make_targets

LOSS = LossConfig(
    weights=TermsConfig(classification=2.0, mask=3.0, dice=4.0, box=5.0, giou=6.0), num_points=16, oversample_ratio=3.0
)
KINDS = ("loss_ce", "loss_mask", "loss_dice", "loss_bbox", "loss_giou")


def _plan(target, known, active, groups) -> DenoisingPlan:
    target = jnp.array(target)
    return DenoisingPlan(
        target=target,
        group=jnp.zeros_like(target),
        active=jnp.array(active),
        known=jnp.array(known),
        num_groups=jnp.int32(groups),
    )


@pytest.fixture(scope="module")
def plan():
    """Two groups of two targets and one inactive slot; the second image has only one target."""
    return _plan(
        [0, 1, 0, 1, 0],
        [[True, True, True, True, False], [True, False, True, False, False]],
        [True, True, True, True, False],
        2,
    )


@pytest.fixture(scope="module")
def outputs(plan):
    return make_outputs(plan=plan)


def same_points(use: str, index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Points that differ between prediction sets and uses but not between the rows of a set."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), len(use)), index)
    return jnp.broadcast_to(jax.random.uniform(key, shape[-2:]), shape)


@partial(jax.jit, static_argnames="mode")
def _terms(outputs: Outputs, targets: Targets, mode: str = "masks") -> dict:
    number = jnp.maximum(targets.valid.sum(), 1).astype(jnp.float32)
    return weighted_terms(outputs, targets, same_points, LOSS, mode, num_objects=number)


@jax.jit
def _total_and_gradient(outputs: Outputs, targets: Targets) -> tuple:
    floats = dataclasses.replace(outputs, plan=None)
    scalar = lambda x: sum(_terms(dataclasses.replace(x, plan=outputs.plan), targets).values())
    return jax.value_and_grad(scalar)(floats)


def _reference(outputs: Outputs, targets: Targets, kept: list[list[tuple]], group: str, counted: np.ndarray) -> dict:
    """One loop over sets, images and (query, target) pairs; masks unpacked, sampled one by one."""
    predictions = outputs.matching if group == "" else outputs.denoising
    masks = jnp.unpackbits(targets.masks, axis=-1).astype(jnp.float32)
    terms = {}
    for i, pairs in enumerate(kept):
        over = same_points(f"{group}candidates", i, (48, 2))
        rest = same_points(f"{group}uniform", i, (4, 2))
        sums = dict.fromkeys(KINDS, 0.0)
        goals = np.zeros(predictions.logits.shape[1:], np.float32)
        for b, query, target in pairs:
            goals[b, query, targets.labels[b, target]] = 1
            box, goal = predictions.boxes[i, b, query], targets.boxes[b, target]
            sums["loss_bbox"] += functional.l1_loss(box, goal)
            sums["loss_giou"] += functional.giou_loss(box, goal)
            logits = jnp.einsum("d,hwd->hw", predictions.mask_embed[i, b, query], outputs.mask_features[b])
            points = uncertain_points(logits, over, rest, 12)
            sampled, labels = sample_masks(logits, points), sample_masks(masks[b, target], points)
            sums["loss_mask"] += functional.binary_cross_entropy(sampled, labels).mean()
            sums["loss_dice"] += functional.dice_loss(sampled, labels)
        sums["loss_ce"] = (functional.focal_loss(predictions.logits[i], jnp.asarray(goals)) * counted).sum()
        terms[i] = sums
    return terms


def _pairs(outputs, targets) -> tuple[list, list]:
    matches = match_all(outputs.matching, targets, outputs.mask_features, same_points, LOSS)
    matches = jax.tree.map(np.asarray, matches)
    matched = [
        [(b, int(query[b, j]), j) for b in range(2) for j in range(query.shape[1]) if valid[b, j]]
        for query, valid in zip(matches.query, matches.valid, strict=True)
    ]
    plan = outputs.plan
    known = [(b, s, int(plan.target[s])) for b in range(2) for s in range(5) if plan.known[b, s]]
    return matched, [known] * outputs.denoising.logits.shape[0]


def test_terms_and_gradients_equal_a_plain_loop_over_objects(outputs):
    targets = make_targets([2, 1], n=4)
    matched, known = _pairs(outputs, targets)
    assert [len(pairs) for pairs in matched] == [3] * 3

    def naive(floats: Outputs) -> tuple:
        own = dataclasses.replace(floats, plan=outputs.plan)
        first = _reference(own, targets, matched, "", np.ones((2, 7, 1)))
        second = _reference(own, targets, known, "denoising_", np.array([1, 1, 1, 1, 0])[:, None])
        w = dict(zip(KINDS, (2, 3, 4, 5, 6), strict=True))
        terms = {f"{k}{s}": w[k] * first[i][k] / 3 for i, s in enumerate(("_0", "", "_interm")) for k in KINDS}
        terms |= {f"{k}{s}": w[k] * second[i][k] / 6 for i, s in enumerate(("_dn_0", "_dn")) for k in KINDS}
        return sum(terms.values()), terms

    floats = dataclasses.replace(outputs, plan=None)
    (total, expected), gradient = jax.value_and_grad(naive, has_aux=True)(floats)
    terms = _terms(outputs, targets)
    assert set(terms) == set(expected)
    for name, value in terms.items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-5, err_msg=name)
    mine, slope = _total_and_gradient(outputs, targets)
    np.testing.assert_allclose(mine, total, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(slope), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def test_filler_targets_change_neither_loss_nor_gradient(outputs):
    short, long = make_targets([2, 1], n=2), make_targets([2, 1], n=5, seed=9)
    replaced = jax.tree.map(lambda a, b: b.at[:, :2].set(a), short, make_targets([5, 5], n=5, seed=9))
    # Filler with meaningful numbers: it must be ignored, not just small.
    long = dataclasses.replace(replaced, valid=jnp.arange(5) < jnp.array([[2], [1]]))
    for mine, theirs in zip(
        jax.tree.leaves(_total_and_gradient(outputs, short)),
        jax.tree.leaves(_total_and_gradient(outputs, long)),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)


def test_the_order_of_targets_does_not_matter(outputs):
    targets = make_targets([3, 3], n=3)
    without = dataclasses.replace(outputs, denoising=None, plan=None)
    turned = jax.tree.map(lambda x: x[:, jnp.array([2, 0, 1])], targets)
    for mine, theirs in zip(
        jax.tree.leaves(_total_and_gradient(without, targets)),
        jax.tree.leaves(_total_and_gradient(without, turned)),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)


def test_a_batch_without_objects_has_only_background_to_learn(outputs):
    empty = _plan([0] * 5, [[False] * 5] * 2, [False] * 5, 0)
    outputs = dataclasses.replace(outputs, plan=empty)
    terms = _terms(outputs, make_targets([0, 0], n=3))
    negatives = functional.focal_loss(outputs.matching.logits, jnp.zeros_like(outputs.matching.logits))
    for i, suffix in enumerate(("_0", "", "_interm")):
        np.testing.assert_allclose(terms[f"loss_ce{suffix}"], 2 * negatives[i].sum(), rtol=1e-5)
    assert all(value == 0 for name, value in terms.items() if not name.startswith("loss_ce") or "_dn" in name)
    _, slope = _total_and_gradient(outputs, make_targets([0, 0], n=3))
    silent = (slope.matching.boxes, slope.matching.mask_embed, slope.mask_features, slope.denoising)
    for leaf in jax.tree.leaves(silent):
        np.testing.assert_array_equal(leaf, 0)


def test_denoising_slots_without_a_target_are_background_and_inactive_ones_are_nothing(outputs):
    _, slope = _total_and_gradient(outputs, make_targets([2, 1], n=3))
    logits, boxes = np.asarray(slope.denoising.logits), np.asarray(slope.denoising.boxes)
    assert (logits[:, 1, 1] > 0).all()  # unused slot of an active group: every class is pushed down
    np.testing.assert_array_equal(boxes[:, 1, 1], 0)
    np.testing.assert_array_equal(logits[:, :, 4], 0)
    np.testing.assert_array_equal(boxes[:, :, 4], 0)


def test_denoising_of_boxes_leaves_out_the_mask_terms_and_keeps_the_rest(outputs):
    targets = make_targets([2, 1], n=3)
    masks, boxes = _terms(outputs, targets), _terms(outputs, targets, mode="boxes")
    gone = {f"{kind}{suffix}" for kind in ("loss_mask", "loss_dice") for suffix in ("_dn_0", "_dn")}
    assert set(masks) - set(boxes) == gone
    for name, value in boxes.items():
        np.testing.assert_allclose(value, masks[name], rtol=1e-6)


def test_nine_layers_give_the_105_official_terms_and_their_sum():
    plan = _plan([0], [[True], [True]], [True], 1)
    outputs, targets = make_outputs(layers=9, q=3, plan=plan), make_targets([1, 1], n=1)
    run = jax.jit(lambda x, y: criterion(x, y, jax.random.key(0), LOSS, "masks", num_objects=jnp.float32(2)))
    total, terms = run(outputs, targets)
    suffixes = ["", "_interm", "_dn", *(f"_{i}" for i in range(9)), *(f"_dn_{i}" for i in range(9))]
    assert set(terms) == {kind + suffix for kind in KINDS for suffix in suffixes}
    np.testing.assert_allclose(total, sum(float(x) for x in terms.values()), rtol=1e-5)


def test_points_are_drawn_anew_for_every_set_and_repeated_for_the_same_key(outputs):
    targets, number = make_targets([2, 1], n=3), jnp.float32(3)
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), outputs.matching)
    outputs = dataclasses.replace(outputs, matching=same, denoising=None, plan=None)
    run = jax.jit(lambda key: criterion(outputs, targets, key, LOSS, "none", num_objects=number)[1])
    first, again, other = (jax.tree.map(float, run(jax.random.key(i))) for i in (0, 0, 1))
    assert first == again
    assert first["loss_mask"] != other["loss_mask"]
    assert first["loss_mask"] != first["loss_mask_0"]
    assert first["loss_bbox"] == pytest.approx(first["loss_bbox_0"])


def test_four_devices_give_the_loss_and_gradient_of_one():
    shape = [[True, True, False], *([[True, False, False]] * 3)]
    plan = _plan([0, 1, 0], shape, [True, True, False], 1)
    outputs, targets = make_outputs(b=4, plan=plan), make_targets([2, 1, 1, 1], n=3)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def run(mesh, outputs, targets):
        def scalar(floats):
            own = dataclasses.replace(floats, plan=outputs.plan)
            return criterion(own, targets, jax.random.key(3), LOSS, "masks", num_objects=jnp.float32(5), mesh=mesh)

        return jax.value_and_grad(scalar, has_aux=True)(dataclasses.replace(outputs, plan=None))

    one = jax.tree.map(np.asarray, jax.jit(partial(run, None))(outputs, targets))
    put = lambda tree, spec: jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec))), tree)
    spread = Outputs(
        matching=put(outputs.matching, (None, "data")),
        denoising=put(outputs.denoising, (None, "data")),
        plan=put(outputs.plan, ()),
        mask_features=put(outputs.mask_features, ("data",)),
    )
    four = jax.tree.map(np.asarray, jax.jit(partial(run, mesh))(spread, put(targets, ("data",))))
    for mine, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_losses_of_bfloat16_outputs_are_computed_in_float32(outputs):
    targets = make_targets([2, 1], n=3)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, outputs)
    high = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, low)
    mine, theirs = _terms(low, targets), _terms(high, targets)
    for name, value in mine.items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, theirs[name], rtol=1e-5, err_msg=name)


def test_perfect_predictions_cost_nothing_for_boxes():
    targets = make_targets([3, 3], n=3)
    outputs = make_outputs(q=3)
    boxes = jnp.broadcast_to(targets.boxes, outputs.matching.boxes.shape)
    logits = jnp.broadcast_to(20.0 * (2 * jax.nn.one_hot(targets.labels, CLASSES) - 1), outputs.matching.logits.shape)
    outputs = dataclasses.replace(outputs, matching=dataclasses.replace(outputs.matching, boxes=boxes, logits=logits))
    terms = _terms(outputs, targets)
    for suffix in ("_0", "", "_interm"):
        assert float(terms[f"loss_bbox{suffix}"]) == pytest.approx(0, abs=1e-6)
        assert float(terms[f"loss_giou{suffix}"]) == pytest.approx(0, abs=1e-3)  # the 1e-6 in the quotients
        assert float(terms[f"loss_ce{suffix}"]) == pytest.approx(0, abs=1e-6)

"""The whole loss against a plain loop over objects, and the laws that padding and sharding must keep."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from maskdino_jax.config import DenoisingConfig, LossConfig, ModelConfig, TermsConfig
from maskdino_jax.losses import functional
from maskdino_jax.losses.criterion import criterion, criterion_at, match_all
from maskdino_jax.ops.points import sample_masks, uncertain_points
from maskdino_jax.structures import DenoisingPlan, Targets, TrainOutputs
from tests.losses.scenes import CLASSES, make_outputs, make_targets

LOSS = LossConfig(
    weights=TermsConfig(classification=2.0, mask=3.0, dice=4.0, box=5.0, giou=6.0), num_points=16, oversample_ratio=3.0
)
KINDS = ("loss_ce", "loss_mask", "loss_dice", "loss_bbox", "loss_giou")
N = 4  # rows of targets, mostly with filler; the same in most tests, so that the loss is compiled once


def _model(mode: str) -> ModelConfig:
    return ModelConfig(denoising=DenoisingConfig(mode=mode))


def _plan(target, known, active, groups) -> DenoisingPlan:
    target = jnp.array(target)
    return DenoisingPlan(
        target=target,
        group=jnp.zeros_like(target),
        active=jnp.array(active),
        known=jnp.array(known),
        num_groups=jnp.int32(groups),
    )


# Two groups of two targets and one inactive slot; the second image has only one target.
PLAN = ([0, 1, 0, 1, 0], [[True] * 4 + [False], [True, False] * 2 + [False]], [True] * 4 + [False], 2)
NO_GROUPS = ([0] * 5, [[False] * 5] * 2, [False] * 5, 0)


@pytest.fixture(scope="module")
def outputs():
    return make_outputs(plan=_plan(*PLAN))


def same_points(use: str, image: jax.Array, index: jax.Array, count: int) -> jax.Array:
    """The same points for all images and rows, others for every use."""
    return jax.random.uniform(jax.random.fold_in(jax.random.key(5), len(use)), (count, 2))


def _loss(outputs: TrainOutputs, targets: Targets, mode: str = "masks") -> tuple[jax.Array, dict]:
    counts = targets.valid.sum(axis=1)
    return criterion_at(outputs, targets, jnp.arange(len(counts)), same_points, LOSS, _model(mode), counts=counts)


@jax.jit
def _terms_and_gradient(outputs: TrainOutputs, targets: Targets) -> tuple[dict, TrainOutputs]:
    scalar = lambda floats: _loss(dataclasses.replace(floats, plan=outputs.plan), targets)
    gradient, terms = jax.grad(scalar, has_aux=True)(dataclasses.replace(outputs, plan=None))
    return terms, gradient


def _assert_close(mine, theirs) -> None:
    for ours, others in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(ours, others, rtol=2e-5, atol=2e-5 * np.abs(others).max())


def _matched_and_known(outputs: TrainOutputs, targets: Targets) -> tuple[list, list]:
    """(image, query, target) of every pair, for each matching set and for every denoising set."""
    run = jax.jit(partial(match_all, draw=same_points, loss=LOSS))
    matches = run(outputs.matching, targets, outputs.mask_features, jnp.arange(2))
    matches = jax.tree.map(np.asarray, matches)
    matched = [
        [(b, int(query[b, j]), j) for b in range(2) for j in range(N) if valid[b, j]]
        for query, valid in zip(matches.query, matches.valid, strict=True)
    ]
    plan = jax.tree.map(np.asarray, outputs.plan)
    known = [(b, s, int(plan.target[s])) for b in range(2) for s in range(5) if plan.known[b, s]]
    return matched, [known] * outputs.denoising.logits.shape[0]


def _loop(outputs: TrainOutputs, targets: Targets, sets: list, group: str, counted: list) -> list[dict]:
    """Sets one by one, pairs each on its own; masks unpacked, full mask logits of one query at a time."""
    predictions = outputs.denoising if group else outputs.matching
    over, rest = same_points("candidates", 0, 0, 48), same_points("uniform", 0, 0, 4)
    masks = jnp.unpackbits(targets.masks, axis=-1).astype(jnp.float32)
    terms = []
    for i, pairs in enumerate(sets):

        def one_pair(pair, i=i):
            b, query, target = pair
            box, goal = predictions.boxes[i, b, query], targets.boxes[b, target]
            logits = jnp.einsum("d,hwd->hw", predictions.mask_embed[i, b, query], outputs.mask_features[b])
            points = uncertain_points(logits, over, rest, 12)
            sampled, labels = sample_masks(logits, points), sample_masks(masks[b, target], points)
            return {
                "loss_bbox": functional.l1_loss(box, goal),
                "loss_giou": functional.giou_loss(box, goal),
                "loss_mask": functional.binary_cross_entropy(sampled, labels).mean(),
                "loss_dice": functional.dice_loss(sampled, labels),
            }

        sums = {name: x.sum() for name, x in jax.lax.map(one_pair, jnp.array(pairs)).items()}
        b, query, target = np.array(pairs).T
        goals = jnp.zeros(predictions.logits.shape[1:]).at[b, query, targets.labels[b, target]].set(1)
        sums["loss_ce"] = (functional.focal_loss(predictions.logits[i], goals) * jnp.array(counted)[:, None]).sum()
        terms.append(sums)
    return terms


def test_terms_and_gradients_equal_a_plain_loop_over_objects(outputs):
    targets = make_targets([2, 1], n=N)
    matched, known = _matched_and_known(outputs, targets)
    assert [len(pairs) for pairs in matched] == [3] * 3

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def naive(floats: TrainOutputs) -> tuple:
        first = _loop(floats, targets, matched, "", [1] * 7)
        second = _loop(floats, targets, known, "denoising_", [1, 1, 1, 1, 0])
        w = dict(zip(KINDS, (2, 3, 4, 5, 6), strict=True))
        terms = {f"{k}{s}": w[k] * first[i][k] / 3 for i, s in enumerate(("_0", "", "_interm")) for k in KINDS}
        terms |= {f"{k}{s}": w[k] * second[i][k] / 6 for i, s in enumerate(("_dn_0", "_dn")) for k in KINDS}
        return sum(terms.values()), terms

    expected_gradient, expected = naive(dataclasses.replace(outputs, plan=None))
    terms, gradient = _terms_and_gradient(outputs, targets)
    assert set(terms) == set(expected)
    for name, value in terms.items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-5, err_msg=name)
    _assert_close(gradient, expected_gradient)


def test_filler_targets_change_neither_loss_nor_gradient(outputs):
    short = make_targets([2, 1], n=2)
    # Filler with meaningful numbers: it must be ignored, not just small.
    long = jax.tree.map(lambda a, b: b.at[:, :2].set(a), short, make_targets([N, N], n=N, seed=9))
    long = dataclasses.replace(long, valid=jnp.arange(N) < jnp.array([[2], [1]]))
    _assert_close(_terms_and_gradient(outputs, long), _terms_and_gradient(outputs, short))


def test_the_order_of_targets_does_not_matter(outputs):
    targets = make_targets([N, N], n=N)
    without = dataclasses.replace(outputs, plan=_plan(*NO_GROUPS))
    turned = jax.tree.map(lambda x: x[:, jnp.array([2, 0, 3, 1])], targets)
    _assert_close(_terms_and_gradient(without, turned), _terms_and_gradient(without, targets))


def test_a_batch_without_objects_has_only_background_to_learn(outputs):
    outputs = dataclasses.replace(outputs, plan=_plan(*NO_GROUPS))
    terms, slope = _terms_and_gradient(outputs, make_targets([0, 0], n=N))
    negatives = functional.focal_loss(outputs.matching.logits, jnp.zeros_like(outputs.matching.logits))
    for i, suffix in enumerate(("_0", "", "_interm")):
        np.testing.assert_allclose(terms[f"loss_ce{suffix}"], 2 * negatives[i].sum(), rtol=1e-5)
    assert all(value == 0 for name, value in terms.items() if not name.startswith("loss_ce") or "_dn" in name)
    silent = (slope.matching.boxes, slope.matching.mask_embed, slope.mask_features, slope.denoising)
    for leaf in jax.tree.leaves(silent):
        np.testing.assert_array_equal(leaf, 0)


def test_denoising_slots_without_a_target_are_background_and_inactive_ones_are_nothing(outputs):
    _, slope = _terms_and_gradient(outputs, make_targets([2, 1], n=N))
    logits, boxes = np.asarray(slope.denoising.logits), np.asarray(slope.denoising.boxes)
    assert (logits[:, 1, 1] > 0).all()  # unused slot of an active group: every class is pushed down
    np.testing.assert_array_equal(boxes[:, 1, 1], 0)
    np.testing.assert_array_equal(logits[:, :, 4], 0)
    np.testing.assert_array_equal(boxes[:, :, 4], 0)


def test_perfect_predictions_cost_nothing_for_classes_and_boxes(outputs):
    targets = make_targets([N, N], n=N)
    matching = outputs.matching
    boxes = matching.boxes.at[:, :, :N].set(targets.boxes)
    logits = jnp.full_like(matching.logits, -20).at[:, :, :N].set(40 * jax.nn.one_hot(targets.labels, CLASSES) - 20)
    outputs = dataclasses.replace(outputs, matching=dataclasses.replace(matching, boxes=boxes, logits=logits))
    terms, _ = _terms_and_gradient(outputs, targets)
    for suffix in ("_0", "", "_interm"):
        assert float(terms[f"loss_bbox{suffix}"]) == pytest.approx(0, abs=1e-6)
        assert float(terms[f"loss_giou{suffix}"]) == pytest.approx(0, abs=1e-3)  # the 1e-6 in the quotients
        assert float(terms[f"loss_ce{suffix}"]) == pytest.approx(0, abs=1e-6)


def test_denoising_of_boxes_leaves_out_the_mask_terms_and_keeps_the_rest(outputs):
    targets = make_targets([2, 1], n=N)
    masks, _ = _terms_and_gradient(outputs, targets)
    _, boxes = jax.jit(partial(_loss, mode="boxes"))(outputs, targets)
    assert set(masks) - set(boxes) == {kind + end for kind in ("loss_mask", "loss_dice") for end in ("_dn_0", "_dn")}
    for name, value in boxes.items():
        np.testing.assert_allclose(value, masks[name], rtol=1e-6, err_msg=name)


def test_losses_of_bfloat16_outputs_are_computed_in_float32(outputs):
    targets = make_targets([2, 1], n=N)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, outputs)
    high = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, low)
    (mine, slope), (theirs, expected) = _terms_and_gradient(low, targets), _terms_and_gradient(high, targets)
    for name, value in mine.items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, theirs[name], rtol=1e-5, err_msg=name)
    # Sums over prediction sets are rounded once, at the end.
    rounded = expected.mask_features.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(slope.mask_features.astype(jnp.float32), rounded, rtol=2**-7, atol=1e-4)


def test_nine_layers_give_the_105_official_terms():
    outputs = make_outputs(layers=9, q=3, plan=_plan([0], [[True], [True]], [True], 1))
    keys, counts = jax.random.split(jax.random.key(0)), jnp.array([1, 1])
    run = lambda x, y: criterion(x, y, keys, LOSS, _model("masks"), counts=counts)
    total, terms = jax.eval_shape(run, outputs, make_targets([1, 1], n=1))
    suffixes = ["", "_interm", "_dn", *(f"_{i}" for i in range(9)), *(f"_dn_{i}" for i in range(9))]
    assert set(terms) == {kind + suffix for kind in KINDS for suffix in suffixes}
    assert total.shape == ()


def test_points_are_drawn_anew_for_every_set_and_repeated_for_the_same_key(outputs):
    targets, counts = make_targets([2, 1], n=N), jnp.array([2, 1])
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), outputs.matching)
    outputs = dataclasses.replace(outputs, matching=same, denoising=None, plan=None)
    # Costs without masks: other points do not mean another assignment.
    loss = dataclasses.replace(LOSS, costs=TermsConfig(mask=0.0, dice=0.0))
    run = jax.jit(lambda keys: criterion(outputs, targets, keys, loss, _model("none"), counts=counts))
    keys = [jax.random.split(jax.random.key(i)) for i in (0, 0, 1)]
    (total, first), (_, again), (_, other) = (jax.tree.map(float, run(k)) for k in keys)
    assert total == pytest.approx(sum(first.values()))
    assert first == again
    assert first["loss_mask"] != other["loss_mask"]
    assert first["loss_mask"] != first["loss_mask_0"]
    assert first["loss_bbox"] == pytest.approx(first["loss_bbox_0"])


@pytest.mark.parametrize("matcher", ["scipy", "device"])
def test_four_devices_match_what_one_does_without_asking_each_other(matcher):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    outputs, targets = make_outputs(b=8), make_targets([4, 0, 1, 2, 3, 4, 4, 1], n=N)
    inputs = outputs.matching, targets, outputs.mask_features, jnp.arange(8)
    options = {"draw": same_points, "loss": dataclasses.replace(LOSS, matcher=matcher)}
    one = jax.jit(partial(match_all, **options))(*inputs)
    specs = (PartitionSpec(None, "data"), *[PartitionSpec("data")] * 3)
    spread = jax.device_put(inputs, tuple(NamedSharding(mesh, spec) for spec in specs))
    sharded = jax.jit(partial(match_all, mesh=mesh, **options)).lower(*spread).compile()
    assert not [word for word in ("all-gather", "all-reduce", "collective-permute") if word in sharded.as_text()]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(sharded(*spread)), jax.device_get(one))


def test_four_devices_give_the_loss_and_gradient_of_one():
    known = [[True, True, False], *([[True, False, False]] * 3)]
    outputs = make_outputs(b=4, plan=_plan([0, 1, 0], known, [True, True, False], 1))
    targets = make_targets([2, 1, 1, 1], n=N)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def run(mesh, outputs, targets):
        def scalar(floats):
            own = dataclasses.replace(floats, plan=outputs.plan)
            keys, counts = jax.random.split(jax.random.key(3), 4), jnp.array([2, 1, 1, 1])
            return criterion(own, targets, keys, LOSS, _model("masks"), counts=counts, mesh=mesh)

        return jax.value_and_grad(scalar, has_aux=True)(dataclasses.replace(outputs, plan=None))

    one = jax.tree.map(np.asarray, jax.jit(partial(run, None))(outputs, targets))
    put = lambda tree, spec: jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec))), tree)
    spread = TrainOutputs(
        matching=put(outputs.matching, (None, "data")),
        denoising=put(outputs.denoising, (None, "data")),
        plan=put(outputs.plan, ()),
        mask_features=put(outputs.mask_features, ("data",)),
    )
    four = jax.tree.map(np.asarray, jax.jit(partial(run, mesh))(spread, put(targets, ("data",))))
    _assert_close(four, one)


def test_boxes_of_stuff_are_not_trained_when_asked(outputs):
    targets = make_targets([2, 1], n=N)
    things = dataclasses.replace(targets, is_thing=jnp.array([[True, False, False, False], [False] * N]))
    loss = dataclasses.replace(LOSS, box_loss_things_only=True)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def slope(boxes: jax.Array, targets: Targets) -> tuple:
        own = dataclasses.replace(outputs, denoising=dataclasses.replace(outputs.denoising, boxes=boxes))
        counts = targets.valid.sum(axis=1)
        return criterion_at(own, targets, jnp.arange(2), same_points, loss, _model("masks"), counts=counts)

    everything, terms = slope(outputs.denoising.boxes, targets)
    part, fewer = slope(outputs.denoising.boxes, things)
    changed = np.asarray(part != 0).any(axis=-1)
    np.testing.assert_array_equal(changed, [[[True, False, True, False, False], [False] * 5]] * 2)
    np.testing.assert_allclose(part[changed], np.asarray(everything)[changed])  # the divisor counts all objects
    assert terms["loss_mask_dn"] == fewer["loss_mask_dn"]


def test_a_detector_has_no_mask_terms_and_is_matched_without_masks(outputs):
    targets = dataclasses.replace(make_targets([2, 1], n=N), masks=None)
    model = ModelConfig(masks=False, denoising=DenoisingConfig(mode="boxes"))

    @partial(jax.jit, static_argnames="masks")
    def run(targets: Targets, masks: bool) -> tuple:
        loss = dataclasses.replace(LOSS, costs=TermsConfig(mask=0.0, dice=0.0)) if masks else LOSS
        own = dataclasses.replace(model, masks=masks)
        counts = targets.valid.sum(axis=1)
        return criterion_at(outputs, targets, jnp.arange(2), same_points, loss, own, counts=counts)

    total, terms = run(targets, masks=False)
    assert not any("mask" in name or "dice" in name for name in terms)
    assert float(total) == pytest.approx(float(sum(terms.values())), rel=1e-6)
    _, others = run(make_targets([2, 1], n=N), masks=True)  # matched with masks that cost nothing
    for name, value in terms.items():
        np.testing.assert_allclose(value, others[name], rtol=1e-6, err_msg=name)

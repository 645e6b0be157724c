"""Denoising slots against the recorded construction of the official code, and laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.model import denoising
from maskdino_jax.model.denoising import Noise, apply_noise, attention_mask, noised_queries
from maskdino_jax.ops.boxes import logit
from maskdino_jax.structures import Targets

CASES = ("two_images", "one_empty", "exact_one_group")
EXTRA = 3  # filler targets, so that padding is present in every case


def _most(targets: Targets) -> jax.Array:
    return targets.valid.sum(axis=1).max()


def _keys(targets: Targets, seed: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), len(targets.valid))


def _targets(case: dict) -> Targets:
    counts = [len(case["labels0"]), len(case["labels1"])]
    n = max(counts) + EXTRA
    labels, boxes, valid = np.zeros((2, n), np.int32), np.zeros((2, n, 4), np.float32), np.zeros((2, n), bool)
    for b, count in enumerate(counts):
        labels[b, :count], boxes[b, :count], valid[b, :count] = case[f"labels{b}"], case[f"boxes{b}"], True
    return Targets(
        labels=jnp.asarray(labels),
        boxes=jnp.asarray(boxes),
        masks=jnp.zeros((2, n, 8, 1), jnp.uint8),
        is_thing=jnp.asarray(valid),
        valid=jnp.asarray(valid),
    )


@pytest.fixture(scope="module")
def recorded(golden):
    arrays = dict(np.load(golden / "unit" / "denoising.npz"))
    cases = {}
    for key, value in arrays.items():
        case, _, name = key.partition("/")
        cases.setdefault(case, {})[name] = value
    return {**cases, "label_enc": arrays["label_enc"]}


def _noise(case: dict, plan, targets) -> Noise:
    """The official draws are one flat list over (group, image, target)."""
    flip, label, box = np.zeros((2, 9), np.float32), np.zeros((2, 9), np.int32), np.zeros((2, 9, 4), np.float32)
    most = int(targets.valid.sum(1).max())
    entry = 0
    for group in range(int(plan.num_groups)):
        for b in range(2):
            for j in range(int(targets.valid[b].sum())):
                slot = group * most + j
                flip[b, slot] = case["draw_label_p"][entry]
                label[b, slot] = case["draw_new_label"][entry]
                box[b, slot] = case["draw_bbox"][entry]
                entry += 1
    assert entry == len(case["draw_label_p"])
    return Noise(flip=jnp.asarray(flip), label=jnp.asarray(label), box=jnp.asarray(box))


@pytest.mark.parametrize("name", CASES)
def test_plan_labels_and_boxes_match_the_official_code(recorded, name):
    case = recorded[name]
    targets = _targets(case)
    plan = denoising.plan(targets.valid, int(case["dn_num"]), _most(targets))
    assert int(plan.num_groups) == case["scalar"]
    pad = int(case["pad_size"])
    assert int(plan.active.sum()) == pad
    labels, boxes = apply_noise(plan, targets, _noise(case, plan, targets), float(case["noise_scale"]))
    known = np.asarray(plan.known)
    content = np.where(known[..., None], recorded["label_enc"][np.asarray(labels)], 0)
    np.testing.assert_array_equal(content[:, :pad], case["query_label"])
    np.testing.assert_allclose(logit(boxes)[:, :pad], case["query_bbox_unsigmoid"], atol=2e-6)
    assert not known[:, pad:].any()


@pytest.mark.parametrize("name", CASES)
def test_attention_mask_matches_the_official_code_and_shuts_out_inactive_slots(recorded, name):
    case = recorded[name]
    plan = denoising.plan(_targets(case).valid, int(case["dn_num"]), _most(_targets(case)))
    queries, pad, slots = int(case["num_queries"]), int(case["pad_size"]), int(case["dn_num"])
    blocked = np.asarray(attention_mask(plan, queries))
    used = np.r_[:pad, slots : slots + queries]
    np.testing.assert_array_equal(blocked[np.ix_(used, used)], case["attn_mask"])
    assert blocked[:, pad:slots].all()
    assert not blocked.all(axis=1).any()


@pytest.mark.parametrize("name", ["too_many_targets", "all_empty"])
def test_no_group_fits_so_that_every_slot_is_inactive(recorded, name):
    case = recorded[name]
    assert case["is_none"]
    targets = _targets(case)
    plan = denoising.plan(targets.valid, int(case["dn_num"]), _most(targets))
    assert int(plan.num_groups) == 0
    assert not np.asarray(plan.active).any()
    assert not np.asarray(plan.known).any()
    labels, boxes = noised_queries(plan, targets, _keys(targets, 0), 0.4, 80)
    np.testing.assert_array_equal(labels, 0)
    np.testing.assert_array_equal(boxes, 0.5)
    blocked = np.asarray(attention_mask(plan, 6))
    assert blocked[:, :9].all()
    assert not blocked[:, 9:].any()


def test_without_noise_every_known_slot_is_its_target(recorded):
    targets = _targets(recorded["two_images"])
    plan = denoising.plan(targets.valid, 9, _most(targets))
    labels, boxes = noised_queries(plan, targets, _keys(targets, 1), 0.0, 80)
    known = np.asarray(plan.known)
    np.testing.assert_array_equal(labels[known], targets.labels[:, plan.target][known])
    np.testing.assert_allclose(boxes[known], targets.boxes[:, plan.target][known], atol=1e-7)


def test_noise_flips_a_fifth_of_the_labels_and_keeps_boxes_within_reach():
    n = 400
    targets = Targets(
        labels=jnp.full((1, n), 999),
        boxes=jnp.tile(jnp.array([0.5, 0.5, 0.2, 0.4]), (1, n, 1)),
        masks=jnp.zeros((1, n, 8, 1), jnp.uint8),
        is_thing=jnp.ones((1, n), bool),
        valid=jnp.ones((1, n), bool),
    )
    plan = denoising.plan(targets.valid, 10 * n, _most(targets))
    labels, boxes = noised_queries(plan, targets, _keys(targets, 2), 0.4, 80)
    flipped = np.asarray(labels != 999).mean()
    assert flipped == pytest.approx(0.2, abs=0.03)  # 4000 draws: five standard deviations
    moved = np.abs(np.asarray(boxes) - [0.5, 0.5, 0.2, 0.4]).reshape(-1, 4)
    reach = 0.4 * np.array([0.1, 0.2, 0.2, 0.4])
    assert (moved <= reach + 1e-6).all()
    np.testing.assert_allclose(moved.mean(axis=0), reach / 2, rtol=0.05)

"""Matching costs against recorded values, the loss formulas and full masks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.config import TermsConfig
from maskdino_jax.losses import costs, functional
from maskdino_jax.ops.points import sample_masks
from tests.losses.scenes import make_outputs, make_targets

NOTHING = TermsConfig(classification=0, mask=0, dice=0, box=0, giou=0)


@pytest.fixture(scope="module")
def scene():
    targets = make_targets([3, 2], n=4)
    outputs = make_outputs()
    one = jax.tree.map(lambda x: x[0], outputs.matching)
    points = jnp.asarray(np.random.default_rng(7).random((2, 50, 2), np.float32))
    return one, targets, outputs.mask_features, points


def test_mask_costs_match_the_official_code(golden):
    recorded = np.load(golden / "unit" / "losses.npz")
    entropy, dice = costs.mask_costs(jnp.asarray(recorded["match/q_logits"]), jnp.asarray(recorded["match/target"]))
    np.testing.assert_allclose(entropy, recorded["match/batch_ce"], atol=1e-6)
    np.testing.assert_allclose(dice, recorded["match/batch_dice"], atol=1e-6)


@pytest.mark.parametrize("name", ["mask", "dice"])
def test_mask_cost_from_sampled_features_is_the_loss_of_the_full_mask_sampled(scene, name):
    one, targets, features, points = scene
    weights = dataclasses.replace(NOTHING, **{name: 1.0})
    cost = costs.matching_cost(one, targets, features, points, weights)
    full = jnp.einsum("bqd,bhwd->bqhw", one.mask_embed, features)
    masks = jnp.unpackbits(targets.masks, axis=-1).astype(jnp.float32)

    @jax.jit
    def expected(b, i, j):
        logits = sample_masks(full[b, i][None], points[b][None])[0]
        labels = sample_masks(masks[b, j][None], points[b][None])[0]
        if name == "mask":
            return functional.binary_cross_entropy(logits, labels).mean()
        return functional.dice_loss(logits, labels)

    for index in np.ndindex(2, 3, 3):
        np.testing.assert_allclose(cost[index], expected(*index), rtol=1e-5)


def test_box_and_giou_costs_are_the_losses_of_all_pairs(scene):
    one, targets, features, points = scene
    weights = dataclasses.replace(NOTHING, box=3.0, giou=2.0)
    cost = costs.matching_cost(one, targets, features, points, weights)
    pairs = jnp.broadcast_arrays(one.boxes[:, :, None], targets.boxes[:, None])
    expected = 3 * functional.l1_loss(*pairs) + 2 * functional.giou_loss(*pairs) - 2
    np.testing.assert_allclose(cost, expected, atol=1e-5)


def test_class_cost_is_the_focal_loss_as_positive_less_that_as_negative(scene):
    one, targets, *_ = scene
    cost = costs.class_cost(one.logits, targets.labels)
    for b in range(2):
        for j in range(3):
            logits = one.logits[b, :, targets.labels[b, j]]
            positive = functional.focal_loss(logits, jnp.ones_like(logits))
            negative = functional.focal_loss(logits, jnp.zeros_like(logits))
            np.testing.assert_allclose(cost[b, :, j], positive - negative, atol=1e-6)


def test_stuff_is_matched_with_the_mean_box_cost_of_the_things_of_its_image(scene):
    one, targets, features, points = scene
    # Image 0: thing, stuff, thing, filler. Image 1: two pieces of stuff and no thing.
    targets = dataclasses.replace(targets, is_thing=jnp.array([[True, False, True, True], [False] * 4]))
    for name in ("box", "giou"):
        weights = dataclasses.replace(NOTHING, **{name: 3.0})
        own = np.asarray(costs.matching_cost(one, targets, features, points, weights))
        cost = np.asarray(costs.matching_cost(one, targets, features, points, weights, things_mean=True))
        np.testing.assert_array_equal(cost[0, :, [0, 2]], own[0, :, [0, 2]])
        np.testing.assert_allclose(cost[0, :, 1], own[0][:, [0, 2]].mean(), rtol=1e-6)
        np.testing.assert_array_equal(cost[1], 0)


def test_mean_over_things_of_three_by_three_costs_worked_by_hand():
    cost = jnp.array([[[1.0, 50.0, 3.0], [5.0, 60.0, 7.0]]])
    mean = costs._stuff_at_mean(cost, jnp.array([[True, False, True]]))
    np.testing.assert_array_equal(mean, [[[1, 4, 3], [5, 4, 7]]])


def test_other_costs_of_stuff_are_its_own(scene):
    one, targets, features, points = scene
    targets = dataclasses.replace(targets, is_thing=jnp.zeros_like(targets.is_thing))
    weights = dataclasses.replace(TermsConfig(), box=0.0, giou=0.0)
    own, cost = (costs.matching_cost(one, targets, features, points, weights, things_mean=m) for m in (False, True))
    np.testing.assert_array_equal(own, cost)

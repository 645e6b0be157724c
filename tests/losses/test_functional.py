"""Loss formulas against recorded values and gradients of the official code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.losses import functional


@pytest.fixture(scope="module")
def recorded(golden):
    return {name: jnp.asarray(x) for name, x in np.load(golden / "unit" / "losses.npz").items() if x.dtype.kind in "fi"}


def _check(scalar, recorded, name, *, gradient="grad"):
    value, slope = jax.value_and_grad(scalar)(recorded[f"{name}/logits"])
    np.testing.assert_allclose(value, recorded[f"{name}/loss"], rtol=1e-6)
    np.testing.assert_allclose(slope, recorded[f"{name}/{gradient}"], atol=1e-6 * np.abs(slope).max())


def test_focal_loss_matches_the_official_code(recorded):
    queries = recorded["focal/logits"].shape[1]
    scale = 1 / (recorded["focal/num_boxes"] * queries)  # the official function takes the mean over queries
    _check(lambda x: scale * functional.focal_loss(x, recorded["focal/target"]).sum(), recorded, "focal")


def test_dice_loss_matches_the_official_code(recorded):
    number = recorded["dice/num_masks"]
    _check(lambda x: functional.dice_loss(x, recorded["dice/target"]).sum() / number, recorded, "dice")


def test_binary_cross_entropy_matches_the_official_code(recorded):
    number = recorded["mask_ce/num_masks"]
    mean = lambda x: functional.binary_cross_entropy(x, recorded["mask_ce/target"]).mean(-1).sum() / number
    _check(mean, recorded, "mask_ce")


def test_binary_cross_entropy_stays_exact_for_very_sure_wrong_answers():
    logits = jnp.array([100.0, -100.0])
    value, slope = jax.value_and_grad(lambda x: functional.binary_cross_entropy(x, jnp.array([0.0, 1.0])).sum())(logits)
    assert float(value) == 200
    np.testing.assert_allclose(slope, [1, -1])


def test_focal_loss_of_a_coin_toss_is_ln2_over_16_for_a_positive_and_three_times_that_for_a_negative():
    losses = functional.focal_loss(jnp.zeros(2), jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(losses, np.log(2) / 16 * np.array([1, 3]), rtol=1e-6)


def test_dice_loss_of_a_perfect_mask_is_zero_and_of_a_missed_one_nearly_one():
    labels = jnp.array([[1.0, 1, 0, 0], [1, 1, 1, 1]])
    logits = jnp.where(jnp.array([[True, True, False, False], [False] * 4]), 50.0, -50.0)
    np.testing.assert_allclose(functional.dice_loss(logits, labels), [0, 1 - 1 / 5], atol=1e-6)


def test_dice_loss_of_bfloat16_logits_is_summed_in_float32():
    logits = jnp.full((1, 4096), 0.5, jnp.bfloat16)
    expected = functional.dice_loss(logits.astype(jnp.float32), jnp.ones((1, 4096)))
    np.testing.assert_array_equal(functional.dice_loss(logits, jnp.ones((1, 4096))), expected)

"""The loop over existing rows against all rows at once, differentiated by JAX."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.config import LossConfig, TermsConfig
from maskdino_jax.losses import functional
from maskdino_jax.losses.mask_loss import Rows, mask_losses
from maskdino_jax.ops.points import sample_masks, uncertain_points

LOSS = LossConfig(weights=TermsConfig(mask=3.0, dice=4.0), num_points=16)
ROWS = 75  # three chunks of 32, the last with filler of its own


def draw(use: str, seed: jax.Array, index: jax.Array, count: int) -> jax.Array:
    """Points of their own for every image, row and use."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(len(use)), seed), index)
    return jax.random.uniform(key, (count, 2))


@pytest.fixture(scope="module")
def scene() -> tuple[Rows, jax.Array, jax.Array, jax.Array]:
    """Rows, features, packed masks and seeds of two images with 70 and 20 rows in no order."""
    rng = np.random.default_rng(0)
    valid = np.stack([rng.permutation(np.arange(ROWS) < count) for count in (70, 20)])
    rows = Rows(
        embed=jnp.asarray(rng.standard_normal((2, ROWS, 4)), jnp.float32),
        target=jnp.asarray(rng.integers(0, 5, (2, ROWS))),
        valid=jnp.asarray(valid),
        share=jnp.asarray(rng.uniform(0.5, 1.5, (2, ROWS)), jnp.float32),
    )
    features = jnp.asarray(rng.standard_normal((2, 8, 10, 4)), jnp.float32)
    masks = jnp.asarray(rng.integers(0, 256, (2, 5, 32, 5)), jnp.uint8)
    return rows, features, masks, jnp.array([7, 8])


def _plain(rows: Rows, features: jax.Array, masks: jax.Array, seeds: jax.Array) -> tuple:
    """Total, cross entropy and Dice of all rows."""
    logits = jnp.einsum("brd,bhwd->brhw", rows.embed, features)
    unpacked = jnp.unpackbits(masks, axis=-1).astype(jnp.float32)
    labels = jax.vmap(lambda mask, target: mask[target])(unpacked, rows.target)
    points = lambda use, count: jax.vmap(lambda s: jax.vmap(lambda i: draw(use, s, i, count))(jnp.arange(ROWS)))(seeds)
    at = uncertain_points(logits, points("candidates", 48), points("uniform", 4), 12)
    sampled, wanted = sample_masks(logits, at), sample_masks(labels, at)
    entropy = functional.binary_cross_entropy(sampled, wanted).mean(axis=-1)
    losses = jnp.where(rows.valid, jnp.stack([entropy, functional.dice_loss(sampled, wanted)]), 0)
    return (rows.share * (3 * losses[0] + 4 * losses[1])).sum(axis=1), losses


def _slopes(function, scene: tuple) -> tuple:
    rows, features, masks, seeds = scene
    slope = jnp.array([1.0, -2.0])  # images that count differently

    def scalar(embed: jax.Array, features: jax.Array) -> jax.Array:
        return (slope * function(dataclasses.replace(rows, embed=embed), features, masks, seeds)[0]).sum()

    return jax.jit(jax.grad(scalar, argnums=(0, 1)))(rows.embed, features)


@pytest.mark.parametrize("chunk", [32, 64, 128])
def test_losses_and_gradients_equal_those_of_all_rows_at_once(scene: tuple, chunk: int) -> None:
    loop = lambda *inputs: mask_losses(*inputs, draw, LOSS, chunk)
    total, entropy, dice = jax.jit(loop)(*scene)
    expected_total, (expected_entropy, expected_dice) = jax.jit(_plain)(*scene)
    np.testing.assert_allclose(total, expected_total, rtol=1e-5)
    np.testing.assert_allclose(entropy, expected_entropy, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dice, expected_dice, rtol=1e-5, atol=1e-6)
    for found, expected in zip(_slopes(loop, scene), _slopes(_plain, scene), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_images_without_rows_cost_nothing(scene: tuple) -> None:
    rows, *rest = scene
    loop = lambda *inputs: mask_losses(*inputs, draw, LOSS, 32)
    empty = dataclasses.replace(rows, valid=jnp.zeros_like(rows.valid))
    for x in (*jax.jit(loop)(empty, *rest), *_slopes(loop, (empty, *rest))):
        np.testing.assert_array_equal(x, 0)


def test_features_of_bfloat16_get_the_gradient_that_was_added_up_in_float32(scene: tuple) -> None:
    rows, features, *rest = scene
    loop = lambda *inputs: mask_losses(*inputs, draw, LOSS, 32)
    narrow = features.astype(jnp.bfloat16)
    exact = _slopes(loop, (rows, narrow.astype(jnp.float32), *rest))
    found = _slopes(loop, (rows, narrow, *rest))
    assert found[1].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found[0], exact[0])
    np.testing.assert_array_equal(found[1], exact[1].astype(jnp.bfloat16))  # the slopes are powers of two

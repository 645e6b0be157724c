"""Point sampling against recorded tensors, SciPy and laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from maskdino_jax.ops.points import sample_map, sample_masks, sample_packed, smallest, uncertain_points


@pytest.fixture(scope="module")
def recorded(golden):
    return dict(np.load(golden / "unit" / "points.npz"))


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_sampling_and_its_gradient_match_the_official_code(recorded):
    logits, points = jnp.asarray(recorded["point_sample/input"][:, 0]), jnp.asarray(recorded["point_sample/coords"])
    values, pull = jax.vjp(lambda x: sample_masks(x, points), logits)
    np.testing.assert_allclose(values, recorded["point_sample/output"][:, 0], atol=3e-6)
    (gradient,) = pull(jnp.asarray(recorded["point_sample/cotangent"][:, 0]))
    np.testing.assert_allclose(gradient, recorded["point_sample/grad_input"][:, 0], atol=3e-6)


def test_sampling_agrees_with_scipy_also_where_points_blend_with_the_outside(rng):
    image = rng.random((6, 9), np.float32)
    points = rng.uniform(-0.2, 1.2, (200, 2)).astype(np.float32)
    # Four rows of zeros around the map: far enough for every point.
    where = np.stack([points[:, 1] * 6 - 0.5, points[:, 0] * 9 - 0.5]) + 4
    expected = ndimage.map_coordinates(np.pad(image, 4), where, order=1)
    values = sample_masks(jnp.asarray(image)[None], jnp.asarray(points)[None])[0]
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_the_centre_of_a_pixel_has_its_value_and_the_corner_of_the_map_a_quarter():
    image = jnp.arange(1.0, 7).reshape(1, 2, 3)
    points = jnp.array([[[2.5 / 3, 0.75], [0, 0], [1, 1]]])
    np.testing.assert_allclose(sample_masks(image, points)[0], [6, 0.25, 1.5], rtol=1e-6)


def test_sampling_a_feature_map_samples_every_channel(rng):
    features = jnp.asarray(rng.standard_normal((2, 5, 7, 3)), jnp.float32)
    points = jnp.asarray(rng.random((2, 11, 2), np.float32))
    values = sample_map(features, points)
    for channel in range(3):
        np.testing.assert_allclose(
            values[..., channel], sample_masks(features[..., channel], points), atol=1e-6, err_msg=f"{channel}"
        )


def test_sampling_is_linear_so_that_features_can_be_sampled_before_the_product(rng):
    features = jnp.asarray(rng.standard_normal((2, 5, 7, 4)), jnp.float32)
    embed = jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.float32)
    points = jnp.asarray(rng.random((2, 6, 2), np.float32))
    before = jnp.einsum("bqd,bpd->bqp", embed, sample_map(features, points))
    full = jnp.einsum("bqd,bhwd->bqhw", embed, features)
    np.testing.assert_allclose(before, sample_masks(full, jnp.repeat(points[:, None], 3, 1)), atol=1e-5)


def test_packed_masks_give_what_unpacked_ones_give(rng):
    masks = rng.random((2, 3, 6, 24)) < 0.4
    packed = jnp.asarray(np.packbits(masks, axis=-1))
    points = jnp.asarray(rng.uniform(-0.1, 1.1, (2, 3, 300, 2)), jnp.float32)
    expected = sample_masks(jnp.asarray(masks, jnp.float32), points)
    np.testing.assert_allclose(sample_packed(packed, points), expected, atol=1e-6)


def test_masks_may_share_one_set_of_points(rng):
    packed = jnp.asarray(rng.integers(0, 256, (2, 3, 6, 2), np.uint8))
    points = jnp.asarray(rng.random((2, 1, 50, 2), np.float32))
    own = sample_packed(packed, jnp.repeat(points, 3, axis=1))
    np.testing.assert_array_equal(sample_packed(packed, points), own)


def test_uncertain_points_match_the_official_code(recorded):
    logits = jnp.asarray(recorded["uncertain/logits"][:, 0])
    count = int(recorded["uncertain/importance_sample_ratio"] * recorded["uncertain/num_points"])
    over, rest = jnp.asarray(recorded["uncertain/draw_over"]), jnp.asarray(recorded["uncertain/draw_rand"])
    points = np.asarray(uncertain_points(logits, over, rest, count))
    expected = recorded["uncertain/coords"]
    assert points.shape == expected.shape
    for mine, theirs in zip(points, expected, strict=True):  # the order within the chosen ones is no part of it
        np.testing.assert_array_equal(sorted(mine[:count].tolist()), sorted(theirs[:count].tolist()))
        np.testing.assert_array_equal(mine[count:], theirs[count:])


def test_the_choice_of_points_passes_no_gradient(rng):
    logits = jnp.asarray(rng.standard_normal((1, 4, 4)), jnp.float32)
    over, rest = jnp.asarray(rng.random((1, 9, 2), np.float32)), jnp.asarray(rng.random((1, 2, 2), np.float32))
    gradient = jax.grad(lambda x: uncertain_points(x, over, rest, 3).sum())(logits)
    np.testing.assert_array_equal(gradient, 0)


def test_smallest_are_those_of_a_stable_sort() -> None:
    rng = np.random.default_rng(3)
    values = np.abs(rng.standard_normal((3, 2, 500))).astype(np.float32)
    values[0] = np.round(values[0], 1)  # many equal ones
    values[1, 0, :300] = 0
    values[1, 1] = 1.5
    values[2, 0, 7] = np.inf
    for count in (1, 120, 499, 500):
        expected = np.sort(np.argsort(values, axis=-1, kind="stable")[..., :count], axis=-1)
        np.testing.assert_array_equal(jax.jit(smallest, static_argnums=1)(values, count), expected)

"""Position embeddings and resizing against recordings and values worked by hand."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.ops.positions import box_sine_embedding, map_sine_embedding
from maskdino_jax.ops.resize import resize_bilinear


def test_map_embedding_equals_the_recording(golden: Path) -> None:
    recorded = np.load(golden / "unit/position.npz")["sine2d/output"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(map_sine_embedding(7, 9, 256)[0], recorded, atol=2e-6)


def test_first_features_of_the_last_pixel_are_a_full_turn() -> None:
    last = map_sine_embedding(4, 8, 16)[0, -1, -1]
    assert last[0] == pytest.approx(0, abs=1e-5)  # sine of the row, 2 pi
    assert last[1] == pytest.approx(1, abs=1e-5)  # cosine of the row
    half = map_sine_embedding(4, 8, 16)[0, 1, 3]  # second of four rows, fourth of eight columns: half a turn
    np.testing.assert_allclose(half[[0, 1, 8, 9]], [0, -1, 0, -1], atol=1e-5)


def test_box_embedding_equals_the_recording(golden: Path) -> None:
    recorded = np.load(golden / "unit/position.npz")
    found = box_sine_embedding(jnp.asarray(recorded["query_sine/pos4"]), 128)
    np.testing.assert_allclose(np.asarray(found), recorded["query_sine/output4"], atol=3e-6)


def test_box_embedding_puts_y_before_x() -> None:
    found = np.asarray(box_sine_embedding(jnp.array([0.25, 0.5, 0.0, 0.0]), 4))
    np.testing.assert_allclose(found[0], math.sin(math.pi), atol=1e-6)
    np.testing.assert_allclose(found[4], math.sin(math.pi / 2), atol=1e-6)


def test_resizing_clamps_at_the_border_and_keeps_half_pixel_centres() -> None:
    row = jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1)
    found = np.asarray(resize_bilinear(row, (1, 4))).reshape(-1)
    np.testing.assert_allclose(found, [0, 0.25, 0.75, 1], atol=1e-6)


def test_resizing_to_the_same_size_is_the_identity() -> None:
    maps = jax.random.normal(jax.random.key(0), (1, 3, 5, 2))
    np.testing.assert_array_equal(resize_bilinear(maps, (3, 5)), maps)


@pytest.mark.parametrize("size", [(6, 10), (9, 20), (12, 5), (4, 7)])
def test_resizing_by_whole_and_other_factors_equals_another_library(size: tuple[int, int]) -> None:
    maps = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    expected = jax.image.resize(maps, (2, *size, 4), "linear", antialias=False)
    np.testing.assert_allclose(resize_bilinear(maps, size), expected, atol=1e-5)

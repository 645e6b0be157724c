"""Filled polygons against pycocotools, pixel for pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskdino_jax.data.masks import unpack_mask
from maskdino_jax.data.polygons import fill


def filled(polygons, height, width):
    """One mask for each polygon."""
    packed = np.zeros((len(polygons), height, -(-width // 8)), np.uint8)
    fill(polygons, range(len(polygons)), packed, width)
    assert not unpack_mask(packed)[:, :, width:].any()
    return unpack_mask(packed)[:, :, :width]


def assert_as_pycocotools(polygons, height, width):
    for polygon, mask in zip(polygons, filled(polygons, height, width), strict=True):
        (expected,) = coco_mask.frPyObjects([polygon.ravel().tolist()], height, width)
        assert coco_mask.encode(np.asfortranarray(mask, np.uint8)) == expected


numbers = {
    "anywhere": st.floats(-20, 90),
    "whole": st.integers(-3, 60).map(float),
    "fifths": st.integers(-9, 300).map(lambda n: n / 5),
    "tenths": st.integers(-9, 600).map(lambda n: n / 10),  # half-way between two fifths
    "near": st.integers(0, 60).map(lambda n: n + 1e-13),
}


@pytest.mark.parametrize("kind", numbers)
@given(data=st.data(), height=st.integers(1, 50), width=st.integers(1, 50))
def test_any_polygon_is_filled_as_by_pycocotools(kind, data, height, width):
    points = st.lists(st.tuples(numbers[kind], numbers[kind]), min_size=3, max_size=12)
    polygons = data.draw(st.lists(points.map(np.array), min_size=1, max_size=3))
    assert_as_pycocotools(polygons, height, width)


def test_long_and_winding_outlines_are_filled_as_by_pycocotools():
    rng = np.random.default_rng(0)
    walks = [np.cumsum(rng.normal(0, 6, (200, 2)), axis=0) + 250 for _ in range(20)]
    circle = np.linspace(0, 2 * np.pi, 300, endpoint=False)
    rings = [np.stack([300 + r * np.cos(circle), 250 + 1.3 * r * np.sin(circle)], axis=1) for r in (0.4, 5, 80, 400)]
    assert_as_pycocotools(walks + rings, 500, 640)


def test_a_square_by_hand():
    """Columns 2 and 3, rows 1 to 3: a column is inside if its middle is, a row likewise."""
    (mask,) = filled([np.array([[1.6, 0.7], [4.2, 0.7], [4.2, 4.1], [1.6, 4.1]])], 6, 8)
    np.testing.assert_array_equal(np.argwhere(mask).min(axis=0), [1, 2])
    np.testing.assert_array_equal(np.argwhere(mask).max(axis=0), [3, 3])
    assert mask.sum() == 6


def test_polygons_of_one_owner_are_joined_not_toggled():
    square = lambda x0, x1: np.array([[x0, 0], [x1, 0], [x1, 4], [x0, 4]], float)
    packed = np.zeros((2, 4, 2), np.uint8)
    fill([square(0, 6), square(9, 12), square(3, 10)], [1, 0, 1], packed, 16)
    columns = unpack_mask(packed)[:, 0]
    np.testing.assert_array_equal(np.flatnonzero(columns[1]), np.arange(10))
    np.testing.assert_array_equal(np.flatnonzero(columns[0]), [9, 10, 11])


def test_no_polygons_fill_nothing():
    packed = np.zeros((0, 4, 2), np.uint8)
    fill([], [], packed, 16)

"""Cutting polygons, against Shapely one by one; the shortcut for polygons inside must not change the raster."""

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskdino_jax.data.clipping import clip

HEIGHT, WIDTH, CORNER = 24, 32, (5, 7)


def by_shapely(polygon):
    """The definition: mend, intersect, keep outer rings."""
    y, x = CORNER
    cut = shapely.Polygon(polygon).buffer(0.0).intersection(shapely.box(x, y, x + WIDTH, y + HEIGHT))
    parts = [part for part in getattr(cut, "geoms", [cut]) if isinstance(part, shapely.Polygon)]
    return [np.array(part.exterior.coords)[:-1] - (x, y) for part in parts if not part.is_empty and part.is_valid]


def covered(polygons):
    runs = coco_mask.frPyObjects([polygon.ravel().tolist() for polygon in polygons], HEIGHT, WIDTH) if polygons else []
    return coco_mask.merge(runs)


def extent(polygons):
    points = np.concatenate([np.zeros((0, 2)), *polygons])
    return (*points.min(axis=0), *points.max(axis=0)) if len(points) else ()


coordinate = st.one_of(st.floats(-5, 45), st.integers(0, 45).map(float), st.sampled_from([5.0, 7.0, 29.0, 39.0]))
polygons = st.lists(
    st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=8, unique=True).map(np.array), max_size=4
)


@given(polygons)
def test_pieces_cover_what_shapely_leaves_of_each_polygon(shapes):
    pieces, owners = clip(shapes, CORNER, (HEIGHT, WIDTH))
    assert owners == sorted(owners)
    for position, polygon in enumerate(shapes):
        found = [piece for piece, owner in zip(pieces, owners, strict=True) if owner == position]
        expected = by_shapely(polygon)
        assert extent(found) == extent(expected)
        assert covered(found) == covered(expected)


def test_a_polygon_inside_is_moved_and_left_as_it_is():
    inside = np.array([[10.5, 6.0], [39.0, 9.25], [30.0, 29.0], [20.0, 20.0], [7.0, 29.0]])  # it touches the border
    (piece,), owners = clip([inside], CORNER, (HEIGHT, WIDTH))
    np.testing.assert_array_equal(piece, inside - (7, 5))
    assert owners == [0]


@pytest.mark.parametrize("closed", [[[9, 9], [12, 9], [9, 9]], [[9, 9], [9, 9], [9, 9]], [[9, 9], [12, 9], [15, 9]]])
def test_outlines_without_an_area_vanish(closed):
    assert clip([np.array(closed, float)], CORNER, (HEIGHT, WIDTH)) == ([], [])


def test_a_ring_that_is_closed_already_is_no_other():
    ring = np.array([[9, 9], [12, 9], [12, 15]], float)
    pieces, _ = clip([ring, np.concatenate([ring, ring[:1]])], CORNER, (HEIGHT, WIDTH))
    assert covered(pieces[:1]) == covered(pieces[1:])
    assert len(pieces) == 2


def test_no_polygons():
    assert clip([], CORNER, (HEIGHT, WIDTH)) == ([], [])

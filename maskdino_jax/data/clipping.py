"""Cut polygons off at the border of a window, all polygons of an image at once, equal to the reference.

The reference sends every polygon through Shapely: `buffer(0)` mends outlines that cross themselves, then comes the
intersection with the window. Neither moves a vertex of a valid polygon inside the window; the order of its vertices may
change, but not what it covers. So only the others go through Shapely.
"""

from collections.abc import Sequence

import numpy as np
import shapely
from jaxtyping import Float

_MARGIN = 1e-6  # pixels; polygons that miss the window by less may leave slivers behind, as in the reference


def clip(
    polygons: Sequence[Float[np.ndarray, "v 2"]], corner: tuple[int, int], size: tuple[int, int]
) -> tuple[list[Float[np.ndarray, "v 2"]], list[int]]:
    """The parts of polygons of (x, y) vertices inside a window, counted from its `corner` (y, x).

    Only outer rings are kept, and no piece that is a line or a point. A polygon may fall apart, or vanish.

    Returns:
        The pieces, and the position in `polygons` of that which each one is a part of.
    """
    if not polygons:
        return [], []
    (y, x), (height, width) = corner, size
    low, high = np.array([x, y]), np.array([x + width, y + height])
    starts = np.cumsum([0, *map(len, polygons)])[:-1]
    points = np.concatenate(polygons)
    least, most = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    near = np.flatnonzero(((most >= low - _MARGIN) & (least <= high + _MARGIN)).all(axis=1))
    shapes = _shapes([polygons[position] for position in near])
    whole = shapely.is_valid(shapes) & ((least >= low) & (most <= high)).all(axis=1)[near]
    cut = shapely.intersection(shapely.buffer(shapes[~whole], 0.0), shapely.box(x, y, x + width, y + height))
    parts = iter(cut.tolist())
    pieces, owners = [], []
    for position, inside in zip(near.tolist(), whole.tolist(), strict=True):
        rings = [polygons[position]] if inside else _outer_rings(next(parts))
        pieces += [ring - (x, y) for ring in rings]
        owners += [position] * len(rings)
    return pieces, owners


def _shapes(polygons: Sequence[Float[np.ndarray, "v 2"]]) -> np.ndarray:
    """Shapely's polygons. Each ring is closed by its first vertex, also one that is closed already."""
    counts = [len(polygon) + 1 for polygon in polygons]
    if not counts:
        return np.array([], object)
    points = np.concatenate([part for polygon in polygons for part in (polygon, polygon[:1])])
    return shapely.polygons(shapely.linearrings(points, indices=np.repeat(np.arange(len(counts)), counts)))


def _outer_rings(shape: shapely.Geometry) -> list[Float[np.ndarray, "v 2"]]:
    return [
        shapely.get_coordinates(piece.exterior)[:-1]  # the last vertex repeats the first
        for piece in getattr(shape, "geoms", [shape])
        if isinstance(piece, shapely.Polygon) and not piece.is_empty and piece.is_valid
    ]

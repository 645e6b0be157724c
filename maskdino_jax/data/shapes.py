"""Check the masks and boxes of annotations, before anything is made of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from maskdino_jax.data.faults import BAD_POLYGON, OTHER_EXTENT, OUTSIDE, UNUSED_BOX, DataError, Report
from maskdino_jax.data.runs import parse_runs

_POLYGON_NUMBERS = 6  # a triangle is the smallest polygon
_TOLERANCE = 5  # pixels that boxes and masks may differ by, or reach beyond the image

Extent = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels


def valid_polygons(what: str, polygons: Sequence[Any], report: Report) -> list[list[float]]:
    """Those with at least three points; the reference leaves out the others.

    Raises:
        DataError: a coordinate is no finite number.
    """
    valid = []
    for polygon in polygons:
        if not isinstance(polygon, list) or not _finite(polygon):
            raise DataError(
                "broken polygon",
                f"{what}: a polygon is {_short(polygon)}, not a list of finite numbers x, y, x, y, ... in pixels. "
                "Correct it, or drop the annotation.",
            )
        if len(polygon) >= _POLYGON_NUMBERS and len(polygon) % 2 == 0:
            valid.append(polygon)
        else:
            report(
                BAD_POLYGON,
                f"{what}: a polygon has {len(polygon)} numbers: {_short(polygon)}. It is left out: give at least three "
                "points, x and y of each.",
            )
    return valid


def valid_runs(what: str, segmentation: Mapping[str, Any], size: tuple[int, int]) -> Int[np.ndarray, "runs"]:
    """Run lengths of a mask of the image's size.

    Raises:
        DataError: they do not fit.
    """
    found = segmentation["size"]
    if not isinstance(found, list) or tuple(found) != size:
        raise DataError(
            "broken run lengths", f"{what}: the mask's size is {found}, the image's {list(size)}. Correct one of them."
        )
    try:
        return parse_runs(segmentation)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError("broken run lengths", f"{what}: {error}") from error


def valid_box(what: str, value: Any) -> list[float]:
    """x, y, width, height in pixels.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(value, list) or len(value) != 4 or not _finite(value):
        raise DataError(
            "broken box",
            f"{what}: bbox is {_short(value)!r}, not [x, y, width, height] in pixels. Correct it, or drop the "
            "annotation.",
        )
    return value


def compare(what: str, box: Any, found: Extent | None, size: tuple[int, int], report: Report) -> None:
    """Warn of a mask or box that leaves the image, and of a box that is not the mask's."""
    given = None
    if box is not None:
        try:
            x, y, width, height = valid_box(what, box)
            given = x, y, x + width, y + height
        except DataError as fault:
            report(UNUSED_BOX, str(fault))
    extent = found or given
    if extent is None:
        return
    if min(extent[:2]) < -_TOLERANCE or extent[2] > size[1] + _TOLERANCE or extent[3] > size[0] + _TOLERANCE:
        report(
            OUTSIDE,
            f"{what}: it reaches from ({extent[0]:g}, {extent[1]:g}) to ({extent[2]:g}, {extent[3]:g}), but the image "
            f"is {size[1]} x {size[0]} pixels. Is it of another image, or of the image in another size?",
        )
    if given and found and max(abs(a - b) for a, b in zip(given, found, strict=True)) > _TOLERANCE:
        report(
            OTHER_EXTENT,
            f"{what}: bbox is {_short(box)}, but the mask reaches from ({found[0]:g}, {found[1]:g}) to "
            f"({found[2]:g}, {found[3]:g}). bbox is [x, y, width, height] in pixels: correct it, or the mask.",
        )


def extent_of_polygons(polygons: Sequence[Sequence[float]]) -> Extent:
    """The smallest box around all vertices."""
    x = [value for polygon in polygons for value in polygon[::2]]
    y = [value for polygon in polygons for value in polygon[1::2]]
    return min(x), min(y), max(x), max(y)


def extent_of_runs(lengths: Int[np.ndarray, "runs"], height: int) -> Extent | None:
    """The smallest box around a mask whose columns have `height` pixels; None if it is empty."""
    ends = np.cumsum(lengths)
    first, last = (ends - lengths)[1::2], ends[1::2] - 1  # pixels of the runs of ones
    first, last = first[last >= first], last[last >= first]
    if len(first) == 0:
        return None
    columns = int(first[0] // height), int(last[-1] // height) + 1
    if np.any(first // height != last // height):  # from the end of a column to the start of the next
        return columns[0], 0, columns[1], height
    return columns[0], int((first % height).min()), columns[1], int((last % height).max()) + 1


def _finite(values: list[Any]) -> bool:
    """The sum tells, many times faster than each number by itself."""
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Objects that were found in overlapping tiles of an image, made whole.

Two tiles see the pixels that they share alike. So an object that reaches into both has there, in both, about the same
pixels, and different objects of a class have not: their masks hardly overlap. A part of an object in one tile
therefore *chooses*, of the parts of its class in the other one, that with which it shares most pixels. They are one
object if these are at least half of the pixels that the chooser has in the shared rectangle, and half of those of the
chosen one. The second half is not asked of a chooser that the border of its tile cuts: it may be one of several pieces
of an object that the other tile sees in one, such as the two arms of a U.

Only one part is chosen in each tile, lest a sliver at a border, which the rim of a neighbour's mask covers as well,
makes two objects one. What is connected by choices is one object, so that it may be longer than a tile.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Real
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from maskdino_jax.inference.cropped_masks import Crop, CroppedMasks, Rectangle
from maskdino_jax.inference.results import Instances, Panoptic, PanopticSegment

_HALF = 0.5
_REACH = 2  # pixels from the border of a tile at which an object counts as cut: masks are computed at a quarter

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """What one tile sees of an object, in pixels of the image."""

    label: int
    score: float
    query: int
    box: Float32[np.ndarray, "4"]  # xyxy
    crop: Crop | None  # None: a detection, which has a box only


@dataclasses.dataclass(frozen=True)
class Map:
    """The panoptic map of one tile, and the pixels that it decides."""

    shown: Rectangle
    own: Rectangle
    panoptic: Panoptic


def parts_of(instances: Instances, shown: Rectangle) -> list[Part]:
    """The instances of a tile; one without any pixel is left out."""
    parts = []
    corner = np.array([shown.left, shown.top] * 2, np.float32)
    for index in range(len(instances)):
        crop = None if instances.bits is None else Crop.around(instances.mask(index), shown.top, shown.left)
        if crop is not None or instances.bits is None:
            label, query = int(instances.labels[index]), int(instances.queries[index])
            parts.append(Part(label, float(instances.scores[index]), query, instances.boxes[index] + corner, crop))
    return parts


def join_instances(
    found: Sequence[list[Part]], shown: Sequence[Rectangle], size: tuple[int, int], *, masks: bool
) -> Instances:
    """The objects of an image, best first: the union of the masks of their parts, the smallest box around the boxes,
    and the score and the query of the best part.

    Args:
        found: the parts in each tile.
        shown: the tiles.
        size: height, width of the image.
        masks: whether the parts have masks; else they are detections.
    """
    parts = [part for tile in found for part in tile]
    first = np.cumsum([0, *map(len, found)])
    pairs = [
        (int(first[one]) + a, int(first[other]) + b)
        for one, other, shared in _neighbours(shown)
        for a, b in _same_parts(found[one], shown[one], found[other], shown[other], shared)
    ]
    groups = [[parts[index] for index in group] for group in _groups(len(parts), pairs)]
    groups.sort(key=lambda group: -max(part.score for part in group))
    best = [max(group, key=lambda part: part.score) for group in groups]
    boxes = [np.stack([part.box for part in group]) for group in groups]
    boxes = [np.concatenate([box[:, :2].min(axis=0), box[:, 2:].max(axis=0)]) for box in boxes]
    crops = tuple(Crop.union([part.crop for part in group]) for group in groups) if masks else ()
    return Instances(
        scores=np.array([part.score for part in best], np.float32),
        labels=np.array([part.label for part in best], np.int32),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        queries=np.array([part.query for part in best], np.int32),
        bits=CroppedMasks(crops, size) if masks else None,
        width=size[1],
    )


def join_panoptic(maps: Sequence[Map], size: tuple[int, int]) -> Panoptic:
    """The panoptic map of an image; the score of a segment is that of its best part.

    Each tile decides its own pixels. Things also have what other tiles see of them, unless the tile that decides sees
    another thing there: else one that only its neighbour has found would be cut along a straight line.
    """
    segments = [segment for part in maps for segment in part.panoptic.segments]
    first = np.cumsum([0, *(len(part.panoptic.segments) for part in maps)])
    groups = _groups(len(segments), _same_segments(maps, first.tolist()))
    numbers = np.zeros(len(segments) + 1, np.int32)  # of each segment's group, from 1; the last one for no segment
    is_thing = np.zeros(len(groups) + 1, bool)
    for number, group in enumerate(groups, 1):
        numbers[group], is_thing[number] = number, segments[group[0]].is_thing
    ids, whole, tables = np.zeros(size, np.int32), Rectangle(0, 0, *size), []
    for part, start in zip(maps, first.tolist(), strict=False):
        places = _places(part.panoptic)
        tables.append(numbers[np.where(places < 0, len(segments), start + places)])
        ids[part.own.inside(whole)] = tables[-1][part.panoptic.ids[part.own.inside(part.shown)]]
    for part, table in zip(maps, tables, strict=True):
        seen, found = table[part.panoptic.ids], ids[part.shown.inside(whole)]
        more = is_thing[seen] & ~is_thing[found]
        found[more] = seen[more]
    return _numbered(ids, [[segments[index] for index in group] for group in groups])


def _same_segments(maps: Sequence[Map], first: list[int]) -> list[Pair]:
    """Pairs of segments of all maps that are one: stuff of a class, and things by the rule of this module."""
    stuff: dict[int, int] = {}
    pairs = []
    for part, start in zip(maps, first, strict=False):
        for index, segment in enumerate(part.panoptic.segments, start):
            if not segment.is_thing:
                pairs.append((stuff.setdefault(segment.label, index), index))
    for one, other, shared in _neighbours([part.shown for part in maps]):
        pairs += [(first[one] + a, first[other] + b) for a, b in _same_things(maps[one], maps[other], shared)]
    return pairs


def _numbered(ids: Int32[np.ndarray, "h w"], groups: list[list[PanopticSegment]]) -> Panoptic:
    """The map with the numbers 1, 2, ... for those groups that have pixels. `ids`: places in `groups`, from 1."""
    areas = np.bincount(ids.ravel(), minlength=len(groups) + 1)
    areas[0] = 0
    numbers = np.where(areas > 0, np.cumsum(areas > 0), 0).astype(np.int32)
    kept = tuple(
        PanopticSegment(
            id=int(numbers[place]),
            label=groups[place - 1][0].label,
            is_thing=groups[place - 1][0].is_thing,
            score=max(segment.score for segment in groups[place - 1]),
            area=int(areas[place]),
        )
        for place in np.flatnonzero(areas).tolist()
    )
    return Panoptic(numbers[ids], kept)


def _neighbours(shown: Sequence[Rectangle]) -> Iterator[tuple[int, int, Rectangle]]:
    """Pairs of tiles with the pixels that they share."""
    for other, place in enumerate(shown):
        for one in range(other):
            shared = shown[one].meet(place)
            if shared is not None:
                yield one, other, shared


def _groups(count: int, pairs: list[Pair]) -> list[list[int]]:
    """What pairs connect, in the order of the first of each."""
    if not count:
        return []
    ends = np.array(pairs, int).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(count, count))
    found, group = connected_components(graph, directed=False)
    groups: list[list[int]] = [[] for _ in range(found)]
    for index, number in enumerate(group.tolist()):
        groups[number].append(index)
    return sorted(groups)


def _choices(
    shared: Real[np.ndarray, "n m"],
    areas: tuple[Real[np.ndarray, "n"], Real[np.ndarray, "m"]],
    cut: tuple[Bool[np.ndarray, "n"], Bool[np.ndarray, "m"]],
) -> set[Pair]:
    """Parts of two tiles that are one, see the module. `shared`: pixels of both, 0 where the classes differ; `areas`:
    pixels of each in the rectangle that the tiles share."""
    if not shared.size:
        return set()
    pairs = set()
    for turned in (False, True):
        table, (mine, others), is_cut = (shared.T, areas[::-1], cut[1]) if turned else (shared, areas, cut[0])
        chosen = table.argmax(axis=1)
        overlap = table.max(axis=1)
        one = (overlap > 0) & (overlap >= _HALF * mine) & (is_cut | (overlap >= _HALF * others[chosen]))
        pairs |= {(int(chosen[a]), a) if turned else (a, int(chosen[a])) for a in np.flatnonzero(one).tolist()}
    return pairs


def _same_parts(
    ones: list[Part], shown_one: Rectangle, others: list[Part], shown_other: Rectangle, shared: Rectangle
) -> set[Pair]:
    """Places in two lists of parts that are one object."""
    mine, theirs = ([_inside(part, shared) for part in parts] for parts in (ones, others))
    overlap = np.zeros((len(ones), len(others)))
    for a, one in enumerate(ones):
        for b, other in enumerate(others):
            if one.label == other.label and mine[a] and theirs[b]:
                overlap[a, b] = _common(mine[a], theirs[b])
    areas = tuple(np.array([_common(view, view) if view else 0 for view in views]) for views in (mine, theirs))
    cut = _cut_parts(ones, shown_one, shown_other), _cut_parts(others, shown_other, shown_one)
    return _choices(overlap, areas, cut)


def _same_things(one: Map, other: Map, shared: Rectangle) -> set[Pair]:
    """Places in the segments of two maps that are one thing."""
    views = [_places(part.panoptic)[part.panoptic.ids[shared.inside(part.shown)]] + 1 for part in (one, other)]
    rows, columns = (len(part.panoptic.segments) + 1 for part in (one, other))
    table = np.bincount((views[0] * columns + views[1]).ravel(), minlength=rows * columns).reshape(rows, columns)
    areas = table.sum(axis=1)[1:], table.sum(axis=0)[1:]
    labels = [
        np.array([segment.label if segment.is_thing else -1 for segment in part.panoptic.segments], int)
        for part in (one, other)
    ]
    alike = (labels[0][:, None] == labels[1]) & (labels[0][:, None] >= 0)
    cut = _cut_segments(one, other.shown), _cut_segments(other, one.shown)
    return _choices(table[1:, 1:] * alike, areas, cut)


def _places(panoptic: Panoptic) -> Int[np.ndarray, "ids"]:
    """The place in the segments of each value of the map; -1: none."""
    ids = [segment.id for segment in panoptic.segments]
    places = np.full(max(ids, default=0) + 1, -1)
    places[ids] = np.arange(len(ids))
    return places


def _borders(shown: Rectangle, other: Rectangle) -> list[Rectangle]:
    """The pixels along those sides of a tile beyond which another tile goes on."""
    top, left, bottom, right = shown
    sides = [
        (other.top < top, Rectangle(top, left, top + _REACH, right)),
        (other.left < left, Rectangle(top, left, bottom, left + _REACH)),
        (other.bottom > bottom, Rectangle(bottom - _REACH, left, bottom, right)),
        (other.right > right, Rectangle(top, right - _REACH, bottom, right)),
    ]
    return [border for beyond, border in sides if beyond]


def _cut_parts(parts: list[Part], shown: Rectangle, other: Rectangle) -> Bool[np.ndarray, "n"]:
    """Whether each part of a tile goes on in another one."""
    borders = _borders(shown, other)
    return np.array([any(_place(part).meet(border) for border in borders) for part in parts], bool)


def _cut_segments(part: Map, other: Rectangle) -> Bool[np.ndarray, "n"]:
    """Whether each segment of a map goes on in another tile."""
    cut = np.zeros(len(part.panoptic.segments) + 1, bool)
    for border in _borders(part.shown, other):
        met = border.meet(part.shown)
        cut[_places(part.panoptic)[part.panoptic.ids[met.inside(part.shown)]]] = True
    return cut[:-1]  # the last one stands for no segment


View = tuple[Rectangle, Bool[np.ndarray, "h w"] | None]


def _inside(part: Part, shared: Rectangle) -> View | None:
    """What a part has in a rectangle: pixels, or of a detection its box; None: nothing."""
    place = _place(part)
    met = place.meet(shared)
    if met is None:
        return None
    return met, None if part.crop is None else part.crop.mask[met.inside(place)]


def _common(one: View, other: View) -> int:
    """Pixels that two views have in common."""
    (place, mask), (other_place, other_mask) = one, other
    met = place.meet(other_place)
    if met is None:
        return 0
    if mask is None or other_mask is None:
        return (met.bottom - met.top) * (met.right - met.left)
    return int(np.count_nonzero(mask[met.inside(place)] & other_mask[met.inside(other_place)]))


def _place(part: Part) -> Rectangle:
    if part.crop is not None:
        return part.crop.place
    left, top, right, bottom = np.rint(part.box).astype(int).tolist()
    return Rectangle(top, left, bottom, right)

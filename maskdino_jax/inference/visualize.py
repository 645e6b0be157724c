"""Results over their image: coloured regions with thin contours, boxes, class names and scores."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from maskdino_jax.config import TASKS
from maskdino_jax.data.catalog import Catalog
from maskdino_jax.inference.colors import object_colors
from maskdino_jax.inference.labels import Box, Label, Spot, corners, place, write
from maskdino_jax.inference.results import Instances, Panoptic, Segments

_SHORT_SIDE = 512  # pixels; smaller images are enlarged, so that names can be read ...
_LONG_SIDE = 4096  # pixels; ... but not beyond this
_THING_ALPHA, _STUFF_ALPHA = 0.5, 0.3  # share of the colour in a region ...
_SEMANTIC_ALPHA = 0.5  # ... and where the classes are all there is to see
_ROOM = 0.5  # share of an object's box that its name may have
_INNER_ROOM = 2.0  # a name inside a region may have this many times the square of the distance to the border
_PLACES = 3  # inside a region that are tried for its name
_OWN_SHARE = 0.3  # an instance has the colour of the panoptic segment with at least this share of its mask
_COARSE = 128  # pixels are enough to find a place for a name


@dataclasses.dataclass(frozen=True)
class _Regions:
    """A map of regions, 0 for none, and how each is painted."""

    ids: Int[np.ndarray, "h w"]
    labels: Int[np.ndarray, "n"]  # contiguous class of region 1, 2, ...
    scores: tuple[float, ...]
    colors: UInt8[np.ndarray, "n 3"]
    is_thing: Bool[np.ndarray, "n"]
    stuff_alpha: float = _STUFF_ALPHA


def draw(
    image: UInt8[np.ndarray, "h w 3"],
    segments: Segments,
    *,
    score_threshold: float,
    style: str | None = None,
    short_side: int = _SHORT_SIDE,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A picture of the results, at least `short_side` pixels high and wide, unless that makes it longer than 4096.

    Objects of a class have its hue, each a shade of its own. A name is left out where it has no room; what is certain,
    such as annotations, is named without a score of 100 %.

    Args:
        score_threshold: of the instances or detections that are drawn.
        style: "panoptic", "instance" or "semantic": the regions of that result, their names inside; "detection":
            boxes. None: all in one picture, the regions of the first result that is there, and boxes of the objects.

    Raises:
        ValueError: there is no such style, or no such result.
    """
    segments, height, width = _of_style(segments, style), *image.shape[:2]
    catalog = segments.catalog
    confident = None if segments.instances is None else segments.instances.above(score_threshold)
    regions = _regions(segments.panoptic, confident, segments.semantic, catalog, (height, width))
    scale = max(1.0, min(short_side / min(height, width), _LONG_SIDE / max(height, width)))
    size = round(width * scale), round(height * scale)
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    enlarged = dataclasses.replace(regions, ids=_enlarge(regions.ids, size))
    picture = Image.fromarray(_paint(pixels, enlarged))

    framed = confident is not None and style in (None, "detection")
    labels = _framed(confident, regions, catalog, scale) if framed else []
    names = place(labels + list(_named(enlarged, catalog, only_stuff=framed)), size)
    named = {name.label for name in names}
    for label in sorted(labels, key=lambda label: -_area(label.box)):
        if label in named or not len(regions.labels):  # a mask shows an object well enough
            _frame(picture, label)
    write(picture, names)
    return np.asarray(picture)


def _of_style(segments: Segments, style: str | None) -> Segments:
    """The segments with nothing but the result of a style."""
    if style is None:
        return segments
    if style not in TASKS:
        raise ValueError(f"style = {style!r}: give one of {', '.join(TASKS)}, or None for all in one picture.")
    found = segments.instances
    fields = {
        "panoptic": {"panoptic": segments.panoptic},
        "semantic": {"semantic": segments.semantic},
        "instance": {"instances": None if found is None or found.bits is None else found},
        "detection": {"instances": None if found is None else dataclasses.replace(found, bits=None)},
    }[style]
    if any(value is None for value in fields.values()):
        raise ValueError(
            f"style = {style!r}: the segments hold no such result. Ask the predictor for it (config.inference.tasks), "
            "or give another style."
        )
    return Segments(catalog=segments.catalog, **fields)


def _regions(
    panoptic: Panoptic | None,
    instances: Instances | None,
    semantic: Int[np.ndarray, "h w"] | None,
    catalog: Catalog,
    size: tuple[int, int],
) -> _Regions:
    """Regions of the first result that is there; all of a semantic map are stuff, all instances are things, and
    detections have none."""
    alpha = _STUFF_ALPHA
    if panoptic is not None:
        numbers = np.zeros(max((segment.id for segment in panoptic.segments), default=0) + 1, np.int32)
        numbers[[segment.id for segment in panoptic.segments]] = np.arange(1, len(panoptic.segments) + 1)
        ids, labels = numbers[panoptic.ids], [segment.label for segment in panoptic.segments]
        scores = [segment.score for segment in panoptic.segments]
        is_thing = [segment.is_thing for segment in panoptic.segments]
    elif instances is not None and instances.bits is None:
        ids, labels, scores, is_thing = np.zeros(size, np.int32), (), (), ()
    elif instances is not None:
        ids, labels, scores = np.zeros(size, np.int32), instances.labels, instances.scores.tolist()
        for position in range(len(instances), 0, -1):  # the best one lies on top
            ids[instances.mask(position - 1)] = position
        is_thing = np.ones(len(labels))
    elif semantic is not None:
        labels = np.unique(semantic[semantic >= 0])
        ids = np.where(semantic >= 0, np.searchsorted(labels, semantic) + 1, 0).astype(np.int32)
        scores, is_thing, alpha = [1.0] * len(labels), np.zeros(len(labels)), _SEMANTIC_ALPHA
    else:
        raise ValueError("nothing to draw: the segments hold no instances, no panoptic map and no semantic map.")
    labels = np.asarray(labels, int)
    return _Regions(
        ids, labels, tuple(scores), object_colors(labels, catalog), np.asarray(is_thing, bool), stuff_alpha=alpha
    )


def _enlarge(ids: Int[np.ndarray, "h w"], size: tuple[int, int]) -> Int[np.ndarray, "h2 w2"]:
    """The map at another width and height; where it grows, borders become smooth curves instead of stairs."""
    if size == ids.shape[::-1]:
        return ids
    result, strength = np.zeros(size[::-1], ids.dtype), np.zeros(size[::-1], np.float32)
    growth = size[1] / ids.shape[0], size[0] / ids.shape[1]
    for region, window in enumerate(ndimage.find_objects(ids + 1)):
        if window is None:
            continue
        # Some pixels more on each side: the filter reaches beyond the region.
        spans = [
            (max(int((side.start - 2) * factor), 0), min(int((side.stop + 2) * factor) + 1, end))
            for side, factor, end in zip(window, growth, result.shape, strict=True)
        ]
        (top, bottom), (left, right) = spans
        box = left / growth[1], top / growth[0], right / growth[1], bottom / growth[0]
        mask = Image.fromarray((ids == region).astype(np.float32))
        mask = np.asarray(mask.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=box))
        window = slice(top, bottom), slice(left, right)
        wins = mask > strength[window]
        strength[window][wins], result[window][wins] = mask[wins], region
    return result


def _paint(pixels: UInt8[np.ndarray, "h w 3"], regions: _Regions) -> UInt8[np.ndarray, "h w 3"]:
    """Blend each region with its colour, and follow the border of things with a light line."""
    colors = np.concatenate([np.zeros((1, 3), np.float32), regions.colors]).astype(np.float32)
    thing = np.concatenate([[False], regions.is_thing])
    alphas = np.where(regions.is_thing, _THING_ALPHA, regions.stuff_alpha)
    alpha = np.concatenate([[0], alphas]).astype(np.float32)[:, None]
    painted = (pixels * (1 - alpha)[regions.ids] + (colors * alpha)[regions.ids]).astype(np.uint8)
    reach = 2 * _line_width(pixels.shape) + 1
    border = ndimage.maximum_filter(regions.ids, reach) != ndimage.minimum_filter(regions.ids, reach)
    edge = border & thing[regions.ids]
    painted[edge] = 0.35 * 255 + 0.65 * colors[regions.ids[edge]]
    return painted


def _line_width(shape: tuple[int, ...]) -> int:
    return max(1, round(min(shape[:2]) / 640))


def _framed(instances: Instances, regions: _Regions, catalog: Catalog, scale: float) -> list[Label]:
    """Names at the boxes of instances, in the colours of their regions."""
    own = object_colors(instances.labels, catalog)
    labels = []
    rows = zip(instances.scores.tolist(), instances.labels.tolist(), instances.boxes, strict=True)
    for index, (score, label, box) in enumerate(rows):
        color = own[index]
        if len(regions.labels):  # not those of detections
            mask = instances.mask(index)
            covered = np.bincount(regions.ids[mask], minlength=len(regions.labels) + 1)[1:]
            covered = np.where(regions.labels == label, covered, 0)
            if covered.max() > _OWN_SHARE * mask.sum():
                color = regions.colors[covered.argmax()]
        box = tuple((box * scale).tolist())
        labels.append(
            Label(
                texts=_texts(catalog.categories[label].name, score),
                spots=corners(box, _ROOM * _area(box)),
                color=tuple(color.tolist()),
                box=box,
            )
        )
    return labels


def _named(regions: _Regions, catalog: Catalog, *, only_stuff: bool) -> Iterator[Label]:
    """Names inside the regions; those of objects also around them, or around the largest piece of one in pieces."""
    for position, window in enumerate(ndimage.find_objects(regions.ids, len(regions.labels))):
        is_thing = bool(regions.is_thing[position])
        if window is None or (is_thing and only_stuff):
            continue
        rows, columns = window
        mask, corner = regions.ids[window] == position + 1, (columns.start, rows.start)
        box = _largest_piece(mask, *corner)
        spots = _inner_spots(mask, *corner)
        yield Label(
            texts=_texts(catalog.categories[regions.labels[position]].name, regions.scores[position], is_thing),
            spots=(*spots, *corners(box, _ROOM * _area(box))) if is_thing else spots,
            color=tuple(regions.colors[position].tolist()),
            box=box,
            on_plate=is_thing,
        )


def _largest_piece(mask: Bool[np.ndarray, "h w"], left: int, top: int) -> Box:
    """The box of what hangs together and has the most pixels."""
    pieces, count = ndimage.label(mask)
    if count > 1:
        rows, columns = ndimage.find_objects(pieces)[np.bincount(pieces.ravel())[1:].argmax()]
    else:
        rows, columns = (slice(0, side) for side in mask.shape)
    return left + columns.start, top + rows.start, left + columns.stop, top + rows.stop


def _inner_spots(mask: Bool[np.ndarray, "h w"], left: int, top: int) -> tuple[Spot, ...]:
    """The places of a region that are farthest from its border."""
    step = max(1, min(mask.shape) // _COARSE)
    depth = ndimage.distance_transform_edt(np.pad(mask[::step, ::step], 1))
    spots = []
    for _ in range(_PLACES):
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        reach = float(depth[y, x])
        centre = left + (x - 0.5) * step, top + (y - 0.5) * step
        spots.append(Spot(*map(float, centre), 0.5, 0.5, _INNER_ROOM * (reach * step) ** 2))
        around = int(reach) + 1
        depth[max(y - around, 0) : y + around, max(x - around, 0) : x + around] = 0
    return tuple(spots)


def _texts(name: str, score: float, rated: bool = True) -> tuple[str, ...]:
    """With the score, and without it if there is too little room."""
    return (f"{name} {score:.0%}", name) if rated and score < 1 else (name,)


def _frame(picture: Image.Image, label: Label) -> None:
    """Draw the part of a box that lies inside the picture."""
    x = [min(max(value, 0), picture.width - 1) for value in label.box[::2]]
    y = [min(max(value, 0), picture.height - 1) for value in label.box[1::2]]
    width = 1 + _line_width((picture.height, picture.width))
    ImageDraw.Draw(picture).rectangle((x[0], y[0], x[1], y[1]), outline=label.color, width=width)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])

"""Results over their image: coloured regions with thin contours, boxes, class names and scores."""

import colorsys
import dataclasses

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.inference.results import Instances, Panoptic, Segments

_SHORT_SIDE = 512  # pixels; smaller images are enlarged, so that names can be read
_LINES_PER_SIDE = 36  # text lines that would fill the short side: the font grows with the picture
_THING_ALPHA, _STUFF_ALPHA = 0.5, 0.3  # share of the colour in a region
_ROOM = 2.0  # an object is named if its box has this many times the area of its label
_OWN_SHARE = 0.3  # an instance has the colour of the panoptic segment with at least this share of its mask

Color = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class _Regions:
    """A map of regions, 0 for none, and how each is painted."""

    ids: Int[np.ndarray, "h w"]
    labels: Int[np.ndarray, "n"]  # contiguous class of region 1, 2, ...
    colors: UInt8[np.ndarray, "n 3"]
    is_thing: Bool[np.ndarray, "n"]


@dataclasses.dataclass(frozen=True)
class _Tag:
    """A box and what is written at it."""

    text: str
    color: Color
    box: tuple[float, float, float, float]  # xyxy in pixels of the picture


def draw(
    image: UInt8[np.ndarray, "h w 3"], segments: Segments, *, score_threshold: float, short_side: int = _SHORT_SIDE
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A picture of the results, at least `short_side` pixels high and wide.

    Regions come from the panoptic map, else from the instances, else from the semantic map. Instances and detections
    with at least `score_threshold` have a box and a name, unless they are too small for it; stuff is named where it is
    widest. What is certain, such as annotations, is named without a score of 100 %.
    """
    catalog = segments.catalog
    confident = None if segments.instances is None else segments.instances.above(score_threshold)
    height, width = image.shape[:2]
    regions = _regions(segments.panoptic, confident, segments.semantic, catalog, (height, width))
    scale = max(1.0, short_side / min(height, width))
    size = round(width * scale), round(height * scale)
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    enlarged = dataclasses.replace(regions, ids=_enlarge(regions.ids, size))
    picture = Image.fromarray(_paint(pixels, enlarged))

    if confident is not None:
        tags = _tags_of_instances(confident, regions, catalog, scale)
    else:
        tags = _tags_of_segments(segments.panoptic, regions, catalog, scale)
    _write(picture, tags, _stuff_places(enlarged, catalog), only_boxes=not len(regions.labels))
    return np.asarray(picture)


def _regions(
    panoptic: Panoptic | None,
    instances: Instances | None,
    semantic: Int[np.ndarray, "h w"] | None,
    catalog: Catalog,
    size: tuple[int, int],
) -> _Regions:
    """Regions of the first result that is there; all of a semantic map are stuff, all instances are things, and
    detections have none."""
    if panoptic is not None:
        numbers = np.zeros(max((segment.id for segment in panoptic.segments), default=0) + 1, int)
        numbers[[segment.id for segment in panoptic.segments]] = np.arange(1, len(panoptic.segments) + 1)
        ids, labels = numbers[panoptic.ids], [segment.label for segment in panoptic.segments]
        is_thing = [segment.is_thing for segment in panoptic.segments]
    elif instances is not None and instances.bits is None:
        ids, labels, is_thing = np.zeros(size, int), (), ()
    elif instances is not None:
        ids, labels = np.zeros(size, int), instances.labels
        for position in range(len(instances), 0, -1):  # the best one lies on top
            ids[instances.mask(position - 1)] = position
        is_thing = np.ones(len(labels))
    elif semantic is not None:
        labels, ids = np.unique(semantic, return_inverse=True)
        ids, is_thing = ids.reshape(semantic.shape) + 1, np.zeros(len(labels))
    else:
        raise ValueError("nothing to draw: the segments hold no instances, no panoptic map and no semantic map.")
    labels = np.asarray(labels, int)
    seen: dict[int, int] = {}
    colors = np.zeros((len(labels), 3), np.uint8)
    for position, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, -1) + 1
        colors[position] = _shade(catalog.categories[label].color, seen[label])
    return _Regions(ids, labels, colors, np.asarray(is_thing, bool))


def _enlarge(ids: Int[np.ndarray, "h w"], size: tuple[int, int]) -> Int[np.ndarray, "h2 w2"]:
    """The map at another width and height; where it grows, borders become smooth curves instead of stairs."""
    if size == ids.shape[::-1]:
        return ids
    result, strength = np.zeros(size[::-1], int), np.zeros(size[::-1], np.float32)
    for region in np.unique(ids):
        mask = Image.fromarray((ids == region).astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
        wins = np.asarray(mask) > strength
        strength[wins], result[wins] = np.asarray(mask)[wins], region
    return result


def _shade(color: Color, number: int) -> Color:
    """The class's colour for its first object, and relatives of it for the next ones."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    turn = (number * 0.618034) % 1  # multiples of the golden ratio spread evenly
    hue = (hue + (0.22 * turn if turn < 0.5 else 0.22 * (turn - 1))) % 1
    value = min(1.0, max(0.7, value) * (1.0, 0.85, 1.15)[number % 3])
    if number:
        saturation = min(1.0, max(saturation, 0.45) * (1.0, 0.8, 1.1)[number // 3 % 3])
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _paint(pixels: UInt8[np.ndarray, "h w 3"], regions: _Regions) -> UInt8[np.ndarray, "h w 3"]:
    """Blend each region with its colour, and follow its border with a light line."""
    colors = np.concatenate([np.zeros((1, 3), np.float32), regions.colors])[regions.ids]
    alphas = np.concatenate([[0], np.where(regions.is_thing, _THING_ALPHA, _STUFF_ALPHA)])
    alpha = alphas.astype(np.float32)[regions.ids][..., None]
    painted = pixels * (1 - alpha) + colors * alpha
    reach = 2 * _line_width(pixels.shape) + 1
    border = ndimage.maximum_filter(regions.ids, reach) != ndimage.minimum_filter(regions.ids, reach)
    thing = np.concatenate([[False], regions.is_thing])[regions.ids]
    edge = border & thing
    painted[edge] = 0.35 * 255 + 0.65 * colors[edge]
    return painted.astype(np.uint8)


def _line_width(shape: tuple[int, ...]) -> int:
    return max(1, round(min(shape[:2]) / 640))


def _tags_of_instances(instances: Instances, regions: _Regions, catalog: Catalog, scale: float) -> list[_Tag]:
    tags = []
    rows = zip(instances.scores, instances.labels, instances.boxes, strict=True)
    for index, (score, label, box) in enumerate(rows):
        category = catalog.categories[label]
        color = category.color
        if len(regions.labels):  # not those of detections
            mask = instances.mask(index)
            covered = np.bincount(regions.ids[mask], minlength=len(regions.labels) + 1)[1:]
            covered = np.where(regions.labels == label, covered, 0)
            if covered.max() > _OWN_SHARE * mask.sum():
                color = tuple(regions.colors[covered.argmax()].tolist())
        tags.append(_Tag(_named(category.name, score), color, tuple((box * scale).tolist())))
    return tags


def _tags_of_segments(panoptic: Panoptic | None, regions: _Regions, catalog: Catalog, scale: float) -> list[_Tag]:
    """Things of a panoptic map, where there are no instances."""
    if panoptic is None:
        return []
    tags = []
    for segment, box, color in zip(panoptic.segments, ndimage.find_objects(regions.ids), regions.colors, strict=True):
        if segment.is_thing:
            rows, columns = box
            corners = columns.start, rows.start, columns.stop, rows.stop
            text = _named(catalog.categories[segment.label].name, segment.score)
            tags.append(_Tag(text, tuple(color.tolist()), tuple(scale * corner for corner in corners)))
    return tags


def _named(name: str, score: float) -> str:
    return f"{name} {score:.0%}" if score < 1 else name


def _stuff_places(regions: _Regions, catalog: Catalog) -> list[tuple[str, float, float, float]]:
    """Name, x, y and half width of the widest place of each stuff region, the widest region first."""
    step = max(1, min(regions.ids.shape) // 128)  # coarse is enough to place a name
    coarse = np.pad(regions.ids[::step, ::step], 1)
    places = []
    for position in np.flatnonzero(~regions.is_thing).tolist():
        depth = ndimage.distance_transform_edt(coarse == position + 1)
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        name = catalog.categories[regions.labels[position]].name
        places.append((name, float(x - 0.5) * step, float(y - 0.5) * step, float(depth.max()) * step))
    return sorted(places, key=lambda place: -place[3])


def _write(
    picture: Image.Image, tags: list[_Tag], stuff: list[tuple[str, float, float, float]], *, only_boxes: bool
) -> None:
    """Boxes and names, inside the picture and no name over another. `only_boxes`: nothing else shows the objects."""
    pen = ImageDraw.Draw(picture)
    size = max(12, round(min(picture.size) / _LINES_PER_SIDE))
    font = ImageFont.load_default(size)
    line = _line_width(picture.size)
    margin = max(2, size // 5)
    taken: list[tuple[float, float, float, float]] = []
    labels = []
    for tag in sorted(tags, key=lambda tag: -_area(tag.box)):
        width, height = pen.textlength(tag.text, font) + 2 * margin, size + 2 * margin
        large = _area(tag.box) >= _ROOM * width * height
        if large or only_boxes:
            pen.rectangle(_inside(tag.box, picture.size), outline=tag.color, width=line)
        if not large:
            continue
        left, top, right, bottom = tag.box
        corners = (left, top - height), (left, top), (right - width, top), (left, bottom), (left, bottom - height)
        for x, y in corners:
            spot = _shifted(x, y, width, height, picture.size)
            if not any(_overlap(spot, other) for other in taken):
                taken.append(spot)
                labels.append((tag, spot))
                break
    for tag, spot in labels:  # above all boxes
        pen.rectangle(spot, fill=tag.color)
        dark = np.dot(tag.color, (0.299, 0.587, 0.114)) > 140
        centre = (spot[0] + spot[2]) / 2, (spot[1] + spot[3]) / 2
        pen.text(centre, tag.text, font=font, fill=(0, 0, 0) if dark else (255, 255, 255), anchor="mm")
    for name, x, y, reach in stuff:
        width = pen.textlength(name, font)
        spot = _shifted(x - width / 2, y - size / 2, width, size, picture.size)
        if width < 3 * reach and size < reach and not any(_overlap(spot, other) for other in taken):
            taken.append(spot)
            centre = (spot[0] + spot[2]) / 2, (spot[1] + spot[3]) / 2
            stroke = max(1, size // 8)
            pen.text(centre, name, font=font, fill="white", stroke_fill="black", stroke_width=stroke, anchor="mm")


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _inside(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    x = [min(max(value, 0), size[0] - 1) for value in box[::2]]
    y = [min(max(value, 0), size[1] - 1) for value in box[1::2]]
    return x[0], y[0], x[1], y[1]


def _shifted(
    x: float, y: float, width: float, height: float, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A rectangle moved into the picture."""
    x = max(0, min(x, size[0] - 1 - width))
    y = max(0, min(y, size[1] - 1 - height))
    return x, y, x + width, y + height


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

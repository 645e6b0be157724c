"""Names in a picture: inside of it, none over another, as little as can be over smaller objects."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from maskdino_jax.inference.colors import Color, readable_on

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the picture

_LINES_PER_SIDE = 36  # text lines that would fill the short side: the font grows with the picture
_SMALLEST = 12  # pixels of the font; smaller ones are hard to read
_SMALL = 0.75  # size of the second font, for objects that have no room for the first


@dataclasses.dataclass(frozen=True)
class Spot:
    """A place for a name: the point (x, y) of the picture is at the share (right, down) of the name's own sides."""

    x: float
    y: float
    right: float
    down: float
    room: float  # pixels that the name may cover there


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """What may be written about an object, and where; both the best first."""

    texts: tuple[str, ...]
    spots: tuple[Spot, ...]
    color: Color
    box: Box
    on_plate: bool = True  # on a plate of that color; else white letters with a black edge, as for stuff


def corners(box: Box, room: float) -> tuple[Spot, ...]:
    """Above a box, in its corners, and below."""
    left, top, right, bottom = box
    places = (left, top, 0, 1), (left, top, 0, 0), (right, top, 1, 0), (left, bottom, 0, 0), (left, bottom, 0, 1)
    return tuple(Spot(*place, room) for place in places)


def font_size(size: tuple[int, int]) -> int:
    """Pixels of the font in a picture of this width and height."""
    return max(_SMALLEST, round(min(size) / _LINES_PER_SIDE))


@dataclasses.dataclass(frozen=True)
class Name:
    """What is written of a label, and where."""

    label: Label
    text: str
    font_size: int  # pixels
    box: Box


def place(labels: list[Label], size: tuple[int, int]) -> list[Name]:
    """The names that have room in a picture of this width and height, those of large objects first.

    An object whose name has no room gets a shorter one or smaller letters; if that does not help either, none. Names
    on plates go before those without.
    """
    page = _Page(size, np.array([label.box for label in labels], np.float32).reshape(-1, 4))
    large = font_size(size)
    sizes = sorted({large, max(_SMALLEST, round(_SMALL * large))}, reverse=True)
    names = []
    for label in sorted(labels, key=lambda label: (not label.on_plate, -_area(label.box))):
        for text, points in ((text, points) for points in sizes for text in label.texts):
            box = page.take(label, *_extent(text, points, label.on_plate))
            if box is not None:
                names.append(Name(label, text, points, box))
                break
    return names


def write(picture: Image.Image, names: list[Name]) -> None:
    """Write names where `place` found room."""
    pen = ImageDraw.Draw(picture)
    for name in names:
        left, top, right, bottom = name.box
        centre, style = ((left + right) / 2, (top + bottom) / 2), {"font": _font(name.font_size), "anchor": "mm"}
        if name.label.on_plate:
            pen.rounded_rectangle(name.box, radius=_margin(name.font_size), fill=name.label.color)
            pen.text(centre, name.text, fill=readable_on(name.label.color), **style)
        else:
            edge = _edge(name.font_size)
            pen.text(centre, name.text, fill="white", stroke_fill="black", stroke_width=edge, **style)


class _Page:
    """Where names are in a picture, and where another one has room."""

    def __init__(self, size: tuple[int, int], objects: Float[np.ndarray, "n 4"]) -> None:
        self._size, self._objects = size, objects
        self._taken: list[Box] = []

    def take(self, label: Label, width: float, height: float) -> Box | None:
        """Take the spot for a name of this size that covers the least of smaller objects; None: there is no spot."""
        if width >= self._size[0] or height >= self._size[1]:
            return None
        free = []
        for spot in label.spots:
            x = max(0, min(spot.x - spot.right * width, self._size[0] - 1 - width))
            y = max(0, min(spot.y - spot.down * height, self._size[1] - 1 - height))
            place = x, y, x + width, y + height
            if width * height <= spot.room and not any(_overlap(place, other) for other in self._taken):
                free.append(place)
        if not free:
            return None
        best = min(free, key=functools.partial(self._covered, label.box))  # of equals the first
        self._taken.append(best)
        return best

    def _covered(self, own: Box, place: Box) -> int:
        """How many tenths of smaller objects a name would cover."""
        sides = self._objects[:, 2:] - self._objects[:, :2]
        areas = np.maximum(sides.prod(axis=1), 1)
        shared = np.minimum(self._objects[:, 2:], place[2:]) - np.maximum(self._objects[:, :2], place[:2])
        shares = np.maximum(shared, 0).prod(axis=1) / areas
        return round(10 * float(shares[areas < 0.9 * _area(own)].sum()))


def _extent(text: str, size: int, on_plate: bool) -> tuple[float, float]:
    """Width and height of a name in pixels."""
    margin = _margin(size) if on_plate else _edge(size)
    return _font(size).getlength(text) + 2 * margin, size + 2 * margin


def _margin(size: int) -> int:
    return max(2, size // 4)


def _edge(size: int) -> int:
    return max(1, size // 9)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

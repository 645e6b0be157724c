"""An explanation as one picture: a row for each object, a column for the decoder's input and each of its layers."""

import functools
import itertools
import json
import logging
import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from maskdino_jax.inference.colors import Color, object_colors, readable_on
from maskdino_jax.inference.explain import Explainer, Explanation
from maskdino_jax.inference.sources import NamedImage

_WIDTH = 1600  # pixels of the picture, unless the columns are many
_NARROWEST, _WIDEST = 190, 300  # pixels of a column
_HEAD, _GAP, _CAPTION = 150, 10, 26  # pixels: names at the left, between the parts, below a cell
_OVERVIEW, _LEGEND = 300, 480  # pixels: height of the whole image, width of what explains the marks
_FINE = 3  # cells are drawn this many times larger and shrunk, so that lines and dots are smooth
_AROUND = 1.5  # a cell shows the square around all boxes of an object, enlarged by this ...
_SEEN = 0.95  # ... or as much as is needed for this share of the samples' weight
_PAPER, _INK, _PALE, _BEYOND = (250, 250, 250), (40, 40, 40), (110, 110, 110), (226, 226, 226)
_MASK_ALPHA = 0.4
_HEAT = np.array([(110, 80, 210), (215, 60, 130), (250, 140, 50), (255, 245, 120)], float)  # of samples, by weight

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the image


def draw_explanation(image: UInt8[np.ndarray, "h w 3"], explanation: Explanation) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The whole image with numbered objects, and below it what each layer made of them.

    A cell shows the surroundings of an object with the mask and the box (solid) that the layer predicts, the box that
    guides its cross-attention (dashed), and the sampled points: the larger and brighter, the more weight. Under it
    stand the class probability and the overlap with the final mask.
    """
    stages, count = explanation.boxes.shape[:2]
    colors = [tuple(color) for color in object_colors(explanation.objects.labels, explanation.catalog).tolist()]
    overview = _overview(image, explanation, colors)
    cell = min(max((_WIDTH - _HEAD - _GAP) // stages - _GAP, _NARROWEST), _WIDEST)
    width = max(_HEAD + _GAP + stages * (cell + _GAP), overview.width + _LEGEND + 3 * _GAP)
    top = overview.height + 2 * _GAP + _CAPTION
    page = Image.new("RGB", (width, top + count * (cell + _CAPTION + _GAP)), _PAPER)
    pen = ImageDraw.Draw(page)
    page.paste(overview, (_GAP, _GAP))
    _legend(page, overview.width + 3 * _GAP, masks=explanation.masks is not None)
    columns = [_HEAD + _GAP + stage * (cell + _GAP) for stage in range(stages)]
    for stage, left in enumerate(columns):
        pen.text((left + cell / 2, top - 6), _title(stage, stages), font=_font(16), fill=_INK, anchor="mb")
    for row, color in enumerate(colors):
        place = top + row * (cell + _CAPTION + _GAP)
        _head(pen, explanation, row, color, place)
        window = _window(explanation, row, max(image.shape))
        for stage, left in enumerate(columns):
            page.paste(_cell(image, explanation, (stage, row), color, window, cell), (left, place))
            caption = f"{explanation.scores[stage, row]:.0%}   IoU {explanation.agreement(stage, row):.2f}"
            pen.text((left + cell / 2, place + cell + 4), caption, font=_font(14), fill=_PALE, anchor="mt")
    return np.asarray(page)


def write_explanations(explainer: Explainer, images: Iterable[NamedImage], output: Path) -> list[Path]:
    """Write `NAME.png` and, with the numbers in it, `NAME.json` for each image; returns the pictures' paths.

    Of images whose names differ by the ending alone the later ones keep it, as in NAME_jpg.png.
    """
    output.mkdir(parents=True, exist_ok=True)
    pictures: list[Path] = []
    for image in images:
        explanation = explainer(image.pixels)
        path = output / f"{Path(image.name).stem}.png"
        path = output / f"{image.name.replace('.', '_')}.png" if path in pictures else path
        Image.fromarray(draw_explanation(image.pixels, explanation)).save(path)
        content = {"file_name": image.name, **explanation.to_dict()}
        path.with_suffix(".json").write_text(json.dumps(content), encoding="utf-8")
        logging.info("%s -> %s", image.name, path)
        pictures.append(path)
    return pictures


def _title(stage: int, stages: int) -> str:
    if stage == 0:
        return "decoder input"
    return f"layer {stage}, the result" if stage == stages - 1 else f"layer {stage}"


def _overview(image: UInt8[np.ndarray, "h w 3"], explanation: Explanation, colors: list[Color]) -> Image.Image:
    """The whole image with the results, each object with its number."""
    height, width = image.shape[:2]
    scale = min(_OVERVIEW / height, 3 * _OVERVIEW / width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    for row, color in enumerate(colors):
        if explanation.masks is not None:
            picture = _tinted(picture, _resized(explanation.masks[-1, row], (0, 0, width, height), size), color, 1)
    pen = ImageDraw.Draw(picture)
    for row, color in enumerate(colors):
        corners = scale * explanation.boxes[-1, row].reshape(2, 2)
        _outline(pen, corners, color, 1)
        x, y = (min(max(corner, 11), side - 12) for corner, side in zip(corners[0].tolist(), size, strict=True))
        _number(pen, row, color, x, y)
    return picture


def _head(pen: ImageDraw.ImageDraw, explanation: Explanation, row: int, color: Color, top: int) -> None:
    """Number, class, score and query of an object at the left of its row."""
    objects = explanation.objects
    name = textwrap.wrap(explanation.catalog.categories[objects.labels[row]].name, 13)[:3]
    _number(pen, row, color, _GAP + 12, top + 12)
    pen.multiline_text((_GAP + 32, top + 2), "\n".join(name), font=_font(16), fill=_INK)
    what = f"score {objects.scores[row]:.0%}\nquery {objects.queries[row]}"
    pen.multiline_text((_GAP + 32, top + 8 + 20 * len(name)), what, font=_font(14), fill=_PALE)


def _legend(page: Image.Image, left: int, *, masks: bool) -> None:
    """What the marks mean, at the right of the overview."""
    marks = Image.new("RGB", (40 * _FINE, 112 * _FINE), _PAPER)
    pen, corners = ImageDraw.Draw(marks), np.array([[4, 4], [36, 24]]) * _FINE
    if masks:
        pen.ellipse((8 * _FINE, 6 * _FINE, 32 * _FINE, 22 * _FINE), fill=(240, 170, 185))
    _outline(pen, corners, (220, 20, 60), 2 * _FINE)
    _dashed(pen, corners + np.array([0, 36 * _FINE]))
    shares = np.array([0.1, 0.4, 1.0])
    _dots(pen, np.array([[6, 86], [18, 86], [33, 86]]) * _FINE, shares)
    page.paste(marks.resize((40, 112), Image.Resampling.LANCZOS), (left, _GAP))
    texts = (
        f"the box {'and mask ' if masks else ''}that a layer predicts",
        "the reference box: where its cross-attention looks",
        "the points it samples: the larger, the more weight",
    )
    pen = ImageDraw.Draw(page)
    for line, text in enumerate(texts):
        pen.text((left + 52, _GAP + 14 + 36 * line), text, font=_font(16), fill=_INK, anchor="lm")
    below = f"Below each: the probability of the class, and the overlap\nwith the final {'mask' if masks else 'box'}."
    pen.multiline_text((left, _GAP + 122), below, font=_font(16), fill=_INK, spacing=6)


def _number(pen: ImageDraw.ImageDraw, row: int, color: Color, x: float, y: float) -> None:
    pen.ellipse((x - 10, y - 10, x + 10, y + 10), fill=color, outline="white")
    pen.text((x, y), str(row + 1), font=_font(13), fill=readable_on(color), anchor="mm")


def _window(explanation: Explanation, row: int, longest: int) -> Box:
    """The square that the cells of an object show, not much larger than the longer side of the image."""
    boxes = np.concatenate([explanation.boxes[:, row], explanation.references[:, row]])
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    centre = (low + high) / 2
    far = np.abs(explanation.points[:, row] - centre).max(axis=-1).ravel()
    order = np.argsort(far)
    seen = explanation.weights[:, row].ravel()[order].cumsum() / len(explanation.weights)
    reach = far[order][min(np.searchsorted(seen, _SEEN), len(far) - 1)]
    half = min(max(_AROUND * float((high - low).max()) / 2, 1.05 * float(reach), 4.0), 0.55 * longest)
    return (*(centre - half).tolist(), *(centre + half).tolist())


def _cell(
    image: UInt8[np.ndarray, "h w 3"],
    explanation: Explanation,
    place: tuple[int, int],
    color: Color,
    window: Box,
    side: int,
) -> Image.Image:
    """What a layer makes of an object; `place`: stage and row."""
    stage, row = place
    fine = _FINE * side
    cropped = Image.Transform.EXTENT, window, Image.Resampling.BILINEAR
    picture = Image.fromarray(image).transform((fine, fine), *cropped, fillcolor=_BEYOND)
    if explanation.masks is not None:
        mask = _resized(explanation.masks[stage, row], window, (fine, fine))
        picture = _tinted(picture, mask, color, _FINE)
    pen = ImageDraw.Draw(picture)
    inner = lambda places: (places.reshape(-1, 2) - window[:2]) * (fine / (window[2] - window[0]))
    corners = inner(explanation.boxes[stage, row])
    _outline(pen, corners, (255, 255, 255), 4 * _FINE)
    _outline(pen, corners, color, 2 * _FINE)
    if stage:
        _dashed(pen, inner(explanation.references[stage - 1, row]))
        _dots(pen, inner(explanation.points[stage - 1, row]), explanation.weights[stage - 1, row])
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def _resized(mask: Bool[np.ndarray, "h w"], window: Box, size: tuple[int, int]) -> Bool[np.ndarray, "h2 w2"]:
    """The window of a mask at another width and height."""
    soft = Image.fromarray(mask.astype(np.float32))
    return np.asarray(soft.transform(size, Image.Transform.EXTENT, window, Image.Resampling.BILINEAR)) > 0.5


def _tinted(picture: Image.Image, mask: Bool[np.ndarray, "h w"], color: Color, line: int) -> Image.Image:
    """A mask over a picture, with a light contour of `line` pixels inside of it."""
    pixels, tint = np.asarray(picture).astype(np.float32), np.array(color, np.float32)
    pixels[mask] = (1 - _MASK_ALPHA) * pixels[mask] + _MASK_ALPHA * tint
    pixels[mask & ~ndimage.minimum_filter(mask, 2 * line + 1)] = 0.5 * 255 + 0.5 * tint
    return Image.fromarray(pixels.astype(np.uint8))


def _dots(
    pen: ImageDraw.ImageDraw, points: Float[np.ndarray, "samples 2"], weights: Float[np.ndarray, "samples"]
) -> None:
    """Samples, the heavy ones on top; the area of a dot is its weight relative to the heaviest."""
    shares = weights / weights.max()
    for index in np.argsort(shares):
        share = float(shares[index])
        radius = _FINE * (1.4 + 4.4 * share**0.5)
        heat = tuple(round(np.interp(share, np.linspace(0, 1, len(_HEAT)), channel)) for channel in _HEAT.T)
        x, y = points[index].tolist()
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=heat, outline="black", width=_FINE // 2)


def _outline(pen: ImageDraw.ImageDraw, corners: Float[np.ndarray, "2 2"], color: Color, width: int) -> None:
    """A box; half of its line lies outside."""
    (left, top), (right, bottom) = corners.tolist()
    grow = width / 2
    around = left - grow, top - grow, max(right, left) + grow, max(bottom, top) + grow
    pen.rectangle(around, outline=color, width=width)


def _dashed(pen: ImageDraw.ImageDraw, corners: Float[np.ndarray, "2 2"]) -> None:
    """A box of black and white dashes, to be seen on any ground."""
    (left, top), (right, bottom) = corners.tolist()
    ring = np.array([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)])
    pen.line(ring.ravel().tolist(), fill="black", width=2 * _FINE)
    dash = 6 * _FINE
    for start, end in itertools.pairwise(ring):
        length = max(float(np.abs(end - start).max()), 1.0)
        for a in np.arange(0, length, 2 * dash) / length:
            b = min(a + dash / length, 1.0)
            ends = np.concatenate([start + a * (end - start), start + b * (end - start)])
            pen.line(ends.tolist(), fill="white", width=2 * _FINE)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)

"""Annotated images of a data set side by side on one sheet, to see at a glance whether masks lie where they should."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from maskdino_jax.data import Catalog, Dataset
from maskdino_jax.data.objects import Boxes
from maskdino_jax.data.objects import Segments as SegmentMap
from maskdino_jax.data.transforms import Draws, Example, jitter
from maskdino_jax.inference.results import Instances, Panoptic, PanopticSegment, Segments
from maskdino_jax.inference.visualize import draw

_WIDTH = 1600  # pixels
_ROW, _HIGHEST = 400, 480  # pixels of a row: about, and at most
_GAP, _CAPTION, _FONT = 12, 28, 16  # pixels
_WIDEST = 3.0  # width by height of a picture; wider ones leave paper above and below
_PAPER, _INK = (250, 250, 250), (40, 40, 40)
_READ = 4  # records tried for each picture, for some may be unreadable


def contact_sheet(
    dataset: Dataset, count: int = 15, *, style: str | None = None, records: Sequence[int] | None = None
) -> UInt8[np.ndarray, "h 1600 3"] | None:
    """`count` images with their annotations drawn and classes named; None if they cannot be read.

    Under each image stand its name, size and number of objects.

    Args:
        style: "panoptic", "instance", "semantic" or "detection", see `draw`; None: all that is annotated.
        records: those to choose from, in this order; None: all, in a random order that is always the same.

    Raises:
        ValueError: the annotations do not have what the style shows.
    """
    if records is None:
        records = np.random.default_rng(0).permutation(len(dataset)).tolist()
    rows = _rows(_readable(dataset, count, records))
    if not rows:
        return None
    strips = [_strip(dataset, row, style) for row in rows]
    return np.concatenate([np.full((_GAP, _WIDTH, 3), _PAPER, np.uint8), *strips])


def _readable(dataset: Dataset, count: int, records: Sequence[int]) -> list[tuple[int, float]]:
    """The first `count` records that can be read, and the shapes of their images, width by height."""
    found = []
    for record in records[: _READ * count]:
        try:
            height, width = dataset[record].image.shape[:2]
        except Exception:  # the check of each record has told about it
            continue
        found.append((record, min(width / height, _WIDEST)))
        if len(found) == count:
            break
    return found


def _rows(pictures: list[tuple[int, float]]) -> list[list[tuple[int, int, int]]]:
    """Records, widths and heights row by row: pictures of one height that fill the width, but for the last row."""
    rows: list[list[tuple[int, float]]] = []
    for picture in pictures:
        if rows and abs(_height([*rows[-1], picture]) - _ROW) < abs(_height(rows[-1]) - _ROW):
            rows[-1].append(picture)
        else:
            rows.append([picture])
    heights = [min(_height(row), _HIGHEST) for row in rows]
    return [
        [(record, max(int(shape * height), 1), int(height)) for record, shape in row]
        for row, height in zip(rows, heights, strict=True)
    ]


def _height(row: list[tuple[int, float]]) -> float:
    """Of pictures that fill the width of the sheet."""
    return (_WIDTH - _GAP * (len(row) + 1)) / sum(shape for _, shape in row)


def _strip(dataset: Dataset, row: list[tuple[int, int, int]], style: str | None) -> UInt8[np.ndarray, "h 1600 3"]:
    """One row with captions."""
    height = row[0][2]
    sheet = Image.new("RGB", (_WIDTH, height + _CAPTION + _GAP), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    left = _GAP
    for record, width, _ in row:
        example = dataset[record]
        tall, wide = example.image.shape[:2]
        caption = f"{dataset.file_name(record)}   {wide} x {tall}   {_count(example, dataset, style)}"
        picture = Image.fromarray(_picture(example, dataset, style, (height, width)))
        sheet.paste(picture, (left + (width - picture.width) // 2, (height - picture.height) // 2))
        pen.text((left, height + 4), _fitted(caption, width, font), font=font, fill=_INK)
        left += width + _GAP
    return np.asarray(sheet)


def _count(example: Example, dataset: Dataset, style: str | None) -> str:
    """How much is annotated."""
    if style == "semantic" or _by_class(dataset):
        number, one, several = len(np.unique(example.labels)), "class", "classes"
    elif style in ("instance", "detection"):
        number, one, several = int(example.is_thing.sum()), "object", "objects"
    else:
        number, one, several = len(example.labels), "object", "objects"
    return f"{number} {one if number == 1 else several}"


def _picture(
    example: Example, dataset: Dataset, style: str | None, room: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """The example drawn as large as `room` (height, width) allows."""
    height, width = example.image.shape[:2]
    factor = min(room[0] / height, room[1] / width)
    size = max(round(height * factor), 1), max(round(width * factor), 1)
    small = jitter(example, Draws(flip=False, scale=1.0, position=0.0), size)
    results = _as_results(small, dataset.catalog, _by_class(dataset))
    return draw(small.image, results, style=style, score_threshold=0, short_side=min(size))


def _by_class(dataset: Dataset) -> bool:
    """Whether the annotations count no objects: one region for each class."""
    return not {"instances", "panoptic"} & dataset.truths


def _as_results(example: Example, catalog: Catalog, by_class: bool) -> Segments:
    """The annotations as a perfect model would predict them. `by_class`: no object is counted."""
    if isinstance(example.objects, Boxes):
        boxes = example.objects.corners.astype(np.float32)
        everything = np.ones(len(boxes), bool)
        return Segments(catalog=catalog, instances=_instances(example, everything, boxes, None))
    size = example.image.shape[:2]
    rasters = [example.objects.raster(index) for index in range(len(example.labels))]
    masks = np.array([mask for mask, _ in rasters], bool).reshape(-1, *size)
    boxes = np.array([box for _, box in rasters], np.float32).reshape(-1, 4)
    seen = masks.any(axis=(1, 2))
    if not isinstance(example.objects, SegmentMap):
        return Segments(catalog=catalog, instances=_instances(example, np.ones_like(seen), boxes, masks))
    semantic = np.full(size, -1, np.int32)
    for mask, label in zip(masks, example.labels.tolist(), strict=True):
        semantic[mask] = label
    if by_class:
        return Segments(catalog=catalog, semantic=semantic)
    things = _instances(example, seen & example.is_thing, boxes, masks)
    return Segments(catalog=catalog, instances=things, panoptic=_panoptic(example, masks), semantic=semantic)


def _instances(
    example: Example,
    kept: Bool[np.ndarray, "n"],
    boxes: Float[np.ndarray, "n 4"],
    masks: Bool[np.ndarray, "n h w"] | None,
) -> Instances:
    """The objects that are `kept`; without masks they are detections."""
    fields = {
        "scores": np.ones(kept.sum(), np.float32),
        "labels": example.labels[kept].astype(np.int32),
        "queries": np.flatnonzero(kept).astype(np.int32),
        "boxes": boxes[kept],
    }
    if masks is None:
        return Instances(bits=None, width=0, **fields)
    return Instances.from_masks(masks[kept], **fields)


def _panoptic(example: Example, masks: Bool[np.ndarray, "n h w"]) -> Panoptic:
    ids, segments = np.zeros(example.image.shape[:2], np.int32), []
    for mask, label, is_thing in zip(masks, example.labels.tolist(), example.is_thing.tolist(), strict=True):
        if mask.any():
            number, area = len(segments) + 1, int(mask.sum())
            ids[mask] = number
            segments.append(PanopticSegment(id=number, label=label, is_thing=is_thing, score=1.0, area=area))
    return Panoptic(ids, tuple(segments))


def _fitted(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The end of a text that is too long: file names differ there."""
    if font.getlength(text) <= width:
        return text
    while font.getlength(f"...{text}") > width and len(text) > 1:
        text = text[1:]
    return f"...{text}"

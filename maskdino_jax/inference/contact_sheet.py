"""Annotated images of a data set side by side on one sheet, to see at a glance whether masks lie where they should."""

import numpy as np
from jaxtyping import UInt8
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


def contact_sheet(dataset: Dataset, count: int = 15) -> UInt8[np.ndarray, "h 1600 3"] | None:
    """`count` images with their masks or boxes drawn and classes named; None if they cannot be read.

    The choice is random but always the same. Under each image stand its name, size and number of objects.
    """
    rows = _rows(_readable(dataset, count))
    if not rows:
        return None
    strips = [_strip(dataset, row) for row in rows]
    return np.concatenate([np.full((_GAP, _WIDTH, 3), _PAPER, np.uint8), *strips])


def _readable(dataset: Dataset, count: int) -> list[tuple[int, float]]:
    """Records and the shapes of their images, width by height."""
    found = []
    for record in np.random.default_rng(0).permutation(len(dataset))[: _READ * count].tolist():
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


def _strip(dataset: Dataset, row: list[tuple[int, int, int]]) -> UInt8[np.ndarray, "h 1600 3"]:
    """One row with captions."""
    height = row[0][2]
    sheet = Image.new("RGB", (_WIDTH, height + _CAPTION + _GAP), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    left = _GAP
    for record, width, _ in row:
        example = dataset[record]
        tall, wide = example.image.shape[:2]
        what = ("class", "classes") if _by_class(dataset) else ("object", "objects")
        count = f"{len(example.labels)} {what[len(example.labels) != 1]}"
        caption = f"{dataset.file_name(record)}   {wide} x {tall}   {count}"
        picture = Image.fromarray(_picture(example, dataset, (height, width)))
        sheet.paste(picture, (left + (width - picture.width) // 2, (height - picture.height) // 2))
        pen.text((left, height + 4), _fitted(caption, width, font), font=font, fill=_INK)
        left += width + _GAP
    return np.asarray(sheet)


def _picture(example: Example, dataset: Dataset, room: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """The example drawn as large as `room` (height, width) allows."""
    height, width = example.image.shape[:2]
    factor = min(room[0] / height, room[1] / width)
    size = max(round(height * factor), 1), max(round(width * factor), 1)
    small = jitter(example, Draws(flip=False, scale=1.0, position=0.0), size)
    results = _as_results(small, dataset.catalog, _by_class(dataset))
    return draw(small.image, results, score_threshold=0, short_side=min(size))


def _by_class(dataset: Dataset) -> bool:
    """Whether the annotations count no objects: one region for each class."""
    return dataset.truths == frozenset({"semantic"})


def _as_results(example: Example, catalog: Catalog, by_class: bool) -> Segments:
    """The annotations as a perfect model would predict them. `by_class`: no object is counted, all are stuff."""
    objects = example.objects
    if isinstance(objects, SegmentMap):
        ids, segments = np.zeros(example.image.shape[:2], np.int32), []
        for index, label in enumerate(example.labels.tolist()):
            mask, _ = objects.raster(index)
            if mask.any():
                is_thing = bool(example.is_thing[index]) and not by_class
                ids[mask] = len(segments) + 1
                segments.append(
                    PanopticSegment(
                        id=len(segments) + 1, label=label, is_thing=is_thing, score=1.0, area=int(mask.sum())
                    )
                )
        return Segments(catalog=catalog, panoptic=Panoptic(ids, tuple(segments)))
    count = len(example.labels)
    fields = {
        "scores": np.ones(count, np.float32),
        "labels": example.labels.astype(np.int32),
        "queries": np.arange(count, dtype=np.int32),
    }
    if isinstance(objects, Boxes):
        boxes = objects.corners.astype(np.float32)
        return Segments(catalog=catalog, instances=Instances(boxes=boxes, bits=None, width=0, **fields))
    rasters = [objects.raster(index) for index in range(count)]
    masks = np.array([mask for mask, _ in rasters], bool).reshape(count, *example.image.shape[:2])
    boxes = np.array([box for _, box in rasters], np.float32).reshape(count, 4)
    return Segments(catalog=catalog, instances=Instances.from_masks(masks, boxes=boxes, **fields))


def _fitted(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The end of a text that is too long: file names differ there."""
    if font.getlength(text) <= width:
        return text
    while font.getlength(f"...{text}") > width and len(text) > 1:
        text = text[1:]
    return f"...{text}"

"""Write generated files so that an interruption at any time leaves none half written, and the next run goes on."""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from maskdino_jax.data.images import load_image
from maskdino_jax.data.masks import mask_box

_SECONDS_BETWEEN_LOGS = 15
_SOURCE = "file to make it of"

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """What became of the files in one folder, or of one file with them."""

    what: str  # path relative to the root
    new: int = 0
    kept: int = 0  # there already
    lacks: str = ""  # what would be needed to make them

    def __str__(self) -> str:
        outcome = f"left out, there is no {self.lacks}" if self.lacks else f"{self.new} made, {self.kept} there already"
        return f"{self.what}: {outcome}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PanopticImage:
    """One image in COCO's panoptic format."""

    image: dict[str, Any]  # its entry in "images"
    annotation: dict[str, Any]  # its entry in "annotations"
    pixels: UInt8[np.ndarray, "h w 3"]  # of the PNG: id = R + 256 G + 65536 B


def write_label_images(
    what: str, folder: Path, names: Sequence[str], make: Callable[[str], UInt8[np.ndarray, "h w"]]
) -> Made:
    """Write the images of these names that are not there yet; `make` gives the labels of one."""
    if not names:
        return Made(what=what, lacks=_SOURCE)
    missing = [name for name in names if not (folder / name).exists()]
    each(what, missing, lambda name: _write_image(folder / name, make(name)))
    return Made(what=what, new=len(missing), kept=len(names) - len(missing))


def write_panoptic(
    what: str, folder: Path, names: Sequence[str], make: Callable[[str], PanopticImage], categories: Iterable[Any]
) -> Made:
    """Write `folder` with a PNG for each name, and last the JSON of the same name beside it.

    So a JSON that is there means that all PNG are. Without it, a PNG that is there is kept if it has the right pixels;
    another tool may have made it, with other ids.

    Raises:
        ValueError: there is a JSON, but not each PNG that it names.
    """
    path = folder.with_name(f"{folder.name}.json")
    if path.exists():
        listed = [entry["file_name"] for entry in json.loads(path.read_text(encoding="utf-8"))["annotations"]]
        absent = [name for name in listed if not (folder / name).exists()]
        if absent:
            raise ValueError(
                f"{path} names {absent[0]} ({len(absent)} in all), which is not in {folder}. Remove the JSON, so that "
                "both are made anew, or restore the PNG."
            )
        return Made(what=what, kept=len(listed))
    if not names:
        return Made(what=what, lacks=_SOURCE)

    def write(name: str) -> tuple[dict[str, Any], dict[str, Any], bool]:
        made = make(name)
        place = folder / made.annotation["file_name"]
        fresh = not place.exists() or not np.array_equal(load_image(place), made.pixels)
        if fresh:
            _write_image(place, made.pixels)
        return made.image, made.annotation, fresh

    entries = each(what, names, write)
    content = {
        "images": [image for image, _, _ in entries],
        "annotations": [annotation for _, annotation, _ in entries],
        "categories": list(categories),
    }
    write_json(path, content)
    new = sum(fresh for _, _, fresh in entries)
    return Made(what=what, new=new, kept=len(entries) - new)


def write_json(path: Path, content: Any) -> None:
    """Write it whole or not at all."""
    _write(path, lambda file: file.write(json.dumps(content).encode()))


def segment(ids: Int[np.ndarray, "h w"], value: int, id: int, category_id: int, *, crowd: bool = False) -> dict:
    """An entry of segments_info for the pixels that have this value; the box has whole pixels, x, y, width, height."""
    mask = ids == value
    x0, y0, x1, y1 = map(int, mask_box(mask))
    return {
        "id": id,
        "category_id": category_id,
        "area": int(np.count_nonzero(mask)),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": int(crowd),
    }


def each(what: str, items: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """The results of `work` in order. Threads do it: Pillow decodes and encodes without holding Python back."""
    results, last = [], time.monotonic()
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for result in pool.map(work, items):
            results.append(result)
            if time.monotonic() - last > _SECONDS_BETWEEN_LOGS:
                last = time.monotonic()
                logger.info("%s: %d of %d", what, len(results), len(items))
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def _write_image(path: Path, pixels: UInt8[np.ndarray, "..."]) -> None:
    _write(path, lambda file: Image.fromarray(pixels).save(file, "PNG"))


def _write(path: Path, save: Callable[[IO[bytes]], Any]) -> None:
    """Under another name first: a name in its place means that the file is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        save(file)
    part.replace(path)

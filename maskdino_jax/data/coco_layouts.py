"""Recognise COCO JSON files and the images that belong to them, whatever the folders are called."""

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from maskdino_jax.config import SplitConfig
from maskdino_jax.data.files import read_bytes
from maskdino_jax.data.places import SPLITS, Layout, Place, split_of

_OTHER = ("keypoint", "caption", "image_info", "categories", "stuff", "prediction")  # in names of other COCO files
_MANY = 50  # JSON files in a place: more are one for each image
_ENTRY = 1_000_000  # bytes in which the first entry of a list ends
_KINDS = {"coco_panoptic": "COCO panoptic", "coco_instances": "COCO instances"}


@dataclasses.dataclass(frozen=True)
class _File:
    """A COCO JSON."""

    path: str  # in the place
    format: str
    image: str  # name of the first image
    png: str  # name of the first panoptic PNG
    folder: str = ""  # where the images are, relative to the root


def coco_layout(place: Place, prefer: str, notes: list[str]) -> Layout | None:
    """COCO annotations with their images in a place; None if there are none to train on.

    Args:
        prefer: the format to take where there are both.
        notes: told of files that were left aside.
    """
    files = defaultdict(list)
    for file in _usable(place, notes):
        files[file.format, split_of(file.path)].append(file)
    for format in sorted(_KINDS, key=lambda name: name != prefer):
        of_train, whole = files[format, "train"], files[format, None]
        if not of_train and len(whole) == 1:
            of_train = whole
        if not of_train:
            notes += [f"{place.path(file.path)}: of no split, beside others" for file in whole]
            continue
        train, val = of_train[0], next(iter(files[format, "val"]), None)
        of_instances = [file for (other, _), some in files.items() if other == "coco_instances" for file in some]
        splits = [_split(place, file, of_instances) if file else None for file in (train, val)]
        return Layout.of(*splits, kind=_KINDS[format], format=format)
    return None


def _usable(place: Place, notes: list[str]) -> Iterator[_File]:
    """The COCO files whose images are there, those with usual names first."""
    paths = list(place.files((".json",), depth=1))
    if len(paths) > _MANY:
        notes.append(f"{len(paths)} JSON files, too many for COCO, which has one for a split")
        return
    for path in sorted(paths, key=_rank):
        if any(word in Path(path).name.lower() for word in _OTHER):
            notes.append(f"{place.path(path)}: another kind of COCO file by its name")
            continue
        file = _recognise(place, path)
        if file is None:
            notes.append(f"{place.path(path)}: no COCO annotations")
            continue
        folder = place.first(_image_folders(path), file.image)
        if folder is None:
            notes.append(f"{place.path(path)}: {_KINDS[file.format]}, but its first image {file.image} is nowhere")
        elif file.format == "coco_panoptic" and _panoptic(place, path, file.png, folder) is None:
            notes.append(f"{place.path(path)}: COCO panoptic, but its first PNG {file.png} is nowhere")
        else:
            yield dataclasses.replace(file, folder=folder)


def _rank(path: str) -> tuple[bool, int, str]:
    usual = any(word in path for word in ("instances", "panoptic", "_annotations.coco"))
    return not usual, len(path), path


def _recognise(place: Place, path: str) -> _File | None:
    """Tell the kind of a file by what it holds; only the first entries of its lists are parsed."""
    content = read_bytes(place.find(path))
    image, entry = _first_entry(content, "images"), _first_entry(content, "annotations")
    if image is None or not isinstance(image.get("file_name"), str) or b'"categories"' not in content:
        return None
    if b'"segments_info"' in content:
        return _File(path, "coco_panoptic", image["file_name"], (entry or {}).get("file_name", ""))
    of_instances = entry is None or "bbox" in entry or "segmentation" in entry
    return _File(path, "coco_instances", image["file_name"], "") if of_instances else None


def _first_entry(content: bytes, table: str) -> dict | None:
    start = re.search(rb'"%s"\s*:\s*\[\s*(?=\{)' % table.encode(), content)
    if start is None:
        return None
    try:
        entry, _ = json.JSONDecoder().raw_decode(content[start.end() : start.end() + _ENTRY].decode("utf-8", "ignore"))
    except ValueError:  # a mask of one object may be longer
        return {"segmentation": []} if b'"segmentation"' in content[start.end() : start.end() + _ENTRY] else None
    return entry


def _split(place: Place, file: _File, instances: list[_File]) -> SplitConfig:
    """Panoptic annotations with the first of the instances JSON that speaks of the same images."""
    split = SplitConfig(images=file.folder, annotations=place.path(file.path))
    if file.format == "coco_panoptic":
        split.panoptic = _panoptic(place, file.path, file.png, file.folder)
        same = [entry for entry in instances if (entry.folder, entry.image) == (file.folder, file.image)]
        split.instances = place.path(same[0].path) if same else ""
    return split


def _words(path: str) -> list[str]:
    """What folders of the same split may be called: `instances_train2017.json` goes with train2017 or train."""
    stem = Path(path).stem
    tail = re.sub(r"^.*(instances|panoptic)_", "", stem)
    return list(dict.fromkeys([tail, *SPLITS.get(split_of(path), ()), tail.rpartition("_")[2], stem]))


def _image_folders(path: str) -> Iterator[str]:
    beside = Path(path).parent
    for word in _words(path):
        for pattern in ("{}", "images/{}", "{}/images", "{}/data", "imgs/{}", "img/{}", "data/{}"):
            yield pattern.format(word)
    for folder in ("", "images", "data", "imgs"):
        yield (beside / folder).as_posix()
    yield from ("images", "data", "imgs", "")


def _panoptic(place: Place, path: str, png: str, images: str) -> str | None:
    """The folder of the PNG; their names may be those of the images."""
    beside, stem = Path(path).parent.as_posix(), Path(path).stem
    candidates = [stem, f"{beside}/{stem}", "panoptic", f"{beside}/panoptic"]
    for word in _words(path):
        candidates += [f"panoptic_{word}", f"panoptic/{word}", f"{beside}/{word}", f"{word}/panoptic", f"masks/{word}"]
    return place.first((folder for folder in [*candidates, beside] if place.path(folder) != images), png)

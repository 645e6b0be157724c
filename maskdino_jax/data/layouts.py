"""Recognise how a user's data lie in a folder or a zip archive, so that its path is all that has to be given."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from maskdino_jax.config import SplitConfig
from maskdino_jax.data.class_lists import UNLABELLED, join_values
from maskdino_jax.data.coco_layouts import coco_layout
from maskdino_jax.data.files import names_below
from maskdino_jax.data.images import load_labels
from maskdino_jax.data.places import SPLITS, Layout, Place
from maskdino_jax.data.yolo import IMAGE_TYPES, label_path, read_yaml

_IMAGES = ("images", "image", "imgs", "img", "img_dir", "JPEGImages")
_LABELS = ("labels", "label", "masks", "mask", "annotations", "ann_dir", "gt", "SegmentationClass")
_CLASS_FILES = ("classes.txt", "classes.json")
_OF_ADE20K = ("objectInfo150.txt", "sceneCategories.txt")  # files of its official archive
_EXPECTED = """  COCO: annotations/instances_train.json or panoptic_train.json, images in train/; or a JSON beside them
  Roboflow: train/_annotations.coco.json beside its images, and the same in valid/
  YOLO: data.yaml, images/train/, labels/train/
  label images: images/train/ and labels/train/ or masks/train/ with PNG of the same names, and classes.txt
  ADE20K: images/training/, annotations/training/; Cityscapes: leftImg8bit/train/, gtFine/train/"""

logger = logging.getLogger(__name__)


def detect(root: Path, tasks: tuple[str, ...] = (), classes: str = "") -> Layout:
    """What lies in a folder or archive, or in the only folder in it.

    Args:
        tasks: what shall be learned; decides where there are several kinds of annotations.
        classes: as in `config.data.classes`; empty: look for a list or, without one, for the values of label images.

    Raises:
        ValueError: nothing that can be trained on; the message lists what was looked for and what is there.
    """
    prefer = "coco_instances" if tasks and set(tasks) <= {"instance", "detection"} else "coco_panoptic"
    notes: list[str] = []
    for place in Place.all_in(root):
        finders = {
            "yolo": lambda place=place: _yolo(place, notes),
            "coco": lambda place=place: coco_layout(place, prefer, notes),
            "semantic": lambda place=place: _semantic(place, classes),
        }
        for name in sorted(finders, key=lambda name: name != "semantic") if tasks == ("semantic",) else finders:
            found = finders[name]()
            if found is not None:
                return found
    there = [name for place in Place.all_in(root) for name in _contents(place)]
    raise ValueError(
        f"config.data.root = {str(root)!r}: no data set is recognised there. It holds "
        f"{', '.join(there[:20]) or 'nothing'}{', ...' if len(there) > 20 else ''}\n"
        + "".join(f"  {note}\n" for note in dict.fromkeys(notes))
        + f"Looked for:\n{_EXPECTED}\nPut the files into one of these layouts, or give config.data.format and the "
        "paths in config.data.train and config.data.val."
    )


def _contents(place: Place) -> list[str]:
    folders, files = place.children()
    return [place.path(name) for name in [*folders, *files]]


def _yolo(place: Place, notes: list[str]) -> Layout | None:
    """A data.yaml with its folders, or images/, labels/ with text files, and classes.txt."""
    for path in sorted(place.files((".yaml", ".yml")), key=lambda name: name != "data.yaml"):
        try:
            content = read_yaml(place.find(path))
        except ValueError as error:
            notes.append(str(error))
            continue
        if not {"names", "nc"} & content.keys() or "train" not in content:
            notes.append(f"{place.path(path)}: no data.yaml of YOLO, which has names and train")
            continue
        train = _listed(place, content, "train")
        if train is None:
            notes.append(f"{place.path(path)}: train is {content['train']!r}, which is not there")
            continue
        val = next((found for key in SPLITS["val"] if (found := _listed(place, content, key))), None)
        return _yolo_layout(place.path(path), train, val)
    if not place.find("classes.txt"):
        return None
    folders = {split: place.first(_split_folders("images", split)) for split in ("train", "val")}
    train, val = folders["train"] or place.first(["images"]), folders["val"]
    if train is None or not _has_objects(Place(place.root, "").find(train)):
        return None
    return _yolo_layout(place.path("classes.txt"), train, val)


def _listed(place: Place, content: dict, key: str) -> str | None:
    """The folder or list of images that a data.yaml names, relative to the root; None if it is not there.

    The paths are often those of another computer, or go one folder too far up: the longest end of them that is there
    is meant.
    """
    value = content.get(key)
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(value, list):
        raise ValueError(
            f"{place.root}: {key} in the data.yaml is a list of {len(value)} folders: give one, or a .txt that lists "
            "the images."
        )
    if not isinstance(value, str):
        return None
    whole = Path(str(content.get("path") or ""), value)
    parts = [part for part in whole.parts if part not in (".", "..", whole.anchor)]
    found = place.first("/".join(parts[start:]) for start in range(len(parts)))
    return found or (str(whole) if whole.is_absolute() and whole.exists() else None)


def _yolo_layout(names: str, train: str, val: str | None) -> Layout:
    splits = [SplitConfig(images=images, annotations=names) if images else None for images in (train, val)]
    return Layout.of(*splits, kind=f"YOLO with {names}", format="yolo")


def _has_objects(images: Path) -> bool:
    """Whether there are text files of objects for a folder of images, in a folder of their own."""
    labels = label_path(images, "a.jpg").parent
    return labels != images and bool(names_below(labels, (".txt",)))


def _semantic(place: Place, classes: str) -> Layout | None:
    """Folders of images and of label PNG; those of ADE20K and Cityscapes have a class list that comes along."""
    if place.find("leftImg8bit/train") and place.find("gtFine/train"):
        splits = [
            SplitConfig(images=place.path("leftImg8bit", split), semantic=place.path("gtFine", split))
            for split in ("train", "val")
        ]
        return Layout.of(*splits, kind="Cityscapes", format="semantic", classes="cityscapes")
    splits = {split: _pair(place, split) for split in ("train", "val")}
    train = splits["train"] or _pair(place, None)
    if train is None:
        return None
    val = splits["val"]
    if any(place.find(name) for name in _OF_ADE20K) or Path(place.path()).name == "ADEChallengeData2016":
        return Layout.of(train, val, kind="ADE20K", format="semantic", classes="ade20k")
    why = ""
    found = classes or place.first(_CLASS_FILES)
    if not found:
        found, why = _values(place.root, [split for split in (train, val) if split])
    return Layout.of(train, val, why, kind="label images", format="semantic", classes=found)


def _pair(place: Place, split: str | None) -> SplitConfig | None:
    """A folder of images with one of label PNG."""
    for images in _IMAGES:
        for folder in _split_folders(images, split):
            if place.find(folder) is None:
                continue
            for labels in _LABELS:
                beside = folder.replace(images, labels)
                if place.find(beside) and _holds_labels(place, folder, beside):
                    return SplitConfig(images=place.path(folder), semantic=place.path(beside))
    return None


def _split_folders(folder: str, split: str | None) -> Iterator[str]:
    if split is None:
        yield folder
    for word in SPLITS.get(split, ()):
        yield f"{folder}/{word}"
        yield f"{word}/{folder}"


def _holds_labels(place: Place, images: str, labels: str) -> bool:
    """Whether there is a label PNG for an image."""
    named = {Path(name).with_suffix("").as_posix() for name in names_below(place.find(images), IMAGE_TYPES)}
    return any(Path(name).with_suffix("").as_posix() in named for name in names_below(place.find(labels), (".png",)))


def _values(root: Path, splits: list[SplitConfig]) -> tuple[str, str]:
    """The values in all label images as a list of classes, and a sentence about it."""
    paths = [
        path / name
        for split in splits
        for path in [Place(root, "").find(split.semantic)]
        for name in names_below(path, (".png",))
    ]
    logger.info("no classes.txt: looking for the values in %d label images", len(paths))
    with ThreadPoolExecutor() as pool:
        found = set().union(*pool.map(lambda path: np.unique(load_labels(path)).tolist(), paths))
    if found <= {0, UNLABELLED}:
        return join_values(found), "The label images have values 0 and 255 only, so that 255 is a class."
    return (
        join_values(found - {UNLABELLED}),
        "There is no classes.txt: the values in the label images are the classes, and 255 is unlabelled.",
    )

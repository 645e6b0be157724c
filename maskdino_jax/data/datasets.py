"""Open the data set that a config describes."""

import dataclasses
import logging
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from maskdino_jax.config import ConfigError, DataConfig
from maskdino_jax.data.annotations import Record, read_instances, read_json, read_panoptic
from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.class_lists import class_list
from maskdino_jax.data.coco import CocoDataset
from maskdino_jax.data.dataset import Dataset
from maskdino_jax.data.faults import EMPTY_IMAGE, Faults, Report, stop
from maskdino_jax.data.files import find, is_folder
from maskdino_jax.data.layouts import detect
from maskdino_jax.data.semantic import SemanticDataset
from maskdino_jax.data.tfds_source import open_tfds
from maskdino_jax.data.yolo import Yolo, ignore

_SAMPLES = Path(__file__).parent / "samples" / "nuclei"
_TASKS = {  # what the annotations of a format can teach, and the variant of configs/custom.py for it
    "coco_panoptic": ({"instance", "detection", "panoptic", "semantic"}, "panoptic"),
    "coco_instances": ({"instance", "detection"}, "instance"),
    "yolo": ({"instance", "detection"}, "instance"),
    "semantic": ({"semantic"}, "semantic"),
}
_PARTS = 10  # one of them is the validation split of data that have none

logger = logging.getLogger(__name__)

T = TypeVar("T")


def recognize(data: DataConfig, tasks: tuple[str, ...] = ()) -> DataConfig:
    """`data` with format, classes and splits spelled out if its format is "auto"; else as it is.

    Args:
        tasks: what the model shall learn, see `config.inference.tasks`; where a folder has several kinds of
            annotations, it decides between them.

    Raises:
        ConfigError: the annotations in `data.root` cannot teach the tasks.
        FileNotFoundError: there is no such root.
        ValueError: nothing known lies there.
    """
    if data.format != "auto":
        return data
    root = _root(data)
    found = detect(root, tasks, data.classes)
    known, variant = _TASKS[found.format]
    if not set(tasks) <= known:
        raise ConfigError(
            f"config.inference.tasks = {tasks!r}: {root} holds {found.kind}. Take configs/custom.py:{variant}, or give "
            f"some of {', '.join(sorted(known))}."
        )
    logger.info("%s: %s", root, found)
    return dataclasses.replace(
        data, format=found.format, classes=data.classes or found.classes, train=found.train, val=found.val
    )


def open_dataset(data: DataConfig, split: str, *, masks: bool = True, report: Report | None = None) -> Dataset:
    """The "train" or "val" split of the data set that `data` describes.

    For training on instances, images without an object are left out, as in the reference; training on other formats
    and validation keep every image.

    Args:
        masks: False: COCO instances are read as boxes; "segmentation" need not be there and is not looked at.
        report: told of each faulty entry, see `faults`. None: they are left out of training, with a log of their
            number, if `config.data.on_error` is "skip"; else the first one is an error.

    Raises:
        FileNotFoundError: a path is missing; the message names the option.
        ValueError: an annotation file is no COCO file, contradicts itself or has other classes than
            `config.data.classes`; an image has no labels.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split = {split!r}: choose train or val.")
    if report is None and data.on_error == "skip" and split == "train":
        faults = Faults()
        dataset = open_dataset(data, split, masks=masks, report=faults)
        faults.log_left_out(str(dataset.annotations))
        return dataset
    report = report or stop
    data, root = recognize(data), _root(data)
    if data.format == "tfds":
        return open_tfds(data, split, masks)
    paths = getattr(data, split)
    path = lambda field: _existing(root, getattr(paths, field), f"config.data.{split}.{field}")
    if data.format == "semantic":
        classes = class_list(data.classes, root)
        dataset = SemanticDataset.read(path("images"), path("semantic"), classes, report=report)
        return dataclasses.replace(dataset, pairs=_part(dataset.pairs, lambda pair: pair[0], paths.part))
    images, annotations = path("images"), path("annotations")
    places = {"panoptic_dir": None, "instances_json": annotations, "load": read_json}
    if data.format == "coco_panoptic":
        places["panoptic_dir"] = path("panoptic")
        places["instances_json"] = path("instances") if paths.instances else None
        catalog, records = read_panoptic(annotations, report=report)
    else:
        load = places["load"]
        if data.format == "yolo":
            load = Yolo(images=images, masks=masks, report=report)
            images, places["load"] = load.folder, dataclasses.replace(load, report=ignore)
        catalog, records = read_instances(annotations, masks, load=load, report=report)
    records = _part(records, lambda record: record.file_name, paths.part)
    if split == "train" and data.format != "coco_panoptic":
        records = tuple(record for record in records if _has_objects(record, annotations, report))
    if not records:
        raise ValueError(f"{annotations}: no image has an object to train on. Annotate some, or give another file.")
    if data.classes:
        catalog = _named(data.classes, root, catalog, annotations)
    return CocoDataset(catalog=catalog, images=images, annotations=annotations, records=records, masks=masks, **places)


def _has_objects(record: Record, annotations: Path, report: Report) -> bool:
    if record.annotations:
        return True
    report(EMPTY_IMAGE, f"{annotations}: image {record.image_id} ({record.file_name}) has no object to train on.")
    return False


def _part(entries: Sequence[T], name: Callable[[T], str], part: str) -> tuple[T, ...]:
    """All entries, about a tenth of them by a hash of the image's name, or the rest; neither is ever empty.

    The copies of one picture that Roboflow augments, `NAME.rf.HASH.jpg`, stay together.
    """
    if part == "all":
        return tuple(entries)
    hashes = [zlib.crc32(name(entry).partition(".rf.")[0].encode()) for entry in entries]
    if len(set(hashes)) < 2:
        raise ValueError(
            "there are less than two pictures, so that none can be held back for validation. Give more of them, or "
            "config.data.val and config.data.train.part=all."
        )
    tenth = [value % _PARTS == 0 for value in hashes]
    if not any(tenth) or all(tenth):
        tenth = [value == min(hashes) for value in hashes]
    return tuple(entry for entry, inside in zip(entries, tenth, strict=True) if inside == (part == "tenth"))


def _named(classes: str, root: Path, found: Catalog, annotations: Path) -> Catalog:
    """The list that the config names, which has colours also where the file has none."""
    named = class_list(classes, root).catalog
    here, there = ({entry.id: entry.name for entry in catalog.categories} for catalog in (found, named))
    for id in sorted(here.keys() | there.keys()):
        if here.get(id) != there.get(id):
            say = lambda names, id=id: repr(names[id]) if id in names else "missing"
            raise ValueError(
                f"{annotations}: category {id} is {say(here)}, but {say(there)} in config.data.classes = {classes!r}. "
                "Correct the file, or leave config.data.classes empty to take the classes from it."
            )
    return named


def _root(data: DataConfig) -> Path:
    if not data.root:
        return _SAMPLES
    root = Path(data.root).expanduser()
    if not is_folder(root):
        raise FileNotFoundError(
            f"config.data.root = {data.root!r}: no such folder or zip archive. Give the one that holds the data set, "
            "or leave it empty for the nuclei images that come with the package."
        )
    return root


def _existing(root: Path, relative: str, option: str) -> Path:
    path = find(root, relative) if relative else None
    if path is None:
        raise FileNotFoundError(
            f"{option} = {relative!r}: there is no {root / relative}, also not in a zip archive there. Give a path "
            f"relative to config.data.root = {str(root)!r}."
        )
    return path

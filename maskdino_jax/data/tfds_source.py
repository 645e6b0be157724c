"""Open data sets of TensorFlow Datasets that were prepared as ArrayRecord.

What a data set teaches is seen in its features, whatever its name:

- `panoptic_image` and `panoptic_objects`, as in `coco/2017_panoptic`: segments;
- `objects`, as in `coco/2017`: boxes, for there are no masks;
- `annotation` with three channels, as in `scene_parse150`, which has the `annotations_instance` of ADE20K: objects;
- `annotation` with one channel: label images.

No more than one record is read here, so that a data set opens at once whatever its size.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from maskdino_jax.config import ConfigError, DataConfig
from maskdino_jax.data import ade20k
from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.class_lists import ClassList, class_list
from maskdino_jax.data.images import Encoded
from maskdino_jax.data.tfds_dataset import (
    UNKNOWN,
    TfdsBoxes,
    TfdsDataset,
    TfdsInstances,
    TfdsPanoptic,
    TfdsSemantic,
    builder,
    source,
)

_INFO = "dataset_info.json"  # in the folder of every data set


def open_tfds(data: DataConfig, split: str, masks: bool) -> TfdsDataset:
    """The "train" or "val" split of `data`, which names it as `FOLDER:SPLIT` in `annotations`.

    Args:
        masks: whether masks are needed; see `open_dataset`.

    Raises:
        ConfigError: the option is no such name, the package is missing, or the data set cannot teach what is wanted.
        FileNotFoundError: there is no prepared data set.
        ValueError: it has unknown classes.
    """
    option = f"config.data.{split}.annotations"
    paths = getattr(data, split)
    folder, _, name = paths.annotations.partition(":")
    if not folder or not name:
        raise ConfigError(
            f"{option} = {paths.annotations!r}: give folder and split of a TFDS data set relative to config.data.root, "
            "such as coco/2017_panoptic/1.1.0:train or ...:train[:90%]."
        )
    if paths.part != "all":
        raise ConfigError(f"config.data.{split}.part = {paths.part!r}: give all; TFDS cuts splits by :train[:90%].")
    place = _prepared(Path(data.root).expanduser(), folder, option)
    features = builder(place, os.getpid()).info.features
    try:
        records = source(place, name, os.getpid())
    except (ValueError, NotImplementedError) as error:  # of the split, or of the file format
        raise ConfigError(
            f"{option} = {paths.annotations!r}: {error} Data sets are prepared for random access with "
            "`tfds build NAME --file_format=array_record`."
        ) from error
    kind = _kind(place, set(features), records)
    if masks != (kind is not TfdsBoxes) and (masks or split == "train"):
        lacks = "has boxes but no masks" if masks else "teaches masks"
        raise ConfigError(
            f"{option} = {paths.annotations!r} {lacks}, and config.model.masks decides what is learned: boxes alone, "
            "with config.model.masks=False and the task detection, are in coco/2017; masks in coco/2017_panoptic."
        )
    catalog, of_values = _classes(kind, data.classes, Path(data.root).expanduser(), features, place)
    return kind(folder=place, split=name, catalog=catalog, of_values=of_values)


def _prepared(root: Path, folder: str, option: str) -> Path:
    place = root / folder
    if not (place / _INFO).is_file():
        found = sorted(
            path.parent.relative_to(root).as_posix() for n in (2, 3) for path in root.glob(f"{'*/' * n}{_INFO}")
        )
        raise FileNotFoundError(
            f"{option} = {folder!r}: there is no {place / _INFO}. Give the folder of one version relative to "
            f"config.data.root = {str(root)!r}; it holds {', '.join(found) or 'no prepared data set'}."
        )
    return place


def _kind(folder: Path, features: set[str], records: Sequence[Mapping[str, Any]]) -> type[TfdsDataset]:
    if {"image", "panoptic_image", "panoptic_objects"} <= features:
        return TfdsPanoptic
    if {"image", "objects"} <= features:
        return TfdsBoxes
    if {"image", "annotation"} <= features:
        with Image.open(Encoded(f"{folder}: annotation", records[0]["annotation"]).open()) as first:
            return TfdsSemantic if first.mode in ("L", "P") else TfdsInstances
    raise ConfigError(
        f"{folder} has the features {', '.join(sorted(features))}. Give a data set with image and one of "
        "panoptic_image and panoptic_objects (coco/2017_panoptic), objects (coco/2017) or annotation (scene_parse150)."
    )


def _classes(
    kind: type[TfdsDataset], classes: str, root: Path, features: Mapping[str, Any], folder: Path
) -> tuple[Catalog, tuple[int, ...]]:
    """The classes, and for each label of the data set the position of its class; TFDS keeps names, but no ids."""
    if kind is TfdsInstances:
        return Catalog.from_coco(ade20k.things()), ()
    if kind is TfdsSemantic:
        return _of_pixels(class_list(classes or "ade20k", root))
    classes = classes or ("coco_panoptic" if kind is TfdsPanoptic else "coco_instances")
    catalog = class_list(classes, root).catalog
    names = features["panoptic_objects" if kind is TfdsPanoptic else "objects"].feature["label"].names
    positions = {name: position for position, name in enumerate(catalog.names)}
    unknown = [name for name in names if name not in positions]
    if unknown:
        raise ValueError(
            f"{folder}: its class {unknown[0]!r} ({len(unknown)} in all) is none of config.data.classes = {classes!r}. "
            'Give a JSON file with "categories" that has the names of this data set.'
        )
    return catalog, tuple(positions[name] for name in names)


def _of_pixels(classes: ClassList) -> tuple[Catalog, tuple[int, ...]]:
    of_values = dict.fromkeys(classes.unlabelled, classes.catalog.num_classes)
    of_values |= {value: position for position, value in enumerate(classes.values)}
    return classes.catalog, tuple(of_values.get(value, UNKNOWN) for value in range(256))

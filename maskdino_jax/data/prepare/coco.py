"""COCO: label images of the panoptic annotations, with which other tools measure mIoU."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from maskdino_jax.data.annotations import Record, read_panoptic
from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.files import find
from maskdino_jax.data.images import load_ids
from maskdino_jax.data.label_maps import index_map
from maskdino_jax.data.prepare.writing import Made, write_label_images

YEARS = ("train2017", "val2017")
_UNLABELLED = 255


def prepare(root: Path) -> Iterator[Made]:
    """`panoptic_semseg_{train,val}2017/`: the contiguous class of each pixel, crowds included, 255 where none is."""
    for year in YEARS:
        path, folder = find(root, f"annotations/panoptic_{year}.json"), find(root, f"panoptic_{year}")
        what = f"panoptic_semseg_{year}"
        if path is None or folder is None:
            yield Made(what=what, lacks=f"annotations/panoptic_{year}.json with panoptic_{year}/")
            continue
        catalog, records = read_panoptic(path)
        of_names = {record.panoptic_name: record for record in records}
        make = functools.partial(_labels, folder, catalog, of_names)
        yield write_label_images(what, root / what, tuple(of_names), make)


def _labels(folder: Path, catalog: Catalog, records: Mapping[str, Record], name: str) -> UInt8[np.ndarray, "h w"]:
    segments = records[name].annotations
    classes = [catalog.index(segment["category_id"]) for segment in segments]
    positions, _ = index_map(load_ids(folder / name), [segment["id"] for segment in segments])
    return np.array([*classes, _UNLABELLED], np.uint8)[positions]

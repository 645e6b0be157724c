"""The true objects of each image in COCO's form, ready to compare with detections."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from pycocotools import mask as coco_mask

from maskdino_jax.data.dataset import Dataset
from maskdino_jax.evaluation.regions import truth
from maskdino_jax.inference.results import encode

Entry = dict[str, Any]

logger = logging.getLogger(__name__)


class Objects(Protocol):
    """Ground truth of average precision."""

    categories: Sequence[Mapping[str, Any]]  # with "id" and "name"

    def __getitem__(self, image_id: int | str) -> list[Entry]:
        """`category_id`, `iscrowd`, `area`, `bbox` and, if masks are compared, `segmentation` as run lengths."""
        ...


class Annotated:
    """Objects of an instances JSON."""

    def __init__(self, content: Mapping[str, Any], masks: bool) -> None:
        """`masks`: False leaves the segmentations out."""
        self.categories = content["categories"]
        self._masks = masks
        self._sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        self._entries = defaultdict(list)
        for entry in content["annotations"]:
            self._entries[entry["image_id"]].append(entry)

    def require(self, dataset: Dataset) -> None:
        """Raises `ValueError` if an image of the data set is missing."""
        for record in range(len(dataset)):
            if dataset.image_id(record) not in self._sizes:
                raise ValueError(
                    f"the instances of {dataset!r} lack its image {dataset.image_id(record)!r}: give "
                    "config.data.val.instances of the same split, or leave it empty."
                )

    def __getitem__(self, image_id: int | str) -> list[Entry]:
        return [self._complete(entry) for entry in self._entries.get(image_id, [])]

    def _complete(self, entry: Mapping[str, Any]) -> Entry:
        """Area and box are those of the annotation where it has them; else of its mask, or of its box."""
        made = {key: entry[key] for key in ("category_id", "area", "bbox") if key in entry}
        made["iscrowd"] = int(bool(entry.get("iscrowd", 0)))
        if "segmentation" in entry and (self._masks or not {"area", "bbox"} <= made.keys()):
            made["segmentation"] = run_lengths(entry["segmentation"], self._sizes[entry["image_id"]])
            made.setdefault("area", float(coco_mask.area(made["segmentation"])))
            made.setdefault("bbox", coco_mask.toBbox(made["segmentation"]).tolist())
        made.setdefault("area", float(made["bbox"][2] * made["bbox"][3]))
        return made


def run_lengths(segmentation: Any, size: Sequence[int]) -> Entry:
    """Compressed run lengths of polygons or of any run lengths."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, *size)
    return segmentation


class Painted:
    """Objects made of the thing segments of panoptic annotations."""

    def __init__(self, dataset: Dataset) -> None:
        logger.info("no instances JSON: box and mask AP are measured against the thing segments of the panoptic PNG")
        self._dataset = dataset
        self._records = {dataset.image_id(record): record for record in range(len(dataset))}
        things = [entry for entry in dataset.catalog.categories if entry.is_thing]
        self.categories = [{"id": entry.id, "name": entry.name} for entry in things]

    def __getitem__(self, image_id: int | str) -> list[Entry]:
        regions, catalog = truth(self._dataset, self._records[image_id]), self._dataset.catalog
        kept = np.flatnonzero(catalog.is_thing[regions.labels])
        runs = encode(regions.ids == regions.segment_ids[kept, None, None])
        return [
            {
                "category_id": catalog.categories[regions.labels[position]].id,
                "iscrowd": int(regions.crowd[position]),
                "segmentation": segmentation,
                "area": float(coco_mask.area(segmentation)),
                "bbox": coco_mask.toBbox(segmentation).tolist(),
            }
            for position, segmentation in zip(kept, runs, strict=True)
        ]


def objects_of(dataset: Dataset, masks: bool) -> Objects:
    """The truth of a data set: its instances, or the things of its panoptic maps.

    Raises:
        ValueError: the instances lack an image of the data set.
    """
    content = dataset.instances_truth()
    if content is None:
        return Painted(dataset)
    annotated = Annotated(content, masks)
    annotated.require(dataset)
    return annotated

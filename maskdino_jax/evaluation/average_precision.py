"""COCO average precision of boxes and masks, computed by pycocotools."""

import contextlib
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskdino_jax.data.dataset import Dataset
from maskdino_jax.evaluation.regions import truth
from maskdino_jax.inference.results import Instances, encode, to_coco

KINDS = ("bbox", "segm")
_SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # the first of COCOeval.stats
_ALL_AREAS, _HUNDRED_DETECTIONS = 0, -1  # places on the last axes of COCOeval's precision

logger = logging.getLogger(__name__)


class AveragePrecision:
    """Collects the instances of a data set, and writes them as a COCO result file if given a folder.

    `add` may be called from several threads.
    """

    def __init__(self, dataset: Dataset, output_dir: Path | None = None, kinds: tuple[str, ...] = KINDS):
        """`kinds`: what is compared with the truth, boxes (`bbox`) and masks (`segm`)."""
        self._kinds = kinds
        self._dataset = dataset
        self._output_dir = output_dir
        self._results: dict[int, list[dict[str, Any]]] = {}  # of each record

    def add(self, record: int, result: Instances) -> None:
        """Keep the results of one image in COCO's form."""
        image_id, catalog = self._dataset.image_id(record), self._dataset.catalog
        self._results[record] = [{"image_id": image_id} | entry for entry in to_coco(result, catalog)]

    def compute(self) -> dict[str, float]:
        """All metrics, see `average_precision`; writes `instances_predictions.json`."""
        results = [entry for _, entries in sorted(self._results.items()) for entry in entries]
        if self._output_dir is not None:
            (self._output_dir / "instances_predictions.json").write_text(json.dumps(results))
        content = self._dataset.instances_truth()
        if content is None:
            content = _truth_of_segments(self._dataset)
        else:
            _require_images(content, self._dataset)
        image_ids = [self._dataset.image_id(record) for record in range(len(self._dataset))]
        return average_precision(content, results, image_ids, self._kinds)


def average_precision(
    content: dict[str, Any],
    results: Sequence[dict[str, Any]],
    image_ids: Iterable[int | str],
    kinds: tuple[str, ...] = KINDS,
) -> dict[str, float]:
    """AP of boxes (`bbox/`) and masks (`segm/`) as fractions of one, at most 100 detections for each image.

    The keys are AP, AP50, AP75, APs, APm, APl and AP-<name> of each class. What the ground truth has no object for,
    such as large objects or a class, is left out.

    Args:
        content: a COCO instances file; results: entries of a COCO result file; image_ids: the images that count.
        kinds: with `bbox` alone, neither needs a "segmentation".
    """
    expected = _index(
        content | {"annotations": [_complete(entry, n) for n, entry in _numbered(content["annotations"])]}
    )
    for entry in expected.anns.values():
        if "segmentation" not in entry:
            entry.setdefault("area", float(entry["bbox"][2] * entry["bbox"][3]))
        elif not {"area", "bbox"} <= entry.keys():
            run_lengths = expected.annToRLE(entry)
            entry.setdefault("area", float(coco_mask.area(run_lengths)))
            entry.setdefault("bbox", coco_mask.toBbox(run_lengths).tolist())
    image_ids = list(image_ids)
    return {name: value for kind in kinds for name, value in _evaluate(expected, results, image_ids, kind).items()}


def _evaluate(expected: COCO, results: Sequence[dict[str, Any]], image_ids: list, kind: str) -> dict[str, float]:
    """Areas of detections, which decide about the size ranges, are those of the box or of the mask respectively."""
    found = []
    for number, entry in _numbered(results):
        if kind == "bbox":
            shape = {"bbox": entry["bbox"], "area": entry["bbox"][2] * entry["bbox"][3]}
        else:
            shape = {"segmentation": entry["segmentation"], "area": float(coco_mask.area(entry["segmentation"]))}
        keys = {key: entry[key] for key in ("image_id", "category_id", "score")}
        found.append(shape | keys | {"id": number, "iscrowd": 0})
    tables = {"images": expected.dataset["images"], "categories": expected.dataset["categories"]}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation = COCOeval(expected, _index(tables | {"annotations": found}), kind)
        evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = dict(zip(_SUMMARY, evaluation.stats.tolist(), strict=False))
    for position, category_id in enumerate(evaluation.params.catIds):
        precision = evaluation.eval["precision"][:, :, position, _ALL_AREAS, _HUNDRED_DETECTIONS]
        metrics[f"AP-{expected.cats[category_id]['name']}"] = float(precision.mean())
    return {f"{kind}/{name}": value for name, value in metrics.items() if value >= 0}  # -1: no object


def _index(content: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _numbered(entries: Iterable[dict[str, Any]]) -> Iterable[tuple[int, dict[str, Any]]]:
    return enumerate(entries, 1)


def _complete(entry: dict[str, Any], number: int) -> dict[str, Any]:
    """A copy for COCOeval to write into. Ids are renewed: it takes an object whose id is 0 for unmatched."""
    return entry | {"id": number, "iscrowd": entry.get("iscrowd", 0)}


def _require_images(content: Mapping[str, Any], dataset: Dataset) -> None:
    """Raises `ValueError` if the truth lacks an image of the data set."""
    known = {image["id"] for image in content["images"]}
    for record in range(len(dataset)):
        if dataset.image_id(record) not in known:
            raise ValueError(
                f"the instances of {dataset!r} lack its image {dataset.image_id(record)!r}: give "
                "config.data.val.instances of the same split, or leave it empty."
            )


def _truth_of_segments(dataset: Dataset) -> dict[str, Any]:
    """Objects made of the thing segments of the panoptic annotations, in the form of an instances JSON."""
    logger.info("no instances JSON: box and mask AP are measured against the thing segments of the panoptic PNG")
    catalog = dataset.catalog
    things = [entry for entry in catalog.categories if entry.is_thing]
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": entry.id, "name": entry.name} for entry in things],
    }
    for record in range(len(dataset)):
        regions = truth(dataset, record)
        height, width = regions.ids.shape
        content["images"].append({"id": dataset.image_id(record), "height": height, "width": width})
        kept = np.flatnonzero(catalog.is_thing[regions.labels])
        masks = regions.ids == regions.segment_ids[kept, None, None]
        for position, run_lengths in zip(kept, encode(masks), strict=True):
            content["annotations"].append(
                {
                    "image_id": dataset.image_id(record),
                    "category_id": catalog.categories[regions.labels[position]].id,
                    "iscrowd": int(regions.crowd[position]),
                    "segmentation": run_lengths,
                }
            )
    return content

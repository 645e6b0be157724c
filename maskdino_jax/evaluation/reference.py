"""Average precision by pycocotools, the reference: slower, and all detections stay in memory."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskdino_jax.evaluation.objects import Objects
from maskdino_jax.evaluation.precision import SUMMARY

_ALL_AREAS, _HUNDRED_DETECTIONS = 0, -1  # places on the last axes of COCOeval's precision


def score(
    objects: Objects, results: Sequence[Mapping[str, Any]], image_ids: Sequence[int | str], kind: str
) -> dict[str, float]:
    """AP of `bbox` or `segm`, see `average_precision.average_precision`.

    Areas of detections, which decide about the size ranges, are those of the box or of the mask respectively, unless
    they are given. Ids of objects are renewed: COCOeval takes an object whose id is 0 for unmatched.
    """
    expected = [entry | {"image_id": image_id} for image_id in image_ids for entry in objects[image_id]]
    found = []
    for entry in results:
        if kind == "bbox":
            shape = {"bbox": entry["bbox"], "area": entry["bbox"][2] * entry["bbox"][3]}
        else:
            shape = {"segmentation": entry["segmentation"], "area": float(coco_mask.area(entry["segmentation"]))}
        given = {key: entry[key] for key in ("image_id", "category_id", "score", "area") if key in entry}
        found.append(shape | given | {"iscrowd": 0})
    images = [{"id": image_id, "height": 0, "width": 0} for image_id in image_ids]  # sizes are in the run lengths
    tables = {"images": images, "categories": list(objects.categories)}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation = COCOeval(_index(tables, expected), _index(tables, found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = dict(zip(SUMMARY, evaluation.stats.tolist(), strict=True))
    names = {category["id"]: category["name"] for category in objects.categories}
    for position, category_id in enumerate(evaluation.params.catIds):
        precision = evaluation.eval["precision"][:, :, position, _ALL_AREAS, _HUNDRED_DETECTIONS]
        metrics[f"AP-{names[category_id]}"] = float(precision.mean())
    return {name: value for name, value in metrics.items() if value >= 0}  # -1: no object


def _index(tables: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {**tables, "annotations": [{**entry, "id": number} for number, entry in enumerate(entries, 1)]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco

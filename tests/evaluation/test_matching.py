"""The fast evaluator gives the numbers of pycocotools, bit for bit, whatever comes."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskdino_jax.evaluation.matching import Candidates, assign, boxes_overlap, candidates, masks_overlap
from maskdino_jax.evaluation.precision import Curves, curves

Entry = dict[str, Any]
SIDE = 200  # of every image
CATEGORIES = (1, 3, 7, 90)  # of which the last has no object
OVERLAP = {"bbox": boxes_overlap, "segm": masks_overlap}


def rectangle(x: float, y: float, width: float, height: float) -> Entry:
    """Box and mask; the mask is cut off at the image."""
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    mask[max(int(y), 0) : int(y + height) + 1, max(int(x), 0) : int(x + width) + 1] = 1
    return {"bbox": [x, y, width, height], "segmentation": coco_mask.encode(mask)}


def scene(seed: int, most: int) -> tuple[list[int], list[Entry], list[Entry]]:
    """Image ids with gaps, objects and detections: crowds, tied scores and overlaps, empty images, other classes."""
    rng = np.random.default_rng(seed)
    objects, detections = [], []
    image_ids = list(range(5, 41, 3))
    for image_id in image_ids:
        for _ in range(rng.integers(0, 8)):
            low = rng.uniform(0, SIDE - 20, 2)
            box = *low, *np.minimum(rng.uniform(4, 120, 2), SIDE - low)
            own = {"image_id": image_id, "category_id": int(rng.choice(CATEGORIES[:3]))}
            made = rectangle(*map(float, box))
            area = float(coco_mask.area(made["segmentation"]))
            objects.append({**own, **made, "area": area, "iscrowd": int(rng.random() < 0.15)})
            for _ in range(rng.integers(0, most)):
                shifts = rng.choice([rng.normal(0, 3, 4), np.zeros(4)])
                shape = rectangle(*(float(max(side + shift, 1)) for side, shift in zip(box, shifts, strict=True)))
                category = own["category_id"] if rng.random() < 0.9 else int(rng.choice(CATEGORIES))
                score = float(np.round(rng.random(), 1))
                detections.append({"image_id": image_id, "category_id": category, "score": score, **shape})
    return image_ids, objects, detections


def by_pycocotools(image_ids: list[int], objects: list[Entry], detections: list[Entry], kind: str) -> COCOeval:
    size = lambda entry: (
        entry["bbox"][2] * entry["bbox"][3] if kind == "bbox" else float(coco_mask.area(entry["segmentation"]))
    )
    found = [{**entry, "area": size(entry), "iscrowd": 0} for entry in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for entries in (objects, found):
            coco = COCO()
            coco.dataset = {
                "images": [{"id": image_id, "height": SIDE, "width": SIDE} for image_id in image_ids],
                "categories": [{"id": category, "name": str(category)} for category in CATEGORIES],
                "annotations": [{**entry, "id": number} for number, entry in enumerate(entries, 1)],
            }
            coco.createIndex()
            sides.append(coco)
        evaluation = COCOeval(*sides, kind)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def fast(image_ids: list[int], objects: list[Entry], detections: list[Entry], kind: str) -> Curves:
    of = lambda entries, image_id: [entry for entry in entries if entry["image_id"] == image_id]
    images = [candidates(of(objects, i), of(detections, i), kind, OVERLAP[kind]) for i in image_ids]
    found = Candidates.joined(images)
    return curves(found, assign(found), CATEGORIES)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize(("seed", "most"), [(0, 6), (1, 12), (2, 12), (3, 60)])
def test_curves_are_those_of_pycocotools(seed, most, kind):
    everything = scene(seed, most)
    if most == 60:
        pairs = [(entry["image_id"], entry["category_id"]) for entry in everything[2]]
        assert max(map(pairs.count, set(pairs))) > 100, "more than count"
    expected, found = by_pycocotools(*everything, kind), fast(*everything, kind)
    assert (expected.eval["precision"] > 0).mean() > 0.2
    np.testing.assert_array_equal(found.precision, expected.eval["precision"][..., -1])
    np.testing.assert_array_equal(found.scores, expected.eval["scores"][..., -1])
    np.testing.assert_array_equal(found.recall, expected.eval["recall"])


def test_nothing_found_and_nothing_there():
    image_ids, objects, detections = scene(4, 6)
    for there, found in ((objects, []), ([], detections), ([], [])):
        expected = by_pycocotools(image_ids, there, found, "bbox")
        np.testing.assert_array_equal(
            fast(image_ids, there, found, "bbox").precision, expected.eval["precision"][..., -1]
        )

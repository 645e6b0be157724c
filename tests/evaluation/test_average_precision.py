"""Box and mask AP against published numbers, the official evaluator's, and cases worked by hand."""

import copy
import dataclasses
import json
import logging

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskdino_jax.evaluation.average_precision import KINDS, AveragePrecision, average_precision
from maskdino_jax.inference.results import Instances

# pycocotools 2.0.11 decodes run lengths in a way that NumPy 2 warns about; the evaluator itself decodes none.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def instances(scores, labels, boxes, masks) -> Instances:
    return Instances.from_masks(
        scores=np.asarray(scores, np.float32),
        labels=np.asarray(labels, np.int32),
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        masks=np.asarray(masks, bool),
        queries=np.arange(len(scores), dtype=np.int32),
    )


def nothing(size: tuple[int, int]) -> Instances:
    return instances([], [], [], np.zeros((0, *size)))


def content_of(*boxes: list[float], **fields) -> dict:
    """Rectangles in one image of 100 x 100, as a COCO file with ids from 0."""
    annotations = [
        {"id": n, "image_id": 1, "category_id": 4, "bbox": list(box), "segmentation": [_polygon(*box)]} | fields
        for n, box in enumerate(boxes)
    ]
    images = [{"id": 1, "height": 100, "width": 100}]
    return {"images": images, "annotations": annotations, "categories": [{"id": 4, "name": "tile"}]}


def _polygon(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def result(score: float, box: list[float], mask_box: list[float] | None = None) -> dict:
    mask = coco_mask.frPyObjects([_polygon(*(mask_box or box))], 100, 100)[0]
    return {"image_id": 1, "category_id": 4, "bbox": box, "score": score, "segmentation": mask}


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_the_true_boxes_have_an_average_precision_of_one():
    boxes = [10, 10, 20, 20], [50, 50, 40, 40]
    metrics = average_precision(content_of(*boxes), [result(0.9, box) for box in boxes], [1])
    expected = dict.fromkeys(["AP", "AP50", "AP75", "APs", "APm", "AR10", "AR100", "ARs", "ARm", "AP-tile"], 1)
    expected["AR1"] = 0.5  # one detection in an image finds one of two
    assert metrics == {f"{kind}/{name}": pytest.approx(value) for kind in KINDS for name, value in expected.items()}, (
        "there is no large object, so that APl and ARl are left out"
    )


def test_a_better_scored_mistake_halves_the_precision():
    metrics = average_precision(
        content_of([10, 10, 20, 20]), [result(0.9, [60, 60, 9, 9]), result(0.8, [10, 10, 20, 20])], [1]
    )
    assert metrics["bbox/AP"] == pytest.approx(0.5)


def test_half_of_the_objects_found_gives_half_of_the_recall_points():
    metrics = average_precision(content_of([10, 10, 20, 20], [50, 50, 20, 20]), [result(0.9, [10, 10, 20, 20])], [1])
    assert metrics["bbox/AP"] == pytest.approx(51 / 101)  # recall 0, 0.01, ..., 0.5 of the 101 points


def test_an_overlap_of_085_counts_for_the_thresholds_up_to_it():
    metrics = average_precision(content_of([10, 10, 20, 20]), [result(0.9, [10, 10, 17.2, 20])], [1])
    assert metrics["bbox/AP"] == pytest.approx(0.8)  # IoU 0.86: 0.50, 0.55, ..., 0.85 of ten
    assert metrics["bbox/AP75"] == pytest.approx(1)


def test_masks_are_ranked_by_mask_area_and_boxes_by_box_area():
    """A false detection of small mask and large box must hurt small masks and large boxes only."""
    true = [0, 0, 20, 20], [0, 60, 60, 40]
    results = [result(0.5, list(box)) for box in true] + [result(0.9, [1, 1, 99, 99], [90, 5, 5, 5])]
    metrics = average_precision(content_of(*true), results, [1])
    assert (metrics["segm/APs"], metrics["segm/APm"]) == (pytest.approx(0.5), pytest.approx(1))
    assert (metrics["bbox/APs"], metrics["bbox/APm"]) == (pytest.approx(1), pytest.approx(1))


def test_detections_of_a_crowd_do_not_count():
    content = content_of([10, 10, 20, 20])
    content["annotations"] += content_of([50, 0, 50, 100], iscrowd=1)["annotations"]
    results = [result(0.9, [60, 10, 20, 20]), result(0.8, [70, 50, 20, 20]), result(0.7, [10, 10, 20, 20])]
    assert average_precision(content, results, [1])["bbox/AP"] == pytest.approx(1)


def test_no_detection_at_all_scores_zero():
    metrics = average_precision(content_of([10, 10, 20, 20]), [], [1])
    assert metrics["bbox/AP"] == metrics["segm/AP"] == metrics["segm/AP-tile"] == 0


def test_no_object_at_all_leaves_every_metric_out():
    assert average_precision(content_of(), [result(0.9, [1, 1, 5, 5])], [1]) == {}


# --- published and official numbers ----------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize(("engine", "tolerance"), [("pycocotools", 1e-12), ("fast", 1e-12)])
def test_the_published_numbers_of_the_hundred_coco_images(shared, engine, tolerance):
    folder = shared / "data" / "eval_fixtures" / "coco_fake100"
    read = lambda name: json.loads((folder / name).read_text())
    content, expected = read("instances_val2014_100.json"), read("expected.json")
    for kind, name in (("bbox", "fakebbox100"), ("segm", "fakesegm100")):
        results = read(f"instances_val2014_{name}_results.json")
        for entry in results:  # each file has one of the two
            entry.setdefault("bbox", [0, 0, 1, 1])
            entry.setdefault("segmentation", {"size": [1, 1], "counts": "01"})
        if kind == "bbox":
            sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
            for entry in results:
                entry["segmentation"] = coco_mask.frPyObjects([_polygon(*entry["bbox"])], *sizes[entry["image_id"]])[0]
        metrics = average_precision(content, results, [image["id"] for image in content["images"]], engine=engine)
        for key, value in zip(NAMES, expected[kind], strict=True):
            assert metrics[f"{kind}/{key}"] == pytest.approx(value, abs=tolerance)


def check_official(content: dict, folder) -> None:
    """The recorded sizes of masks are those of their boxes; the official model's evaluator takes boxes out before."""
    expected = json.loads((folder / "expected.json").read_text())["instances"]
    results = json.loads((folder / "instances_pred.json").read_text())
    oracle = dict(zip(NAMES, without_boxes(content, results), strict=True))
    assert oracle["AP"] == pytest.approx(expected["segm"]["AP"], abs=1e-12)
    expected["segm"] |= oracle
    for engine in ("pycocotools", "fast"):
        metrics = average_precision(content, results, [image["id"] for image in content["images"]], engine=engine)
        for kind in KINDS:
            for name in NAMES:
                assert metrics.get(f"{kind}/{name}", -1) == pytest.approx(expected[kind][name], abs=1e-12)


def without_boxes(content: dict, results: list[dict]) -> list[float]:
    """The numbers of pycocotools for results that are masks only."""
    coco = COCO()
    coco.dataset = copy.deepcopy(content)
    coco.createIndex()
    results = [{key: value for key, value in entry.items() if key != "bbox"} for entry in copy.deepcopy(results)]
    evaluation = COCOeval(coco, coco.loadRes(results), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats.tolist()


def test_the_official_numbers_on_nuclei(golden, nuclei):
    check_official(json.loads(nuclei.instances_json.read_text()), golden / "evaluation" / "nuclei_val")


@pytest.mark.shared
def test_the_official_numbers_on_coco(shared):
    data = shared / "data"
    content = json.loads((data / "coco" / "annotations" / "instances_val2017.json").read_text())
    check_official(content, data / "reference_eval" / "coco_val")


# --- the evaluator ---------------------------------------------------------------------------------------------------


def test_the_evaluator_scores_what_it_writes(golden, nuclei, tmp_path):
    """The official results of the first images go in as instances, and come out as the same file and numbers."""
    official = json.loads((golden / "evaluation" / "nuclei_val" / "instances_pred.json").read_text())
    evaluator = AveragePrecision(nuclei, tmp_path)
    for record in reversed(range(len(nuclei))):
        mine = [entry for entry in official if entry["image_id"] == nuclei.image_id(record)]
        masks = [coco_mask.decode(entry["segmentation"]) for entry in mine]
        boxes = np.array([entry["bbox"] for entry in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [nuclei.catalog.index(entry["category_id"]) for entry in mine]
        masks = np.array(masks).reshape(-1, *nuclei.size(record))
        evaluator.add(record, instances([entry["score"] for entry in mine], labels, boxes, masks))
    metrics = evaluator.compute()
    written = json.loads((tmp_path / "instances_predictions.json").read_text())
    assert [entry["image_id"] for entry in written] == sorted(entry["image_id"] for entry in official)
    ids = [nuclei.image_id(record) for record in range(len(nuclei))]
    again = average_precision(json.loads(nuclei.instances_json.read_text()), official, ids, engine="pycocotools")
    assert metrics == pytest.approx(again, abs=1e-6), "scores are float32"


def test_without_an_instances_file_the_thing_segments_are_the_ground_truth(blocks, caplog):
    with caplog.at_level(logging.INFO):
        evaluator = AveragePrecision(blocks)
    assert "thing segments of the panoptic PNG" in caplog.text
    ids = blocks.panoptic_map(0)
    things = [s for s in blocks.panoptic_records(0) if s["category_id"] != 90 and not s["iscrowd"]]
    masks = np.array([ids == segment["id"] for segment in things])
    # The two cars stand side by side from (0, 0), 8 x 12 each; the bird is below them, 16 x 8.
    boxes = [[0, 0, 8, 12], [8, 0, 16, 12], [0, 12, 16, 20]]
    labels = [blocks.catalog.index(segment["category_id"]) for segment in things]
    evaluator.add(0, instances([0.9, 0.8, 0.7], labels, boxes, masks))
    metrics = evaluator.compute()
    assert metrics["bbox/AP-bird"] == metrics["segm/AP-bird"] == pytest.approx(1), "the crowd of birds is not missed"
    assert metrics["bbox/AP-car"] == metrics["segm/AP-car"] == pytest.approx(51 / 101), "two more in the other image"
    assert "segm/AP-sky" not in metrics


def test_a_data_set_without_a_single_detection_scores_zero(blocks):
    evaluator = AveragePrecision(blocks)
    for record in range(len(blocks)):
        evaluator.add(record, nothing(blocks.size(record)))
    metrics = evaluator.compute()
    assert metrics["bbox/AP"] == metrics["segm/AP"] == 0


def test_instances_of_another_split_are_an_error(nuclei, blocks):
    wrong = dataclasses.replace(blocks, instances_json=nuclei.instances_json)
    with pytest.raises(ValueError, match="lack its image 500"):
        AveragePrecision(wrong).compute()


def test_boxes_alone_are_compared_without_masks():
    """Areas of the truth decide about its size range: its own where it has one, else those of its boxes."""
    boxes = [10, 10, 20, 20], [50, 50, 40, 40]
    results = [result(0.9, box) for box in boxes] + [result(0.95, [0, 0, 3, 3])]
    both = average_precision(content_of(*boxes), results, [1])
    content = content_of(*boxes)
    for entry in content["annotations"] + results:
        del entry["segmentation"]
    alone = average_precision(content, results, [1], kinds=("bbox",))
    assert alone == {name: value for name, value in both.items() if name.startswith("bbox/")}
    assert {"bbox/APs", "bbox/APm"} <= set(alone)
    for entry in content["annotations"]:
        entry["area"] = 100**2
    assert not {"bbox/APs", "bbox/APm"} & set(average_precision(content, results, [1], kinds=("bbox",)))

"""Mean IoU worked by hand, and against the reference numbers of two sets of predictions."""

import json

import numpy as np
import pytest

from maskdino_jax.data.catalog import Catalog, Category
from maskdino_jax.evaluation.cityscapes import weighted_pixels
from maskdino_jax.evaluation.mean_iou import MeanIoU, confusion, confusion_of_regions, summarize
from maskdino_jax.evaluation.regions import Regions, read_ids, truth
from tests.evaluation.cityscapes_scenes import OFFICIAL, scene


def catalog(names: str) -> Catalog:
    return Catalog(tuple(Category(id=n, name=name, is_thing=False, color=(0, 0, 0)) for n, name in enumerate(names)))


def test_worked_example():
    expected = np.array([[0, 0, 0, 1, 1, 3]])  # 3: unlabelled
    found = np.array([[0, 0, 1, 1, 2, 1]])
    table = confusion(expected, found, 3)
    np.testing.assert_array_equal(table, [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    of = lambda ids: Regions(ids, np.arange(3), np.arange(3), np.zeros(3, bool))
    np.testing.assert_array_equal(confusion_of_regions(of(expected), of(found), 3), table)
    metrics = summarize(table, catalog("abc"))
    assert metrics == {
        "sem_seg/IoU-a": pytest.approx(2 / 3),
        "sem_seg/IoU-b": pytest.approx(1 / 3),
        "sem_seg/ACC-a": pytest.approx(2 / 3),
        "sem_seg/ACC-b": pytest.approx(1 / 2),
        "sem_seg/mIoU": pytest.approx(1 / 2),  # c is not in the ground truth
        "sem_seg/fwIoU": pytest.approx(3 / 5 * 2 / 3 + 2 / 5 * 1 / 3),
        "sem_seg/mACC": pytest.approx((2 / 3 + 1 / 2) / 2),
        "sem_seg/pACC": pytest.approx(3 / 5),
    }


def test_cityscapes_has_its_own_names():
    """Of 19 classes in 7 groups: road is found but for a tenth taken for sidewalk, a car is taken for a truck."""
    classes = Catalog.named("cityscapes")
    road, sidewalk, car, truck = map(classes.names.index, ("road", "sidewalk", "car", "truck"))
    table = np.zeros((19, 20), int)
    table[road, road], table[road, sidewalk], table[car, truck] = 90, 10, 50
    metrics = summarize(table, classes)
    assert metrics["sem_seg/mIoU"] == pytest.approx((0.9 + 0) / 2), "classes of the ground truth"
    assert metrics["sem_seg/IoU"] == pytest.approx((0.9 + 0 + 0 + 0) / 4), "and those that are predicted"
    assert metrics["sem_seg/IoU_sup"] == pytest.approx((1 + 1) / 2), "flat and vehicle"
    everything = np.random.default_rng(0).integers(1, 100, (19, 20))
    metrics = summarize(everything, classes)
    assert metrics["sem_seg/IoU"] == pytest.approx(metrics["sem_seg/mIoU"], abs=1e-15)
    assert not {"sem_seg/IoU", "sem_seg/IoU_sup"} & summarize(everything, catalog("abcdefghijklmnopqrs")).keys()


def test_groups_of_cityscapes_by_the_official_formula():
    """True positives of a group are all its pixels that go to any class of it; false ones come from other groups."""
    classes = Catalog.named("cityscapes")
    table = np.random.default_rng(1).integers(0, 100, (19, 20))
    groups = [[0, 1], [2, 3, 4], [5, 6, 7], [8, 9], [10], [11, 12], [13, 14, 15, 16, 17, 18]]
    found = []
    for members in groups:
        others = [label for label in range(19) if label not in members]
        right = table[np.ix_(members, members)].sum()
        missed = table[members].sum() - right
        found.append(right / (right + missed + table[np.ix_(others, members)].sum()))
    assert summarize(table, classes)["sem_seg/IoU_sup"] == pytest.approx(np.mean(found), abs=1e-15)


def test_nothing_labelled_leaves_every_metric_out():
    assert summarize(confusion(np.full((2, 2), 3), np.zeros((2, 2), int), 3), catalog("abc")) == {}


def test_the_truth_itself_scores_one_and_crowds_count_as_their_class(blocks):
    evaluator = MeanIoU(blocks)
    for record in range(len(blocks)):
        found = truth(blocks, record).classes(0)
        if record == 0:
            crowd = blocks.panoptic_map(0) == ord("d") * 70001
            assert crowd.any()
            assert (found[crowd] == blocks.catalog.index(7)).all()
        evaluator.add(record, found)
    metrics = evaluator.compute()
    assert set(metrics.values()) == {1.0}
    assert "sem_seg/IoU-bird" in metrics


def check_reference(data_truth, folder, catalog: Catalog) -> None:
    """Predictions are panoptic maps; what they leave unlabelled counts as an additional, wrong class."""
    truth_json, truth_dir = data_truth
    expected = json.loads((folder / "expected.json").read_text())["semantic_from_panoptic"]
    predictions = json.loads((folder / "panoptic_pred.json").read_text())["annotations"]
    predictions = {entry["image_id"]: entry for entry in predictions}
    classes = catalog.num_classes
    table = np.zeros((classes, classes + 1), int)
    for entry in json.loads(truth_json.read_text())["annotations"]:
        paint = lambda directory, entry: Regions.from_coco(
            read_ids(directory / entry["file_name"]), entry["segments_info"], catalog
        ).classes(classes)
        found = paint(folder / "panoptic_pred", predictions[entry["image_id"]])
        table += confusion(paint(truth_dir, entry), found, classes)
    metrics = summarize(table, catalog)
    for name in ("mIoU", "fwIoU", "mACC", "pACC"):
        assert metrics[f"sem_seg/{name}"] == pytest.approx(expected[name], abs=1e-12)
    assert sum("IoU-" in name for name in metrics) == expected["classes_in_gt"]


def test_the_reference_numbers_on_nuclei(golden, nuclei):
    check_reference((nuclei.panoptic_json, nuclei.panoptic_dir), golden / "evaluation" / "nuclei_val", nuclei.catalog)


@pytest.mark.shared
def test_the_reference_numbers_on_coco(shared):
    data = shared / "data" / "coco"
    truth_json = data / "annotations" / "panoptic_val2017.json"
    catalog = Catalog.from_coco(json.loads(truth_json.read_text())["categories"])
    folder = shared / "data" / "reference_eval" / "coco_val"
    check_reference((truth_json, data / "panoptic_val2017"), folder, catalog)


def _scored(count: int) -> dict[str, float]:
    """Metrics of the first scenes, in training numbers."""
    classes = Catalog.named("cityscapes")
    position = np.full(34, 19)
    position[[category.id for category in classes.categories]] = np.arange(19)
    table, weighted = np.zeros((19, 20), int), np.zeros((3, 19))
    for seed in range(count):
        labels, numbers, found = scene(seed)
        table += confusion(position[labels], position[found], 19)
        weighted += weighted_pixels(numbers, position[found], classes)
    return summarize(table, classes, weighted)


def test_the_numbers_of_the_official_script_of_cityscapes():
    found = _scored(3)
    assert {name: found[f"sem_seg/{name}"] for name in OFFICIAL} == pytest.approx(OFFICIAL, abs=1e-12)


def test_objects_of_cityscapes_count_the_same_however_large():
    """A car of 2 pixels is found, one of 8 pixels is taken for a truck; 3 pixels of the road are taken for a car."""
    classes = Catalog.named("cityscapes")
    road, car, truck = map(classes.names.index, ("road", "car", "truck"))
    numbers = np.array([[26000] * 2 + [26001] * 8 + [7] * 5])  # the first number is a label's, no object's
    numbers[0, :2] += 5
    found = np.array([[car] * 2 + [truck] * 8 + [car] * 3 + [road] * 2])
    table = confusion(np.array([[car] * 10 + [road] * 5]), found, 19)
    metrics = summarize(table, classes, weighted_pixels(numbers, found, classes))
    size = 12794.0202738185  # of a mean car
    assert metrics["sem_seg/iIoU"] == pytest.approx((size / (2 * size + 3) + 0) / 2), "nothing of a truck is right"
    assert metrics["sem_seg/iIoU_sup"] == pytest.approx(2 * size / (2 * size + 3)), "a truck is a vehicle"

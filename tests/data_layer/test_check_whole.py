"""What a look at a data set says beside the faults of single entries: warnings, counts, twins in both splits."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdino_jax.data import open_dataset
from maskdino_jax.data.check import check
from maskdino_jax.data.faults import Faults
from tests.data_layer.planted import HEIGHT, SQUARE, WIDTH, Planted, annotation, change, errors, found, planted


@pytest.fixture
def instances(tmp_path: Path) -> Planted:
    return planted(tmp_path, "coco_instances")


def test_no_object_at_all_is_an_error(tmp_path):
    made = planted(tmp_path, "coco_panoptic")
    for entry, name in zip(made.tables["annotations"], ("train1", "train2", "train3"), strict=True):
        entry["segments_info"] = []
        Image.new("RGB", (WIDTH, HEIGHT)).save(made.root / "train_maps" / f"{name}.png")
    assert errors(check(made.save())) == [("train", "nothing to learn", 1)]


BOXES = {  # of an object that is a box, and what is said of it
    "three numbers": ([4, 3, 8], "broken box", "bbox is '[4, 3, 8]'"),
    "not a number": ([4, 3, float("nan"), 8], "broken box", "bbox is '[4, 3, nan, 8]'"),
    "none": (None, "broken box", "bbox is 'None'"),
}


@pytest.mark.parametrize(("box", "kind", "place"), BOXES.values(), ids=BOXES)
def test_a_box_that_is_none_stops_a_detector(instances, box, kind, place):
    instances.config.model.masks = False
    change(bbox=box)(instances)
    summary = check(instances.save())
    assert errors(summary) == [("train", kind, 1)]
    assert place in summary.of("error")[0].first[0]
    with pytest.raises(ValueError, match="annotation 12 of image 2") as error:
        open_dataset(instances.config.data, "train", masks=False)
    assert str(error.value) == summary.of("error")[0].first[0]


WARNED = {  # fields of an annotation, whether masks are learned, the kind, and the place
    "two points": ({"segmentation": [SQUARE, [1, 1, 2, 2]]}, True, "polygon without an area", "has 4 numbers"),
    "an odd number": ({"segmentation": [SQUARE, SQUARE[:7]]}, True, "polygon without an area", "has 7 numbers"),
    "no polygon": ({"segmentation": [[1, 1, 2, 2]]}, True, "object without a polygon", "annotation 12 of image 2"),
    "a box of nothing": ({"bbox": [4, 3, 0, 8]}, False, "box without an area", "annotation 12 of image 2"),
    "a broken box beside a mask": ({"bbox": [4, 3, 8]}, True, "broken box beside a mask", "bbox is '[4, 3, 8]'"),
    "corners instead of a size": (
        {"segmentation": [[14, 3, 22, 3, 22, 11, 14, 11]], "bbox": [14, 3, 22, 11]},
        True,
        "box and mask disagree",
        "bbox is [14, 3, 22, 11], but the mask reaches from (14, 3) to (22, 11)",
    ),
    "a polygon far outside": (
        {"segmentation": [[40, 3, 48, 3, 48, 11, 40, 11]], "bbox": [40, 3, 8, 8]},
        True,
        "object outside of its image",
        "reaches from (40, 3) to (48, 11), but the image is 30 x 20",
    ),
    "a box far outside": ({"bbox": [-9, 3, 12, 8]}, False, "object outside of its image", "from (-9, 3) to (3, 11)"),
    "runs with another box": (  # columns 2 and 3, rows 5 to 9
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [45, 5, 15, 5, 530]}, "bbox": [20, 5, 2, 5]},
        True,
        "box and mask disagree",
        "the mask reaches from (2, 5) to (4, 10)",
    ),
}


@pytest.mark.parametrize(("fields", "masks", "kind", "place"), WARNED.values(), ids=WARNED)
def test_what_training_tolerates_as_the_reference_does_is_a_warning(instances, fields, masks, kind, place):
    instances.config.model.masks = masks
    change(**fields)(instances)
    summary = check(instances.save())
    assert summary.ok
    assert ("train", kind, 1) in found(summary, "warning")
    finding = next(finding for finding in summary.of("warning") if finding.kind == kind)
    assert place in finding.first[0]
    open_dataset(instances.config.data, "train", masks=masks)  # silently


@pytest.mark.parametrize("box", [[4, 3, 8, 8], [2, 1, 12, 12], [4.4, 2.6, 8, 8]])
def test_a_box_within_a_few_pixels_of_its_mask_is_none(instances, box):
    change(bbox=box)(instances)
    kinds = {finding.kind for finding in check(instances.save()).of("warning")}
    assert kinds == {"class without an object", "class with few objects"}


def test_runs_that_pass_the_end_of_a_column_reach_over_the_whole_height(instances):
    change(segmentation={"size": [HEIGHT, WIDTH], "counts": [30, 20, 550]}, bbox=[1, 0, 2, 20])(instances)
    kinds = {finding.kind for finding in check(instances.save()).of("warning")}
    assert "box and mask disagree" not in kinds


def test_an_image_that_is_listed_twice_is_a_warning(instances):
    instances.tables["images"][1]["file_name"] = "train1.png"
    summary = check(instances.save())
    warnings = found(summary, "warning")
    assert ("train", "image listed twice", 1) in warnings
    assert ("train", "same pixels under several names", 1) in warnings
    assert summary.ok


def test_crowds_and_images_without_an_object_are_counted(instances):
    instances.tables["annotations"][1]["iscrowd"] = 1
    instances.val["annotations"].pop()
    summary = check(instances.save())
    assert summary.ok
    notes = found(summary, "note")
    assert notes == [
        ("train", "crowd", 1),
        ("train", "image without an object", 1),
        ("val", "image without an object", 1),
    ]


def test_classes_without_objects_and_with_few_are_named(instances):
    summary = check(instances.save())
    assert found(summary, "warning") == [
        ("train", "class without an object", 1),
        ("train", "class with few objects", 1),
    ]
    assert "sky. They will never be predicted" in summary.of("warning")[0].first[0]
    assert "cat (3)" in summary.of("warning")[1].first[0]


def test_more_objects_than_are_kept_is_a_warning(instances):
    instances.config.data.max_instances = 1
    instances.tables["annotations"].append(instances.tables["annotations"][0] | {"id": 20})
    assert ("train", "more objects than training keeps", 1) in found(check(instances.save()), "warning")


def test_other_classes_in_validation_are_an_error_in_the_words_of_training(instances):
    instances.val["categories"][1]["name"] = "heaven"
    summary = check(instances.save())
    assert errors(summary) == [("both", "class lists differ", 1)]
    assert "(9, 'heaven') instead of (9, 'sky')" in summary.of("error")[0].first[0]


def test_the_same_pixels_in_both_splits_are_an_error_whatever_their_names(instances):
    pixels = Image.open(instances.root / "train" / "train2.png")
    pixels.save(instances.root / "val" / "val1.png", compress_level=0)  # other bytes, the same pixels
    summary = check(instances.save())
    assert errors(summary) == [("both", "same image in train and val", 1)]
    assert "train2.png in train, val1.png in val" in summary.of("error")[0].first[1]


def test_an_image_that_was_encoded_again_under_its_name_is_a_warning_and_a_name_alone_is_none(instances):
    smooth = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)).astype(np.uint8)[..., None].repeat(3, -1)
    for split, tables, quality in (("train", instances.tables, 95), ("val", instances.val, 80)):
        Image.fromarray(smooth).save(instances.root / split / "1.jpg", quality=quality)
        tables["images"][0]["file_name"] = "1.jpg"
        (instances.root / split / f"{split}2.png").rename(instances.root / split / "2.png")
        tables["images"][1]["file_name"] = "2.png"
    summary = check(instances.save())
    assert summary.ok
    assert ("both", "probably the same image in train and val", 1) in found(summary, "warning")
    assert "1.jpg in train, 1.jpg in val" in summary.of("warning")[-1].first[1]


def test_a_few_twins_in_a_large_data_set_are_a_warning(instances, monkeypatch):
    Image.open(instances.root / "train" / "train2.png").save(instances.root / "val" / "val1.png")
    monkeypatch.setattr("maskdino_jax.data.check._LEAK", 0.5)  # one of two images
    summary = check(instances.save())
    assert summary.ok
    assert ("both", "same image in train and val", 1) in found(summary, "warning")


def test_panoptic_data_may_bring_instances_of_their_own_which_are_checked_too(tmp_path):
    made = planted(tmp_path, "coco_panoptic")
    made.config.inference.tasks = ("instance", "panoptic")
    made.config.data.val.instances = "instances.json"
    tables = made.val | {"annotations": [annotation("coco_instances", n, "") for n in (1, 2)]}
    tables["annotations"][0]["category_id"] = 3
    tables["images"] = tables["images"][1:]
    made.save()
    (made.root / "instances.json").write_text(json.dumps(tables))
    summary = check(made.config)
    assert errors(summary) == [("val", "instances for AP", 1), ("val", "unknown image", 1)]
    assert "instances.json: images lacks 1 (1 in all)" in summary.of("error")[0].first[0]


def test_only_the_first_messages_of_a_million_faults_are_kept():
    faults = Faults()
    for number in range(100):
        faults("kind", f"message {number}")
    assert faults.counts == {"kind": 100}
    assert faults.first["kind"] == [f"message {number}" for number in range(20)]

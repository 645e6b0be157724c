"""Every fault that can be planted in a data set is found, with its place, and training answers as the config says."""

import itertools
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from maskdino_jax.config import Config
from maskdino_jax.data import open_dataset, train_batches
from maskdino_jax.data.check import check
from tests.data_layer.planted import (
    HEIGHT,
    WIDTH,
    Planted,
    change,
    change_segment,
    errors,
    planted,
    remove,
    repaint,
    resave,
    truncate,
)


@pytest.fixture
def instances(tmp_path: Path) -> Planted:
    return planted(tmp_path, "coco_instances")


@pytest.mark.parametrize(
    ("format", "workers"), [("coco_instances", 0), ("coco_panoptic", 0), ("semantic", 0), ("semantic", 1)]
)
def test_sound_data_have_no_errors_and_are_counted(tmp_path, format, workers):
    made = planted(tmp_path, format)
    made.config.data.workers = workers
    summary = check(made.save())
    assert summary.ok
    train, val = (summary.splits[name].statistics for name in ("train", "val"))
    each = {"coco_instances": 1, "coco_panoptic": 2, "semantic": 2}[format]
    assert (train.images, val.images, train.objects, val.objects) == (3, 2, 3 * each, 2 * each)
    assert train.of_size == {"small": 3 * each}
    if format != "coco_instances":  # 20 x 30 pixels, of which 8 x 8 and 5 x 30 belong to an object
        np.testing.assert_allclose(train.unlabelled, 3 * [1 - (64 + 150) / 600])


def test_the_histogram_has_names_and_both_splits(tmp_path):
    report = check(planted(tmp_path, "coco_panoptic").save()).to_dict()
    assert report["classes"] == [
        {"id": 7, "name": "cat", "train": 3, "val": 2},
        {"id": 9, "name": "sky", "train": 3, "val": 2},
    ]
    json.dumps(report)


# Where, what is planted, the kind, and the place that the message names. The first list is about entries, which are
# left out when the data set is opened; the second about files, which are read in training.
ENTRIES = {
    "an image that is not there": ("coco_instances", change(image_id=99), "unknown image", "annotation 12 of image 99"),
    "a class that is not there": (
        "coco_instances",
        change(category_id=3),
        "unknown category",
        "annotation 12 of image 2: category id 3",
    ),
    "an id twice": ("coco_instances", change(id=11), "duplicate id", "annotations: id 11 occurs 2 times"),
    "an image id twice": (
        "coco_instances",
        lambda made: made.tables["images"][1].update(id=1),
        "duplicate id",
        "images: id 1 occurs 2 times",
    ),
    "no class": ("coco_instances", change(category_id=None), "incomplete entry", "annotations[1] lacks category_id"),
    "an id that is none": ("coco_instances", change(id=[12]), "incomplete entry", "annotations[1]: id is '[12]'"),
    "an image without a height": (
        "coco_instances",
        lambda made: made.tables["images"][1].update(height=0),
        "broken image size",
        "image 2: height and width are 0 and 30",
    ),
    "no mask": ("coco_instances", change(segmentation=None), "object without a mask", "annotation 12 of image 2"),
    "a coordinate that is no number": (
        "coco_instances",
        change(segmentation=[[4, 3, float("nan"), 3, 12, 11]]),
        "broken polygon",
        "annotation 12 of image 2: a polygon is [4, 3, nan, 3, 12, 11]",
    ),
    "an infinite coordinate": (
        "coco_instances",
        change(segmentation=[[4, 3, float("inf"), 3, 12, 11]]),
        "broken polygon",
        "annotation 12 of image 2: a polygon is [4, 3, inf",
    ),
    "a coordinate that is text": (
        "coco_instances",
        change(segmentation=[[4, 3, "12", 3, 12, 11]]),
        "broken polygon",
        "annotation 12 of image 2",
    ),
    "runs that are too short": (
        "coco_instances",
        change(segmentation={"size": [HEIGHT, WIDTH], "counts": [100, 100]}),
        "broken run lengths",
        "annotation 12 of image 2: the run lengths '[100, 100]' cover 200 pixels of the 20 x 30",
    ),
    "runs of another image": (
        "coco_instances",
        change(segmentation={"size": [WIDTH, HEIGHT], "counts": [600]}),
        "broken run lengths",
        "annotation 12 of image 2: the mask's size is [30, 20], the image's [20, 30]",
    ),
    "runs that are no numbers": (
        "coco_instances",
        change(segmentation={"size": [HEIGHT, WIDTH], "counts": ["many"]}),
        "broken run lengths",
        "annotation 12 of image 2",
    ),
    "a segment of a class that is not there": (
        "coco_panoptic",
        change_segment(category_id=3),
        "unknown category",
        "segment 261 of image 2: category id 3",
    ),
    "two segments with one id": (
        "coco_panoptic",
        lambda made: made.tables["annotations"][1]["segments_info"].append({"id": 261, "category_id": 9}),
        "duplicate id",
        "segments of image 2: id 261 occurs 2 times",
    ),
    "an image without segments": (
        "coco_panoptic",
        lambda made: made.tables["annotations"].pop(1),
        "image without annotation",
        "image 2 has no entry in annotations",
    ),
    "segments of an image that is not there": (
        "coco_panoptic",
        lambda made: made.tables["annotations"].append({"image_id": 9, "file_name": "9.png", "segments_info": []}),
        "unknown image",
        "the annotation 9.png: image_id 9",
    ),
    "an image without labels": (
        "semantic",
        remove("train_maps/train2.png"),
        "image without labels",
        "train2.png has no labels",
    ),
}
FILES = {
    "no image file": ("coco_instances", remove("train/train2.png"), "file missing", "train2.png: no such image"),
    "half an image file": (
        "coco_instances",
        truncate("train/train2.png"),
        "unreadable image",
        "train2.png cannot be read as an image",
    ),
    "a text file": (
        "coco_instances",
        lambda made: (made.root / "train/train2.png").write_text("no image"),
        "unreadable image",
        "train2.png cannot be read as an image",
    ),
    "an image of another size": (
        "coco_instances",
        resave("train/train2.png", size=(10, 20)),
        "sizes disagree",
        "train2.png is 10 x 20 pixels, but",
    ),
    "pixels of a segment that is not listed": (
        "coco_panoptic",
        repaint(slice(0, 2), (9, 0, 0)),
        "PNG and JSON disagree",
        "train2.png has pixels of segments [9]",
    ),
    "a segment without pixels": (
        "coco_panoptic",
        repaint(slice(3, 11), (0, 0, 0)),
        "PNG and JSON disagree",
        "train2.png has no pixel of segments [261]",
    ),
    "no segment map": ("coco_panoptic", remove("train_maps/train2.png"), "file missing", "train_maps/train2.png"),
    "a label that means nothing": (
        "semantic",
        repaint(slice(0, 2), 200),
        "unknown label value",
        "train2.png has pixels of value 200",
    ),
    "labels of another size": (
        "semantic",
        resave("train_maps/train2.png", "L", (10, 20)),
        "sizes disagree",
        "train_maps/train2.png is 10 x 20 pixels",
    ),
    "coloured labels": ("semantic", resave("train_maps/train2.png"), "no label image", "train2.png has pixels of mode"),
}


@pytest.mark.parametrize(("format", "plant", "kind", "place"), (ENTRIES | FILES).values(), ids=ENTRIES | FILES)
def test_a_fault_is_found_and_training_stops_with_the_same_words(tmp_path, format, plant, kind, place):
    made = planted(tmp_path, format)
    plant(made)
    config = made.save()
    summary = check(config)
    assert ("train", kind, 1) in errors(summary)
    assert not summary.ok
    message = next(finding for finding in summary.of("error") if finding.kind == kind).first[0]
    assert place in message
    assert kind in summary.table()
    with pytest.raises((FileNotFoundError, ValueError)) as error:
        take(config)
    assert str(error.value) == message


def take(config: Config, steps: int = 1) -> list:
    with train_batches(open_dataset(config.data, "train"), config, 0) as batches:
        return list(itertools.islice(batches, steps))


@pytest.mark.parametrize(("format", "plant", "kind", "place"), ENTRIES.values(), ids=ENTRIES)
def test_training_leaves_a_faulty_entry_out_and_says_so(tmp_path, caplog, format, plant, kind, place):
    made = planted(tmp_path, format)
    plant(made)
    made.config.data.on_error = "skip"
    made.config.data.scale = (1.0, 1.0)
    with caplog.at_level(logging.WARNING):
        (batch,) = take(made.save())
    left_out = next(record.getMessage() for record in caplog.records if kind in record.getMessage())
    assert "left out" in left_out
    assert place in left_out
    assert not batch.skipped.any()
    objects = {"coco_instances": 1, "coco_panoptic": 2, "semantic": 2}[format]
    assert len(np.unique(batch.records)) == len(open_dataset(made.config.data, "train"))
    assert batch.targets.valid[batch.records == 0].sum(axis=1).tolist() == [objects] * np.sum(batch.records == 0)
    assert check(made.config).ok


@pytest.mark.parametrize(("format", "plant", "kind", "place"), FILES.values(), ids=FILES)
def test_training_takes_the_next_image_for_one_that_cannot_be_read(tmp_path, caplog, format, plant, kind, place):
    made = planted(tmp_path, format)
    plant(made)
    made.config.data.on_error = "skip"
    with caplog.at_level(logging.WARNING):
        batches = take(made.save(), steps=4)
    assert place in caplog.text
    for batch in batches:  # an epoch is a batch of three
        assert batch.skipped.sum() == 1
        assert sorted(batch.records) in ([0, 0, 2], [0, 2, 2])
        (place_of_it,) = np.flatnonzero(batch.skipped)
        assert batch.records[place_of_it] == batch.records[(place_of_it + 1) % 3]
    assert check(made.config).ok


def test_a_data_set_none_of_whose_images_can_be_read_is_an_error_also_when_skipping(instances):
    for path in (instances.root / "train").iterdir():
        path.write_bytes(b"")
    instances.config.data.on_error = "skip"
    assert ("train", "unreadable image", 3) in errors(check(instances.save()))
    with pytest.raises(ValueError, match=r"train\.json: none of its 3 images can be read"):
        take(instances.config)


def test_faults_of_the_validation_split_are_errors_also_when_skipping(instances):
    instances.config.data.on_error = "skip"
    instances.val["annotations"].append(instances.val["annotations"][0] | {"id": 20, "category_id": 3})
    (instances.root / "val" / "val2.png").unlink()
    summary = check(instances.save())
    assert errors(summary) == [("val", "file missing", 1), ("val", "unknown category", 1)]
    with pytest.raises(ValueError, match="category id 3 is unknown"):
        open_dataset(instances.config.data, "val")


@pytest.mark.parametrize("content", ["{", "[]", '{"images": [], "annotations": [], "categories": []}'])
def test_a_file_that_cannot_be_opened_is_an_error_and_the_other_split_is_still_read(instances, content):
    config = instances.save()
    (instances.root / "train.json").write_text(content)
    summary = check(config)
    assert errors(summary) == [("train", "cannot be opened", 1)]
    assert summary.splits["val"].statistics.images == 2
    with pytest.raises(ValueError, match=r"train\.json") as error:
        open_dataset(config.data, "train")
    assert summary.of("error")[0].first == (str(error.value),)

"""Every fault that can be planted in a data set is found, with its place, and training answers as the config says."""

import dataclasses
import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskdino_jax.config import Config, DataConfig, SplitConfig
from maskdino_jax.data import open_dataset, train_batches
from maskdino_jax.data.check import check
from maskdino_jax.data.faults import Faults
from maskdino_jax.data.findings import Summary

HEIGHT, WIDTH = 20, 30
SQUARE = [4, 3, 12, 3, 12, 11, 4, 11]  # x 4 to 12, y 3 to 11
CATEGORIES = [{"id": 7, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]


@dataclasses.dataclass
class Planted:
    """Three training and two validation images, no two alike. Change `tables` of train or files, then `save`."""

    root: Path
    config: Config
    tables: dict[str, Any]
    val: dict[str, Any]

    def save(self) -> Config:
        for split, tables in (("train", self.tables), ("val", self.val)):
            (self.root / f"{split}.json").write_text(json.dumps(tables))
        return self.config


def planted(root: Path, format: str) -> Planted:
    rng = np.random.default_rng(1)
    tables = {}
    for split, count in (("train", 3), ("val", 2)):
        (root / split).mkdir()
        (root / f"{split}_maps").mkdir()
        names = [f"{split}{n}.png" for n in range(1, count + 1)]
        for name in names:
            Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(root / split / name)
            ids = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            ids[3:11, 4:12] = (5, 1, 0)  # id 261
            ids[15:] = (6, 0, 0)
            Image.fromarray(ids if format == "coco_panoptic" else ids[..., 0]).save(root / f"{split}_maps" / name)
        tables[split] = {
            "images": [
                {"id": n, "file_name": name, "height": HEIGHT, "width": WIDTH} for n, name in enumerate(names, 1)
            ],
            "annotations": [_annotation(format, n, name) for n, name in enumerate(names, 1)],
            "categories": [dict(category) for category in CATEGORIES],
        }
    split = lambda name: SplitConfig(
        images=name,
        annotations="" if format == "semantic" else f"{name}.json",
        panoptic=f"{name}_maps" if format == "coco_panoptic" else "",
        semantic=f"{name}_maps" if format == "semantic" else "",
    )
    data = DataConfig(root=str(root), format=format, train=split("train"), val=split("val"), image_size=(32, 32))
    data.max_instances, data.workers = 4, 0
    data.classes = "ade20k" if format == "semantic" else ""
    config = Config(data=data)
    config.inference.tasks = {"semantic": ("semantic",), "coco_panoptic": ("panoptic",)}.get(format, ("instance",))
    config.train.batch_size = 3
    made = Planted(root, config, tables["train"], tables["val"])
    made.save()
    return made


def _annotation(format: str, n: int, name: str) -> dict[str, Any]:
    if format == "coco_panoptic":
        segments = [{"id": 261, "category_id": 7}, {"id": 6, "category_id": 9}]
        return {"image_id": n, "file_name": name, "segments_info": segments}
    return {"id": 10 + n, "image_id": n, "category_id": 7, "segmentation": [SQUARE], "bbox": [4, 3, 8, 8]}


@pytest.fixture
def instances(tmp_path: Path) -> Planted:
    return planted(tmp_path, "coco_instances")


def found(summary: Summary, severity: str) -> list[tuple[str, str, int]]:
    return [(finding.split, finding.kind, finding.count) for finding in summary.of(severity)]


def errors(summary: Summary) -> list[tuple[str, str, int]]:
    return found(summary, "error")


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


Plant = Callable[[Planted], object]


def change(**fields: Any) -> Plant:
    """Set fields of the second training annotation, or remove those that are None."""

    def plant(made: Planted) -> None:
        entry = made.tables["annotations"][1]
        entry.update(fields)
        for key in [key for key, value in fields.items() if value is None]:
            del entry[key]

    return plant


def change_segment(**fields: Any) -> Plant:
    return lambda made: made.tables["annotations"][1]["segments_info"][0].update(fields)


def repaint(rows: slice, value: tuple[int, ...] | int, folder: str = "train_maps") -> Plant:
    def plant(made: Planted) -> None:
        path = made.root / folder / "train2.png"
        pixels = np.array(Image.open(path))
        pixels[rows] = value
        Image.fromarray(pixels).save(path)

    return plant


def truncate(path: str) -> Plant:
    def plant(made: Planted) -> None:
        content = (made.root / path).read_bytes()
        (made.root / path).write_bytes(content[: len(content) // 2])

    return plant


def resave(path: str, mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Plant:
    return lambda made: Image.open(made.root / path).convert(mode).resize(size).save(made.root / path)


def remove(path: str) -> Plant:
    return lambda made: (made.root / path).unlink()


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
    tables = made.val | {"annotations": [_annotation("coco_instances", n, "") for n in (1, 2)]}
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

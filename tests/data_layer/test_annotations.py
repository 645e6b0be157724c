"""What is read from COCO files, and what their mistakes are answered with."""

import json
import re

import pytest

from maskdino_jax.data import open_dataset
from maskdino_jax.data.annotations import read_instances

TRIANGLE = [0, 0, 4, 0, 4, 4]


def read(written, *segmentations, **fields):
    """The annotations that are left of the given segmentations."""
    written.tables["annotations"] = [
        {"id": number, "image_id": 1, "category_id": 7, "segmentation": segmentation} | fields
        for number, segmentation in enumerate(segmentations, start=1)
    ]
    written.save()
    return read_instances(written.json)[1][0].annotations


def test_polygons_that_are_no_polygons_are_dropped_and_objects_without_any_too(written_instances):
    objects = read(written_instances, [[0, 0, 1, 1], TRIANGLE, [*TRIANGLE, 1]], [[0, 0, 1, 1]], [], [TRIANGLE])
    assert [(entry["id"], entry["segmentation"]) for entry in objects] == [(1, [TRIANGLE]), (4, [TRIANGLE])]


def test_crowds_are_dropped(written_instances):
    assert read(written_instances, [TRIANGLE], iscrowd=1) == []


@pytest.mark.parametrize("content", ["{not json", "\ufffe\x00"])
def test_a_file_that_is_not_json(written_instances, content):
    written_instances.json.write_text(content)
    with pytest.raises(ValueError, match=r"annotations\.json is not JSON .* COCO annotation file"):
        open_dataset(written_instances.data, "train")


@pytest.mark.parametrize("content", ["[1, 2]", '{"images": [], "info": {}}'])
def test_json_that_is_no_coco_file_says_what_it_lacks(written_instances, content):
    written_instances.json.write_text(content)
    with pytest.raises(ValueError, match=r"annotations\.json is not a COCO annotation file: it lacks .*annotations"):
        open_dataset(written_instances.data, "train")


def change(tables, path, value):
    """Set or (value None) delete an entry deep in the tables."""
    *parents, last = path
    for key in parents:
        tables = tables[key]
    if value is None:
        del tables[last]
    else:
        tables[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("images", 1, "height"), None, "images[1] lacks height."),
        (("images", 1, "id"), 1, "images: id 1 occurs 2 times."),
        (("images",), [], "lists no images."),
        (("annotations", 0, "image_id"), 5, "annotation 11 of image 5: image_id 5 is not among the images."),
        (
            ("annotations", 0, "category_id"),
            3,
            "annotation 11 of image 1: category id 3 is unknown: the data set has 7, 9. Correct category_id",
        ),
        (("annotations", 0, "segmentation"), None, "annotation 11 of image 1: segmentation is 'None', neither"),
        (("annotations", 0, "segmentation"), TRIANGLE, "neither a list of polygons nor run lengths."),
        (("annotations", 0, "segmentation"), {"size": [6, 8]}, "annotation 11 of image 1: segmentation lacks counts."),
        (
            ("annotations", 0, "segmentation"),
            {"size": [8, 6], "counts": [48]},
            "the mask's size is [8, 6], the image's [6, 8]. Correct one",
        ),
        (("annotations", 0, "segmentation"), [], "no image has an object to train on."),
        (("categories", 0, "id"), 7, "categories: id 7 occurs 2 times."),
    ],
)
def test_mistakes_in_an_instances_file_are_named(written_instances, path, value, message):
    change(written_instances.tables, path, value)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        open_dataset(written_instances.save(), "train")
    assert str(written_instances.json) in str(error.value)


def test_two_annotations_with_one_id_are_an_error(written_instances):
    written_instances.tables["annotations"] *= 2
    with pytest.raises(ValueError, match="annotations: id 11 occurs 2 times"):
        open_dataset(written_instances.save(), "train")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("annotations", 0, "segments_info"), None, "annotations[0] lacks segments_info."),
        (("annotations", 0, "image_id"), 5, "the annotation 1.png: image_id 5 is not among the images."),
        (("annotations", 1, "image_id"), 1, "annotations: image_id 1 occurs 2 times."),
        (("annotations", 1), None, "image 2 has no entry in annotations (1 in all)."),
        (
            ("annotations", 0, "segments_info", 0, "category_id"),
            3,
            "segment 261 of image 1: category id 3 is unknown: the data set has 7, 9. Correct category_id",
        ),
        (("annotations", 0, "segments_info", 0, "category_id"), None, "segment 261 of image 1 lacks category_id."),
        (("annotations", 0, "segments_info", 0, "id"), 0, "segment 0 of image 1: id 0 means unlabelled pixels."),
    ],
)
def test_mistakes_in_a_panoptic_file_are_named(written_panoptic, path, value, message):
    change(written_panoptic.tables, path, value)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        open_dataset(written_panoptic.save(), "train")
    assert str(written_panoptic.json) in str(error.value)


def test_an_instances_file_where_a_panoptic_one_is_expected_is_recognised(written_panoptic, written_instances_tables):
    written_panoptic.json.write_text(json.dumps(written_instances_tables))
    with pytest.raises(ValueError, match=r"annotations\[0\] lacks file_name, segments_info. Is this the right kind"):
        open_dataset(written_panoptic.data, "train")


@pytest.fixture
def written_instances_tables(written_panoptic):
    annotation = {"id": 1, "image_id": 1, "category_id": 7, "segmentation": [TRIANGLE]}
    return written_panoptic.tables | {"annotations": [annotation]}

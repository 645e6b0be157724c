"""Data sets as a whole: objects against the JSON's own areas and boxes, and files that contradict the JSON."""

import json
import pickle
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskdino_jax.config import DataConfig, SplitConfig
from maskdino_jax.data import load_image, open_dataset


def corners(bbox):
    x, y, width, height = bbox
    return [x, y, x + width, y + height]


def test_the_embedded_nuclei_need_no_root(nuclei):
    train, val = open_dataset(nuclei.data, "train"), open_dataset(nuclei.data, "val")
    assert (len(train), len(val)) == (100, 25)
    assert train.catalog.names == ("nucleus", "background")
    assert train[0].image.shape == (256, 256, 3)
    assert val.panoptic_json.name == "panoptic_val.json"
    assert val.panoptic_dir.name == "panoptic_val"
    assert val.instances_json.name == "instances_val.json"


@pytest.mark.parametrize("split", ["train", "val"])
def test_panoptic_masks_have_the_area_and_box_of_the_json(coco_panoptic, split):
    dataset = open_dataset(coco_panoptic, split)
    for index in range(len(dataset)):
        example = dataset[index]
        segments = [segment for segment in dataset.panoptic_records(index) if not segment["iscrowd"]]
        assert len(segments) == len(example.objects) == len(example.labels)
        for position, segment in enumerate(segments):
            mask, box = example.objects.raster(position)
            assert np.count_nonzero(mask) == segment["area"]
            np.testing.assert_array_equal(box, corners(segment["bbox"]))
            assert example.labels[position] == dataset.catalog.index(segment["category_id"])
            assert example.is_thing[position] == (example.labels[position] < 80)


def test_run_length_masks_have_the_area_and_box_of_the_json(nuclei):
    nuclei.data.format = "coco_instances"
    nuclei.data.val = SplitConfig(images="val", annotations="annotations/instances_val.json")
    dataset = open_dataset(nuclei.data, "val")
    annotations = json.loads(dataset.instances_json.read_text())["annotations"]
    for index in range(3):
        example = dataset[index]
        expected = [entry for entry in annotations if entry["image_id"] == dataset.image_id(index)]
        assert len(expected) == len(example.objects) > 0
        for position, entry in enumerate(expected):
            mask, box = example.objects.raster(position)
            assert np.count_nonzero(mask) == entry["area"]
            np.testing.assert_array_equal(box, corners(entry["bbox"]))


def test_polygon_masks_are_pycocotools_masks_and_crowds_are_left_out(coco_instances):
    dataset = open_dataset(coco_instances, "val")
    annotations = json.loads(dataset.instances_json.read_text())["annotations"]
    assert any(entry["iscrowd"] for entry in annotations)
    for index in range(len(dataset)):
        example = dataset[index]
        of_image = [entry for entry in annotations if entry["image_id"] == dataset.image_id(index)]
        expected = [entry for entry in of_image if not entry["iscrowd"]]
        np.testing.assert_array_equal(
            example.labels, [dataset.catalog.index(entry["category_id"]) for entry in expected]
        )
        for position, entry in enumerate(expected):
            segmentation = entry["segmentation"]
            if isinstance(segmentation, list):
                segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *dataset.size(index)))
            else:
                segmentation["counts"] = segmentation["counts"].encode()
            mask, _ = example.objects.raster(position)
            assert coco_mask.encode(np.asfortranarray(mask, np.uint8)) == segmentation


def test_names_ids_and_sizes_are_those_of_the_files(coco):
    dataset = open_dataset(coco, "val")
    assert [dataset.image_id(index) for index in range(len(dataset))] == [885, 5001, 6818, 8844]
    assert dataset.file_name(2) == "000000006818.jpg"
    assert dataset.size(2) == dataset.image(2).shape[:2] == (640, 427)
    np.testing.assert_array_equal(dataset[2].image, load_image(dataset.images / "000000006818.jpg"))


def test_the_evaluators_paths_follow_the_format(coco_panoptic, coco_instances):
    panoptic, instances = open_dataset(coco_panoptic, "val"), open_dataset(coco_instances, "val")
    assert panoptic.panoptic_json.name == "panoptic_val2017.json"
    assert panoptic.panoptic_dir.name == "panoptic_val2017"
    assert panoptic.instances_json.name == instances.instances_json.name == "instances_val2017.json"
    assert instances.panoptic_json is instances.panoptic_dir is None
    coco_panoptic.val.instances = ""
    assert open_dataset(coco_panoptic, "val").instances_json is None


def test_training_on_instances_leaves_out_images_without_an_object(written_instances):
    train, val = (open_dataset(written_instances.data, split) for split in ("train", "val"))
    assert [train.image_id(index) for index in range(len(train))] == [1]
    assert [val.image_id(index) for index in range(len(val))] == [1, 2]


def test_training_on_panoptic_maps_keeps_them(written_panoptic):
    dataset = open_dataset(written_panoptic.data, "train")
    assert [len(dataset[index].objects) for index in range(len(dataset))] == [1, 0]


def test_panoptic_crowds_are_no_objects_but_stay_in_the_records(written_panoptic):
    segment = written_panoptic.tables["annotations"][0]["segments_info"][0]
    segment["iscrowd"] = 1
    dataset = open_dataset(written_panoptic.save(), "train")
    assert len(dataset[0].objects) == 0
    assert dataset.panoptic_records(0) == [segment]


def test_ids_are_red_plus_256_green_plus_65536_blue(written_panoptic):
    path = written_panoptic.root / "panoptic" / "1.png"
    Image.fromarray(np.full((6, 8, 3), (1, 2, 3), np.uint8)).save(path)
    written_panoptic.tables["annotations"][0]["segments_info"][0]["id"] = 1 + 2 * 256 + 3 * 65536
    dataset = open_dataset(written_panoptic.save(), "train")
    np.testing.assert_array_equal(dataset.panoptic_map(0), np.full((6, 8), 197121))


def test_painted_ids_that_the_json_does_not_list_are_an_error(written_panoptic):
    written_panoptic.tables["annotations"][0]["segments_info"] = []
    dataset = open_dataset(written_panoptic.save(), "train")
    with pytest.raises(ValueError, match=r"panoptic/1\.png has pixels of segments \[261\] that .*annotations\.json"):
        dataset[0]


def test_listed_segments_without_a_pixel_are_an_error_unless_crowds(written_panoptic):
    segments = written_panoptic.tables["annotations"][0]["segments_info"]
    segments.append({"id": 40, "category_id": 9, "iscrowd": 1})
    assert len(open_dataset(written_panoptic.save(), "train")[0].objects) == 1
    segments[-1]["iscrowd"] = 0
    with pytest.raises(ValueError, match=r"panoptic/1\.png has no pixel of segments \[40\] that .*annotations\.json"):
        open_dataset(written_panoptic.save(), "train")[0]


@pytest.mark.parametrize("folder", ["images", "panoptic"])
def test_files_of_another_size_than_the_json_says_are_an_error(written_panoptic, folder):
    path = written_panoptic.root / folder / "1.png"
    Image.open(path).resize((16, 12), Image.Resampling.NEAREST).save(path)
    with pytest.raises(ValueError, match=rf"{folder}/1\.png is 16 x 12 pixels, but .*annotations\.json says 8 x 6"):
        open_dataset(written_panoptic.data, "train")[0]


@pytest.mark.parametrize("folder", ["images", "panoptic"])
def test_missing_and_damaged_files_are_named_when_they_are_read(written_panoptic, folder):
    dataset = open_dataset(written_panoptic.data, "train")
    path = written_panoptic.root / folder / "1.png"
    path.write_bytes(path.read_bytes()[:45])
    with pytest.raises(ValueError, match=rf"{folder}/1\.png cannot be read"):
        dataset[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{folder}/1\.png: no such image"):
        dataset[0]


def test_run_lengths_that_do_not_fill_the_image_name_the_annotation(written_instances):
    written_instances.tables["annotations"][0]["segmentation"] = {"size": [6, 8], "counts": [40]}
    message = f"{written_instances.json}: annotation 11 of image 1: the run lengths '[40]' cover 40 pixels of the 6 x 8"
    with pytest.raises(ValueError, match=re.escape(message)):
        open_dataset(written_instances.save(), "train")


def test_a_missing_root():
    with pytest.raises(FileNotFoundError, match=r"config\.data\.root = '/no/where': no such folder.*leave it empty"):
        open_dataset(DataConfig(root="/no/where"), "train")


@pytest.mark.parametrize("field", ["images", "annotations", "panoptic", "instances"])
def test_a_missing_path_names_the_option(coco_panoptic, field):
    setattr(coco_panoptic.val, field, "gone")
    message = rf"config\.data\.val\.{field} = 'gone': there is no .*/coco/gone, also not in a zip"
    with pytest.raises(FileNotFoundError, match=message):
        open_dataset(coco_panoptic, "val")


@pytest.mark.parametrize("field", ["images", "annotations", "panoptic"])
def test_an_empty_path_names_the_option(coco_panoptic, field):
    setattr(coco_panoptic.train, field, "")
    with pytest.raises(FileNotFoundError, match=rf"config\.data\.train\.{field} = ''"):
        open_dataset(coco_panoptic, "train")


def test_an_unknown_split():
    with pytest.raises(ValueError, match="split = 'test': choose train or val"):
        open_dataset(DataConfig(), "test")


def test_a_data_set_survives_pickling_and_prints_the_same_each_time(coco):
    dataset = open_dataset(coco, "val")
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy == dataset
    assert repr(copy) == repr(dataset) == f"CocoDataset({str(dataset.annotations)!r}, 4 images)"

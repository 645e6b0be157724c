"""YOLO: a line becomes a polygon or a box in pixels, every faulty line is named, and evaluation has the same truth."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdino_jax.config import DataConfig, SplitConfig
from maskdino_jax.data import open_dataset
from maskdino_jax.data.coco import CocoDataset
from maskdino_jax.data.faults import Faults
from tests.data_layer.own_data import HEIGHT, WIDTH, picture, write

Labels = Callable[..., DataConfig]


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    """Writes images/a.jpg of 10 x 8 pixels with these lines as its labels."""

    def made(*lines: str, names: str = "[cup, plate, fork]") -> DataConfig:
        picture(tmp_path / "images/a.jpg")
        write(tmp_path / "labels/a.txt", "\n".join(lines))
        write(tmp_path / "data.yaml", f"names: {names}\n")
        split = SplitConfig(images="images", annotations="data.yaml")
        return DataConfig(root=str(tmp_path), format="yolo", train=split, val=split)

    return made


def test_polygons_are_shares_of_width_and_height(labels: Labels) -> None:
    dataset = open_dataset(labels("2 0.2 0.25 0.6 0.25 0.6 0.75 0.2 0.75", "", "0 0 0 1 0 1 1 0 1"), "train")
    assert isinstance(dataset, CocoDataset)
    assert (dataset.image_id(0), dataset.file_name(0), dataset.size(0)) == ("a", "a.jpg", (HEIGHT, WIDTH))
    example = dataset[0]
    assert example.labels.tolist() == [2, 0]
    mask, box = example.objects.raster(0)
    expected = np.zeros((8, 10), bool)
    expected[2:6, 2:6] = True
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(box, [2, 2, 6, 6])
    assert example.objects.raster(1)[0].all()


def test_classes_are_numbered_as_in_the_data_yaml(labels: Labels) -> None:
    facts = lambda data: [(entry.id, entry.name) for entry in open_dataset(data, "val").catalog.categories]
    assert facts(labels(names="[cup, plate]")) == [(0, "cup"), (1, "plate")]
    assert facts(labels(names="{7: cup, 2: plate}")) == [(2, "plate"), (7, "cup")]
    assert facts(labels(names="{0: 1.0, 2: no}")) == [(0, "1.0"), (2, "no")]


def test_images_are_upright_as_everywhere(labels: Labels, tmp_path: Path) -> None:
    data = labels("0 0 0 0.5 0 0.5 0.5 0 0.5")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    picture(tmp_path / "images/a.jpg", exif=exif)
    dataset = open_dataset(data, "train")
    assert dataset.size(0) == dataset.image(0).shape[:2] == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(dataset[0].objects.raster(0)[1], [0, 0, 4, 5])


def test_without_masks_lines_are_boxes_or_become_them(labels: Labels) -> None:
    data = labels("1 0.5 0.5 0.4 0.25", "0 0.1 0.25 0.3 0.5 0.2 0.75")
    dataset = open_dataset(data, "train", masks=False)
    boxes = [entry["bbox"] for entry in dataset.records[0].annotations]
    np.testing.assert_allclose(boxes, [[3, 3, 4, 2], [1, 2, 2, 4]], atol=1e-12)


def test_a_box_where_masks_are_learned_names_the_switch(labels: Labels) -> None:
    data = labels("0 0 0 1 0 1 1", "1 0.5 0.5 0.4 0.25")
    with pytest.raises(ValueError, match=r"labels/a\.txt:2: a box, no polygon\. .*config\.model\.masks=False"):
        open_dataset(data, "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3 0 0 1 0 1 1", "class 3 is unknown: the names of the data set are numbered 0 to 2."),
        ("0.5 0 0 1 0 1 1", "class 0.5 is unknown"),
        ("-1 0 0 1 0 1 1", "class -1 is unknown"),
        ("0 0 0 1 0 1", "5 coordinates. Give the x and y of at least three points"),
        ("0", "0 coordinates"),
        ("0 0 0 1 0 1 1 1", "7 coordinates"),
        ("cup 0 0 1 0 1 1", "could not convert string to float: 'cup'. Give a class number"),
        ("0 0,0 1,0 1,1 0,1", "could not convert string to float: '0,0'"),
        ("0 0 0 1 0 1 1.02", "coordinate 1.02 is not from 0 to 1. Divide by width and height"),
        ("0 0 0 640 0 640 480", "coordinate 640.0 is not from 0 to 1"),
        ("0 -0.02 0 1 0 1 1", "coordinate -0.02 is not from 0 to 1"),
        ("0 nan 0 1 0 1 1", "coordinate nan is not from 0 to 1"),
    ],
)
def test_a_broken_line_is_an_error_with_its_number_or_is_counted_and_left_out(
    labels: Labels, line: str, message: str
) -> None:
    data = labels("1 0 0 1 0 1 1", "", line)
    with pytest.raises(ValueError, match=re.escape(f"{data.root}/labels/a.txt:3: {message}")):
        open_dataset(data, "train")
    faults = Faults()
    dataset = open_dataset(data, "train", report=faults)
    assert dataset[0].labels.tolist() == [1]
    assert len(dataset.instances_truth()["annotations"]) == 1
    assert faults.counts == {"broken YOLO line": 1}  # told once, however often the file is read


def test_a_rounding_beyond_the_image_ends_at_its_border(labels: Labels) -> None:
    dataset = open_dataset(labels("0 -0.004 0 1.004 0 1.004 1.009 -0.004 1"), "train")
    np.testing.assert_array_equal(dataset[0].objects.raster(0)[1], [0, 0, 10, 8])


def test_an_image_without_labels_is_empty_and_kept_for_validation(labels: Labels, tmp_path: Path) -> None:
    data = labels("0 0 0 1 0 1 1")
    picture(tmp_path / "images/b.jpg")
    assert [len(open_dataset(data, split)) for split in ("train", "val")] == [1, 2]


def test_labels_without_an_image_are_told_but_do_not_stop(labels: Labels, tmp_path: Path) -> None:
    data = labels("0 0 0 1 0 1 1")
    write(tmp_path / "labels/gone.txt", "0 0 0 1 0 1 1")
    write(tmp_path / "labels/classes.txt", "cup")
    faults = Faults()
    assert len(open_dataset(data, "train", report=faults)) == 1
    assert faults.counts == {"labels without an image": 1}
    assert "labels/gone.txt has no image in" in faults.first["labels without an image"][0]
    assert len(open_dataset(data, "train")) == 1


def test_two_images_with_one_label_file_are_named(labels: Labels, tmp_path: Path) -> None:
    data = labels("0 0 0 1 0 1 1")
    picture(tmp_path / "images/a.png")
    with pytest.raises(ValueError, match=r"images/a\.png and a\.jpg share .*labels/a\.txt. Rename"):
        open_dataset(data, "train")
    faults = Faults()
    dataset = open_dataset(data, "train", report=faults)
    assert [dataset.file_name(index) for index in range(len(dataset))] == ["a.jpg"]


def test_a_folder_without_labels_says_where_they_should_be(labels: Labels, tmp_path: Path) -> None:
    data = labels("0 0 0 1 0 1 1")
    picture(tmp_path / "images/more/b.jpg")
    data.train = SplitConfig(images="images/more", annotations="data.yaml")
    with pytest.raises(FileNotFoundError, match=r"images/more has no labels: there is no .*labels/more\. YOLO keeps"):
        open_dataset(data, "train")


def test_labels_may_lie_beside_the_images(labels: Labels, tmp_path: Path) -> None:
    data = labels("0 0 0 1 0 1 1")
    picture(tmp_path / "all/b.jpg")
    write(tmp_path / "all/b.txt", "1 0 0 1 0 1 1")
    data.train = SplitConfig(images="all", annotations="data.yaml")
    assert open_dataset(data, "train")[0].labels.tolist() == [1]
    picture(tmp_path / "other/images/all/b.jpg")  # images of something else, further up, have no labels
    write(tmp_path / "other/images/all/b.txt", "2 0 0 1 0 1 1")
    data.train = SplitConfig(images="other/images/all", annotations="data.yaml")
    assert open_dataset(data, "train")[0].labels.tolist() == [2]


def test_a_list_of_images_is_a_split(labels: Labels, tmp_path: Path) -> None:
    data = labels("0 0 0 1 0 1 1")
    for name in ("b", "c"):
        picture(tmp_path / f"images/{name}.jpg")
        write(tmp_path / f"labels/{name}.txt", "1 0 0 1 0 1 1")
    write(tmp_path / "some.txt", "./images/c.jpg\nimages/a.jpg\n")
    data.train = SplitConfig(images="some.txt", annotations="data.yaml")
    dataset = open_dataset(data, "train")
    assert [dataset.file_name(index) for index in range(len(dataset))] == ["images/c.jpg", "images/a.jpg"]
    assert [dataset[index].labels.tolist() for index in range(len(dataset))] == [[1], [0]]
    assert dataset.image(0).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("nc: 3\nnames: [cup, plate]", "nc is 3, but names has 2 classes. Correct one of them."),
        ("names: cup", "names is 'cup': list the names of the classes"),
        ("names: {cup: 0}", """names is "{'cup': '0'}": list"""),
        ("names: []", "names is '[]'"),
        ("train: images", "names is 'None'"),
        ("names: [cup]\nkpt_shape: [17, 3]", "has kpt_shape: its lines are poses"),
        ("- cup", "is no data.yaml"),
        ("names: [", "is no YAML"),
    ],
)
def test_a_data_yaml_that_names_no_classes_is_an_error(labels: Labels, tmp_path: Path, yaml: str, message: str) -> None:
    data = labels("0 0 0 1 0 1 1")
    (tmp_path / "data.yaml").write_text(yaml)
    with pytest.raises(ValueError, match=re.escape(message)):
        open_dataset(data, "train")


def test_a_count_alone_gives_names(labels: Labels, tmp_path: Path) -> None:
    data = labels("1 0 0 1 0 1 1")
    (tmp_path / "data.yaml").write_text("nc: 2")
    assert open_dataset(data, "train").catalog.names == ("class 0", "class 1")


def test_a_data_set_travels_to_loader_processes_and_makes_its_truth_there(labels: Labels) -> None:
    dataset = open_dataset(labels("1 0 0 1 0 1 1"), "train", report=Faults())
    copy = pickle.loads(pickle.dumps(dataset))
    truth = copy.instances_truth()
    assert truth == dataset.instances_truth()
    assert truth["images"] == [{"id": "a", "file_name": "a.jpg", "height": 8, "width": 10}]
    assert truth["annotations"] == [
        {"id": 1, "image_id": "a", "iscrowd": 0, "category_id": 1, "segmentation": [[0, 0, 10, 0, 10, 8]]}
    ]

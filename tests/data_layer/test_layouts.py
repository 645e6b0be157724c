"""A path is enough: every layout is recognised, in a folder and in an archive, and what is not says why."""

import dataclasses
import logging
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdino_jax.config import Config, ConfigError, DataConfig, SplitConfig
from maskdino_jax.data import open_dataset
from maskdino_jax.data.datasets import recognize
from maskdino_jax.validation import validate
from tests.data_layer import own_data
from tests.data_layer.conftest import COCO, coco_config
from tests.data_layer.layout_makers import (
    CLASSES,
    LAYOUTS,
    auto,
    json_in_the_root,
    label_images,
    official_coco,
    roboflow,
    yolo,
)
from tests.data_layer.own_data import instances, label, picture, write


def moved(split: SplitConfig, below: str) -> SplitConfig:
    """The same paths in a folder of the root."""
    paths = {field.name: getattr(split, field.name) for field in dataclasses.fields(split)}
    return SplitConfig(**{name: f"{below}/{path}" if path and name != "part" else path for name, path in paths.items()})


@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("kind", ["folder", "archive", "folder in an archive", "archive in a folder"])
def test_every_layout_is_recognised_unpacked_and_in_archives(
    make: Callable[[Path], DataConfig], kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = make(tmp_path / "mine")
    root, below = tmp_path / "mine", ""
    if kind == "archive":
        root = own_data.zipped(root)
    if kind == "folder in an archive":
        root, below = own_data.zipped(root, "deep"), "deep"
    if kind == "archive in a folder":
        (tmp_path / "alone").mkdir()
        root = Path(shutil.move(own_data.zipped(root), tmp_path / "alone/export.zip")).parent
        below = {"": "export.zip"}.get(below)
    caplog.set_level(logging.INFO)
    found = recognize(auto(root))
    assert found.format == expected.format
    names = ("train", "val")
    if kind == "archive in a folder":  # where the archive is said or where it is looked into
        opened = [open_dataset(found, split) for split in names]
        there = [open_dataset(dataclasses.replace(expected, root=str(tmp_path / "mine")), split) for split in names]
        assert [data.image_id(0) for data in opened] == [data.image_id(0) for data in there]
    else:
        for split in names:
            assert getattr(found, split) == (
                moved(getattr(expected, split), below) if below else getattr(expected, split)
            )
    assert Path(found.classes).name == expected.classes
    assert str(root) in caplog.text
    assert found.train.images in caplog.text
    for split in names:
        dataset = open_dataset(found, split)
        example = dataset[0]
        assert example.image.shape == (own_data.HEIGHT, own_data.WIDTH, 3)
        assert len(example.labels) == len(example.objects) > 0


def test_what_is_given_is_not_looked_for(tmp_path: Path) -> None:
    data = official_coco(tmp_path)
    data.root = str(tmp_path / "nowhere")
    assert recognize(data) is data


def test_panoptic_and_instances_are_told_apart_by_content_and_chosen_by_the_tasks(tmp_path: Path) -> None:
    for file in COCO.rglob("*"):
        name = file.relative_to(COCO).as_posix().replace("annotations/panoptic_", "annotations/of_")
        if file.is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tmp_path / name)
    panoptic = recognize(auto(tmp_path))
    assert panoptic.format == "coco_panoptic"
    assert panoptic.val == SplitConfig(
        images="val2017",
        annotations="annotations/of_val2017.json",
        panoptic="panoptic_val2017",
        instances="annotations/instances_val2017.json",
    )
    for tasks in (("instance",), ("detection",)):
        only = recognize(auto(tmp_path), tasks)
        assert (only.format, only.train) == ("coco_instances", coco_config("coco_instances").train)
    assert recognize(auto(tmp_path), ("semantic",)).format == "coco_panoptic"


def test_the_data_that_come_along_are_recognised_too() -> None:
    data = recognize(DataConfig(format="auto"))
    assert (data.format, data.train.images, data.val.images) == ("coco_panoptic", "train", "val")
    assert data.val.instances == "annotations/instances_val.json"


@pytest.mark.parametrize(
    ("make", "tasks", "remedy"),
    [
        (
            roboflow,
            ("panoptic",),
            "COCO instances. Take configs/custom.py:instance, or give some of detection, instance",
        ),
        (yolo, ("semantic",), "YOLO with data.yaml. Take configs/custom.py:instance"),
        (label_images, ("instance",), "label images. Take configs/custom.py:semantic, or give some of semantic."),
    ],
)
def test_tasks_that_the_annotations_cannot_teach_name_the_variant(
    make: Callable[[Path], DataConfig], tasks: tuple[str, ...], remedy: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(f"config.inference.tasks = {tasks!r}: {tmp_path} holds {remedy}")):
        recognize(auto(tmp_path), tasks)


def test_what_is_recognised_passes_the_checks_of_options(tmp_path: Path) -> None:
    config = Config(data=auto(tmp_path))
    config.inference.tasks, config.best_metric = ("semantic",), "sem_seg/mIoU"
    assert validate(config) is config
    label_images(tmp_path)
    config.data = recognize(config.data, config.inference.tasks)
    assert validate(config) is config
    config.data.classes = ""
    with pytest.raises(ConfigError, match=r"data\.classes = ''.*a file of names, or config\.data\.format=auto"):
        validate(config)


def test_a_folder_of_something_else_lists_what_is_there_and_what_was_looked_for(tmp_path: Path) -> None:
    picture(tmp_path / "holiday/1.jpg")
    write(tmp_path / "notes.json", "[]")
    instances(tmp_path / "train.json", ["gone.jpg"], CLASSES)
    write(tmp_path / "settings.yaml", "a: 1")
    write(tmp_path / "broken.yaml", "a: [")
    with pytest.raises(ValueError, match="no data set is recognised there") as error:
        recognize(auto(tmp_path))
    message = str(error.value)
    assert "It holds holiday, broken.yaml, notes.json, settings.yaml, train.json, holiday/1.jpg\n" in message
    assert "notes.json: no COCO annotations" in message
    assert "train.json: COCO instances, but its first image gone.jpg is nowhere" in message
    assert "settings.yaml: no data.yaml of YOLO" in message
    assert "broken.yaml is no YAML" in message
    assert all(f"\n  {layout}: " in message for layout in ("COCO", "Roboflow", "YOLO", "label images", "ADE20K"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="It holds nothing"):
        recognize(auto(tmp_path / "empty"))


def test_no_root_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.data\.root = 'nowhere': no such folder or zip archive"):
        recognize(auto(Path("nowhere")))


def test_without_a_validation_split_about_every_tenth_picture_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{number}_jpg.rf.{copy}.jpg" for number in range(100) for copy in "abc"]
    for name in names:
        picture(tmp_path / "train" / name)
    instances(tmp_path / "train/_annotations.coco.json", names, CLASSES)
    caplog.set_level(logging.INFO)
    data = recognize(auto(tmp_path))
    assert "There is no validation split: about every tenth image of train is held back for it." in caplog.text
    assert (data.train.part, data.val.part) == ("rest", "tenth")
    train, val = (open_dataset(data, split) for split in ("train", "val"))
    of = lambda dataset: {dataset.file_name(index) for index in range(len(dataset))}
    assert of(train) | of(val) == set(names)
    assert not of(train) & of(val)
    assert 3 * 4 <= len(val) <= 3 * 20
    pictures = lambda dataset: {name.partition("_")[0] for name in of(dataset)}
    assert not pictures(train) & pictures(val)  # the copies of a picture stay together
    for name in names[:150]:
        (tmp_path / "train" / name).unlink()
    instances(tmp_path / "train/_annotations.coco.json", names[150:], CLASSES)
    fewer = open_dataset(data, "val")
    assert of(fewer) == of(val) & set(names[150:])  # whether a picture is held back does not depend on the others


@pytest.mark.parametrize("make", [roboflow, yolo, label_images], ids=lambda make: make.__name__)
def test_two_pictures_are_one_for_each_split_and_one_is_too_few(
    make: Callable[[Path], DataConfig], tmp_path: Path
) -> None:
    data = make(tmp_path)
    data.root = str(tmp_path)
    first = tmp_path / data.train.images
    if data.format == "coco_instances":
        picture(first / "b.jpg")
        instances(tmp_path / data.train.annotations, ["a.rf.1.jpg", "b.jpg"], CLASSES)
    if data.format == "semantic":
        picture(first / "b.jpg")
        label(tmp_path / data.train.semantic / "b.png", 0)
    for part in ("tenth", "rest"):
        data.train.part = part
        assert len(open_dataset(data, "train")) == 1
    if data.format == "semantic":
        (first / "b.jpg").unlink()
        with pytest.raises(ValueError, match="less than two pictures"):
            open_dataset(data, "train")


def test_without_a_list_the_values_of_both_splits_are_the_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    label_images(tmp_path)
    (tmp_path / "classes.txt").unlink()
    label(tmp_path / "masks/train/7.png", 2, 255)
    label(tmp_path / "masks/val/7.png", 9)
    caplog.set_level(logging.INFO)
    data = recognize(auto(tmp_path))
    assert data.classes == "2,9"
    assert "the values in the label images are the classes, and 255 is unlabelled" in caplog.text
    train, val = (open_dataset(data, split) for split in ("train", "val"))
    assert train.catalog == val.catalog
    assert [(entry.id, entry.name, entry.is_thing) for entry in val.catalog.categories] == [
        (2, "class 2", False),
        (9, "class 9", False),
    ]
    assert train.semantic_map(0)[:, 0].tolist() == [0, 2, 0, 2, 0, 2, 0, 2]
    assert (val.semantic_map(0) == 1).all()
    label(tmp_path / "masks/train/7.png", 0, 255)
    label(tmp_path / "masks/val/7.png", 0, 255)
    data = recognize(auto(tmp_path))
    assert data.classes == "0,255"
    assert "255 is a class" in caplog.text
    assert open_dataset(data, "train").semantic_map(0)[:2, 0].tolist() == [0, 1]


def test_a_list_that_is_given_is_taken(tmp_path: Path) -> None:
    label_images(tmp_path)
    write(tmp_path / "names.txt", "a\nb")
    data = recognize(auto(tmp_path, classes="names.txt"))
    assert data.classes == "names.txt"
    assert open_dataset(data, "val").catalog.names == ("a", "b")


def test_paths_of_a_data_yaml_from_elsewhere_are_found_by_their_ends(tmp_path: Path) -> None:
    own_data.yolo(tmp_path)
    yaml = tmp_path / "data.yaml"
    yaml.write_text("path: /home/someone/plates\ntrain: [images/train]\nval: images/gone\nnames: [cup, plate]\n")
    data = recognize(auto(tmp_path))
    assert (data.train.images, data.train.part) == ("images/train", "rest")
    assert (data.val.images, data.val.part) == ("images/train", "tenth")
    yaml.write_text("train: [images/train, images/val]\nnames: [cup, plate]\n")
    with pytest.raises(ValueError, match=r"train in the data\.yaml is a list of 2 folders: give one"):
        recognize(auto(tmp_path))
    yaml.write_text("train: images/nowhere\nnames: [cup, plate]\n")
    with pytest.raises(ValueError, match=r"data\.yaml: train is 'images/nowhere', which is not there"):
        recognize(auto(tmp_path))


def test_yolo_with_classes_txt_needs_no_yaml(tmp_path: Path) -> None:
    own_data.yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    write(tmp_path / "classes.txt", "cup\nplate\n")
    data = recognize(auto(tmp_path))
    assert (data.format, data.train) == ("yolo", SplitConfig(images="images/train", annotations="classes.txt"))
    assert open_dataset(data, "val").catalog.names == ("cup", "plate")


def test_the_same_folder_for_both_splits_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own_data.yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cup, plate]\n")
    caplog.set_level(logging.INFO)
    recognize(auto(tmp_path))
    assert "Validation is on the images of training." in caplog.text


@pytest.mark.parametrize("stored", [True, False])
def test_panoptic_png_in_an_archive_in_the_archive_of_the_annotations(stored: bool, tmp_path: Path) -> None:
    root = tmp_path / "coco"
    root.mkdir()
    for split in ("train", "val"):
        shutil.make_archive(str(root / f"{split}2017"), "zip", COCO, f"{split}2017")
        shutil.make_archive(str(tmp_path / f"panoptic_{split}2017"), "zip", COCO, f"panoptic_{split}2017")
    with zipfile.ZipFile(root / "panoptic_annotations_trainval2017.zip", "w") as archive:
        for split in ("train", "val"):
            archive.write(
                COCO / f"annotations/panoptic_{split}2017.json",
                f"annotations/panoptic_{split}2017.json",
                zipfile.ZIP_DEFLATED,
            )
            kind = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            inner = f"panoptic_{split}2017.zip"
            archive.write(tmp_path / inner, f"annotations/{inner}", kind)
    data = auto(root)
    if not stored:
        with pytest.raises(ValueError, match=r"holds annotations/panoptic_train2017\.zip compressed.*unzip -j"):
            recognize(data)
        return
    data = recognize(data)
    assert data.format == "coco_panoptic"
    here, there = open_dataset(data, "val"), open_dataset(coco_config("coco_panoptic"), "val")
    for index in range(len(there)):
        np.testing.assert_array_equal(here.panoptic_map(index), there.panoptic_map(index))
        np.testing.assert_array_equal(here.image(index), there.image(index))


def test_images_of_the_same_names_belong_to_the_folder_of_their_split(tmp_path: Path) -> None:
    json_in_the_root(tmp_path)
    Image.new("RGB", (own_data.WIDTH, own_data.HEIGHT), (1, 2, 3)).save(tmp_path / "images/val/7.png")
    picture(tmp_path / "images/7.jpg")
    data = recognize(auto(tmp_path))
    assert (data.train.images, data.val.images) == ("images/train", "images/val")

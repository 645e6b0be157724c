"""One data set in each layout that is recognised, and the paths that are to be found in it."""

import json
from pathlib import Path

from maskdino_jax.config import DataConfig, SplitConfig
from tests.data_layer import own_data
from tests.data_layer.own_data import instances, label, picture, write

CLASSES = {0: "toys", 3: "car", 1: "ball"}


def auto(root: Path, **options: object) -> DataConfig:
    return DataConfig(root=str(root), format="auto", workers=0, **options)


def official_coco(root: Path) -> DataConfig:
    for split in ("train", "val"):
        picture(root / f"{split}2017/7.jpg")
        instances(root / f"annotations/instances_{split}2017.json", ["7.jpg"], CLASSES)
        write(root / f"annotations/captions_{split}2017.json", "{}")
    return DataConfig(
        format="coco_instances",
        train=SplitConfig(images="train2017", annotations="annotations/instances_train2017.json"),
        val=SplitConfig(images="val2017", annotations="annotations/instances_val2017.json"),
    )


def roboflow(root: Path) -> DataConfig:
    for split in ("train", "valid", "test"):
        picture(root / split / "a.rf.1.jpg")
        instances(root / split / "_annotations.coco.json", ["a.rf.1.jpg"], CLASSES)
    write(root / "README.roboflow.txt", "export")
    return DataConfig(
        format="coco_instances",
        train=SplitConfig(images="train", annotations="train/_annotations.coco.json"),
        val=SplitConfig(images="valid", annotations="valid/_annotations.coco.json"),
    )


def json_in_the_root(root: Path) -> DataConfig:
    for split in ("train", "val"):
        picture(root / f"images/{split}/7.jpg")
        instances(root / f"my_{split}.json", ["7.jpg"], CLASSES)
    return DataConfig(
        format="coco_instances",
        train=SplitConfig(images="images/train", annotations="my_train.json"),
        val=SplitConfig(images="images/val", annotations="my_val.json"),
    )


def yolo(root: Path) -> DataConfig:
    own_data.yolo(root)
    return DataConfig(
        format="yolo",
        train=SplitConfig(images="images/train", annotations="data.yaml"),
        val=SplitConfig(images="images/val", annotations="data.yaml"),
    )


def yolo_of_roboflow(root: Path) -> DataConfig:
    for split in ("train", "valid"):
        picture(root / split / "images/1.jpg")
        write(root / split / "labels/1.txt", "0 0.1 0.0 0.5 0.0 0.1 0.5")
    picture(root.parent / "train/images/of another data set.jpg")
    write(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: [cup]\n")
    return DataConfig(
        format="yolo",
        train=SplitConfig(images="train/images", annotations="data.yaml"),
        val=SplitConfig(images="valid/images", annotations="data.yaml"),
    )


def label_images(root: Path) -> DataConfig:
    for split in ("train", "val"):
        picture(root / f"images/{split}/7.jpg")
        label(root / f"masks/{split}/7.png", 0, 1, 255)
    write(root / "classes.txt", "road\nsky\n")
    return DataConfig(
        format="semantic",
        classes="classes.txt",
        train=SplitConfig(images="images/train", semantic="masks/train"),
        val=SplitConfig(images="images/val", semantic="masks/val"),
    )


def label_images_by_split(root: Path) -> DataConfig:
    for split in ("training", "validation"):
        picture(root / f"{split}/images/7.jpg")
        label(root / f"{split}/labels/7.png", 0, 1)
    write(root / "classes.json", json.dumps(["road", "sky"]))
    return DataConfig(
        format="semantic",
        classes="classes.json",
        train=SplitConfig(images="training/images", semantic="training/labels"),
        val=SplitConfig(images="validation/images", semantic="validation/labels"),
    )


def ade20k(root: Path) -> DataConfig:
    for split in ("training", "validation"):
        picture(root / f"images/{split}/7.jpg")
        label(root / f"annotations/{split}/7.png", 0, 150)
    write(root / "objectInfo150.txt", "")
    return DataConfig(
        format="semantic",
        classes="ade20k",
        train=SplitConfig(images="images/training", semantic="annotations/training"),
        val=SplitConfig(images="images/validation", semantic="annotations/validation"),
    )


def cityscapes(root: Path) -> DataConfig:
    for split in ("train", "val"):
        picture(root / f"leftImg8bit/{split}/ulm/ulm_1_leftImg8bit.png")
        label(root / f"gtFine/{split}/ulm/ulm_1_gtFine_labelIds.png", 0, 7, 33)
    return DataConfig(
        format="semantic",
        classes="cityscapes",
        train=SplitConfig(images="leftImg8bit/train", semantic="gtFine/train"),
        val=SplitConfig(images="leftImg8bit/val", semantic="gtFine/val"),
    )


LAYOUTS = (
    official_coco,
    roboflow,
    json_in_the_root,
    yolo,
    yolo_of_roboflow,
    label_images,
    label_images_by_split,
    ade20k,
    cityscapes,
)

"""Generated files: worked by hand, and against the published sample of ADE20K."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskdino_jax.config import ConfigError, DataConfig, SplitConfig
from maskdino_jax.data import Catalog, open_dataset
from maskdino_jax.data.prepare import prepare, writing

COCO = Path(__file__).parents[1] / "data" / "coco"
ADE = "ADE_val_00000009"


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def outcomes(root: Path) -> dict[str, tuple[int, int]]:
    return {made.what: (made.new, made.kept) for made in prepare(root) if not made.lacks}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """The validation images of the subset, whose files are read only."""
    (tmp_path / "annotations").mkdir()
    shutil.copy(COCO / "annotations/panoptic_val2017.json", tmp_path / "annotations")
    shutil.copytree(COCO / "panoptic_val2017", tmp_path / "panoptic_val2017")
    return tmp_path


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    """One image of 6 x 8 pixels: wall above, floor below, a bed and two flags on them, sky under a flag alone."""
    save(tmp_path / f"images/validation/{ADE}.jpg", np.zeros((6, 8, 3), np.uint8))
    labels = np.full((6, 8), 1, np.uint8)  # wall
    labels[3:] = 4  # floor
    labels[0, 0] = 0  # unlabelled
    labels[4:6, 1:3] = 8  # bed, a thing: only its object counts
    labels[0, 7] = 3  # sky
    save(tmp_path / f"annotations/validation/{ADE}.png", labels)
    objects = np.zeros((6, 8, 3), np.uint8)
    objects[3:6, 1:3] = (1, 5, 9)  # bed is the first of the classes with objects
    objects[0:2, 6:8] = (100, 2, 9)  # flag is the last one
    objects[5, 7] = (100, 3, 9)
    save(tmp_path / f"annotations_instance/validation/{ADE}.png", objects)
    return tmp_path


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """One image of 4 x 6 pixels: road, a crowd of persons, two cars, a parking lot and a caravan that do not count."""
    numbers = np.full((4, 6), 7, np.int32)
    numbers[0, :2] = 24  # persons that are not told apart
    numbers[1, 0:2], numbers[1:3, 3] = 26000, 26300
    numbers[3, 0], numbers[3, 5], numbers[3, 4] = 9, 29000, 0
    folder = tmp_path / "gtFine/val/bonn"
    save(folder / "bonn_000001_000019_gtFine_instanceIds.png", numbers.astype(np.uint16))
    labels = np.where(numbers < 1000, numbers, numbers // 1000).astype(np.uint8)
    save(folder / "bonn_000001_000019_gtFine_labelIds.png", labels)
    save(tmp_path / "leftImg8bit/val/bonn/bonn_000001_000019_leftImg8bit.png", np.zeros((4, 6, 3), np.uint8))
    return tmp_path


def test_every_segment_of_coco_is_painted_with_its_contiguous_class(coco: Path) -> None:
    made = prepare(coco)
    content = json.loads((coco / "annotations/panoptic_val2017.json").read_text())
    catalog = Catalog.named("coco_panoptic")
    assert (made[0].what, made[0].lacks != "") == ("panoptic_semseg_train2017", True)
    assert (made[1].new, made[1].kept) == (len(content["annotations"]), 0)
    for entry in content["annotations"]:
        ids = read(coco / "panoptic_val2017" / entry["file_name"]).astype(int) @ [1, 256, 65536]
        wanted = np.full(ids.shape, 255)
        for segment in entry["segments_info"]:
            wanted[ids == segment["id"]] = catalog.index(segment["category_id"])
        labels = read(coco / "panoptic_semseg_val2017" / entry["file_name"])
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, wanted)


def test_crowds_of_coco_are_painted_too(coco: Path) -> None:
    path = coco / "annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    entry = content["annotations"][0]
    entry["segments_info"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    prepare(coco)
    ids = read(coco / "panoptic_val2017" / entry["file_name"]).astype(int) @ [1, 256, 65536]
    painted = read(coco / "panoptic_semseg_val2017" / entry["file_name"])[ids == entry["segments_info"][0]["id"]]
    wanted = Catalog.named("coco_panoptic").index(entry["segments_info"][0]["category_id"])
    assert set(painted.tolist()) == {wanted}


def test_published_archives_are_enough(coco: Path) -> None:
    with zipfile.ZipFile(coco / "panoptic_val2017.zip", "w") as archive:
        for path in (coco / "panoptic_val2017").iterdir():
            archive.write(path, f"panoptic_val2017/{path.name}")
    shutil.rmtree(coco / "panoptic_val2017")
    count = len(json.loads((coco / "annotations/panoptic_val2017.json").read_text())["annotations"])
    assert outcomes(coco) == {"panoptic_semseg_val2017": (count, 0)}
    assert outcomes(coco) == {"panoptic_semseg_val2017": (0, count)}


def test_labels_of_ade20k_lose_one(ade: Path) -> None:
    prepare(ade)
    labels = read(ade / f"annotations_detectron2/validation/{ADE}.png")
    assert labels[0, 0] == 255
    assert labels[0, 1:7].tolist() == [0] * 6
    assert (labels[0, 7], labels[4, 1], labels[3, 0]) == (2, 7, 3)


def test_objects_of_ade20k_are_painted_over_its_stuff(ade: Path) -> None:
    prepare(ade)
    content = json.loads((ade / "ade20k_panoptic_val.json").read_text())
    assert content["images"] == [{"id": ADE, "file_name": f"{ADE}.jpg", "width": 8, "height": 6}]
    entry = content["annotations"][0]
    assert (entry["image_id"], entry["file_name"]) == (ADE, f"{ADE}.png")
    found = [(s["category_id"], s["area"], s["bbox"], s["iscrowd"]) for s in entry["segments_info"]]
    assert found == [
        # Stuff as in the label image, also what objects hide; the sky is hidden entirely.
        (0, 22, [0, 0, 8, 3], 0),
        (3, 20, [0, 3, 8, 3], 0),
        # Objects by their number: of the flags, the one with number 2 comes first.
        (149, 4, [6, 0, 2, 2], 0),
        (149, 1, [7, 5, 1, 1], 0),
        (7, 6, [1, 3, 2, 3], 0),
    ]
    ids = read(ade / f"ade20k_panoptic_val/{ADE}.png").astype(int) @ [1, 256, 65536]
    wall, floor, flag, other, bed = (segment["id"] for segment in entry["segments_info"])
    wanted = np.full((6, 8), wall)
    wanted[3:] = floor
    wanted[0, 0] = 0
    wanted[3:6, 1:3] = bed
    wanted[0:2, 6:8] = flag
    wanted[5, 7] = other
    np.testing.assert_array_equal(ids, wanted)


def test_ids_of_ade20k_are_colors_near_to_those_of_the_class(ade: Path) -> None:
    prepare(ade)
    content = json.loads((ade / "ade20k_panoptic_val.json").read_text())
    colors = {entry["id"]: np.array(entry["color"]) for entry in content["categories"]}
    rgb = lambda id: np.array([id % 256, id // 256 % 256, id // 65536])
    segments = content["annotations"][0]["segments_info"]
    away = [np.abs(rgb(s["id"]) - colors[s["category_id"]]).max() for s in segments]
    assert [int(distance) for distance in away[:3] + away[4:]] == [0, 0, 0, 0]  # the first of each class has its colour
    assert 0 < away[3] <= 30
    assert [entry["id"] for entry in content["categories"]] == list(range(150))
    assert sum(entry["isthing"] for entry in content["categories"]) == 100


def test_ids_of_ade20k_are_the_same_in_each_run(ade: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(ade, other, dirs_exist_ok=True)
    for root in (ade, other):
        prepare(root)
    first, second = ((root / "ade20k_panoptic_val.json").read_text() for root in (ade, other))
    assert first == second


def test_instances_of_ade20k_are_the_objects_alone(ade: Path) -> None:
    prepare(ade)
    content = json.loads((ade / "ade20k_instance_val.json").read_text())
    found = [(a["id"], a["category_id"], a["area"], a["bbox"], a["iscrowd"]) for a in content["annotations"]]
    assert found == [(1, 149, 4, [6, 0, 2, 2], 0), (2, 149, 1, [7, 5, 1, 1], 0), (3, 7, 6, [1, 3, 2, 3], 0)]
    assert {annotation["image_id"] for annotation in content["annotations"]} == {ADE}
    mask = np.zeros((6, 8), np.uint8, order="F")
    mask[3:6, 1:3] = 1
    assert content["annotations"][2]["segmentation"]["counts"] == coco_mask.encode(mask)["counts"].decode()
    assert len(content["categories"]) == 100
    assert (content["categories"][0]["name"], content["categories"][99]["name"]) == ("bed", "flag")


def test_what_is_made_of_ade20k_can_be_trained_on(ade: Path) -> None:
    prepare(ade)
    split = SplitConfig(
        images="images/validation", annotations="ade20k_panoptic_val.json", panoptic="ade20k_panoptic_val"
    )
    example = open_dataset(DataConfig(root=str(ade), train=split), "train")[0]
    assert example.objects.rasters().areas.tolist() == [24 - 1 - 4, 24 - 6 - 1, 4, 1, 6]
    split = SplitConfig(images="images/validation", annotations="ade20k_instance_val.json")
    dataset = open_dataset(DataConfig(root=str(ade), format="coco_instances", train=split), "train")
    assert dataset[0].objects.rasters().areas.tolist() == [4, 1, 6]
    assert [dataset.catalog.names[label] for label in dataset[0].labels] == ["flag", "flag", "bed"]


@pytest.mark.shared
def test_the_published_sample_of_ade20k_comes_out(shared: Path, tmp_path: Path) -> None:
    sample, name = shared / "data/ADEChallengeData2016", "ADE_val_00000001"
    for kind, ending in (("images", "jpg"), ("annotations", "png")):
        place = tmp_path / f"{kind}/validation"
        place.mkdir(parents=True)
        shutil.copy(sample / f"{kind}/validation/{name}.{ending}", place)
    published = read(sample / f"ade20k_panoptic_val/{name}.png")
    save(tmp_path / f"annotations_instance/validation/{name}.png", np.zeros_like(published))  # no objects in this one
    prepare(tmp_path)
    np.testing.assert_array_equal(read(tmp_path / f"ade20k_panoptic_val/{name}.png"), published)
    mine, theirs = (
        json.loads((root / "ade20k_panoptic_val.json").read_text())["annotations"][0] for root in (tmp_path, sample)
    )
    for segment in theirs["segments_info"]:
        segment["category_id"] -= 1  # that file counts classes from 1, the scripts of Mask2Former from 0
    assert mine == theirs


def test_an_object_of_two_classes_is_an_error(ade: Path) -> None:
    path = ade / f"annotations_instance/validation/{ADE}.png"
    objects = read(path).copy()
    objects[5, 7] = (99, 2, 0)
    save(path, objects)
    with pytest.raises(
        ValueError, match=rf"{ADE}\.png: object 2 \(green\) has several classes; red must be one of 1 to"
    ):
        prepare(ade)
    objects[5, 7] = (101, 3, 0)
    save(path, objects)
    with pytest.raises(ValueError, match=rf"{ADE}\.png: object 3 \(green\) has class 101; red must be one of 1 to 100"):
        prepare(ade)


def test_labels_of_cityscapes_become_those_of_training(cityscapes: Path) -> None:
    prepare(cityscapes)
    labels = read(cityscapes / "gtFine/val/bonn/bonn_000001_000019_gtFine_labelTrainIds.png")
    assert labels.tolist() == [
        [11, 11, 0, 0, 0, 0],
        [13, 13, 0, 13, 0, 0],
        [0, 0, 0, 13, 0, 0],
        [255, 0, 0, 0, 255, 255],
    ]


def test_segments_of_cityscapes_are_stuff_crowds_and_objects(cityscapes: Path) -> None:
    prepare(cityscapes)
    content = json.loads((cityscapes / "gtFine/cityscapes_panoptic_val.json").read_text())
    name = "bonn_000001_000019"
    assert content["images"] == [
        {"id": name, "file_name": f"bonn/{name}_leftImg8bit.png", "width": 6, "height": 4},
    ]
    entry = content["annotations"][0]
    assert (entry["image_id"], entry["file_name"]) == (name, f"{name}_gtFine_panoptic.png")
    assert entry["segments_info"] == [
        {"id": 7, "category_id": 7, "area": 15, "bbox": [0, 0, 6, 4], "iscrowd": 0},
        {"id": 24, "category_id": 24, "area": 2, "bbox": [0, 0, 2, 1], "iscrowd": 1},
        {"id": 26000, "category_id": 26, "area": 2, "bbox": [0, 1, 2, 1], "iscrowd": 0},
        {"id": 26300, "category_id": 26, "area": 2, "bbox": [3, 1, 1, 2], "iscrowd": 0},
    ]
    pixels = read(cityscapes / f"gtFine/cityscapes_panoptic_val/{name}_gtFine_panoptic.png")
    assert pixels[1, 3].tolist() == [26300 % 256, 26300 // 256, 0]
    assert pixels[3].tolist() == [[0, 0, 0], [7, 0, 0], [7, 0, 0], [7, 0, 0], [0, 0, 0], [0, 0, 0]]
    categories = {entry["id"]: entry for entry in content["categories"]}
    assert len(categories) == 19
    assert (categories[26]["name"], categories[26]["isthing"], categories[7]["isthing"]) == ("car", 1, 0)


def test_what_is_made_of_cityscapes_can_be_trained_on(cityscapes: Path) -> None:
    prepare(cityscapes)
    split = SplitConfig(
        images="leftImg8bit/val",
        annotations="gtFine/cityscapes_panoptic_val.json",
        panoptic="gtFine/cityscapes_panoptic_val",
    )
    dataset = open_dataset(DataConfig(root=str(cityscapes), classes="cityscapes", train=split), "train")
    assert [dataset.catalog.names[label] for label in dataset[0].labels] == ["road", "car", "car"]


def test_a_label_that_cityscapes_does_not_have_is_an_error(cityscapes: Path) -> None:
    path = cityscapes / "gtFine/val/bonn/bonn_000001_000019_gtFine_instanceIds.png"
    numbers = read(path).astype(np.uint16)
    numbers[0, 0] = 34000
    save(path, numbers)
    with pytest.raises(ValueError, match=r"instanceIds\.png has label 34, but Cityscapes has 0 to 33"):
        prepare(cityscapes)


def stop_at(monkeypatch: pytest.MonkeyPatch, count: int) -> Callable[[], None]:
    """Pillow is interrupted in the middle of the file after the first `count`."""
    whole, written = Image.Image.save, []

    def cut(image: Image.Image, file, format: str) -> None:
        if len(written) == count:
            file.write(b"half a file")
            raise KeyboardInterrupt
        written.append(format)
        whole(image, file, format)

    monkeypatch.setattr(Image.Image, "save", cut)
    monkeypatch.setattr(writing.os, "cpu_count", lambda: 1)
    return lambda: monkeypatch.undo()


def test_an_interrupted_preparation_goes_on_where_it_stopped(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = stop_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        prepare(coco)
    go_on()
    folder = coco / "panoptic_semseg_val2017"
    whole = sorted(folder.glob("*.png"))
    assert len(whole) == 2
    for path in whole:
        read(path)
    before = [path.stat().st_mtime_ns for path in whole]
    count = len(json.loads((coco / "annotations/panoptic_val2017.json").read_text())["annotations"])
    assert outcomes(coco) == {"panoptic_semseg_val2017": (count - 2, 2)}
    assert [path.stat().st_mtime_ns for path in whole] == before
    assert not list(folder.glob("*.part"))


def test_a_json_is_written_last(ade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = stop_at(monkeypatch, 1)  # the label image; then the panoptic PNG is cut
    with pytest.raises(KeyboardInterrupt):
        prepare(ade)
    go_on()
    assert not list(ade.glob("ade20k_panoptic_val.json*"))
    assert not list((ade / "ade20k_panoptic_val").glob("*.png"))
    save(ade / f"ade20k_panoptic_val/{ADE}.png", np.full((6, 8, 3), 77, np.uint8))  # with the ids of another tool
    assert outcomes(ade)["ade20k_panoptic_val"] == (1, 0)
    assert (read(ade / f"ade20k_panoptic_val/{ADE}.png") != 77).any()
    (ade / "ade20k_panoptic_val.json").unlink()
    assert outcomes(ade)["ade20k_panoptic_val"] == (0, 1)  # the right pixels: only the JSON is new


def test_a_json_without_its_images_is_an_error(ade: Path) -> None:
    prepare(ade)
    (ade / f"ade20k_panoptic_val/{ADE}.png").unlink()
    with pytest.raises(
        ValueError, match=rf"ade20k_panoptic_val\.json names {ADE}\.png \(1 in all\), .*Remove the JSON"
    ):
        prepare(ade)


def test_what_cannot_be_made_is_said(ade: Path) -> None:
    shutil.rmtree(ade / "annotations_instance")
    said = [str(made) for made in prepare(ade)]
    assert "annotations_detectron2/validation: 1 made, 0 there already" in said
    assert "ade20k_panoptic_val: left out, there is no annotations_instance/validation" in said
    assert not (ade / "ade20k_instance_val.json").exists()


def test_a_folder_with_no_known_data_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"is none of the data sets that need preparing\. COCO: annotations/panoptic_tr"
    ):
        prepare(tmp_path)
    with pytest.raises(ConfigError, match=r"config\.data\.root = '': give the folder of COCO, ADE20K or Cityscapes"):
        prepare("")

"""Class ids of a user's own, from 0, from 1 or with gaps, come back from data over the checkpoint to every result."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdino_jax.config import DataConfig, SplitConfig
from maskdino_jax.data import Catalog, open_dataset
from maskdino_jax.data.datasets import recognize
from maskdino_jax.evaluation.average_precision import AveragePrecision
from maskdino_jax.inference.results import Instances, Panoptic, PanopticSegment, Segments
from tests.data_layer import own_data
from tests.data_layer.own_data import HEIGHT, WIDTH, instances, label, picture, write

NUMBERINGS = {"from 0": (0, 1, 2), "from 1": (1, 2, 3), "gaps": (4, 17, 200)}
NAMES = ("cup", "plate", "fork")


@pytest.fixture(params=NUMBERINGS.values(), ids=NUMBERINGS)
def ids(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return request.param


def stored(catalog: Catalog) -> Catalog:
    """What a checkpoint gives back."""
    return Catalog.from_dict(json.loads(json.dumps(catalog.to_dict())))


def found(masks: np.ndarray, labels: np.ndarray) -> Instances:
    boxes = [[0.0, 0, WIDTH, HEIGHT]] * len(labels)
    return Instances.from_masks(
        masks,
        scores=np.linspace(0.9, 0.8, len(labels)).astype(np.float32),
        labels=labels.astype(np.int32),
        boxes=np.array(boxes, np.float32),
        queries=np.arange(len(labels), dtype=np.int32),
    )


def instances_of(root: Path, ids: tuple[int, ...], backwards: bool = False) -> DataConfig:
    picture(root / "a.png")
    entries = list(zip(ids, NAMES, strict=True))
    instances(root / "train.json", ["a.png"], dict(entries[::-1] if backwards else entries))
    return recognize(DataConfig(root=str(root), format="auto"))


def test_instances(ids: tuple[int, ...], tmp_path: Path) -> None:
    data = instances_of(tmp_path, ids)
    data.train.part = "all"
    dataset = open_dataset(data, "train")
    example, catalog = dataset[0], stored(dataset.catalog)
    assert catalog == dataset.catalog
    masks = np.stack([example.objects.raster(place)[0] for place in range(3)])
    written = json.loads(json.dumps(Segments(catalog=catalog, instances=found(masks, example.labels)).to_dict("a", 0)))
    assert [entry["category_id"] for entry in written["instances"]] == list(ids)
    segments = Segments(catalog=catalog, instances=found(masks, example.labels)).segments
    assert [(segment.class_id, segment.name) for segment in segments] == list(zip(ids, NAMES, strict=True))


def test_a_label_does_not_depend_on_the_order_of_the_categories(ids: tuple[int, ...], tmp_path: Path) -> None:
    here, there = (instances_of(tmp_path / str(backwards), ids, backwards) for backwards in (False, True))
    for data in (here, there):
        data.train.part = "all"
    one, other = open_dataset(here, "train"), open_dataset(there, "train")
    assert one.catalog == other.catalog
    assert [entry.id for entry in one.catalog.categories] == sorted(ids)
    assert sorted(one[0].labels) == sorted(other[0].labels) == [0, 1, 2]


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_perfect_predictions_of_own_ids_have_an_average_precision_of_one(kind: str, tmp_path: Path) -> None:
    """Category 0, image 0 and annotation 0 are ids as any other, as are images with a text for an id."""
    if kind == "coco":
        data = instances_of(tmp_path, (0, 1, 2))
        data.train.part = "all"
    else:
        own_data.yolo(tmp_path)
        data = recognize(DataConfig(root=str(tmp_path), format="auto"))
    dataset = open_dataset(data, "train")
    assert dataset.image_id(0) == (0 if kind == "coco" else "0")
    evaluator = AveragePrecision(dataset, tmp_path)
    for record in range(len(dataset)):
        example = dataset[record]
        masks, boxes = zip(*(example.objects.raster(place) for place in range(len(example.objects))), strict=True)
        result = found(np.stack(masks), example.labels)
        np.copyto(result.boxes, np.stack(boxes))
        evaluator.add(record, result)
    metrics = evaluator.compute()
    names = NAMES if kind == "coco" else ("plate",)
    assert {name: metrics[f"segm/AP-{name}"] for name in names} == dict.fromkeys(names, pytest.approx(1))
    assert metrics["segm/AP"] == pytest.approx(1)


def test_panoptic_segments(ids: tuple[int, ...], tmp_path: Path) -> None:
    """The first class is stuff, so that labels are in another order than ids."""
    picture(tmp_path / "train/a.png")
    pixels = np.repeat(np.resize([1, 2, 3], HEIGHT)[:, None], WIDTH, axis=1)
    (tmp_path / "panoptic_train").mkdir()
    png = np.stack([pixels, 0 * pixels, 0 * pixels], axis=-1).astype(np.uint8)
    Image.fromarray(png).save(tmp_path / "panoptic_train/a.png")
    categories = [{"id": id, "name": name, "isthing": int(id != ids[0])} for id, name in zip(ids, NAMES, strict=True)]
    info = [{"id": place, "category_id": id, "iscrowd": 0} for place, id in enumerate(ids, 1)]
    content = {
        "images": [{"id": "a", "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"image_id": "a", "file_name": "a.png", "segments_info": info}],
        "categories": categories,
    }
    write(tmp_path / "panoptic_train.json", json.dumps(content))
    data = recognize(DataConfig(root=str(tmp_path), format="auto"))
    assert (data.format, data.train.panoptic) == ("coco_panoptic", "panoptic_train")
    data.train.part = "all"
    dataset = open_dataset(data, "train")
    catalog, labels = stored(dataset.catalog), dataset[0].labels
    assert labels.tolist() == [2, 0, 1]
    parts = tuple(
        PanopticSegment(id=place, label=label, is_thing=bool(catalog.is_thing[label]), score=1.0, area=1)
        for place, label in enumerate(labels.tolist(), 1)
    )
    written = Segments(catalog=catalog, panoptic=Panoptic(dataset.panoptic_map(0), parts)).to_dict("a", 0)
    assert [(entry["id"], entry["category_id"]) for entry in written["segments_info"]] == list(enumerate(ids, 1))
    assert [entry["isthing"] for entry in written["segments_info"]] == [0, 1, 1]


@pytest.mark.parametrize("listed", ["classes.txt", "classes.json", "values"])
def test_the_label_map_has_the_pixels_of_the_label_images(ids: tuple[int, ...], listed: str, tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    label(tmp_path / "labels/a.png", *ids)
    if listed == "classes.txt":
        write(tmp_path / listed, "\n".join(f"class {number}" for number in range(max(ids) + 1)))
    if listed == "classes.json":
        write(tmp_path / listed, json.dumps([{"id": id, "name": f"class {id}"} for id in reversed(ids)]))
    data = recognize(DataConfig(root=str(tmp_path), format="auto"))
    data.train.part = "all"
    dataset = open_dataset(data, "train")
    segments = Segments(catalog=stored(dataset.catalog), semantic=dataset.semantic_map(0).astype(np.int32))
    segments.save_label_map(tmp_path / "new/map.png")
    with Image.open(tmp_path / "new/map.png") as written, Image.open(tmp_path / "labels/a.png") as given:
        assert written.mode == "L"
        np.testing.assert_array_equal(np.asarray(written), np.asarray(given))
    assert {(segment.class_id, segment.name) for segment in segments.segments} == {(id, f"class {id}") for id in ids}


def test_cityscapes_is_written_as_label_ids(tmp_path: Path) -> None:
    picture(tmp_path / "leftImg8bit/train/ulm_leftImg8bit.png")
    path = tmp_path / "gtFine/train/ulm_gtFine_labelIds.png"
    label(path, 7, 8, 33)
    split = SplitConfig(images="leftImg8bit/train", semantic="gtFine/train")
    dataset = open_dataset(
        DataConfig(root=str(tmp_path), format="semantic", classes="cityscapes", train=split), "train"
    )
    segments = Segments(catalog=stored(dataset.catalog), semantic=dataset.semantic_map(0).astype(np.int32))
    segments.save_label_map(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as written, Image.open(path) as given:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(given))


def test_ids_beyond_a_byte_take_two_and_those_beyond_that_are_refused(tmp_path: Path) -> None:
    of = lambda *ids: Catalog.from_coco([{"id": id, "name": str(id)} for id in ids])
    semantic = np.array([[0, 1, 1]], np.int32)
    Segments(catalog=of(3, 4000), semantic=semantic).save_label_map(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as written:
        np.testing.assert_array_equal(np.asarray(written), [[3, 4000, 4000]])
    for wrong in (of(-1, 3), of(3, 70_000)):
        with pytest.raises(ValueError, match="do not fit into a PNG"):
            Segments(catalog=wrong, semantic=semantic).save_label_map(tmp_path / "a.png")
    with pytest.raises(ValueError, match="there is no semantic map"):
        Segments(catalog=of(3)).save_label_map(tmp_path / "a.png")

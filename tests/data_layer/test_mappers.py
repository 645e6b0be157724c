"""The recipes on real photographs with given draws, against Pillow, pycocotools and Shapely on whole images."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from maskdino_jax.config import DataConfig, SplitConfig
from maskdino_jax.data import open_dataset, prepare_image
from maskdino_jax.data.batching import Sample, sample
from maskdino_jax.data.colors import draw_colors, shift_colors
from maskdino_jax.data.images import load_ids, shortest_edge_size
from maskdino_jax.data.masks import mask_box, unpack_mask
from maskdino_jax.data.objects import Instances, Outline
from maskdino_jax.data.plain import plain_sample
from maskdino_jax.data.short_edge import ShortEdgeDraws, short_edge
from maskdino_jax.data.transforms import Draws, Example, draw, jitter, placed

# Shrunk; grown but smaller than the crop; grown in one direction only; cut at both ends; the largest.
SCALES = [(0.13, 0.5), (0.61, 0.2), (0.95, 0.7), (1.2, 0.0), (1.37, 1.0), (1.999, 0.61)]


def assert_equal(found: Sample, expected: Sample):
    for field in dataclasses.fields(Sample):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name), err_msg=field.name)
    if found.masks is not None:
        assert found.masks.dtype == np.uint8
    assert found.boxes.dtype == np.float32


def assert_jitter_is_plain(dataset, index, draws, size=(1024, 1024), max_instances=100):
    example = dataset[index]
    found = sample(jitter(example, draws, size), index, max_instances)
    assert_equal(found, plain_sample(example, draws, size, index, max_instances))
    return found


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("scale", "position"), SCALES)
def test_large_scale_jitter_of_photographs(coco, scale, position, flip):
    dataset = open_dataset(coco, "train")
    draws = Draws(flip=flip, scale=scale, position=position)
    objects = [len(assert_jitter_is_plain(dataset, index, draws).labels) for index in range(2)]
    assert sum(objects) > 0


def test_the_largest_objects_are_those_of_the_plain_pipeline(coco):
    found = assert_jitter_is_plain(
        open_dataset(coco, "val"), 0, Draws(flip=True, scale=0.8, position=0.5), max_instances=4
    )
    assert found.dropped > 0


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_large_scale_jitter_of_all_samples(shared, kind):
    paths = SplitConfig(
        images="train2017",
        annotations=f"annotations/{kind}_train2017.json",
        panoptic="panoptic_train2017" if kind == "panoptic" else "",
    )
    data = DataConfig(root=str(shared / "data/coco"), format=f"coco_{kind}", train=paths)
    dataset = open_dataset(data, "train")
    for index in range(len(dataset)):
        assert_jitter_is_plain(dataset, index, draw(np.random.default_rng(index), data))


def semantic(example, draws, size, long_side):
    """Image and class map by the rules of the reference, on whole arrays."""
    height, width = example.image.shape[:2]
    tall, wide = shortest_edge_size(height, width, draws.short_side, long_side)
    image = np.asarray(Image.fromarray(example.image).resize((wide, tall), Image.Resampling.BILINEAR))
    rows, columns = np.arange(tall) * height // tall, np.arange(wide) * width // wide
    classes = example.objects.source[rows][:, columns]
    crop = min(tall, size[0]), min(wide, size[1])
    y, x = (int(at * (side - cut + 1)) for at, side, cut in zip(draws.position, (tall, wide), crop, strict=True))
    image, classes = (array[y : y + crop[0], x : x + crop[1]] for array in (image, classes))
    image = shift_colors(image, draws.colors)
    if draws.flip:
        image, classes = image[:, ::-1], classes[:, ::-1]
    border = [(0, size[0] - crop[0]), (0, size[1] - crop[1])]
    return np.pad(image, [*border, (0, 0)], constant_values=128), np.pad(classes, border, constant_values=-1)


def assert_short_edge(example, draws, size, long_side):
    found = sample(short_edge(example, draws, size, long_side), 0, 200, keep_empty=False)
    image, classes = semantic(example, draws, size, long_side)
    np.testing.assert_array_equal(found.image, image)
    present = [label for label, number in zip(example.labels, example.objects.ids, strict=True) if number in classes]
    np.testing.assert_array_equal(found.labels, present)
    numbers = dict(zip(example.labels.tolist(), example.objects.ids, strict=True))
    for label, packed, box in zip(found.labels, found.masks, found.boxes, strict=True):
        mask = classes == numbers[int(label)]
        np.testing.assert_array_equal(unpack_mask(packed), mask)
        x0, y0, x1, y1 = mask_box(mask)
        shares = np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], np.float32)
        np.testing.assert_array_equal(box, shares / np.array([size[1], size[0]] * 2, np.float32))


ADE = {"size": (512, 512), "long_side": 2048}
CITYSCAPES = {"size": (512, 1024), "long_side": 4096}


@pytest.mark.parametrize(("recipe", "short_sides"), [(ADE, (256, 460, 1024)), (CITYSCAPES, (512, 819))])
def test_the_semantic_recipes_on_photographs(coco_panoptic, recipe, short_sides):
    """Segments of COCO stand for classes: each has a number of its own."""
    dataset = open_dataset(coco_panoptic, "val")
    for turn, short_side in enumerate(short_sides):
        rng = np.random.default_rng(turn)
        draws = ShortEdgeDraws(
            short_side=short_side, position=tuple(rng.random(2)), colors=draw_colors(rng), flip=turn % 2 == 1
        )
        example = dataset[turn % len(dataset)]
        numbered = dataclasses.replace(example, labels=np.arange(len(example.labels)))
        assert_short_edge(numbered, draws, **recipe)


@pytest.mark.shared
@pytest.mark.parametrize("split", ["training", "validation"])
def test_the_semantic_recipe_on_ade20k(shared, split):
    dataset = ade20k(shared, split)
    for index in range(len(dataset)):
        for short_side in (256, 768):
            rng = np.random.default_rng((index, short_side))
            draws = ShortEdgeDraws(
                short_side=short_side, position=tuple(rng.random(2)), colors=draw_colors(rng), flip=rng.random() < 0.5
            )
            assert_short_edge(dataset[index], draws, **ADE)


def ade20k(shared, split):
    paths = SplitConfig(images=f"images/{split}", semantic=f"annotations/{split}")
    root = str(shared / "data/ADEChallengeData2016")
    return open_dataset(DataConfig(root=root, format="semantic", classes="ade20k", val=paths), "val")


@pytest.mark.shared
def test_semantic_samples_are_the_published_segments(shared):
    """Things are published one by one: their areas add up to that of the class, their boxes unite to its box."""
    dataset = ade20k(shared, "validation")
    published = json.loads((shared / "data/ADEChallengeData2016/published_segments_val.json").read_text())
    for entry in published:
        index = next(i for i in range(len(dataset)) if dataset.image_id(i) == entry["image_id"])
        example = dataset[index]
        _, boxes, areas = example.objects.rasters()
        expected_areas, expected_boxes = {}, {}
        for segment in entry["segments_info"]:
            label = segment["category_id"] - 1
            x, y, width, height = segment["bbox"]
            expected_areas[label] = expected_areas.get(label, 0) + segment["area"]
            expected_boxes.setdefault(label, []).append((-x, -y, x + width, y + height))
        united = {label: np.max(each, axis=0) * [-1, -1, 1, 1] for label, each in expected_boxes.items()}
        assert dict(zip(example.labels.tolist(), areas.tolist(), strict=True)) == expected_areas
        for label, box in zip(example.labels.tolist(), boxes, strict=True):
            np.testing.assert_array_equal(box, united[label])


def assert_areas_and_boxes(dataset):
    """As in the JSON, which counts pixels of the PNG."""
    for index in range(len(dataset)):
        example = dataset[index]
        segments = [entry for entry in dataset.panoptic_records(index) if not entry["iscrowd"]]
        _, boxes, areas = example.objects.rasters()
        assert areas.tolist() == [entry["area"] for entry in segments]
        corners = [(x, y, x + w, y + h) for x, y, w, h in (entry["bbox"] for entry in segments)]
        np.testing.assert_array_equal(boxes, corners)


def test_panoptic_samples_have_the_areas_and_boxes_of_the_json(coco_panoptic):
    assert_areas_and_boxes(open_dataset(coco_panoptic, "val"))


@pytest.mark.shared
@pytest.mark.parametrize("split", ["train", "val"])
def test_all_panoptic_samples_have_the_areas_and_boxes_of_the_json(shared, split):
    paths = SplitConfig(
        images=f"{split}2017", annotations=f"annotations/panoptic_{split}2017.json", panoptic=f"panoptic_{split}2017"
    )
    assert_areas_and_boxes(open_dataset(DataConfig(root=str(shared / "data/coco"), train=paths), "train"))


@pytest.mark.parametrize(("short_side", "long_side"), [(800, 1333), (512, 2048), (300, 400), (480, 640)])
def test_evaluation_resizes_photographs_as_pillow_does(coco_instances, short_side, long_side):
    data = dataclasses.replace(coco_instances, eval_short_side=short_side, eval_long_side=long_side)
    dataset = open_dataset(data, "val")
    for index in range(len(dataset)):
        whole = Image.open(f"{data.root}/val2017/{dataset.file_name(index)}")
        tall, wide = shortest_edge_size(whole.height, whole.width, short_side, long_side)
        prepared = prepare_image(dataset.image(index), data)
        np.testing.assert_array_equal(prepared.size, (tall, wide))
        expected = np.asarray(whole.convert("RGB").resize((wide, tall), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(prepared.image[:tall, :wide], expected)
        assert not prepared.image[tall:].any()
        assert not prepared.image[:, wide:].any()


def test_ids_of_a_panoptic_png(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "ids.png")
    found = load_ids(tmp_path / "ids.png")
    np.testing.assert_array_equal(found, pixels.astype(int) @ [1, 256, 65536])
    assert found.dtype == np.int32


# What the reference's loaders do differently from what one would expect (the others are in test_jitter and
# test_short_edge: flip before resize, padding of 128, two kinds of nearest neighbours, segments without a pixel stay).


def test_one_number_places_the_crop_along_both_axes():
    draws = draw(np.random.default_rng(3), DataConfig(scale=(2.0, 2.0)))
    geometry = placed((60, 80), draws, (64, 64))
    assert geometry.scaled == (96, 128)
    assert geometry.offset == (round(32 * draws.position), round(64 * draws.position))
    assert geometry.offset[0] > 0


def test_an_instance_whose_raster_is_empty_stays_if_its_outline_has_an_extent():
    """Half a pixel wide, between the middles of two columns."""
    thin = Outline((np.array([[4.6, 2], [5.2, 2], [5.2, 9], [4.6, 9]]),))
    example = Example(
        image=np.zeros((16, 16, 3), np.uint8),
        labels=np.array([3]),
        is_thing=np.ones(1, bool),
        objects=Instances((16, 16), (thin,)),
    )
    moved = jitter(example, Draws(flip=False, scale=1.0, position=0.0), (16, 16))
    found = sample(moved, 0, 5)
    np.testing.assert_array_equal(found.labels, [3])
    assert not found.masks.any()
    np.testing.assert_allclose(found.boxes[0, 2:] * 16, [0.6, 7], rtol=1e-6)

"""Objects that are boxes alone, from the JSON to the batch."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from maskdino_jax.config import Config, DataConfig
from maskdino_jax.data import open_dataset, train_batches
from maskdino_jax.data.annotations import read_instances
from maskdino_jax.data.batching import collate, sample
from maskdino_jax.data.geometry import Geometry
from maskdino_jax.data.objects import Boxes, Instances, Outline
from maskdino_jax.data.transforms import Example

HEIGHT, WIDTH = 60, 80


def outline(x0: float, y0: float, x1: float, y1: float) -> Outline:
    return Outline((np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]),))


@given(
    boxes=npst.arrays(
        np.float64, st.tuples(st.integers(0, 5), st.just(4)), elements=st.integers(1, 160).map(lambda n: n / 4)
    ),
    flip=st.booleans(),
    scaled=st.tuples(st.integers(20, 200), st.integers(20, 200)),
    offset=st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
def test_boxes_move_as_the_outlines_of_their_four_corners(boxes, flip, scaled, offset):
    geometry = Geometry(original=(HEIGHT, WIDTH), flip=flip, scaled=scaled, offset=offset, window=(64, 96))
    found = Boxes.from_coco(boxes.tolist(), (HEIGHT, WIDTH))
    moved, kept = found.move(geometry)
    expected, expected_kept = Instances((HEIGHT, WIDTH), tuple(outline(*row) for row in found.corners)).move(geometry)
    np.testing.assert_array_equal(kept, expected_kept)
    np.testing.assert_allclose(moved.corners, [shape.box() for shape in expected.shapes] or np.zeros((0, 4)), atol=1e-4)


def test_boxes_end_where_the_image_does():
    found = Boxes.from_coco([[-5, 10, 20, 20], [70, 50, 30, 30]], (HEIGHT, WIDTH))
    np.testing.assert_array_equal(found.corners, [[0, 10, 15, 30], [70, 50, 80, 60]])


def read(written, *boxes, **fields):
    """The annotations that are left of the given boxes, which have no segmentation unless `fields` has one."""
    written.tables["annotations"] = [
        {"id": number, "image_id": 1, "category_id": 7, "bbox": box} | fields for number, box in enumerate(boxes, 1)
    ]
    written.save()
    return read_instances(written.json, masks=False)[1][0].annotations


def test_boxes_are_read_without_masks_and_those_without_an_area_are_left_out(written_instances):
    objects = read(written_instances, [1, 2, 3, 4], [1, 2, 0, 4], [1, 2, 3, -1], [0, 0, 0.5, 1])
    assert objects == [
        {"id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]},
        {"id": 4, "category_id": 7, "bbox": [0, 0, 0.5, 1]},
    ]
    assert read(written_instances, [1, 2, 3, 4], iscrowd=1) == []


def test_masks_that_are_there_are_not_looked_at(written_instances):
    assert [entry["bbox"] for entry in read(written_instances, [1, 2, 3, 4], segmentation="damaged")] == [[1, 2, 3, 4]]


@pytest.mark.parametrize("box", [None, "1 2 3 4", [1, 2, 3], [1, 2, 3, "4"]])
def test_a_box_that_is_none_is_named(written_instances, box):
    message = re.escape(f"annotation 1 of image 1: bbox is {str(box)!r}, not [x, y, width, height] in pixels.")
    with pytest.raises(ValueError, match=message):
        read(written_instances, box)


def test_a_file_without_masks_where_they_are_learned_is_answered_with_the_way_out(written_instances):
    del written_instances.tables["annotations"][0]["segmentation"]
    with pytest.raises(ValueError, match=r"segmentation is 'None', .* with config\.model\.masks=False"):
        open_dataset(written_instances.save(), "train")


def boxes_example(*corners: tuple[float, float, float, float]) -> Example:
    count = len(corners)
    return Example(
        image=np.full((32, 64, 3), 9, np.uint8),
        labels=np.arange(count),
        is_thing=np.ones(count, bool),
        objects=Boxes(np.array(corners, float).reshape(-1, 4)),
    )


def test_a_batch_of_boxes_has_no_masks():
    batch = collate([sample(boxes_example((8, 4, 24, 20)), 7, 2), sample(boxes_example(), 5, 2)], 2)
    assert batch.targets.masks is None
    np.testing.assert_array_equal(batch.targets.boxes[0, 0], [16 / 64, 12 / 32, 16 / 64, 16 / 32])
    np.testing.assert_array_equal(batch.targets.valid, [[True, False], [False, False]])
    assert batch.targets.boxes.dtype == np.float32


def test_the_largest_boxes_are_kept_in_their_order():
    packed = sample(boxes_example((0, 0, 6, 1), (0, 0, 4, 4), (0, 0, 5, 5)), record=0, max_instances=2)
    np.testing.assert_array_equal(packed.labels, [1, 2])
    assert packed.dropped == 1


def test_boxes_of_real_images_are_those_of_their_outlines(coco_instances: DataConfig, tmp_path: Path):
    """But for a pixel, for masks shrink to whole pixels. The images are smaller than the crop: nothing is cut off."""
    content = json.loads((Path(coco_instances.root) / coco_instances.train.annotations).read_text())
    stripped = [{key: entry[key] for key in entry if key != "segmentation"} for entry in content["annotations"]]
    (tmp_path / "boxes.json").write_text(json.dumps(content | {"annotations": stripped}))
    data = dataclasses.replace(coco_instances, image_size=(128, 128), scale=(0.4, 0.9), max_instances=30)
    boxes = dataclasses.replace(data, root="/")
    boxes.train = dataclasses.replace(data.train, annotations=str(tmp_path / "boxes.json"))
    boxes.train.images = str(Path(data.root) / data.train.images)
    found = []
    for options, masks in ((data, True), (boxes, False)):
        config = Config(data=options)
        config.train.batch_size = 4
        with train_batches(open_dataset(options, "train", masks=masks), config, 0) as batches:
            found.append(next(batches))
    whole, alone = found
    np.testing.assert_array_equal(alone.images, whole.images)
    assert alone.targets.masks is None
    np.testing.assert_array_equal(alone.targets.labels, whole.targets.labels)
    np.testing.assert_array_equal(alone.targets.valid, whole.targets.valid)
    assert alone.targets.valid.sum() > 20
    np.testing.assert_allclose(alone.targets.boxes * 128, whole.targets.boxes * 128, atol=1.5)

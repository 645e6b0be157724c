"""How results are written: run lengths, PNG and JSON."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskdino_jax.data.catalog import Catalog, Category
from maskdino_jax.inference.results import Instances, Panoptic, Segment, Segments, encode

CATALOG = Catalog(
    (
        Category(id=17, name="cat", is_thing=True, color=(255, 0, 0)),
        Category(id=90, name="sky", is_thing=False, color=(0, 0, 255)),
    )
)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 decoding
def test_run_lengths_give_the_mask_back():
    masks = np.random.default_rng(0).random((3, 11, 7)) > 0.5
    np.testing.assert_array_equal(coco_mask.decode(encode(masks)).transpose(2, 0, 1), masks)
    assert isinstance(encode(masks)[0]["counts"], str)
    assert encode(masks[:0]) == []


def test_ids_are_written_with_red_as_the_lowest_byte(tmp_path):
    Panoptic(np.array([[0, 1, 256, 65536 * 3 + 256 * 2 + 1]], np.int32), ()).save(tmp_path / "new" / "ids.png")
    written = np.array(Image.open(tmp_path / "new" / "ids.png"))
    assert written.tolist() == [[[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 2, 3]]]


def test_json_has_the_ids_of_the_data_set_and_confident_instances_only():
    masks = np.zeros((2, 4, 5), bool)
    masks[:, 1, 2] = True
    segments = Segments(
        instances=Instances(
            scores=np.array([0.75, 0.25], np.float32),
            labels=np.zeros(2, np.int32),
            boxes=np.array([[2, 1, 3, 2], [0, 0, 1, 1]], np.float32),
            masks=masks,
            queries=np.arange(2, dtype=np.int32),
        ),
        panoptic=Panoptic(np.ones((4, 5), np.int32), (Segment(1, 1, False, 0.5, 20),)),
    )
    content = json.loads(json.dumps(segments.to_dict("a.png", CATALOG, 0.5)))
    run_lengths = content["instances"][0].pop("segmentation")
    assert content == {
        "file_name": "a.png",
        "instances": [{"category_id": 17, "score": 0.75, "bbox": [2, 1, 1, 1]}],
        "segments_info": [{"id": 1, "category_id": 90, "isthing": 0, "area": 20, "score": 0.5}],
    }
    assert coco_mask.area(run_lengths) == 1
    assert Segments().to_dict("b.png", CATALOG, 0.5) == {"file_name": "b.png"}

"""How results are written: run lengths, PNG and JSON."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskdino_jax.data.catalog import Catalog, Category
from maskdino_jax.inference.results import Instances, Panoptic, PanopticSegment, Segments, encode

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


MASKS = np.zeros((2, 4, 11), bool)  # a row takes a byte and three bits
MASKS[0, 1, 2] = True
MASKS[1, 2:, 7:] = True


def instances() -> Instances:
    return Instances.from_masks(
        MASKS,
        scores=np.array([0.75, 0.25], np.float32),
        labels=np.zeros(2, np.int32),
        boxes=np.array([[2, 1, 3, 2], [-4, 0, 1.5, 1]], np.float32),
        queries=np.array([8, 5], np.int32),
    )


def panoptic() -> Panoptic:
    ids = np.zeros((4, 11), np.int32)
    ids[1:3, 4:9], ids[3] = 2, 1
    sky = PanopticSegment(id=1, label=1, is_thing=False, score=0.5, area=11)
    return Panoptic(ids, (sky, PanopticSegment(id=2, label=0, is_thing=True, score=0.25, area=10)))


def test_masks_come_back_from_their_bits():
    found = instances()
    assert found.bits.shape == (2, 4, 2)
    np.testing.assert_array_equal(found.masks, MASKS)
    np.testing.assert_array_equal(found.mask(1), MASKS[1])
    assert found.masks.dtype == bool
    assert found.areas.tolist() == [1, 8]


def test_above_keeps_instances_from_a_score_on():
    found = instances().above(0.5)
    assert (len(found), found.queries.tolist(), found.width) == (1, [8], 11)
    np.testing.assert_array_equal(found.masks, MASKS[:1])


def test_segments_of_instances_have_the_predicted_boxes_and_the_ids_of_the_data_set():
    first, second = Segments(catalog=CATALOG, instances=instances(), panoptic=panoptic()).segments
    assert (first.class_id, first.label, first.name, first.is_thing) == (17, 0, "cat", True)
    assert (first.score, first.box, first.area) == (0.75, (2, 1, 3, 2), 1)
    assert (second.box, second.area) == ((-4, 0, 1.5, 1), 8)
    np.testing.assert_array_equal(second.mask, MASKS[1])


def test_segments_of_a_panoptic_map_have_the_box_of_their_mask():
    sky, cat = Segments(catalog=CATALOG, panoptic=panoptic(), semantic=np.zeros((4, 11), np.int32)).segments
    assert (sky.class_id, sky.name, sky.is_thing, sky.score, sky.area) == (90, "sky", False, 0.5, 11)
    assert sky.box == (0, 3, 11, 4)
    assert (cat.box, cat.area, int(cat.mask.sum())) == ((4, 1, 9, 3), 10, 10)
    assert cat.mask[1, 4]
    assert not cat.mask[1, 9]


def test_each_result_has_segments_of_its_own():
    segments = Segments(catalog=CATALOG, instances=instances(), panoptic=panoptic())
    assert [part.name for part in segments.of("panoptic")] == ["sky", "cat"]
    assert segments.of("instance") == segments.segments
    with pytest.raises(ValueError, match="task = 'semantic'"):
        segments.of("semantic")


def test_segments_of_a_semantic_map_are_the_classes_that_occur():
    labels = np.ones((4, 11), np.int32)
    (sky,) = Segments(catalog=CATALOG, semantic=labels).segments
    assert (sky.label, sky.score, sky.box, sky.area) == (1, 1, (0, 0, 11, 4), 44)
    labels[2, 3:5] = 0
    cat, sky = Segments(catalog=CATALOG, semantic=labels).segments
    assert (cat.name, cat.box, cat.area, sky.area) == ("cat", (3, 2, 5, 3), 2, 42)
    np.testing.assert_array_equal(cat.mask, labels == 0)
    assert Segments(catalog=CATALOG).segments == ()


def test_json_has_the_ids_of_the_data_set_and_confident_instances_only():
    segments = Segments(catalog=CATALOG, instances=instances(), panoptic=panoptic())
    content = json.loads(json.dumps(segments.to_dict("a.png", 0.5)))
    run_lengths = content["instances"][0].pop("segmentation")
    assert content == {
        "file_name": "a.png",
        "instances": [{"category_id": 17, "score": 0.75, "bbox": [2, 1, 1, 1]}],
        "segments_info": [
            {"id": 1, "category_id": 90, "isthing": 0, "area": 11, "score": 0.5},
            {"id": 2, "category_id": 17, "isthing": 1, "area": 10, "score": 0.25},
        ],
    }
    assert coco_mask.area(run_lengths) == 1
    assert Segments(catalog=CATALOG).to_dict("b.png", 0.5) == {"file_name": "b.png"}


def detections() -> Instances:
    return dataclasses.replace(instances(), bits=None)


def test_segments_of_detections_have_boxes_and_no_masks():
    segments = Segments(catalog=CATALOG, instances=detections())
    first, second = segments.segments
    assert segments.of("detection") == (first, second)
    assert (first.box, first.area, second.area) == ((2, 1, 3, 2), 1, 6)  # areas of the boxes, the second 5.5 rounded
    with pytest.raises(ValueError, match="detections have boxes but no masks"):
        _ = first.mask
    with pytest.raises(ValueError, match="detections have boxes but no masks"):
        _ = detections().masks
    with pytest.raises(ValueError, match="task = 'instance': there is no such result"):
        segments.of("instance")
    with pytest.raises(ValueError, match="task = 'detection': there is no such result"):
        Segments(catalog=CATALOG, instances=instances()).of("detection")


def test_json_of_detections_has_no_run_lengths():
    content = Segments(catalog=CATALOG, instances=detections()).to_dict("a.png", 0.5)
    assert content == {
        "file_name": "a.png",
        "instances": [{"category_id": 17, "score": 0.75, "bbox": [2, 1, 1, 1]}],
    }


def test_entries_of_a_coco_result_file_name_their_image():
    first, second = Segments(catalog=CATALOG, instances=instances()).to_coco(image_id=42)
    assert coco_mask.area(first.pop("segmentation")) == 1
    assert first == {"image_id": 42, "category_id": 17, "score": 0.75, "bbox": [2, 1, 1, 1]}
    assert second["segmentation"] == encode(MASKS)[1]
    assert "image_id" not in Segments(catalog=CATALOG, instances=instances()).to_coco()[0]
    assert "segmentation" not in Segments(catalog=CATALOG, instances=detections()).to_coco()[0]
    with pytest.raises(ValueError, match="there are no instances"):
        Segments(catalog=CATALOG, panoptic=panoptic()).to_coco()


def test_every_segment_has_run_lengths():
    segments = Segments(catalog=CATALOG, instances=instances(), panoptic=panoptic())
    assert [part.run_lengths for part in segments.of("instance")] == segments.instances.run_lengths() == encode(MASKS)
    for part in segments.of("panoptic"):
        assert part.run_lengths == encode(part.mask[None])[0]
    with pytest.raises(ValueError, match="detections have boxes but no masks"):
        _ = Segments(catalog=CATALOG, instances=detections()).segments[0].run_lengths


@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")  # supervision without it takes NumPy, and says so
def test_segments_become_detections_of_supervision():
    pytest.importorskip("supervision", reason="needs the extra `supervision`")
    segments = Segments(catalog=CATALOG, instances=instances(), panoptic=panoptic())
    found = segments.to_supervision()
    np.testing.assert_array_equal(found.xyxy, instances().boxes)
    np.testing.assert_array_equal(found.mask, MASKS)
    np.testing.assert_array_equal(found.confidence, instances().scores)
    assert (found.class_id.tolist(), found.data["class_name"].tolist()) == ([17, 17], ["cat", "cat"])
    parts = segments.to_supervision("panoptic")
    assert (parts.class_id.tolist(), parts.mask.sum(axis=(1, 2)).tolist()) == ([90, 17], [11, 10])
    boxes = Segments(catalog=CATALOG, instances=detections()).to_supervision()
    assert (boxes.mask, len(boxes)) == (None, 2)
    assert len(Segments(catalog=CATALOG, instances=instances().above(0.9)).to_supervision()) == 0


def test_without_the_extra_to_supervision_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install maskdino-jax\[supervision\]"):
        Segments(catalog=CATALOG, instances=instances()).to_supervision()

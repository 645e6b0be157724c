"""Predictions become files as they come."""

import json

import numpy as np
import pytest
from PIL import Image

from maskdino_jax.inference.predictor import Prediction
from maskdino_jax.inference.results import Instances, Panoptic, PanopticSegment, Segments
from maskdino_jax.inference.writing import write_predictions
from tests.inference.scenes import catalog_of

CATALOG = catalog_of(True, False)


def prediction(name: str, grey: int) -> Prediction:
    masks = np.zeros((1, 4, 6), bool)
    masks[0, 1:3, 2:4] = True
    instances = Instances.from_masks(
        masks,
        scores=np.array([0.25], np.float32),
        labels=np.zeros(1, np.int32),
        boxes=np.array([[2, 1, 4, 3]], np.float32),
        queries=np.zeros(1, np.int32),
    )
    panoptic = Panoptic(masks[0].astype(np.int32), (PanopticSegment(id=1, label=0, is_thing=True, score=0.25, area=4),))
    segments = Segments(catalog=CATALOG, instances=instances, panoptic=panoptic, semantic=1 - masks[0].astype(np.int32))
    return Prediction(name, np.full((4, 6, 3), grey, np.uint8), segments)


def test_each_has_a_picture_its_maps_and_an_entry(tmp_path):
    found = [prediction("a.jpg", 1), prediction("clip.v2_000003.png", 2)]
    pictures = write_predictions(found, tmp_path / "new", lambda one: one.image)
    assert [path.name for path in pictures] == ["a.png", "clip.v2_000003.png"]
    for path, grey in zip(pictures, (1, 2), strict=True):
        assert np.all(np.asarray(Image.open(path)) == grey)
        ids = np.asarray(Image.open(path.with_name(f"{path.stem}_labels.png")))
        np.testing.assert_array_equal(ids, np.where(found[0].segments.semantic, 17, 7))
        np.testing.assert_array_equal(
            np.asarray(Image.open(path.with_name(f"{path.stem}_panoptic.png")))[..., 0], found[0].segments.panoptic.ids
        )
    records = json.loads((tmp_path / "new/predictions.json").read_text())
    assert records == [one.segments.to_dict(one.name, 0) for one in found]
    assert records[0]["instances"][0]["score"] == 0.25


def test_names_that_differ_by_their_ending_do_not_overwrite_each_other(tmp_path):
    pictures = write_predictions([prediction("a.jpg", 1), prediction("a.tif", 2)], tmp_path, lambda one: one.image)
    assert [path.name for path in pictures] == ["a.png", "a_tif.png"]
    assert [np.asarray(Image.open(path)).max() for path in pictures] == [1, 2]
    assert (tmp_path / "a_tif_panoptic.png").is_file()


def test_what_came_before_an_error_is_on_disk(tmp_path):
    def broken():
        yield prediction("a.jpg", 1)
        raise ValueError("b.jpg cannot be read")

    with pytest.raises(ValueError, match=r"b\.jpg"):
        write_predictions(broken(), tmp_path, lambda one: one.image)
    assert (tmp_path / "a.png").is_file()
    assert not (tmp_path / "predictions.json").exists(), "a list that is not whole does not have the name"


def test_of_nothing_there_is_an_empty_list(tmp_path):
    assert write_predictions([], tmp_path, lambda one: one.image) == []
    assert json.loads((tmp_path / "predictions.json").read_text()) == []

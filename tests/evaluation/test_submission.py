"""The zip files for COCO's server, made without ground truth."""

import json
import zipfile

import pytest

from maskdino_jax.config import ConfigError
from maskdino_jax.evaluation.saved import score_panoptic
from maskdino_jax.evaluation.submission import ImageList, submit
from tests.evaluation.blocks import blocks_config, perfect


@pytest.fixture
def config(blocks, tmp_path):
    """The images of the data set with nothing but their names and sizes."""
    root = blocks.annotations.parent
    images = json.loads(blocks.annotations.read_text())["images"]
    (root / "image_info_test-dev2017.json").write_text(json.dumps({"images": images, "info": {}}))
    config = blocks_config(root)
    config.data.val.annotations = "image_info_test-dev2017.json"
    config.data.val.panoptic = ""
    config.evaluation.submission = "test-dev2017"
    return config


def test_archives_hold_what_the_server_asks_for(blocks, config, tmp_path):
    images = ImageList.read(config.data, blocks.catalog)
    archives = submit(lambda batch: perfect(blocks, batch), images, config, tmp_path)
    names = "detections_test-dev2017_maskdino_results", "panoptic_test-dev2017_maskdino_results"
    assert [path.name for path in archives] == [f"{name}.zip" for name in names]
    detections, panoptic = (zipfile.ZipFile(path) for path in archives)
    assert detections.namelist() == [f"{names[0]}.json"]
    assert panoptic.namelist() == [f"{names[1]}.json", f"{names[1]}/500.png", f"{names[1]}/501.png"]
    results = json.loads(detections.read(f"{names[0]}.json"))
    assert {frozenset(entry) for entry in results} == {
        frozenset({"image_id", "category_id", "score", "bbox", "segmentation"})
    }
    panoptic.extractall(tmp_path / "server")
    saved = tmp_path / "server" / f"{names[1]}.json"
    metrics = score_panoptic(blocks.panoptic_json, blocks.panoptic_dir, saved, saved.with_suffix(""))
    assert metrics["panoptic_seg/PQ"] == 1
    for archive in (detections, panoptic):
        archive.close()


def test_a_folder_of_an_earlier_submission_is_not_mixed_with_a_new_one(blocks, config, tmp_path):
    images = ImageList.read(config.data, blocks.catalog)
    (tmp_path / "panoptic_test-dev2017_maskdino_results").mkdir()
    with pytest.raises(ConfigError, match="is there already: give a new --workdir"):
        submit(lambda batch: perfect(blocks, batch), images, config, tmp_path)


def test_detections_alone_have_no_masks(blocks, config, tmp_path):
    config.inference.tasks = ("detection",)
    images = ImageList.read(config.data, blocks.catalog)
    [archive] = submit(lambda batch: perfect(blocks, batch), images, config, tmp_path)
    with zipfile.ZipFile(archive) as opened:
        results = json.loads(opened.read("detections_test-dev2017_maskdino_results.json"))
    assert results
    assert not any("segmentation" in entry for entry in results)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("annotations", "nothing.json", r"config\.data\.val\.annotations = 'nothing\.json': there is no"),
        ("images", "", r"config\.data\.val\.images = ''"),
    ],
)
def test_a_missing_file_is_named(blocks, config, field, value, message):
    setattr(config.data.val, field, value)
    with pytest.raises(FileNotFoundError, match=message):
        ImageList.read(config.data, blocks.catalog)


def test_an_image_list_is_checked(blocks, config, tmp_path):
    path = blocks.annotations.parent / "image_info_test-dev2017.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "500.png"}]}))
    with pytest.raises(ValueError, match="has no list of images with file_name, height, id, width"):
        ImageList.read(config.data, blocks.catalog)
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "500.png", "height": 9, "width": 9}]}))
    with pytest.raises(ValueError, match=r"500\.png is \(32, 48\) pixels, its JSON says \(9, 9\)"):
        ImageList.read(config.data, blocks.catalog).image(0)

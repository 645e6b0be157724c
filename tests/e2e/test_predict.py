"""`--mode=predict` and the Predictor around a real model with random weights: sources, options, tiles."""

import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

from maskdino_jax import Predictor, cli, runner
from maskdino_jax.checkpoints import Checkpoints
from maskdino_jax.data import open_dataset
from maskdino_jax.model import ModelSpec
from tests.e2e.conftest import COCO, smallest
from tests.inference.test_sources import video
from tests.weights import random_variables


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, workdir = smallest(), tmp_path_factory.mktemp("weights")
    config.inference.score_threshold = 0.0
    catalog = open_dataset(config.data, "val").catalog
    variables = random_variables(ModelSpec(config.model, catalog.num_classes))
    checkpoints = Checkpoints(workdir, config, catalog.to_dict())
    checkpoints.save({"step": 1, **jax.tree.map(jnp.asarray, variables)})
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "street.png"
    with Image.open(min((COCO / "val2017").glob("*.jpg"))) as image:
        image.resize((128, 96)).save(path)
    return path


def main(*arguments: str) -> None:
    """`python main.py` in this process."""
    with mock.patch.object(sys, "argv", ["main.py", *arguments]), flagsaver.flagsaver():
        cli.main(cli.parse(sys.argv)[:1])


def records(workdir: Path) -> list[dict]:
    return json.loads((workdir / "predictions/predictions.json").read_text())


def test_a_video_becomes_a_picture_and_an_entry_for_each_frame(checkpoint: Path, tmp_path: Path) -> None:
    path = video(tmp_path / "clip.mp4", [30, 200, 90], height=48, width=64)
    pictures = runner.predict(checkpoint, str(path), tmp_path, None)
    assert [picture.name for picture in pictures] == [f"clip_{number:06d}.png" for number in range(3)]
    assert [record["file_name"] for record in records(tmp_path)] == [picture.name for picture in pictures]
    assert (tmp_path / "predictions/clip_000002_panoptic.png").is_file()


def test_options_of_the_command_line_change_those_of_the_checkpoint(
    checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    """One threshold for what is returned, written and drawn; without the option it is that of the checkpoint, 0."""
    given = ["--mode=predict", f"--checkpoint={checkpoint}", f"--images={photo}"]
    main(*given, f"--workdir={tmp_path / 'all'}")
    scores = [entry["score"] for entry in records(tmp_path / "all")[0]["instances"]]
    threshold = float(np.median(scores))
    main(*given, f"--workdir={tmp_path / 'some'}", f"--config.inference.score_threshold={threshold}")
    some = [entry["score"] for entry in records(tmp_path / "some")[0]["instances"]]
    assert some == [score for score in scores if score >= threshold]
    assert 0 < len(some) < len(scores)
    drawn = [np.asarray(Image.open(tmp_path / name / f"predictions/{photo.stem}.png")) for name in ("all", "some")]
    assert (drawn[0] != drawn[1]).any()
    predictor = Predictor.from_checkpoint(checkpoint)
    assert [part.score for part in predictor(photo, score_threshold=threshold).of("instance")] == some


def test_tiles_are_an_option_of_the_command_line(checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    main(
        "--mode=predict",
        f"--checkpoint={checkpoint}",
        f"--images={photo}",
        f"--workdir={tmp_path}",
        "--config.inference.slice_size=64",
        "--config.inference.score_threshold=0.1",
    )
    predictor = Predictor.from_checkpoint(checkpoint)
    expected = predictor(photo, slice_size=64, score_threshold=0.1)
    assert records(tmp_path) == [expected.to_dict(photo.name, 0)]
    ids = np.asarray(Image.open(tmp_path / f"predictions/{photo.stem}_panoptic.png")).astype(int) @ [1, 256, 65536]
    np.testing.assert_array_equal(ids, expected.panoptic.ids)


def test_an_image_no_larger_than_a_tile_is_predicted_as_without_tiles(checkpoint: Path, photo: Path) -> None:
    predictor = Predictor.from_checkpoint(checkpoint)
    whole, sliced = predictor(photo), predictor(photo, slice_size=128)
    assert max(whole.semantic.shape) <= 128
    np.testing.assert_array_equal(sliced.instances.bits, whole.instances.bits)
    np.testing.assert_array_equal(sliced.instances.scores, whole.instances.scores)
    np.testing.assert_array_equal(sliced.panoptic.ids, whole.panoptic.ids)
    np.testing.assert_array_equal(sliced.semantic, whole.semantic)


def test_a_source_that_is_not_there_is_named_before_the_weights_are_read(photo: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--images=.*nowhere: there is no such image, folder or video"):
        runner.predict(tmp_path, tmp_path / "nowhere", tmp_path, None)
    shutil.copy(photo, tmp_path / "photo.txt")
    with pytest.raises(FileNotFoundError, match=r"--images=.*no image in this folder"):
        runner.predict(tmp_path, tmp_path, tmp_path, None)

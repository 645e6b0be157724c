"""The StableHLO artifact: the live model's numbers, on every platform, without this package."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax import Predictor, runner
from maskdino_jax.checkpoints import Checkpoints
from maskdino_jax.config import Config, tiny
from maskdino_jax.data import Catalog, load_image
from maskdino_jax.export import canvas_of, checking, stablehlo
from maskdino_jax.model import ModelSpec
from tests.weights import random_variables

pytest.importorskip("flatbuffers", reason="the extra `export` is missing")

ROOT = Path(__file__).parent.parent.parent
IMAGE = ROOT / "maskdino_jax/data/samples/nuclei/val_tiles/002001_0.png"
EXAMPLE = ROOT / "examples/run_stablehlo.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workdir of a tiny model with random weights, without threshold."""
    config = Config(name="tiny")
    tiny(config)
    config.data.eval_short_side = config.data.eval_long_side = 64
    config.model.decoder.num_queries = 12
    config.model.decoder.layers = 1
    config.inference.score_threshold = 0.0
    config.inference.detections_per_image = 5
    catalog = Catalog.named("coco_instances")
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir, config, catalog.to_dict())
    variables = random_variables(ModelSpec(config.model, catalog.num_classes))
    checkpoints.save({"step": 3, **jax.tree.map(jnp.asarray, variables)})
    checkpoints.close()
    return workdir


def exported(run: Path, output: Path, **options: object) -> Path:
    return runner.export(run, output, None, **{"form": "stablehlo", "canvas": "64x96", "image": None} | options)


@pytest.fixture(scope="module")
def artifact(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(run, tmp_path_factory.mktemp("export"))


def test_one_artifact_serves_three_platforms_and_any_batch(artifact: Path) -> None:
    from jax import export

    held = export.deserialize(bytearray(artifact.read_bytes()))
    assert held.platforms == ("cpu", "cuda", "tpu")
    assert [str(aval.shape) for aval in held.in_avals] == ["(b, 64, 96, 3)", "(b, 2)"]
    card = json.loads(Path(f"{artifact}.json").read_text())
    assert card["platforms"] == list(held.platforms)
    assert {entry["name"] for entry in card["outputs"]} == {"logits", "boxes", "masks", "scores", "labels", "queries"}
    assert [(entry["name"], entry["type"], entry["shape"]) for entry in card["inputs"]] == [
        ("images", "uint8", ["b", 64, 96, 3]),
        ("sizes", "int32", ["b", 2]),
    ]
    assert Catalog.from_dict({"categories": card["classes"]}) == Catalog.named("coco_instances")
    assert all(value <= checking.TOLERANCE[name] for name, value in card["compared"]["differences"].items())


def test_the_example_prints_what_the_predictor_finds_without_this_package(run: Path, artifact: Path) -> None:
    """The example runs in a folder from which this package cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-P", EXAMPLE, artifact, IMAGE],
        cwd=artifact.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    pattern = r"(.+) ([\d.]+) box \[(.*)\] mask of (\d+) pixels"
    printed = [re.fullmatch(pattern, line).groups() for line in done.stdout.splitlines()]
    predictor = Predictor.from_checkpoint(run)
    found = predictor(IMAGE, task="instance")
    things = {(part.name, tuple(np.round(part.box, 1))): int(part.mask.sum()) for part in found.segments}
    assert printed
    assert len(printed) == len(things)
    for name, _, box, pixels in printed:
        corners = [float(side) for side in box.split(",")]
        near = [area for key, area in things.items() if key[0] == name and np.allclose(corners, key[1], atol=0.15)]
        assert near, (name, box, things)
        assert min(abs(int(pixels) - area) for area in near) <= 0.01 * load_image(IMAGE).shape[0] ** 2
    assert "maskdino" not in EXAMPLE.read_text()
    assert len(EXAMPLE.read_text().splitlines()) <= 30


def test_an_artifact_that_differs_is_an_error_and_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = stablehlo.load

    def wrong(artifact: bytes):
        call = load(artifact)
        return lambda *batch: {**call(*batch), "boxes": call(*batch)["boxes"] + 1e-3}

    monkeypatch.setattr(stablehlo, "load", wrong)
    with pytest.raises(ValueError, match=r"differs from the live one: boxes by 0.001 \(allowed: 1e-05\)"):
        exported(run, tmp_path)
    assert not list(tmp_path.rglob("model*"))


def test_queries_in_another_order_are_the_same_queries() -> None:
    rng = np.random.default_rng(0)
    one = {"logits": rng.normal(size=(1, 5, 3)), "boxes": rng.random((1, 5, 4)), "masks": rng.normal(size=(1, 5, 2, 2))}
    other = {name: values[:, [3, 1, 0, 4, 2]] for name, values in one.items()}
    assert checking.differences(other, one, np.array([[8, 8]])) == {"logits": 0, "boxes": 0, "masks": 0}
    other["masks"] = one["masks"]
    assert checking.differences(other, one, np.array([[8, 8]]))["masks"] > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("500x512", r"--canvas=500x512: sides must be multiples of 32\. Give --canvas=512x512"),
        ("512", "give height and width in pixels, such as --canvas=800x1344"),
        ("0x64", "give height and width in pixels"),
        ("-64x64", "give height and width in pixels"),
    ],
)
def test_a_canvas_that_cannot_be_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        canvas_of(text, Config())


def test_the_canvas_is_by_default_that_of_evaluation() -> None:
    assert canvas_of(None, Config()) == (800, 1344)
    assert canvas_of("96x64", Config()) == (96, 64)


def test_an_unknown_format_and_a_missing_checkpoint_are_errors(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--format=tflite: give one of stablehlo, onnx"):
        exported(run, tmp_path, form="tflite")
    with pytest.raises(FileNotFoundError, match="neither a workdir with finished checkpoints nor a checkpoint"):
        exported(tmp_path, tmp_path)


def test_a_missing_library_is_named_with_its_extra(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "\.\[export\]"'):
        exported(run, tmp_path)
    with pytest.raises(ValueError, match=r"needs jax2onnx and onnxruntime.*make export-onnx"):
        exported(run, tmp_path, form="onnx")

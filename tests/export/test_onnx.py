"""ONNX through the make target, in an environment of its own."""

import os
import re
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from maskdino_jax.checkpoints import Checkpoints
from maskdino_jax.config import Config, tiny
from maskdino_jax.data import Catalog
from maskdino_jax.model import ModelSpec
from tests.weights import random_variables

ROOT = Path(__file__).parent.parent.parent
IMAGE = ROOT / "maskdino_jax/data/samples/nuclei/val_tiles/002001_0.png"


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet", "swin"])
def test_one_command_makes_an_artifact_that_equals_the_live_model(backbone: str, tmp_path: Path) -> None:
    """The command fails if the two differ. Afterwards the example runs it without this package."""
    config = Config(name="tiny")
    tiny(config)
    config.model.backbone.kind = backbone
    config.model.backbone.width = 32
    config.data.eval_short_side, config.data.eval_long_side = 64, 96
    config.model.decoder.layers = 1
    config.model.decoder.num_queries = 12
    config.inference.score_threshold = 0.0
    catalog = Catalog.named("coco_instances")
    checkpoints = Checkpoints(tmp_path, config, catalog.to_dict())
    variables = random_variables(ModelSpec(config.model, catalog.num_classes))
    checkpoints.save({"step": 1, **jax.tree.map(jnp.asarray, variables)})
    checkpoints.close()
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = ["make", "export-onnx", f"CHECKPOINT={tmp_path}", f"WORKDIR={tmp_path}", "CANVAS=64x96"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"largest differences .* logits [\d.e-]+, boxes [\d.e-]+, masks [\d.e-]+", done.stderr)
    python = ROOT / os.environ.get("ONNX_VENV", ".venv-onnx") / "bin/python"
    example = [python, "-P", ROOT / "examples/run_onnx.py", tmp_path / "export/model.onnx", IMAGE]
    lines = subprocess.run(example, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300).stdout
    assert len(lines.splitlines()) == config.inference.detections_per_image
    assert len(example[2].read_text().splitlines()) <= 30

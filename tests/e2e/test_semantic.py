"""A semantic model, with learned queries and trained batch norm, from label images to mIoU and a picture."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from maskdino_jax import Predictor, runner
from maskdino_jax.checkpoints import Reader
from maskdino_jax.config import Config, SplitConfig
from tests.e2e.conftest import COCO
from tests.test_configs import load

pytestmark = pytest.mark.slow  # compiles a training step of its own


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of the test data whose left half is labelled wall, the right half building, a corner nothing."""
    root = tmp_path_factory.mktemp("ade")
    for split in ("train", "val"):
        (root / f"labels_{split}").mkdir()
        for path in (COCO / f"{split}2017").glob("*.jpg"):
            with Image.open(path) as image:
                labels = np.full(image.size[::-1], 1, np.uint8)
            labels[:, labels.shape[1] // 2 :] = 2
            labels[:20, :20] = 0
            Image.fromarray(labels).save(root / f"labels_{split}" / f"{path.stem}.png")
    config: Config = load("ade20k_semantic", "tiny")
    config.data.root = str(root)
    for split in ("train", "val"):
        paths = SplitConfig(images=str(COCO / f"{split}2017"), semantic=f"labels_{split}")
        setattr(config.data, split, paths)
    config.data.image_size, config.data.short_sides, config.data.long_side = (64, 64), (64, 96), 160
    config.data.eval_short_side, config.data.eval_long_side = 64, 96
    config.model.backbone.norm = "batch_norm"
    config.model.decoder.layers, config.loss.num_points = 1, 32
    config.train.batch_size, config.train.steps, config.train.eval_every = 4, 2, 0
    workdir = root / "run"
    runner.train(config, workdir)
    return workdir


def test_training_ends_with_the_iou_of_the_classes_that_occur(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    classes = {name for name in results if name.startswith("sem_seg/IoU-")}
    assert classes == {"sem_seg/IoU-wall", "sem_seg/IoU-building"}
    assert 0 <= results["sem_seg/mIoU"] <= 1


def test_the_statistics_of_the_backbone_were_learned(run: Path) -> None:
    reader = Reader(run)
    spec = runner.ModelSpec(reader.config.model, 150)
    abstract = jax.eval_shape(lambda: spec.init(0))
    frozen = reader.variables(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), abstract))["frozen"]
    assert not np.allclose(frozen["backbone"]["stem"]["norm"]["mean"], 0)


def test_a_prediction_has_a_class_of_the_list_at_each_pixel(run: Path) -> None:
    predictor = Predictor.from_checkpoint(run)
    path = min((COCO / "val2017").glob("*.jpg"))
    result = predictor(path)
    with Image.open(path) as image:
        assert result.semantic.shape == image.size[::-1]
    assert result.instances is None
    assert {segment.class_id for segment in result.segments} <= set(range(1, 151))
    assert sum(segment.area for segment in result.segments) == result.semantic.size
    with pytest.raises(ValueError, match="this model does semantic"):
        predictor(path, task="panoptic")

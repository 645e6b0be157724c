"""Can the whole architecture learn? All layers of ResNet-50, encoder and decoder, narrow, on eight real images."""

import json
import shutil
from pathlib import Path

import pytest

from maskdino_jax import runner
from maskdino_jax.config import Config, SplitConfig

IMAGES = (9, 133, 194, 332, 349, 387, 397, 450)  # 640 x 480 pixels, 4 to 11 segments of at least 0.2 % of them each


def few_images(source: Path, target: Path) -> None:
    """A COCO panoptic data set of `IMAGES` alone, from a larger one."""
    (target / "annotations").mkdir(parents=True)
    for folder, suffix in (("train2017", ".jpg"), ("panoptic_train2017", ".png")):
        (target / folder).mkdir()
        for image in IMAGES:
            name = f"{image:012d}{suffix}"
            shutil.copyfile(source / folder / name, target / folder / name)
    for name in ("panoptic", "instances"):
        content = json.loads((source / f"annotations/{name}_train2017.json").read_text(encoding="utf-8"))
        content["images"] = [image for image in content["images"] if image["id"] in IMAGES]
        content["annotations"] = [x for x in content["annotations"] if x["image_id"] in IMAGES]
        (target / f"annotations/{name}_train2017.json").write_text(json.dumps(content), encoding="utf-8")


def overfit_config(root: Path) -> Config:
    """Every layer of the R50 model at a quarter of its width, the images whole at 256 x 192 pixels, again and again.

    They fill the canvas in training as in evaluation: positions are shares of the canvas, and what is learned by heart
    goes by them.
    """
    config = Config(name="overfit")
    config.data.root = str(root)
    config.data.train = config.data.val = SplitConfig(
        images="train2017",
        annotations="annotations/panoptic_train2017.json",
        panoptic="panoptic_train2017",
        instances="annotations/instances_train2017.json",
    )
    config.data.image_size = (192, 256)
    config.data.scale, config.data.flip = (1.0, 1.0), 0.0
    config.data.max_instances = 16
    config.data.workers = 0
    config.data.eval_short_side, config.data.eval_long_side = 192, 256
    config.data.eval_canvas = "exact"
    config.model.backbone.norm = "group_norm"
    config.model.backbone.width = 16
    config.model.hidden_dim = 64
    config.model.num_heads = 4
    config.model.encoder.ffn_dim = config.model.decoder.ffn_dim = 256
    config.model.decoder.num_queries = 50
    config.model.denoising.num_queries = 36
    config.loss.num_points = 784
    config.optimizer.learning_rate = 1e-3
    config.optimizer.backbone_multiplier = 1.0
    config.optimizer.warmup_steps = 20
    config.optimizer.milestones = (450,)
    config.train.steps = 500
    config.train.batch_size = 4
    config.train.eval_every = 250
    config.train.checkpoint_every = 500
    config.train.log_images = 0
    config.inference.batch_size = 1
    return config


@pytest.mark.slow
@pytest.mark.shared
def test_eight_images_are_learned_by_heart(shared: Path, tmp_path: Path) -> None:
    few_images(shared / "data/coco", tmp_path / "data")
    results = runner.train(overfit_config(tmp_path / "data"), tmp_path / "run")
    assert results["panoptic_seg/PQ"] > 0.8

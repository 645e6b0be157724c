"""The smallest real run: every part of the system on four real COCO images, in steps of a second."""

from pathlib import Path

import pytest

from maskdino_jax.config import Config, SplitConfig, tiny

COCO = Path(__file__).parent.parent / "data/coco"


def smallest(**train: object) -> Config:
    """COCO panoptic of the test data with the tiny network cut down further."""
    config = Config(name="smallest")
    tiny(config)
    config.data.root = str(COCO)
    config.data.train = SplitConfig(
        images="train2017", annotations="annotations/panoptic_train2017.json", panoptic="panoptic_train2017"
    )
    config.data.val = SplitConfig(
        images="val2017",
        annotations="annotations/panoptic_val2017.json",
        panoptic="panoptic_val2017",
        instances="annotations/instances_val2017.json",
    )
    config.data.image_size = (64, 64)
    config.data.max_instances = 16
    config.data.eval_short_side, config.data.eval_long_side = 64, 96
    config.model.encoder.in_features = ("res4", "res5")
    config.model.encoder.num_levels = 2
    config.model.decoder.layers = 1
    config.model.decoder.num_queries = 16
    config.model.denoising.num_queries = 16
    config.loss.num_points = 32
    config.optimizer.milestones = ()
    config.train.batch_size = 4
    config.train.steps = 4
    config.train.eval_every = 0
    config.train.checkpoint_every = 2
    config.train.log_every = 1
    for name, value in train.items():
        setattr(config.train, name, value)
    return config


@pytest.fixture
def config() -> Config:
    return smallest()

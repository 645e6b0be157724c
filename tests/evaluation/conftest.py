"""Data sets to score predictions on."""

import pytest

from maskdino_jax.config import DataConfig, SplitConfig
from maskdino_jax.data import CocoDataset, open_dataset
from tests.evaluation.blocks import write_blocks


@pytest.fixture(scope="session")
def blocks(tmp_path_factory) -> CocoDataset:
    """An image with two cars, a bird, a crowd of birds and sky, and an upright one with two cars and sky."""
    return write_blocks(tmp_path_factory.mktemp("blocks"))


@pytest.fixture(scope="session")
def nuclei() -> CocoDataset:
    """The validation images that come with the package."""
    val = SplitConfig(
        images="val",
        annotations="annotations/panoptic_val.json",
        panoptic="panoptic_val",
        instances="annotations/instances_val.json",
    )
    return open_dataset(DataConfig(val=val), "val")

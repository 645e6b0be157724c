"""The embedded data set: its tiles are the quarters of the validation images, segment for segment."""

import numpy as np
import pytest

from maskdino_jax.config import Config, SplitConfig
from maskdino_jax.data import open_dataset


@pytest.fixture
def tiles(nuclei: Config):
    nuclei.data.val = SplitConfig(
        images="val_tiles", annotations="annotations/panoptic_val_tiles.json", panoptic="panoptic_val_tiles"
    )
    return open_dataset(nuclei.data, "val")


def test_tiles_are_the_quarters_of_the_validation_images(nuclei: Config, tiles) -> None:
    assert tiles.catalog == open_dataset(nuclei.data, "train").catalog
    nuclei.data.val = SplitConfig(images="val", annotations="annotations/panoptic_val.json", panoptic="panoptic_val")
    validation = open_dataset(nuclei.data, "val")
    assert len(tiles) == 4 * len(validation)
    for record in range(len(validation)):
        image, ids = validation.image(record), validation.panoptic_map(record)
        for quarter in range(4):
            y, x = 128 * (quarter // 2), 128 * (quarter % 2)
            tile = 4 * record + quarter
            np.testing.assert_array_equal(tiles.image(tile), image[y : y + 128, x : x + 128])
            np.testing.assert_array_equal(tiles.panoptic_map(tile), ids[y : y + 128, x : x + 128])


def test_areas_of_the_tiles_add_up_to_those_of_the_images(nuclei: Config, tiles) -> None:
    nuclei.data.val = SplitConfig(images="val", annotations="annotations/panoptic_val.json", panoptic="panoptic_val")
    validation = open_dataset(nuclei.data, "val")
    for record in range(len(validation)):
        whole = {segment["id"]: segment["area"] for segment in validation.panoptic_records(record)}
        parts = dict.fromkeys(whole, 0)
        for tile in range(4 * record, 4 * record + 4):
            for segment in tiles.panoptic_records(tile):
                parts[segment["id"]] += segment["area"]
        assert parts == whole

"""Data sets for the tests of the data layer: the embedded nuclei, eight COCO images, and one written on the spot."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskdino_jax.config import Config, DataConfig, SplitConfig

COCO = Path(__file__).parents[1] / "data" / "coco"


@pytest.fixture
def nuclei() -> Config:
    """The embedded data set with small crops and small batches, read in threads."""
    splits = {
        split: SplitConfig(
            images=split,
            annotations=f"annotations/panoptic_{split}.json",
            panoptic=f"panoptic_{split}",
            instances=f"annotations/instances_{split}.json",
        )
        for split in ("train", "val")
    }
    data = DataConfig(**splits, image_size=(64, 64), max_instances=20, keep_empty=True, workers=0)
    data.eval_short_side = data.eval_long_side = 64
    config = Config(data=data)
    config.train.batch_size = 2
    return config


@pytest.fixture(params=["coco_panoptic", "coco_instances"])
def coco(request: pytest.FixtureRequest) -> DataConfig:
    return coco_config(request.param)


def coco_config(format: str) -> DataConfig:
    kind = format.removeprefix("coco_")
    splits = {
        split: SplitConfig(
            images=f"{split}2017",
            annotations=f"annotations/{kind}_{split}2017.json",
            panoptic=f"panoptic_{split}2017" if kind == "panoptic" else "",
            instances=f"annotations/instances_{split}2017.json" if kind == "panoptic" else "",
        )
        for split in ("train", "val")
    }
    return DataConfig(root=str(COCO), format=format, **splits, keep_empty=True, workers=0)


@pytest.fixture
def coco_panoptic() -> DataConfig:
    return coco_config("coco_panoptic")


@pytest.fixture
def coco_instances() -> DataConfig:
    return coco_config("coco_instances")


@dataclasses.dataclass
class Written:
    """A data set of two 8 x 6 images: one object in the first, none in the second. Change `tables`, then `save`."""

    data: DataConfig
    tables: dict[str, Any]

    @property
    def root(self) -> Path:
        return Path(self.data.root)

    @property
    def json(self) -> Path:
        return self.root / "annotations.json"

    def save(self) -> DataConfig:
        self.json.write_text(json.dumps(self.tables))
        return self.data


@pytest.fixture
def written_panoptic(tmp_path: Path) -> Written:
    """Segment 5 + 256 * 1 is a thing of category 7 on rows 1-2, columns 2-4; the rest is unlabelled."""
    written = _written(tmp_path, "coco_panoptic")
    ids = np.zeros((6, 8, 3), np.uint8)
    (tmp_path / "panoptic").mkdir()
    Image.fromarray(ids).save(tmp_path / "panoptic" / "2.png")
    ids[1:3, 2:5] = (5, 1, 0)
    Image.fromarray(ids).save(tmp_path / "panoptic" / "1.png")
    written.tables["annotations"] = [
        {"image_id": 1, "file_name": "1.png", "segments_info": [{"id": 261, "category_id": 7, "iscrowd": 0}]},
        {"image_id": 2, "file_name": "2.png", "segments_info": []},
    ]
    written.save()
    return written


@pytest.fixture
def written_instances(tmp_path: Path) -> Written:
    """Annotation 11 is a rectangle from (2, 1) to (5, 3) of category 7 in the first image."""
    written = _written(tmp_path, "coco_instances")
    written.tables["annotations"] = [
        {"id": 11, "image_id": 1, "category_id": 7, "iscrowd": 0, "segmentation": [[2, 1, 5, 1, 5, 3, 2, 3]]}
    ]
    written.save()
    return written


def _written(root: Path, format: str) -> Written:
    (root / "images").mkdir()
    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    for name in ("1.png", "2.png"):
        Image.fromarray(pixels).save(root / "images" / name)
    split = SplitConfig(
        images="images", annotations="annotations.json", panoptic="panoptic" if format == "coco_panoptic" else ""
    )
    data = DataConfig(
        root=str(root),
        format=format,
        train=split,
        val=dataclasses.replace(split),
        image_size=(32, 32),
        max_instances=4,
        workers=0,
        eval_short_side=32,
        eval_long_side=64,
    )
    tables = {
        "images": [
            {"id": 1, "file_name": "1.png", "height": 6, "width": 8},
            {"id": 2, "file_name": "2.png", "height": 6, "width": 8},
        ],
        "annotations": [],
        "categories": [{"id": 9, "name": "sky", "isthing": 0}, {"id": 7, "name": "cat", "isthing": 1}],
    }
    return Written(data, tables)

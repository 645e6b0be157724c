"""Small data sets of every format, and the faults to plant in them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskdino_jax.config import Config, DataConfig, SplitConfig
from maskdino_jax.data.findings import Summary

HEIGHT, WIDTH = 20, 30
SQUARE = [4, 3, 12, 3, 12, 11, 4, 11]  # x 4 to 12, y 3 to 11
CATEGORIES = [{"id": 7, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]


@dataclasses.dataclass
class Planted:
    """Three training and two validation images, no two alike. Change `tables` of train or files, then `save`."""

    root: Path
    config: Config
    tables: dict[str, Any]
    val: dict[str, Any]

    def save(self) -> Config:
        for split, tables in (("train", self.tables), ("val", self.val)):
            (self.root / f"{split}.json").write_text(json.dumps(tables))
        return self.config


def planted(root: Path, format: str) -> Planted:
    rng = np.random.default_rng(1)
    tables = {}
    for split, count in (("train", 3), ("val", 2)):
        (root / split).mkdir()
        (root / f"{split}_maps").mkdir()
        names = [f"{split}{n}.png" for n in range(1, count + 1)]
        for name in names:
            Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(root / split / name)
            ids = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            ids[3:11, 4:12] = (5, 1, 0)  # id 261
            ids[15:] = (6, 0, 0)
            Image.fromarray(ids if format == "coco_panoptic" else ids[..., 0]).save(root / f"{split}_maps" / name)
        tables[split] = {
            "images": [
                {"id": n, "file_name": name, "height": HEIGHT, "width": WIDTH} for n, name in enumerate(names, 1)
            ],
            "annotations": [annotation(format, n, name) for n, name in enumerate(names, 1)],
            "categories": [dict(category) for category in CATEGORIES],
        }
    split = lambda name: SplitConfig(
        images=name,
        annotations="" if format == "semantic" else f"{name}.json",
        panoptic=f"{name}_maps" if format == "coco_panoptic" else "",
        semantic=f"{name}_maps" if format == "semantic" else "",
    )
    data = DataConfig(root=str(root), format=format, train=split("train"), val=split("val"), image_size=(32, 32))
    data.max_instances, data.workers = 4, 0
    data.classes = "ade20k" if format == "semantic" else ""
    config = Config(data=data)
    config.inference.tasks = {"semantic": ("semantic",), "coco_panoptic": ("panoptic",)}.get(format, ("instance",))
    config.train.batch_size = 3
    made = Planted(root, config, tables["train"], tables["val"])
    made.save()
    return made


def annotation(format: str, n: int, name: str) -> dict[str, Any]:
    if format == "coco_panoptic":
        segments = [{"id": 261, "category_id": 7}, {"id": 6, "category_id": 9}]
        return {"image_id": n, "file_name": name, "segments_info": segments}
    return {"id": 10 + n, "image_id": n, "category_id": 7, "segmentation": [SQUARE], "bbox": [4, 3, 8, 8]}


def found(summary: Summary, severity: str) -> list[tuple[str, str, int]]:
    return [(finding.split, finding.kind, finding.count) for finding in summary.of(severity)]


def errors(summary: Summary) -> list[tuple[str, str, int]]:
    return found(summary, "error")


Plant = Callable[[Planted], object]


def change(**fields: Any) -> Plant:
    """Set fields of the second training annotation, or remove those that are None."""

    def plant(made: Planted) -> None:
        entry = made.tables["annotations"][1]
        entry.update(fields)
        for key in [key for key, value in fields.items() if value is None]:
            del entry[key]

    return plant


def change_segment(**fields: Any) -> Plant:
    return lambda made: made.tables["annotations"][1]["segments_info"][0].update(fields)


def repaint(rows: slice, value: tuple[int, ...] | int, folder: str = "train_maps") -> Plant:
    def plant(made: Planted) -> None:
        path = made.root / folder / "train2.png"
        pixels = np.array(Image.open(path))
        pixels[rows] = value
        Image.fromarray(pixels).save(path)

    return plant


def truncate(path: str) -> Plant:
    def plant(made: Planted) -> None:
        content = (made.root / path).read_bytes()
        (made.root / path).write_bytes(content[: len(content) // 2])

    return plant


def resave(path: str, mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Plant:
    return lambda made: Image.open(made.root / path).convert(mode).resize(size).save(made.root / path)


def remove(path: str) -> Plant:
    return lambda made: (made.root / path).unlink()

"""Small data sets of a user's own, in every layout that is recognised."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 10, 8


def picture(path: Path, shade: int = 100, **options: object) -> None:
    """A grey image of 10 x 8 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), shade, np.uint8)).save(path, **options)


def label(path: Path, *values: int) -> None:
    """A label image of 10 x 8 pixels whose rows take the values in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.resize(np.array(values, np.uint8), HEIGHT)
    Image.fromarray(np.repeat(rows[:, None], WIDTH, axis=1)).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def instances(path: Path, names: list[str], categories: dict[int, str]) -> None:
    """A COCO instances JSON: each image has a rectangle of each class, 2 wide and as high as the place in the list."""
    images = [{"id": n, "file_name": name, "height": HEIGHT, "width": WIDTH} for n, name in enumerate(names)]
    annotations = [
        {
            "id": len(categories) * image["id"] + place,
            "image_id": image["id"],
            "category_id": category,
            "iscrowd": 0,
            "bbox": [1, 0, 2, place + 1],
            "area": 2 * place + 2,
            "segmentation": [[1, 0, 3, 0, 3, place + 1, 1, place + 1]],
        }
        for image in images
        for place, category in enumerate(categories)
    ]
    listed = [{"id": number, "name": name} for number, name in categories.items()]
    write(path, json.dumps({"images": images, "annotations": annotations, "categories": listed}))


def yolo(root: Path, splits: tuple[str, ...] = ("train", "val"), count: int = 2) -> None:
    """Ultralytics' layout: in each image a triangle of class 1."""
    for split in splits:
        for number in range(count):
            picture(root / f"images/{split}/{number}.jpg")
            write(root / f"labels/{split}/{number}.txt", "1 0.1 0.0 0.5 0.0 0.1 0.5\n")
    write(root / "data.yaml", "train: images/train\nval: images/val\nnames:\n  0: cup\n  1: plate\n")


def zipped(folder: Path, inside: str = "") -> Path:
    """An archive of a folder beside it, whose content lies at the top or in a folder `inside`."""
    archive = folder.with_name(f"{folder.name} export")
    if inside:
        shutil.copytree(folder, folder.with_name("copy") / inside)
        folder = folder.with_name("copy")
    return Path(shutil.make_archive(str(archive), "zip", folder))

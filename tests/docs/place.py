"""A folder in which the commands of the pages find what they name: small data sets, photos, random weights.

The code is that of the repository, by links.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from examples import convnext_nuclei
from maskdino_jax.checkpoints import Checkpoints, torch_files, torch_import
from maskdino_jax.config import Config
from maskdino_jax.data import Catalog, open_dataset
from maskdino_jax.model import ModelSpec
from tests.data_layer.own_data import instances, picture
from tests.docs.blocks import ROOT
from tests.e2e.conftest import COCO, smallest
from tests.test_configs import load
from tests.weights import random_variables

_CODE = ("main.py", "configs", "examples", "maskdino_jax", "benchmarks", "tests", "docs", "notebooks", "pyproject.toml")
_NUCLEI = ("quickstart", "nuclei_panoptic", "nuclei_panoptic_small", "nuclei_panoptic_pieces", "mine")
_PANOPTIC = ("coco_panoptic", "panoptic")


def make(root: Path) -> Path:
    """Everything that any command of the pages asks for, below the new folder `root`."""
    root.mkdir(parents=True)
    for name in _CODE:
        (root / name).symlink_to(ROOT / name)
    _data_sets(root)
    _pictures(root)
    _checkpoints(root)
    _predictions(root)
    return root


def copy(template: Path, root: Path) -> Path:
    """A folder of one's own, to change."""
    return Path(shutil.copytree(template, root, symlinks=True))


def _data_sets(root: Path) -> None:
    datasets = root / "datasets"
    shutil.copytree(COCO, datasets / "coco")
    ade = datasets / "ADEChallengeData2016"
    for split, short in (("training", "train"), ("validation", "val")):
        for folder, pixels in (
            ("images", np.zeros((6, 8, 3), np.uint8)),
            ("annotations", np.full((6, 8), 4, np.uint8)),
            ("annotations_instance", np.full((6, 8, 3), 1, np.uint8)),
        ):
            path = ade / folder / split / f"ADE_{short}_00000001.{'jpg' if folder == 'images' else 'png'}"
            path.parent.mkdir(parents=True)
            Image.fromarray(pixels).save(path)
    for shift, split in enumerate(("train", "val")):  # the reader's own: COCO instances
        names = [f"{number}.jpg" for number in range(4)]
        for number, name in enumerate(names):
            picture(root / "DATA" / split / name, 50 * number + 25 * shift)
        instances(root / "DATA" / f"{split}.json", names, {1: "cup", 2: "plate"})


def _pictures(root: Path) -> None:
    photos = sorted((COCO / "val2017").glob("*.jpg"))[:2]
    (root / "photos").mkdir()
    for photo in photos:
        shutil.copy(photo, root / "photos")
    for name in ("photo.jpg", "image.jpg", "street.jpg"):
        shutil.copy(photos[0], root / name)
    with Image.open(photos[0]) as image:
        image.save(root / "image.png")


def _checkpoints(root: Path) -> None:
    """Of the models that stand for those of the pages, see `commands.SUBSTITUTIONS`."""
    quick, own = load("nuclei_panoptic", "quick"), convnext_nuclei.get_config()
    for config in (quick, own):
        config.data.val.part = "tenth"
        config.inference.score_threshold = 0.0
    nuclei = open_dataset(quick.data, "train").catalog
    for name in _NUCLEI:
        _save(root / "runs" / name, quick, nuclei)
    for name in ("convnext", "converted"):
        _save(root / "runs" / name, own, nuclei)
    panoptic = smallest()
    panoptic.data.root = "datasets/coco"
    panoptic.data.classes = "coco_panoptic"
    for name in _PANOPTIC:
        _save(root / "runs" / name, panoptic, Catalog.named("coco_panoptic"))
    instance = load("coco_instance", "tiny")
    _save(root / "runs/official", instance, Catalog.named("coco_instances"))
    weights = torch_import.to_state_dict(_random(instance, 80), instance.model, 80)
    torch_files.write_pth(root / "maskdino_r50.pth", weights)
    backbone = {name: value for name, value in weights.items() if name.startswith("backbone.")}
    torch_files.write_pth(root / "resnet50.pth", backbone)


def _random(config: Config, num_classes: int) -> dict:
    return random_variables(ModelSpec(config.model, num_classes))


def _save(workdir: Path, config: Config, catalog: Catalog) -> None:
    checkpoints = Checkpoints(workdir, config, catalog.to_dict())
    checkpoints.save({"step": 0, **_random(config, catalog.num_classes)})
    checkpoints.close()


def _predictions(root: Path) -> None:
    """Result files that are the ground truth itself."""
    shutil.copytree(COCO / "annotations", root / "annotations")
    for folder in ("annotations/panoptic_val2017", "panoptic_predictions"):
        shutil.copytree(COCO / "panoptic_val2017", root / folder)
    shutil.copy(COCO / "annotations/panoptic_val2017.json", root / "panoptic_predictions.json")
    truth = json.loads((COCO / "annotations/instances_val2017.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    found = [_result(entry, *sizes[entry["image_id"]]) for entry in truth["annotations"] if not entry["iscrowd"]]
    (root / "instances_predictions.json").write_text(json.dumps(found))


def _result(entry: dict, height: int, width: int) -> dict:
    runs = entry["segmentation"]
    if isinstance(runs, list):
        runs = coco_mask.merge(coco_mask.frPyObjects(runs, height, width))
        runs["counts"] = runs["counts"].decode()
    return {"image_id": entry["image_id"], "category_id": entry["category_id"], "segmentation": runs, "score": 1.0}

"""Open the data set that a config describes."""

from pathlib import Path

from maskdino_jax.config import DataConfig
from maskdino_jax.data.annotations import read_instances, read_panoptic
from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.coco import CocoDataset
from maskdino_jax.data.dataset import Dataset
from maskdino_jax.data.files import find
from maskdino_jax.data.semantic import SemanticDataset

_SAMPLES = Path(__file__).parent / "samples" / "nuclei"


def open_dataset(data: DataConfig, split: str, *, masks: bool = True) -> Dataset:
    """The "train" or "val" split of the data set that `data` describes.

    For training on instances, images without an object are left out, as in the reference; training on other formats
    and validation keep every image.

    Args:
        masks: False: COCO instances are read as boxes; "segmentation" need not be there and is not looked at.

    Raises:
        FileNotFoundError: a path is missing; the message names the option.
        ValueError: an annotation file is no COCO file, contradicts itself or has other classes than
            `config.data.classes`; an image has no labels.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split = {split!r}: choose train or val.")
    root = _root(data)
    paths = getattr(data, split)
    path = lambda field: _existing(root, getattr(paths, field), f"config.data.{split}.{field}")
    if data.format == "semantic":
        return SemanticDataset.read(path("images"), path("semantic"), data.classes)
    images, annotations = path("images"), path("annotations")
    if data.format == "coco_panoptic":
        panoptic_dir = path("panoptic")
        instances_json = path("instances") if paths.instances else None
        catalog, records = read_panoptic(annotations)
    else:
        panoptic_dir, instances_json = None, annotations
        catalog, records = read_instances(annotations, masks)
        if split == "train":
            records = tuple(record for record in records if record.annotations)
    if not records:
        raise ValueError(f"{annotations}: no image has an object to train on. Annotate some, or give another file.")
    return CocoDataset(
        catalog=_named(data.classes, catalog, annotations) if data.classes else catalog,
        images=images,
        annotations=annotations,
        records=records,
        panoptic_dir=panoptic_dir,
        instances_json=instances_json,
        masks=masks,
    )


def _named(classes: str, found: Catalog, annotations: Path) -> Catalog:
    """The list that comes with the package, which has colours also where the file has none."""
    named = Catalog.named(classes)
    here, there = ({entry.id: entry.name for entry in catalog.categories} for catalog in (found, named))
    for id in sorted(here.keys() | there.keys()):
        if here.get(id) != there.get(id):
            say = lambda names, id=id: repr(names[id]) if id in names else "missing"
            raise ValueError(
                f"{annotations}: category {id} is {say(here)}, but {say(there)} in config.data.classes = {classes!r}. "
                "Correct the file, or leave config.data.classes empty to take the classes from it."
            )
    return named


def _root(data: DataConfig) -> Path:
    if not data.root:
        return _SAMPLES
    root = Path(data.root).expanduser()
    if not root.is_dir() and not (root.suffix == ".zip" and root.is_file()):
        raise FileNotFoundError(
            f"config.data.root = {data.root!r}: no such folder or zip archive. Give the one that holds the data set, "
            "or leave it empty for the nuclei images that come with the package."
        )
    return root


def _existing(root: Path, relative: str, option: str) -> Path:
    path = find(root, relative) if relative else None
    if path is None:
        raise FileNotFoundError(
            f"{option} = {relative!r}: there is no {root / relative}, also not in a zip archive there. Give a path "
            f"relative to config.data.root = {str(root)!r}."
        )
    return path

"""Cityscapes: label images for training and panoptic annotations, as cityscapesScripts makes them.

There, `createTrainIdLabelImgs` draws the polygons with other numbers into an image like `labelIds`, so that a look-up
does the same. `createPanopticImgs` makes a segment of each number in `instanceIds`: 1000 times the label and more is an
object, the label itself stuff or a crowd of things, and labels that evaluation ignores are left black. One thing
differs: images are named by their path below `leftImg8bit/SPLIT`; the scripts write a name that no file has.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from maskdino_jax.data.catalog import Catalog, label_values
from maskdino_jax.data.faults import DataError
from maskdino_jax.data.files import names_below
from maskdino_jax.data.images import load_labels, load_numbers
from maskdino_jax.data.label_maps import present_labels
from maskdino_jax.data.prepare.writing import Made, PanopticImage, segment, write_label_images, write_panoptic

SPLITS = ("train", "val")
_LABELS, _TRAIN_LABELS, _INSTANCES = "_labelIds.png", "_labelTrainIds.png", "_instanceIds.png"
_IMAGES = "_leftImg8bit.png"
_LAST_LABEL = 33
_OBJECTS = 1000  # number of the first object of label 1


def prepare(root: Path) -> Iterator[Made]:
    """`gtFine/SPLIT/CITY/*_labelTrainIds.png`, and `gtFine/cityscapes_panoptic_SPLIT` with its JSON."""
    for split in SPLITS:
        folder = root / "gtFine" / split  # in an archive it would be hidden by what is written beside it
        labels, panoptic = f"gtFine/{split}/*{_TRAIN_LABELS}", f"gtFine/cityscapes_panoptic_{split}"
        if not folder.is_dir():
            yield from (Made(what=what, lacks=f"unpacked gtFine/{split}") for what in (labels, panoptic))
            continue
        names = [name.removesuffix(_LABELS) + _TRAIN_LABELS for name in names_below(folder, (_LABELS.lower(),))]
        yield write_label_images(labels, folder, names, functools.partial(_train_labels, folder))
        names = names_below(folder, (_INSTANCES.lower(),))
        categories = [
            {"id": entry.id, "name": entry.name, "isthing": int(entry.is_thing), "color": list(entry.color)}
            for entry in Catalog.named("cityscapes").categories
        ]
        yield write_panoptic(panoptic, root / panoptic, names, functools.partial(_panoptic, folder), categories)


def _train_labels(folder: Path, name: str) -> UInt8[np.ndarray, "h w"]:
    values = label_values("cityscapes")
    table = np.full(256, values.unlabelled, np.uint8)
    table[[entry.id for entry in Catalog.named("cityscapes").categories]] = values.of_classes
    path = folder / (name.removesuffix(_TRAIN_LABELS) + _LABELS)
    labels = load_labels(path)
    _require_labels(path, present_labels(labels).tolist())
    return table[labels]


def _panoptic(folder: Path, name: str) -> PanopticImage:
    path = folder / name
    numbers = load_numbers(path)
    is_thing = {entry.id: entry.is_thing for entry in Catalog.named("cityscapes").categories}
    segments, ignored = [], []
    for number in present_labels(numbers).tolist():
        label = number if number < _OBJECTS else number // _OBJECTS
        _require_labels(path, [label])
        if label in is_thing:
            crowd = is_thing[label] and number < _OBJECTS
            segments.append(segment(numbers, number, number, label, crowd=crowd))
        else:
            ignored.append(number)
    ids = np.where(np.isin(numbers, ignored), 0, numbers)
    city, stem = Path(name).parent, Path(name).name.removesuffix(f"_gtFine{_INSTANCES}")
    height, width = ids.shape
    return PanopticImage(
        image={"id": stem, "file_name": (city / f"{stem}{_IMAGES}").as_posix(), "width": width, "height": height},
        annotation={"image_id": stem, "file_name": f"{stem}_gtFine_panoptic.png", "segments_info": segments},
        pixels=np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8),
    )


def _require_labels(path: Path, labels: list[int]) -> None:
    unknown = [label for label in labels if not 0 <= label <= _LAST_LABEL]
    if unknown:
        raise DataError(
            "unknown label value",
            f"{path} has label {unknown[0]}, but Cityscapes has 0 to {_LAST_LABEL}. Restore the file of gtFine.",
        )

"""ADE20K: labels counted from 0, panoptic and instance annotations, as the scripts of Mask2Former make them.

Their rules: segments of stuff are those of the label images; objects, which `annotations_instance` has, are painted
over them. Areas and boxes are those at the time of painting. Stuff that objects hide entirely is left out here, for a
segment without a pixel could not be read. Ids are colours: stuff has that of its class, objects colours near to it;
the scripts draw these at random, here they depend on the name of the image alone.
"""

import functools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from pycocotools import mask as coco_mask

from maskdino_jax.data import ade20k
from maskdino_jax.data.faults import DataError
from maskdino_jax.data.files import find, names_below
from maskdino_jax.data.images import image_size, load_image, load_labels
from maskdino_jax.data.label_maps import present_labels
from maskdino_jax.data.masks import mask_box
from maskdino_jax.data.prepare.writing import (
    Made,
    PanopticImage,
    each,
    segment,
    write_json,
    write_label_images,
    write_panoptic,
)

SPLITS = {"train": "training", "val": "validation"}
_NEAR = 30  # most that a channel of an object's colour differs from that of its class, as in panopticapi


def prepare(root: Path) -> Iterator[Made]:
    """`annotations_detectron2/`, `ade20k_panoptic_{train,val}` with JSON, `ade20k_instance_{train,val}.json`."""
    for split, folder in SPLITS.items():
        kinds = "images", "annotations", "annotations_instance"
        images, labels, objects = (find(root, f"{kind}/{folder}") for kind in kinds)
        counted, panoptic = f"annotations_detectron2/{folder}", f"ade20k_panoptic_{split}"
        if labels is None:
            yield Made(what=counted, lacks=f"annotations/{folder}")
        else:
            make = functools.partial(_counted_from_0, labels)
            yield write_label_images(counted, root / counted, names_below(labels, (".png",)), make)
        if objects is None or images is None:
            lacks = f"annotations_instance/{folder}" if objects is None else f"images/{folder}"
            yield from (Made(what=what, lacks=lacks) for what in (panoptic, f"ade20k_instance_{split}.json"))
            continue
        names = [Path(name).stem for name in names_below(images, (".jpg",))]
        if labels is not None:
            make = functools.partial(_panoptic, images, labels, objects)
            yield write_panoptic(panoptic, root / panoptic, names, make, ade20k.categories())
        yield _instances(root / f"ade20k_instance_{split}.json", names, images, objects)


def _counted_from_0(labels: Path, name: str) -> UInt8[np.ndarray, "h w"]:
    """Unlabelled pixels become 255."""
    return load_labels(labels / name) - np.uint8(1)


def _panoptic(images: Path, labels: Path, objects: Path, name: str) -> PanopticImage:
    entry = _image(name, images)
    semantic = load_labels(labels / f"{name}.png")
    instances = load_image(objects / f"{name}.png")
    for path, found in ((labels, semantic), (objects, instances)):
        _require_size(path / f"{name}.png", found.shape, entry)
    pixels = np.zeros((*semantic.shape, 3), np.uint8)
    segments, colors = [], _Colors(name)
    for label in present_labels(semantic).tolist():
        if label > len(ade20k.categories()):
            raise DataError("unknown label value", f"{labels / name}.png has pixels of value {label}; 150 is the last.")
        if label == 0 or ade20k.categories()[label - 1]["isthing"]:
            continue
        _paint(pixels, semantic, label, colors.of(label - 1), label - 1, segments)
    for number, category_id in ade20k.objects(instances, f"{objects / name}.png"):
        _paint(pixels, instances[..., 1], number, colors.of(category_id), category_id, segments)
    seen = set(present_labels(_ids(pixels)).tolist())
    annotation = {
        "image_id": name,
        "file_name": f"{name}.png",
        "segments_info": [entry for entry in segments if entry["id"] in seen],
    }
    return PanopticImage(image=entry, annotation=annotation, pixels=pixels)


def _paint(
    pixels: UInt8[np.ndarray, "h w 3"],
    numbers: UInt8[np.ndarray, "h w"],
    number: int,
    color: tuple[int, int, int],
    category_id: int,
    segments: list[dict[str, Any]],
) -> None:
    pixels[numbers == number] = color
    segments.append(segment(numbers, number, int(_ids(np.array(color, np.uint8))), category_id))


def _ids(colors: UInt8[np.ndarray, "... 3"]) -> Int[np.ndarray, "..."]:
    return colors.astype(np.int32) @ np.array([1, 256, 65536], np.int32)


class _Colors:
    """A colour for each segment of one image, none of them twice."""

    def __init__(self, name: str) -> None:
        self._draws = np.random.default_rng(zlib.crc32(name.encode()))
        self._taken = {(0, 0, 0)} | {tuple(entry["color"]) for entry in ade20k.categories() if not entry["isthing"]}

    def of(self, category_id: int) -> tuple[int, int, int]:
        entry = ade20k.categories()[category_id]
        base = color = tuple(entry["color"])
        if entry["isthing"]:
            while color in self._taken:
                moved = np.array(base) + self._draws.integers(-_NEAR, _NEAR + 1, 3)
                color = tuple(moved.clip(0, 255).tolist())
            self._taken.add(color)
        return color


def _instances(path: Path, names: list[str], images: Path, objects: Path) -> Made:
    if path.exists():
        return Made(what=path.name, kept=1)

    def read(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        entry, place = _image(name, images), objects / f"{name}.png"
        pixels = load_image(place)
        _require_size(place, pixels.shape, entry)
        return entry, [
            _object(pixels[..., 1], number, category_id, name)
            for number, category_id in ade20k.objects(pixels, str(place))
        ]

    read_all = each(path.name, names, read)
    annotations = [annotation for _, of_image in read_all for annotation in of_image]
    content = {
        "images": [image for image, _ in read_all],
        "annotations": [{"id": id} | annotation for id, annotation in enumerate(annotations, 1)],
        "categories": [{key: entry[key] for key in ("id", "name", "color")} for entry in ade20k.things()],
    }
    write_json(path, content)
    return Made(what=path.name, new=1)


def _object(numbers: UInt8[np.ndarray, "h w"], number: int, category_id: int, image_id: str) -> dict[str, Any]:
    mask = numbers == number
    runs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    x0, y0, x1, y1 = map(int, mask_box(mask))
    return {
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": 0,
        "area": int(np.count_nonzero(mask)),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": {"size": list(mask.shape), "counts": runs["counts"].decode()},
    }


def _image(name: str, images: Path) -> dict[str, Any]:
    height, width = image_size(images / f"{name}.jpg")
    return {"id": name, "file_name": f"{name}.jpg", "width": width, "height": height}


def _require_size(path: Path, found: tuple[int, ...], image: dict[str, Any]) -> None:
    if found[:2] != (image["height"], image["width"]):
        raise DataError(
            "sizes disagree",
            f"{path} is {found[1]} x {found[0]} pixels, but its image {image['width']} x {image['height']}. "
            "Restore one of them.",
        )

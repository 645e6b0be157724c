"""Read COCO instances and COCO panoptic JSON files and check them, so that a mistake in one shows before training."""

import dataclasses
import json
import pickle
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.faults import Report, stop
from maskdino_jax.data.files import read_bytes

Json = dict[str, Any]
Load = Callable[[Path], Any]  # the content of an annotation file as COCO's three lists

_POLYGON_NUMBERS = 6  # a triangle is the smallest polygon


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One image of an annotation file.

    The annotations are kept pickled: COCO's 50 million polygon coordinates as Python objects would take tens of
    gigabytes once each loader process has its copy.
    """

    image_id: int | str
    file_name: str
    size: tuple[int, int]  # height, width in pixels
    panoptic_name: str = ""  # file of the segment ids; empty for instances
    pickled: bytes

    @property
    def annotations(self) -> list[Json]:
        """Objects without crowds (instances), or the whole segments_info (panoptic)."""
        return pickle.loads(self.pickled)


def read_instances(
    path: Path, masks: bool = True, *, load: Load | None = None, report: Report = stop
) -> tuple[Catalog, tuple[Record, ...]]:
    """Classes and images of an instances JSON, in its order.

    `load` reads other formats: it makes the content of such a JSON. As in the reference, crowds are left out, as are
    polygons with less than three points or an odd count of numbers and objects with no other polygon. Without `masks`
    only boxes are read, and those without an area are left out.

    Raises:
        ValueError: the file is no COCO JSON or contradicts itself; the message names the entry.
    """
    tables = _tables(path, (load or read_json)(path), ("id", "image_id", "category_id"))
    catalog = _catalog(path, tables)
    _unique(path, "annotations", (annotation["id"] for annotation in tables["annotations"]))
    sizes = {image["id"]: (image["height"], image["width"]) for image in tables["images"]}
    objects = defaultdict(list)
    for annotation in tables["annotations"]:
        what = f"{path}: annotation {annotation['id']} of image {annotation['image_id']}"
        _check_image(what, annotation["image_id"], sizes)
        _check_category(what, annotation["category_id"], catalog)
        if annotation.get("iscrowd", 0):
            continue
        if masks:
            shape = {"segmentation": _segmentation(what, annotation, sizes[annotation["image_id"]])}
        else:
            shape = {"bbox": _bbox(what, annotation)}
        if all(shape.values()):
            kept = {key: annotation[key] for key in ("id", "category_id")} | shape
            objects[annotation["image_id"]].append(kept)
    return catalog, tuple(_record(image, objects[image["id"]]) for image in tables["images"])


def read_panoptic(path: Path, *, report: Report = stop) -> tuple[Catalog, tuple[Record, ...]]:
    """Classes and images of a panoptic JSON, in its order.

    Raises:
        ValueError: the file is no COCO panoptic JSON or contradicts itself; the message names the entry.
    """
    tables = _tables(path, read_json(path), ("image_id", "file_name", "segments_info"))
    catalog = _catalog(path, tables)
    _unique(path, "annotations", (annotation["image_id"] for annotation in tables["annotations"]), "image_id")
    known = {image["id"] for image in tables["images"]}
    entries = {}
    for entry in tables["annotations"]:
        _check_image(f"{path}: the annotation {entry['file_name']}", entry["image_id"], known)
        entries[entry["image_id"]] = entry
        for segment in entry["segments_info"]:
            what = f"{path}: segment {segment.get('id')} of image {entry['image_id']}"
            _check_keys(what, segment, ("id", "category_id"))
            _check_category(what, segment["category_id"], catalog)
            if segment["id"] == 0:
                raise ValueError(f"{what}: id 0 means unlabelled pixels. Give the segment another id, also in the PNG.")
        _unique(path, f"segments of image {entry['image_id']}", (segment["id"] for segment in entry["segments_info"]))
    missing = [image["id"] for image in tables["images"] if image["id"] not in entries]
    if missing:
        raise ValueError(
            f"{path}: image {missing[0]} has no entry in annotations ({len(missing)} in all). "
            "Add one, with segments_info [] and a black PNG if nothing is labelled, or drop the image."
        )
    return catalog, tuple(
        _record(image, entries[image["id"]]["segments_info"], entries[image["id"]]["file_name"])
        for image in tables["images"]
    )


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON.
    """
    content = read_bytes(path)
    try:
        return json.loads(content)
    except ValueError as error:  # of the syntax or of the encoding
        raise ValueError(f"{path} is not JSON ({error}). Point the config at a COCO annotation file.") from error


def _tables(path: Path, content: Any, annotation_keys: tuple[str, ...]) -> dict[str, list[Json]]:
    """The three lists of a COCO file, with the keys this package needs in every entry."""
    wanted = {
        "images": ("id", "file_name", "height", "width"),
        "annotations": annotation_keys,
        "categories": ("id", "name"),
    }
    lacking = [key for key in wanted if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if lacking:
        raise ValueError(
            f"{path} is not a COCO annotation file: it lacks the lists {', '.join(lacking)}. "
            "Point the config at an instances or panoptic JSON with annotations."
        )
    for table, keys in wanted.items():
        for position, entry in enumerate(content[table]):
            _check_keys(f"{path}: {table}[{position}]", entry, keys)
    if not content["images"]:
        raise ValueError(f"{path} lists no images. Point the config at another annotation file.")
    _unique(path, "images", (image["id"] for image in content["images"]))
    return content


def _catalog(path: Path, tables: dict[str, list[Json]]) -> Catalog:
    try:
        return Catalog.from_coco(tables["categories"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _record(image: Json, annotations: list[Json], panoptic_name: str = "") -> Record:
    return Record(
        image_id=image["id"],
        file_name=image["file_name"],
        size=(image["height"], image["width"]),
        panoptic_name=panoptic_name,
        pickled=pickle.dumps(annotations),
    )


def _segmentation(what: str, annotation: Json, size: tuple[int, int]) -> Json | list[list[float]]:
    """Run lengths, or the valid ones of the polygons."""
    value = annotation.get("segmentation")
    if isinstance(value, dict):
        _check_keys(f"{what}: segmentation", value, ("size", "counts"))
        if tuple(value["size"]) != size:
            raise ValueError(
                f"{what}: the mask's size is {value['size']}, the image's {list(size)}. Correct one of them."
            )
        return value
    if isinstance(value, list) and all(isinstance(polygon, list) for polygon in value):
        return [polygon for polygon in value if len(polygon) >= _POLYGON_NUMBERS and len(polygon) % 2 == 0]
    raise ValueError(
        f"{what}: segmentation is {str(value)[:40]!r}, neither a list of polygons nor run lengths. "
        "Mask DINO learns from masks: add one, or drop the annotation; or learn boxes only, with "
        "config.model.masks=False (configs/objects365_detection.py)."
    )


def _bbox(what: str, annotation: Json) -> list[float]:
    """x, y, width, height in pixels; empty if the box has no area."""
    value = annotation.get("bbox")
    if not isinstance(value, list) or len(value) != 4 or not all(isinstance(side, int | float) for side in value):
        raise ValueError(
            f"{what}: bbox is {str(value)[:40]!r}, not [x, y, width, height] in pixels. "
            "Correct it, or drop the annotation."
        )
    return value if value[2] > 0 and value[3] > 0 else []


def _check_keys(what: str, entry: Json, keys: tuple[str, ...]) -> None:
    lacking = [key for key in keys if not isinstance(entry, dict) or key not in entry]
    if lacking:
        raise ValueError(
            f"{what} lacks {', '.join(lacking)}. Is this the right kind of COCO file for config.data.format?"
        )


def _check_image(what: str, image_id: int | str, known: Iterable[int | str]) -> None:
    if image_id not in known:
        raise ValueError(
            f"{what}: image_id {image_id!r} is not among the images. Add the image or drop the annotation."
        )


def _check_category(what: str, category_id: int, catalog: Catalog) -> None:
    try:
        catalog.index(category_id)
    except ValueError as error:
        raise ValueError(f"{what}: {error} Correct category_id, or add the category to categories.") from None


def _unique(path: Path, table: str, ids: Iterable[int | str], key: str = "id") -> None:
    for value, count in Counter(ids).most_common(1):
        if count > 1:
            raise ValueError(f"{path}: {table}: {key} {value!r} occurs {count} times. Give each entry its own.")

"""Read COCO instances and COCO panoptic JSON files and check them, so that a mistake in one shows before training."""

import dataclasses
import json
import pickle
from collections import Counter, defaultdict
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.faults import CROWD, LISTED_TWICE, NO_AREA, NO_POLYGON, DataError, Report, stop
from maskdino_jax.data.files import leads_outside, read_bytes
from maskdino_jax.data.shapes import (
    compare,
    extent_of_polygons,
    extent_of_runs,
    valid_box,
    valid_polygons,
    valid_runs,
)

Json = dict[str, Any]
Load = Callable[[Path], Any]  # the content of an annotation file as COCO's three lists

_LONGEST = 2**20  # pixels of a side; formats of files end far below

_TYPES = {
    "id": int | str,
    "image_id": int | str,
    "category_id": int | str,
    "file_name": str,
    "name": str,
    "segments_info": list,
}


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
        ValueError: the file is no COCO JSON. If `report` stops: it contradicts itself; the message names the entry.
    """
    tables = _tables(path, (load or read_json)(path), ("id", "image_id", "category_id"), "id", report)
    catalog = Catalog.from_coco(tables["categories"])
    sizes = {image["id"]: _size(image) for image in tables["images"]}
    objects = defaultdict(list)
    for annotation in tables["annotations"]:
        image_id = annotation["image_id"]
        what = f"{path}: annotation {annotation['id']} of image {image_id}"
        try:
            _check_image(what, image_id, sizes)
            _check_category(what, annotation["category_id"], catalog)
            if annotation.get("iscrowd", 0):
                report(CROWD, f"{what}: a crowd. Training leaves it out.")
                continue
            shape = (_mask if masks else _box)(what, annotation, sizes[image_id], report)
        except DataError as fault:
            report(*fault.args)
            continue
        if shape:
            objects[image_id].append({key: annotation[key] for key in ("id", "category_id")} | shape)
    return catalog, tuple(_record(image, objects[image["id"]]) for image in tables["images"])


def read_panoptic(path: Path, *, report: Report = stop) -> tuple[Catalog, tuple[Record, ...]]:
    """Classes and images of a panoptic JSON, in its order.

    Raises:
        ValueError: the file is no COCO panoptic JSON. If `report` stops: it contradicts itself; the message names the
            entry.
    """
    tables = _tables(path, read_json(path), ("image_id", "file_name", "segments_info"), "image_id", report)
    catalog = Catalog.from_coco(tables["categories"])
    known = {image["id"] for image in tables["images"]}
    entries = {}
    for entry in tables["annotations"]:
        try:
            what = f"{path}: the annotation {entry['file_name']}"
            _check_image(what, entry["image_id"], known)
            _check_name(what, entry["file_name"])
        except DataError as fault:
            report(*fault.args)
            continue
        entries[entry["image_id"]] = entry | {"segments_info": _segments(path, entry, catalog, report)}
    missing = [image["id"] for image in tables["images"] if image["id"] not in entries]
    for image_id in missing:
        report(
            "image without annotation",
            f"{path}: image {image_id} has no entry in annotations ({len(missing)} in all). "
            "Add one, with segments_info [] and a black PNG if nothing is labelled, or drop the image.",
        )
    return catalog, tuple(
        _record(image, entries[image["id"]]["segments_info"], entries[image["id"]]["file_name"])
        for image in tables["images"]
        if image["id"] in entries
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
    except (ValueError, RecursionError) as error:  # of the syntax, of the encoding, or nested thousands of times
        raise ValueError(f"{path} is not JSON ({error}). Point the config at a COCO annotation file.") from error


def _tables(
    path: Path, content: Any, annotation_keys: tuple[str, ...], annotation_id: str, report: Report
) -> dict[str, list[Json]]:
    """The three lists of a COCO file: entries that have the keys this package needs and an id of their own."""
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
    tables = {}
    for table, keys in wanted.items():
        complete = _complete(f"{path}: {table}", content[table], keys, report)
        tables[table] = _distinct(
            f"{path}: {table}", complete, annotation_id if table == "annotations" else "id", report
        )
    if not tables["images"]:
        raise ValueError(f"{path} lists no images. Point the config at another annotation file.")
    tables["images"] = [image for image in tables["images"] if _is_sound(path, image, report)]
    for name, count in Counter(image["file_name"] for image in tables["images"]).items():
        if count > 1:
            report(
                LISTED_TWICE,
                f"{path}: images: file_name {name!r} occurs {count} times, so that the objects of one entry are "
                "unlabelled in the other. Put them together.",
            )
    return tables


def _complete(what: str, entries: list[Json], keys: tuple[str, ...], report: Report) -> list[Json]:
    """The entries that have all keys."""
    kept = []
    for position, entry in enumerate(entries):
        try:
            _check_keys(f"{what}[{position}]", entry, keys)
        except DataError as fault:
            report(*fault.args)
        else:
            kept.append(entry)
    return kept


def _distinct(what: str, entries: list[Json], key: str, report: Report) -> list[Json]:
    """The first entry of each id."""
    for value, count in Counter(entry[key] for entry in entries).items():
        if count > 1:
            report("duplicate id", f"{what}: {key} {value!r} occurs {count} times. Give each entry its own.")
    return list({entry[key]: entry for entry in reversed(entries)}.values())[::-1]


def _record(image: Json, annotations: list[Json], panoptic_name: str = "") -> Record:
    return Record(
        image_id=image["id"],
        file_name=image["file_name"],
        size=_size(image),
        panoptic_name=panoptic_name,
        pickled=pickle.dumps(annotations),
    )


def _size(image: Json) -> tuple[int, int]:
    return int(image["height"]), int(image["width"])


def _is_sound(path: Path, image: Json, report: Report) -> bool:
    """Whether size and name can be those of an image in the data set."""
    what = f"{path}: image {image['id']}"
    try:
        _check_size(what, image["height"], image["width"])
        _check_name(what, image["file_name"])
    except DataError as fault:
        report(*fault.args)
        return False
    return True


def _check_size(what: str, height: Any, width: Any) -> None:
    if not all(isinstance(side, int | float) and 1 <= side <= _LONGEST and side % 1 == 0 for side in (height, width)):
        raise DataError(
            "broken image size",
            f"{what}: height and width are {str(height)[:40]} and {str(width)[:40]}. Give the whole numbers of pixels "
            "that the file has.",
        )


def _check_name(what: str, name: str) -> None:
    if leads_outside(name):
        raise DataError(
            "file outside of the data set",
            f"{what}: file_name {name[:200]!r} leads out of the folder of its images. Give a path relative to it, "
            "without '..'; a link in the folder may lead anywhere.",
        )


def _mask(what: str, annotation: Json, size: tuple[int, int], report: Report) -> Json | None:
    """The segmentation, run lengths or the valid ones of the polygons; None if there are none."""
    value = annotation.get("segmentation")
    if isinstance(value, dict):
        _check_keys(f"{what}: segmentation", value, ("size", "counts"))
        runs = valid_runs(what, value, size)
        if report is not stop:
            compare(what, annotation.get("bbox"), extent_of_runs(runs, size[0]), size, report)
        return {"segmentation": value}
    if not isinstance(value, list) or not all(isinstance(polygon, list) for polygon in value):
        raise DataError(
            "object without a mask",
            f"{what}: segmentation is {str(value)[:40]!r}, neither a list of polygons nor run lengths. "
            "Mask DINO learns from masks: add one, or drop the annotation; or learn boxes only, with "
            "config.model.masks=False (configs/objects365_detection.py).",
        )
    polygons = valid_polygons(what, value, report)
    if not polygons:
        report(NO_POLYGON, f"{what}: no polygon has three points. The object is left out: outline it, or drop it.")
        return None
    if report is not stop:
        compare(what, annotation.get("bbox"), extent_of_polygons(polygons), size, report)
    return {"segmentation": polygons}


def _box(what: str, annotation: Json, size: tuple[int, int], report: Report) -> Json | None:
    """The bbox; None if it has no area."""
    box = valid_box(what, annotation.get("bbox"))
    if box[2] <= 0 or box[3] <= 0:
        report(NO_AREA, f"{what}: bbox is {box}, without an area. It is left out: correct it, or drop it.")
        return None
    if report is not stop:
        compare(what, box, None, size, report)
    return {"bbox": box}


def _segments(path: Path, entry: Json, catalog: Catalog, report: Report) -> list[Json]:
    """The sound segments of an image. Those that are left out remain as crowds, so that their pixels in the PNG are
    known but belong to no target."""
    of_image = f"of image {entry['image_id']}"
    kept = []
    for segment in _complete(f"{path}: segments {of_image}", entry["segments_info"], ("id",), report):
        what = f"{path}: segment {segment['id']} {of_image}"
        try:
            _check_keys(what, segment, ("category_id",))
            _check_category(what, segment["category_id"], catalog)
        except DataError as fault:
            report(*fault.args)
            segment = {"id": segment["id"], "iscrowd": 1}
        if segment["id"] == 0:
            message = f"{what}: id 0 means unlabelled pixels. Give the segment another id, also in the PNG."
            report("segment with id 0", message)
            continue
        if segment.get("iscrowd", 0):
            report(CROWD, f"{what}: a crowd. Training leaves it out.")
        kept.append(segment)
    return _distinct(f"{path}: segments {of_image}", kept, "id", report)


def _check_keys(what: str, entry: Json, keys: tuple[str, ...]) -> None:
    lacking = [key for key in keys if not isinstance(entry, dict) or key not in entry]
    if lacking:
        raise DataError(
            "incomplete entry",
            f"{what} lacks {', '.join(lacking)}. Is this the right kind of COCO file for config.data.format?",
        )
    for key in keys:
        if not isinstance(entry[key], _TYPES.get(key, object)):
            raise DataError(
                "incomplete entry", f"{what}: {key} is {str(entry[key])[:40]!r}, which is no {key}. Correct it."
            )


def _check_image(what: str, image_id: int | str, known: Container[int | str]) -> None:
    if image_id not in known:
        raise DataError(
            "unknown image",
            f"{what}: image_id {image_id!r} is not among the images. Add the image or drop the annotation.",
        )


def _check_category(what: str, category_id: int, catalog: Catalog) -> None:
    try:
        catalog.index(category_id)
    except ValueError as error:
        message = f"{what}: {error} Correct category_id, or add the category to categories."
        raise DataError("unknown category", message) from None

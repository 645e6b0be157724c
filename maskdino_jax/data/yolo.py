"""YOLO data sets: a data.yaml that names classes and folders, and beside each image a text file of its objects.

A line is one object: the number of its class and the corners of a polygon, or the center and size of a box, as shares
of the image's width and height. A read of a split makes COCO's three lists of it, so that everything else is the same.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from maskdino_jax.data.faults import LABELS_ALONE, Report
from maskdino_jax.data.files import exists, names_below, read_bytes
from maskdino_jax.data.images import image_size

IMAGE_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

_BOX_NUMBERS, _POLYGON_NUMBERS = 4, 6  # a triangle is the smallest polygon
_ROUNDING = 0.01  # so far beyond the image a coordinate may be; it is moved to the border
_NO_LABELS = ("classes.txt", "notes.txt", "train.txt", "val.txt", "valid.txt", "test.txt")

Json = dict[str, Any]


def ignore(kind: str, message: str) -> None:
    """The report that drops every fault: of those who read again what has been reported once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yolo:
    """Reads one split; called with the data.yaml it makes the content of a COCO instances JSON.

    Without `masks`, polygons become the boxes around them.
    """

    images: Path  # folder, or a .txt with an image in each line
    masks: bool = True
    report: Report = ignore

    @property
    def folder(self) -> Path:
        """What the names of the images are relative to."""
        return self.images.parent if self.images.suffix == ".txt" else self.images

    def __call__(self, path: Path) -> Json:
        """COCO's three lists. The id of an image is its path without its ending, that of a class its number.

        Raises:
            FileNotFoundError, ValueError: there are no images, or `path` names no classes. If `report` stops: a line
                is no object; the message names the file and the line.
        """
        names = class_names(path)
        content: Json = {"images": [], "annotations": []}
        content["categories"] = [{"id": number, "name": name} for number, name in sorted(names.items())]
        for image, labels in self._pairs():
            height, width = image_size(self.folder / image)
            image_id = Path(image).with_suffix("").as_posix()
            content["images"].append({"id": image_id, "file_name": image, "height": height, "width": width})
            if exists(labels):
                for shape in self._objects(labels, names, (height, width)):
                    number = len(content["annotations"]) + 1
                    content["annotations"].append({"id": number, "image_id": image_id, "iscrowd": 0} | shape)
        return content

    def _pairs(self) -> list[tuple[str, Path]]:
        """Each image with the file of its objects, which need not be there."""
        listed = self.images.suffix == ".txt"
        names = _lines(self.images) if listed else names_below(self.images, IMAGE_TYPES)
        if not names:
            raise ValueError(f"{self.images} has no image ({', '.join(IMAGE_TYPES)}). Give the folder of the images.")
        pairs = {label_path(self.folder, name): name for name in reversed(names)}
        for name in names:
            first = pairs[label_path(self.folder, name)]
            if first != name:
                self.report(
                    "two images with one label file",
                    f"{self.folder / name} and {first} share {label_path(self.folder, name)}. Rename one of them.",
                )
        if not listed:
            self._report_alone(pairs)
        return [(name, labels) for labels, name in reversed(pairs.items())]

    def _report_alone(self, known: dict[Path, str]) -> None:
        """Tell of files of objects that no image belongs to."""
        folder = label_path(self.folder, "a.jpg").parent
        if not exists(folder):
            raise FileNotFoundError(
                f"{self.images} has no labels: there is no {folder}. YOLO keeps them in a folder 'labels' in the place "
                "of 'images', or beside the images."
            )
        for name in names_below(folder, (".txt",)):
            if folder / name not in known and Path(name).name not in _NO_LABELS and not name.startswith("README"):
                self.report(
                    LABELS_ALONE, f"{folder / name} has no image in {self.images}. Restore it, or drop the file."
                )

    def _objects(self, path: Path, names: dict[int, str], size: tuple[int, int]) -> Iterator[Json]:
        """What the annotation of each sound line has besides ids."""
        for position, line in enumerate(_text(path).splitlines(), 1):
            if not line.strip():
                continue
            try:
                number, coordinates = _parse(line, names)
            except ValueError as error:
                self.report("broken YOLO line", f"{path}:{position}: {error}")
                continue
            shape = _shape(coordinates, size, self.masks)
            if shape is None:
                self.report(
                    "object without a mask",
                    f"{path}:{position}: a box, no polygon. Mask DINO learns from masks: outline the object, drop it, "
                    "or learn boxes only, with config.model.masks=False (configs/custom.py:detection).",
                )
            else:
                yield {"category_id": number} | shape


def label_path(folder: Path, image: str) -> Path:
    """The text file of an image: in "labels" in the place of the last "images" of its path, or else beside it."""
    path = folder / Path(image).with_suffix(".txt")
    for position in reversed(range(len(path.parts) - 1)):
        if path.parts[position] == "images":
            labels = Path(*path.parts[:position], "labels")
            return labels.joinpath(*path.parts[position + 1 :]) if exists(labels) else path
    return path


def read_yaml(path: Path) -> Json:
    """The content of a data.yaml, all numbers and names as text: `no` and `1.0` are names too.

    Raises:
        FileNotFoundError, ValueError: it is not there, or holds something else.
    """
    try:
        content = yaml.load(read_bytes(path), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML ({' '.join(str(error).split())}). Restore it.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no data.yaml: it has no names of classes. Give the one of the data set.")
    return content


def class_names(path: Path) -> dict[int, str]:
    """The name of each class number, from a data.yaml or from the lines of a classes.txt.

    Raises:
        ValueError: there are none, or not as many as it says.
    """
    if path.suffix == ".txt":
        return dict(enumerate(_lines(path)))
    content = read_yaml(path)
    listed, count = content.get("names"), content.get("nc", "")
    if listed is None and count.isdecimal():
        listed = [f"class {number}" for number in range(int(count))]
    names = dict(enumerate(listed)) if isinstance(listed, list) else listed
    try:
        names = {int(number): str(name) for number, name in names.items()}
    except (AttributeError, ValueError):
        names = {}
    if not names:
        raise ValueError(f"{path}: names is {str(listed)[:40]!r}: list the names of the classes, from number 0 on.")
    if count.isdecimal() and int(count) != len(names):
        raise ValueError(f"{path}: nc is {count}, but names has {len(names)} classes. Correct one of them.")
    if "kpt_shape" in content:
        raise ValueError(f"{path} has kpt_shape: its lines are poses. Export the data set for segmentation.")
    return names


def _parse(line: str, names: dict[int, str]) -> tuple[int, list[float]]:
    """Class number and coordinates, those a rounding beyond the image moved to its border."""
    first, *rest = line.split()
    try:
        number, coordinates = float(first), [float(word) for word in rest]
    except ValueError as error:
        raise ValueError(f"{error}. Give a class number and coordinates from 0 to 1.") from None
    if number not in names:
        raise ValueError(f"class {first} is unknown: the names of the data set are numbered {_numbers(names)}.")
    count = len(coordinates)
    if count != _BOX_NUMBERS and (count < _POLYGON_NUMBERS or count % 2):
        raise ValueError(
            f"{count} coordinates. Give the x and y of at least three points, or center, width and height of a box."
        )
    outside = [value for value in coordinates if not -_ROUNDING <= value <= 1 + _ROUNDING]
    if outside:
        raise ValueError(f"coordinate {outside[0]} is not from 0 to 1. Divide by width and height of the image.")
    return int(number), [min(max(value, 0.0), 1.0) for value in coordinates]


def _shape(coordinates: list[float], size: tuple[int, int], masks: bool) -> Json | None:
    """The polygon or the box in pixels, x and y; None for a box where a mask is needed."""
    height, width = size
    pixels = [value * (height if place % 2 else width) for place, value in enumerate(coordinates)]
    if len(coordinates) == _BOX_NUMBERS:
        x, y, wide, high = pixels
        return None if masks else {"bbox": [x - wide / 2, y - high / 2, wide, high]}
    if masks:
        return {"segmentation": [pixels]}
    left, top = min(pixels[::2]), min(pixels[1::2])
    return {"bbox": [left, top, max(pixels[::2]) - left, max(pixels[1::2]) - top]}


def _numbers(names: dict[int, str]) -> str:
    return f"{min(names)} to {max(names)}" if len(names) == max(names) - min(names) + 1 else str(sorted(names))


def _lines(path: Path) -> list[str]:
    return [line.strip().removeprefix("./") for line in _text(path).splitlines() if line.strip()]


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text ({error}). Restore it.") from error

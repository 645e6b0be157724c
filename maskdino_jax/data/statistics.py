"""What a data set holds, found by reading each record once and keeping numbers only."""

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from maskdino_jax.data.dataset import Dataset
from maskdino_jax.data.faults import kind_of
from maskdino_jax.data.objects import Boxes, Instances, Objects, Outline, RunLengths, Segments
from maskdino_jax.data.transforms import Example

SIZES = {"small": 32**2, "medium": 96**2, "large": float("inf")}  # COCO's: a size ends below so many pixels
_THUMBNAIL = 8, 8  # pixels; enough to tell whether two pictures of one name are the same


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """What is kept of a record that could be read."""

    size: tuple[int, int]  # height, width in pixels
    labels: Int[np.ndarray, "n"]
    areas: Float[np.ndarray, "n"]  # pixels
    unlabelled: float | None  # share of the pixels; None: the annotations are no map
    digest: bytes  # of all pixels
    thumbnail: UInt8[np.ndarray, "8 8 3"]


@dataclasses.dataclass(frozen=True)
class Failure:
    """What is kept of a record that could not be read."""

    kind: str
    message: str


@dataclasses.dataclass(frozen=True)
class Scans:
    """Reads each record of a data set when asked for it; travels to loader processes."""

    dataset: Dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Scan | Failure:
        try:
            return scan(self.dataset[index])
        except (FileNotFoundError, ValueError) as error:
            return Failure(kind_of(error), str(error))
        except Exception as error:  # a damaged file may raise whatever its decoder does; this too is a finding
            name = self.dataset.file_name(index)
            return Failure(kind_of(error), f"{name}: {type(error).__name__}: {error}. Restore the file, or drop it.")


def scan(example: Example) -> Scan:
    """The numbers of one example."""
    height, width = example.image.shape[:2]
    pixels = areas(example.objects)
    digest = hashlib.blake2b(np.ascontiguousarray(example.image), digest_size=16)
    digest.update(f"{height} x {width}".encode())
    return Scan(
        size=(height, width),
        labels=example.labels,
        areas=pixels,
        unlabelled=1 - pixels.sum() / (height * width) if isinstance(example.objects, Segments) else None,
        digest=digest.digest(),
        thumbnail=np.asarray(Image.fromarray(example.image).resize(_THUMBNAIL, Image.Resampling.BOX)),
    )


def areas(objects: Objects | Boxes) -> Float[np.ndarray, "n"]:
    """Pixels of each object: of a map and of run lengths counted, of polygons and boxes by their geometry."""
    if isinstance(objects, Boxes):
        return np.prod(objects.corners[:, 2:] - objects.corners[:, :2], axis=1).astype(float)
    if isinstance(objects, Segments):
        return np.array([np.count_nonzero(objects.id_map == id) for id in objects.ids], float)
    if isinstance(objects, Instances):
        return np.array([_area(shape) for shape in objects.shapes], float)
    return np.array([np.count_nonzero(objects.raster(index)[0]) for index in range(len(objects))], float)


def _area(shape: Outline | RunLengths) -> float:
    if isinstance(shape, RunLengths):
        return float(shape.lengths[1::2].sum())
    return sum(_polygon_area(polygon) for polygon in shape.polygons)


def _polygon_area(vertices: Float[np.ndarray, "v 2"]) -> float:
    """Gauss's formula."""
    x, y = vertices.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


@dataclasses.dataclass
class Statistics:
    """Numbers of one split; `add` takes one record after the other."""

    images: int = 0  # that could be read
    failures: int = 0
    empty: int = 0  # images without an object
    objects: int = 0
    most: int = 0  # objects in one image
    of_class: Counter[int] = dataclasses.field(default_factory=Counter)  # objects by contiguous class
    of_size: Counter[str] = dataclasses.field(default_factory=Counter)  # objects by `SIZES`
    sides: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    unlabelled: list[float] = dataclasses.field(default_factory=list)  # share of each map
    of_pixels: dict[bytes, list[int]] = dataclasses.field(default_factory=lambda: defaultdict(list))  # records
    of_name: dict[tuple[str, tuple[int, int]], tuple[int, UInt8[np.ndarray, "8 8 3"]]] = dataclasses.field(
        default_factory=dict
    )  # record and thumbnail of a file name (without folders) and size

    def add(self, record: int, found: Scan, file_name: str) -> None:
        """Count one record."""
        self.images += 1
        self.empty += len(found.labels) == 0
        self.objects += len(found.labels)
        self.most = max(self.most, len(found.labels))
        self.of_class.update(found.labels.tolist())
        self.of_size.update(size_of(area) for area in found.areas.tolist())
        self.sides.append(found.size)
        if found.unlabelled is not None:
            self.unlabelled.append(found.unlabelled)
        self.of_pixels[found.digest].append(record)
        self.of_name[PurePosixPath(file_name).name, found.size] = record, found.thumbnail


def size_of(area: float) -> str:
    """The name of a size in pixels."""
    return next(name for name, end in SIZES.items() if area < end)


def in_both(one: Statistics, other: Statistics) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Pairs of records with the same pixels; and pairs of others with the same name, size and look.

    The second kind finds images that were encoded again. A name alone would not do: many data sets number each split
    from one.
    """
    same = [
        (records[0], other.of_pixels[digest][0])
        for digest, records in one.of_pixels.items()
        if digest in other.of_pixels
    ]
    known = set(same)
    alike = []
    for key, (record, thumbnail) in one.of_name.items():
        if key in other.of_name:
            its_record, its_thumbnail = other.of_name[key]
            if (record, its_record) not in known and _close(thumbnail, its_thumbnail):
                alike.append((record, its_record))
    return same, alike


def _close(one: UInt8[np.ndarray, "8 8 3"], other: UInt8[np.ndarray, "8 8 3"]) -> bool:
    """Whether two thumbnails differ by less than two grey levels on average, as after a JPEG."""
    return float(np.abs(one.astype(int) - other).mean()) < 2


def twice(statistics: Statistics) -> Iterable[list[int]]:
    """Records of one split that have the same pixels."""
    return (records for records in statistics.of_pixels.values() if len(records) > 1)

"""Records of TensorFlow Datasets as examples, by what they hold; read without TensorFlow."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

from maskdino_jax.config import ConfigError
from maskdino_jax.data import ade20k
from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.faults import DataError
from maskdino_jax.data.images import Encoded, image_size, load_ids, load_image, load_labels
from maskdino_jax.data.label_maps import present_labels
from maskdino_jax.data.objects import Boxes, Instances, Objects, RunLengths, Segments
from maskdino_jax.data.runs import encode_runs
from maskdino_jax.data.transforms import Example

UNKNOWN = -1  # class of a pixel value that the class list does not have

_PICTURES = ("image", "panoptic_image", "annotation")  # features that are image files
_KEPT = 32  # records in memory, as they are in the file: size, image and annotations are asked for one after the other


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class TfdsDataset:
    """One split. Holds names but no open file: each process opens the files for itself, its threads share them."""

    folder: Path
    split: str  # such as train, or train[:90%]
    catalog: Catalog
    of_values: tuple[int, ...]  # position in the catalog of each label; of pixel values, also `num_classes` and -1

    truths: ClassVar[frozenset[str]] = frozenset({"instances"})

    @property
    def annotations(self) -> Path:
        return self.folder

    def __len__(self) -> int:
        return len(source(self.folder, self.split, os.getpid()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r}, {self.split!r}, {len(self)} images)"

    def __getitem__(self, index: int) -> Example:
        """The image as it is in its file, with all objects that are no crowds."""
        image = self.image(index)
        labels, objects = self._objects(index, image.shape[:2])
        labels = np.array(labels, np.int32)
        return Example(image=image, labels=labels, is_thing=self.catalog.is_thing[labels], objects=objects)

    def image_id(self, index: int) -> int | str:
        """`image/id`, or else the place in the split."""
        return self._record(index).get("image/id", index)

    def file_name(self, index: int) -> str:
        """`image/filename`, or else a name made of the place in the split."""
        name = self._record(index).get("image/filename", f"{index:08d}.jpg".encode())
        return name.decode() if isinstance(name, bytes) else name

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels, from the head of the image."""
        return image_size(self._picture(index, "image"))

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return load_image(self._picture(index, "image"))

    def instances_truth(self) -> dict[str, Any] | None:
        """Made by a walk through the whole split."""
        images, annotations = [], []
        for index in range(len(self)):
            height, width = self.size(index)
            own = {"image_id": self.image_id(index)}
            images.append({"id": own["image_id"], "file_name": self.file_name(index), "height": height, "width": width})
            annotations += [own | {"id": len(annotations) + n} | each for n, each in enumerate(self._truth(index), 1)]
        categories = [{"id": entry.id, "name": entry.name} for entry in self.catalog.categories]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _objects(self, index: int, size: tuple[int, int]) -> tuple[Sequence[int], Objects | Boxes]:
        """Classes and shapes."""
        raise NotImplementedError

    def _truth(self, index: int) -> list[dict[str, Any]]:
        """COCO's annotations but for their ids."""
        raise NotImplementedError

    def _record(self, index: int) -> Mapping[str, Any]:
        return _record(self.folder, self.split, os.getpid(), int(index))

    def _picture(self, index: int, feature: str) -> Encoded:
        return Encoded(f"{self._where(index)}: {feature}", self._record(index)[feature])

    def _where(self, index: int) -> str:
        return f"{self.folder}:{self.split}: record {index}"

    def _listed(self, index: int, feature: str) -> list[dict[str, Any]]:
        """The objects of a record: `id`, `category_id`, `iscrowd`, `area` and `bbox` in pixels, as in COCO.

        The data set keeps corners as float32 shares of the image and whole areas, so that they are those of COCO up to
        rounding.
        """
        table = self._record(index)[feature]
        height, width = self.size(index)
        entries = []
        for id, label, corners, area, crowd in zip(
            *(table[key] for key in ("id", "label", "bbox", "area", "is_crowd")), strict=True
        ):
            top, left, bottom, right = np.asarray(corners, np.float64) * (height, width, height, width)
            entries.append(
                {
                    "id": int(id),
                    "category_id": self.catalog.categories[self.of_values[int(label)]].id,
                    "iscrowd": int(crowd),
                    "area": int(area),
                    "bbox": [float(left), float(top), float(right - left), float(bottom - top)],
                }
            )
        return entries

    def _require_size(self, index: int, feature: str, found: Sequence[int], size: Sequence[int]) -> None:
        if tuple(found) != tuple(size):
            raise DataError(
                "sizes disagree",
                f"{self._where(index)}: {feature} is {found[1]} x {found[0]} pixels, but image is {size[1]} x "
                f"{size[0]}. Prepare the data set anew.",
            )


class TfdsPanoptic(TfdsDataset):
    """Segments, of things and of stuff."""

    truths = frozenset({"panoptic", "semantic"})

    def instances_truth(self) -> None:
        """There is none: boxes and masks are those of the segments of things."""

    def panoptic_records(self, index: int) -> list[dict[str, Any]]:
        """COCO's segments_info, crowds included."""
        return self._listed(index, "panoptic_objects")

    def panoptic_map(self, index: int) -> Int32[np.ndarray, "h w"]:
        """Segment id of each pixel; 0 is unlabelled.

        Raises:
            ValueError: the image is damaged, of another size, or has other ids than the objects.
        """
        ids = load_ids(self._picture(index, "panoptic_image"))
        self._require_size(index, "panoptic_image", ids.shape, self.size(index))
        painted = set(present_labels(ids).tolist()) - {0}
        crowd_of_ids = {segment["id"]: segment["iscrowd"] for segment in self.panoptic_records(index)}
        required = {id for id, crowd in crowd_of_ids.items() if not crowd}
        if not required <= painted <= crowd_of_ids.keys():
            raise DataError(
                "PNG and JSON disagree",
                f"{self._where(index)}: panoptic_image and panoptic_objects disagree on the segments "
                f"{sorted((required - painted) | (painted - crowd_of_ids.keys()))}. Prepare the data set anew.",
            )
        return ids

    def _objects(self, index: int, size: tuple[int, int]) -> tuple[list[int], Segments]:
        segments = [segment for segment in self.panoptic_records(index) if not segment["iscrowd"]]
        labels = [self.catalog.index(segment["category_id"]) for segment in segments]
        return labels, Segments(self.panoptic_map(index), tuple(segment["id"] for segment in segments))


class TfdsBoxes(TfdsDataset):
    """Objects with boxes and nothing else."""

    def _objects(self, index: int, size: tuple[int, int]) -> tuple[list[int], Boxes]:
        """Those without an area are left out, as `read_instances` does."""
        entries = [entry for entry in self._truth(index) if not entry["iscrowd"] and min(entry["bbox"][2:]) > 0]
        labels = [self.catalog.index(entry["category_id"]) for entry in entries]
        return labels, Boxes.from_coco([entry["bbox"] for entry in entries], size)

    def _truth(self, index: int) -> list[dict[str, Any]]:
        return self._listed(index, "objects")


class TfdsInstances(TfdsDataset):
    """Objects of ADE20K: in `annotation`, red is their class and green tells them apart."""

    def _objects(self, index: int, size: tuple[int, int]) -> tuple[list[int], Instances]:
        labels, shapes = [], []
        for category_id, mask in self._masks(index, size):
            labels.append(self.catalog.index(category_id))
            shapes.append(RunLengths(encode_runs(mask)))
        return labels, Instances(size, tuple(shapes))

    def _truth(self, index: int) -> list[dict[str, Any]]:
        size = self.size(index)
        return [
            {
                "category_id": category_id,
                "iscrowd": 0,
                "segmentation": {"size": list(size), "counts": encode_runs(mask).tolist()},
            }
            for category_id, mask in self._masks(index, size)
        ]

    def _masks(self, index: int, size: tuple[int, int]) -> list[tuple[int, Bool[np.ndarray, "h w"]]]:
        picture = self._picture(index, "annotation")
        pixels = load_image(picture)
        self._require_size(index, "annotation", pixels.shape[:2], size)
        return [(category_id, pixels[..., 1] == number) for number, category_id in ade20k.objects(pixels, picture.name)]


class TfdsSemantic(TfdsDataset):
    """Label images."""

    truths = frozenset({"semantic"})

    def instances_truth(self) -> None:
        """There is none."""

    def semantic_map(self, index: int) -> Int[np.ndarray, "h w"]:
        """Contiguous class of each pixel; `catalog.num_classes` where it has none.

        Raises:
            ValueError: the image is damaged or holds unknown labels.
        """
        labels = load_labels(self._picture(index, "annotation"))
        classes = np.array(self.of_values, np.int32)[labels]
        if classes.min() == UNKNOWN:
            unknown = np.unique(labels[classes == UNKNOWN]).tolist()
            raise DataError(
                "unknown label value",
                f"{self._where(index)}: annotation has pixels of value {', '.join(map(str, unknown))}, which mean "
                "nothing in config.data.classes. Give the list of this data set.",
            )
        return classes

    def _objects(self, index: int, size: tuple[int, int]) -> tuple[list[int], Segments]:
        """One object for each class, by ascending class."""
        classes = self.semantic_map(index)
        self._require_size(index, "annotation", classes.shape, size)
        labels = [label for label in present_labels(classes).tolist() if label < self.catalog.num_classes]
        return labels, Segments(classes, tuple(labels))


def _library() -> ModuleType:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ConfigError(
            f"config.data.format = 'tfds' needs the package tensorflow-datasets ({error}): "
            "pip install maskdino-jax[tfds]"
        ) from error
    return tensorflow_datasets


@functools.lru_cache(maxsize=4)
def builder(folder: Path, process: int) -> Any:
    """What TFDS knows about a prepared data set.

    Raises:
        ConfigError: the package is missing.
    """
    return _library().builder_from_directory(folder)


@functools.lru_cache(maxsize=4)
def source(folder: Path, split: str, process: int) -> Sequence[Mapping[str, Any]]:
    """Random access to records whose images stay encoded; `process` keeps a forked one from sharing open files."""
    opened = builder(folder, process)
    skip = _library().decode.SkipDecoding()
    decoders = {feature: skip for feature in _PICTURES if feature in opened.info.features}
    return opened.as_data_source(split, decoders=decoders)


@functools.lru_cache(maxsize=_KEPT)
def _record(folder: Path, split: str, process: int, index: int) -> Mapping[str, Any]:
    try:
        return source(folder, split, process)[index]
    except RuntimeError as error:  # of ArrayRecord, for files that are missing or damaged
        raise DataError(
            "unreadable record",
            f"{folder}:{split}: record {index} cannot be read ({error}). Restore the file, or prepare the data anew.",
        ) from error

"""COCO data sets on disk, panoptic and instances, as a sequence of examples."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from maskdino_jax.data.annotations import Load, Record, read_json
from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.faults import DataError
from maskdino_jax.data.images import load_ids, load_image
from maskdino_jax.data.label_maps import present_labels
from maskdino_jax.data.objects import Boxes, Instances, Objects, Outline, RunLengths, Segments
from maskdino_jax.data.runs import parse_runs
from maskdino_jax.data.transforms import Example

_UNLABELLED = 0  # id of pixels that belong to no segment


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class CocoDataset:
    """One split. Holds paths and annotations but no open file, so that it travels to loader processes."""

    catalog: Catalog
    images: Path  # folder
    annotations: Path  # the JSON that was read
    records: tuple[Record, ...]
    panoptic_dir: Path | None  # folder of PNG with segment ids; None: instances only
    instances_json: Path | None  # for box and mask AP; None: there is none
    load: Load = read_json  # makes the content of an instances JSON of `instances_json`
    masks: bool = True  # False: instances are boxes only

    @property
    def panoptic_json(self) -> Path | None:
        """The annotation file if it is a panoptic one, for PQ."""
        return self.annotations if self.panoptic_dir else None

    @property
    def truths(self) -> frozenset[str]:
        """What predictions can be compared with: "instances", "panoptic", "semantic"."""
        return frozenset({"instances", "panoptic", "semantic"} if self.panoptic_dir else {"instances"})

    def instances_truth(self) -> dict[str, Any] | None:
        """The content of an instances JSON for this split; None if there are only panoptic annotations."""
        return None if self.instances_json is None else self.load(self.instances_json)

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"CocoDataset({str(self.annotations)!r}, {len(self)} images)"

    def image_id(self, index: int) -> int | str:
        return self.records[index].image_id

    def file_name(self, index: int) -> str:
        return self.records[index].file_name

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels, as the JSON says; `image` makes sure that the file agrees."""
        return self.records[index].size

    def image(self, index: int) -> np.ndarray:
        """uint8 RGB [h, w, 3].

        Raises:
            FileNotFoundError, ValueError: the file is missing, damaged, or of another size than the JSON says.
        """
        path = self.images / self.file_name(index)
        image = load_image(path)
        _check_size(path, image.shape[:2], self.size(index), self.annotations)
        return image

    def panoptic_records(self, index: int) -> list[dict[str, Any]]:
        """The image's segments_info, crowds included."""
        return self.records[index].annotations

    def panoptic_map(self, index: int) -> Int[np.ndarray, "h w"]:
        """Segment id of each pixel, int32; 0 is unlabelled.

        Raises:
            FileNotFoundError, ValueError: the PNG is missing or damaged, or its ids are not those of the JSON.
        """
        path = self.panoptic_dir / self.records[index].panoptic_name
        id_map = load_ids(path)
        _check_size(path, id_map.shape, self.size(index), self.annotations)
        self._check_ids(path, id_map, self.panoptic_records(index))
        return id_map

    def __getitem__(self, index: int) -> Example:
        """The image as it is in its file, with all objects that are no crowds."""
        annotations = [entry for entry in self.records[index].annotations if not entry.get("iscrowd", 0)]
        labels = np.array([self.catalog.index(entry["category_id"]) for entry in annotations], np.int32)
        return Example(
            image=self.image(index),
            labels=labels,
            is_thing=self.catalog.is_thing[labels],
            objects=self._objects(index, annotations),
        )

    def _objects(self, index: int, annotations: list[dict[str, Any]]) -> Objects | Boxes:
        if self.panoptic_dir:
            return Segments(self.panoptic_map(index), tuple(entry["id"] for entry in annotations))
        if not self.masks:
            return Boxes.from_coco([entry["bbox"] for entry in annotations], self.size(index))
        return Instances(self.size(index), tuple(self._shape(index, entry) for entry in annotations))

    def _shape(self, index: int, annotation: dict[str, Any]) -> Outline | RunLengths:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            return Outline(tuple(np.array(polygon, np.float64).reshape(-1, 2) for polygon in segmentation))
        try:
            return RunLengths(parse_runs(segmentation))
        except ValueError as error:
            where = f"{self.annotations}: annotation {annotation['id']} of image {self.image_id(index)}"
            raise ValueError(f"{where}: {error}") from error

    def _check_ids(self, path: Path, id_map: Int[np.ndarray, "h w"], segments: list[dict[str, Any]]) -> None:
        """Every painted id is in the JSON, and every segment that is no crowd is painted."""
        painted = set(present_labels(id_map).tolist())
        unknown = sorted(painted - {segment["id"] for segment in segments} - {_UNLABELLED})
        if unknown:
            raise DataError(
                "PNG and JSON disagree",
                f"{path} has pixels of segments {unknown} that {self.annotations} does not list for this image. "
                "Add them to its segments_info, or paint these pixels black (unlabelled).",
            )
        needed = [segment["id"] for segment in segments if not segment.get("iscrowd", 0)]
        bare = [number for number in needed if number not in painted]
        if bare:
            raise DataError(
                "PNG and JSON disagree",
                f"{path} has no pixel of segments {bare} that {self.annotations} lists for this image. "
                "Remove them from its segments_info, or repair the PNG (ids are R + 256 G + 65536 B).",
            )


def _check_size(path: Path, found: tuple[int, ...], expected: tuple[int, int], annotations: Path) -> None:
    if tuple(found) != tuple(expected):
        raise DataError(
            "sizes disagree",
            f"{path} is {found[1]} x {found[0]} pixels, but {annotations} says {expected[1]} x {expected[0]}. "
            "Correct width and height there, or restore the file.",
        )

"""What a prediction of one image is: instances, a panoptic map, a semantic map, and how they are written to files."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, UInt8
from PIL import Image
from scipy import ndimage

from maskdino_jax.config import TASKS
from maskdino_jax.data.catalog import Catalog
from maskdino_jax.inference.cropped_masks import CroppedMasks
from maskdino_jax.inference.run_lengths import encode_bits

# of `Segments`, by task
_FIELDS = {"instance": "instances", "detection": "instances", "panoptic": "panoptic", "semantic": "semantic"}

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the original image, the ends exclusive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """One object, or all the pixels of one stuff class."""

    box: Box  # of an instance the predicted one, which may reach beyond the image; else the smallest around the mask
    score: float  # 0 to 1; a semantic map does not rate its classes: 1
    class_id: int  # as in the data set's annotations
    label: int  # contiguous class index
    name: str
    is_thing: bool
    area: int  # pixels of the mask, in a detection of the box
    make_mask: Callable[[], Bool[np.ndarray, "h w"]] = dataclasses.field(repr=False, compare=False)

    @property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        """The pixels of the segment, made anew at each access.

        Raises:
            ValueError: it is a detection, which has a box only.
        """
        return self.make_mask()

    @property
    def run_lengths(self) -> dict[str, Any]:
        """The mask in COCO's compressed run lengths, ready for JSON: {"size": [h, w], "counts": text}.

        Raises:
            ValueError: it is a detection.
        """
        return encode(self.mask[None])[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instances:
    """Countable objects, best first. One query may appear with several labels."""

    scores: Float32[np.ndarray, "n"]  # class probability times mask quality; of detections class probability
    labels: Int32[np.ndarray, "n"]  # contiguous class ids
    boxes: Float32[np.ndarray, "n 4"]  # xyxy in pixels of the original image; may reach beyond it
    queries: Int32[np.ndarray, "n"]
    # The masks, 8 pixels of a row in a byte, first pixel in the highest bit; those of an image that was predicted in
    # tiles are cropped to their objects; None: detections, which have boxes only.
    bits: UInt8[np.ndarray, "n h w8"] | CroppedMasks | None
    width: int  # pixels of a row; the bits beyond are zero

    @classmethod
    def from_masks(cls, masks: Bool[np.ndarray, "n h w"], **fields: Any) -> "Instances":
        """Instances with these masks and the other fields."""
        return cls(bits=np.packbits(masks, axis=-1), width=masks.shape[-1], **fields)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def masks(self) -> Bool[np.ndarray, "n h w"]:
        """All masks, made anew at each access: a byte for each pixel of each instance.

        Raises:
            ValueError: these are detections.
        """
        bits = self._masks()
        return bits.unpacked() if isinstance(bits, CroppedMasks) else self._unpacked(bits)

    def mask(self, index: int) -> Bool[np.ndarray, "h w"]:
        """The mask of one instance."""
        bits = self._masks()
        return bits.mask(index) if isinstance(bits, CroppedMasks) else self._unpacked(bits[index])

    def run_lengths(self) -> list[dict[str, Any]]:
        """All masks in COCO's compressed run lengths, ready for JSON."""
        bits = self._masks()
        return bits.run_lengths() if isinstance(bits, CroppedMasks) else encode_bits(bits, self.width)

    @property
    def areas(self) -> Int[np.ndarray, "n"]:
        """Pixels of each mask, or of each box if there are no masks."""
        if self.bits is None:
            return np.rint(np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1)).astype(np.int64)
        if isinstance(self.bits, CroppedMasks):
            return self.bits.areas
        return np.bitwise_count(self.bits).sum(axis=(1, 2), dtype=np.int64)

    def above(self, score: float) -> "Instances":
        """Those with at least this score."""
        keep = self.scores >= score
        rows = {name: value[keep] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        if isinstance(self.bits, CroppedMasks):
            rows["bits"] = self.bits.where(keep)
        return dataclasses.replace(self, **rows)

    def _masks(self) -> UInt8[np.ndarray, "n h w8"] | CroppedMasks:
        if self.bits is None:
            raise ValueError("detections have boxes but no masks: ask a model that learned masks for 'instance'.")
        return self.bits

    def _unpacked(self, bits: UInt8[np.ndarray, "*n h w8"]) -> Bool[np.ndarray, "*n h w"]:
        return np.unpackbits(bits, axis=-1, count=self.width).view(bool)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PanopticSegment:
    """One region of a panoptic map: an object, or all the pixels of a stuff class."""

    id: int  # value in the map, from 1
    label: int  # contiguous class id
    is_thing: bool
    score: float  # class probability; of merged stuff the best
    area: int  # pixels


@dataclasses.dataclass(frozen=True)
class Panoptic:
    """Every pixel belongs to one segment, or to none (0)."""

    ids: Int32[np.ndarray, "h w"]
    segments: tuple[PanopticSegment, ...]

    def save(self, path: Path) -> None:
        """Write the ids as a COCO panoptic PNG: red + 256 green + 65536 blue. Makes the folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        channels = np.stack([self.ids % 256, self.ids // 256 % 256, self.ids // 65536], axis=-1)
        Image.fromarray(channels.astype(np.uint8)).save(path)

    def info(self, catalog: Catalog) -> list[dict[str, Any]]:
        """The "segments_info" of a COCO panoptic annotation, with scores."""
        return [
            {
                "id": segment.id,
                "category_id": catalog.categories[segment.label].id,
                "isthing": int(segment.is_thing),
                "area": segment.area,
                "score": segment.score,
            }
            for segment in self.segments
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segments:
    """Results for one image; a task that was not asked for is None."""

    catalog: Catalog
    instances: Instances | None = None
    panoptic: Panoptic | None = None
    # Contiguous class of each pixel; -1, which annotations may have but no prediction has: none.
    semantic: Int32[np.ndarray, "h w"] | None = None

    @functools.cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Of the first result that is there: of instances, the panoptic map or the semantic map; see `of`."""
        return next((self.of(task) for task in TASKS if self._result(task) is not None), ())

    def of(self, task: str) -> tuple[Segment, ...]:
        """The instances or detections, the segments of the panoptic map, or one for each class of the semantic map.

        Raises:
            ValueError: the task was not asked for.
        """
        found = self._result(task)
        if found is None:
            raise ValueError(f"task = {task!r}: there is no such result; ask the predictor for it.")
        read = {"instances": self._of_instances, "panoptic": self._of_panoptic, "semantic": self._of_semantic}
        return read[_FIELDS[task]](found)

    def _result(self, task: str) -> Any:
        """What was found for a task; None if it was not asked for. Detections are instances without masks."""
        found = getattr(self, _FIELDS[task]) if task in _FIELDS else None
        if isinstance(found, Instances) and (found.bits is None) != (task == "detection"):
            return None
        return found

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """Entries of a COCO result file for the instances or detections, ready for JSON.

        Boxes are x, y, width, height in pixels; masks are run lengths, made without unpacking the masks of all
        instances. The panoptic map has `panoptic.info(catalog)` and `panoptic.save(path)` instead.

        Args:
            image_id: of the image in the annotations; None: the entries name no image.

        Raises:
            ValueError: there are no instances.
        """
        if self.instances is None:
            raise ValueError("there are no instances: ask the predictor for 'instance' or 'detection'.")
        image = {} if image_id is None else {"image_id": image_id}
        return [image | entry for entry in to_coco(self.instances, self.catalog)]

    def to_supervision(self, task: str | None = None) -> Any:
        """The segments as `supervision.Detections`: xyxy, mask, confidence, class_id, and data["class_name"].

        Class ids are those of the data set. All masks are unpacked, a byte for each pixel of each segment.

        Args:
            task: as in `of`; None: the first result that is there.

        Raises:
            ModuleNotFoundError: the extra `supervision` is not installed.
            ValueError: there is no such result.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "to_supervision needs the library supervision: pip install maskdino-jax[supervision]"
            ) from error
        parts = self.segments if task is None else self.of(task)
        if not parts:
            return supervision.Detections.empty()
        boxes_only = task == "detection" or (task is None and self._result("detection") is not None)
        return supervision.Detections(
            xyxy=np.array([part.box for part in parts], np.float32),
            mask=None if boxes_only else np.stack([part.mask for part in parts]),
            confidence=np.array([part.score for part in parts], np.float32),
            class_id=np.array([part.class_id for part in parts]),
            data={"class_name": np.array([part.name for part in parts])},
        )

    def to_dict(self, file_name: str, score_threshold: float) -> dict[str, Any]:
        """Plain JSON: instances or detections from `score_threshold` on, and the segments of the panoptic map."""
        content: dict[str, Any] = {"file_name": file_name}
        if self.instances is not None:
            content["instances"] = to_coco(self.instances.above(score_threshold), self.catalog)
        if self.panoptic is not None:
            content["segments_info"] = self.panoptic.info(self.catalog)
        return content

    def save_label_map(self, path: Path) -> None:
        """Write the semantic map as a PNG whose pixels hold the data set's own class ids. Makes the folder.

        It has 8 bits, or 16 if an id needs them.

        Raises:
            ValueError: there is no semantic map, or an id does not fit into 16 bits.
        """
        if self.semantic is None:
            raise ValueError("there is no semantic map: ask the predictor for 'semantic'.")
        ids = np.array([category.id for category in self.catalog.categories])
        if ids.min() < 0 or ids.max() > np.iinfo(np.uint16).max:
            raise ValueError(f"class ids {ids.min()} to {ids.max()} do not fit into a PNG: number them 0 to 65535.")
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = np.uint8 if ids.max() <= np.iinfo(np.uint8).max else np.uint16
        Image.fromarray(ids.astype(kind)[self.semantic]).save(path)

    def _of_instances(self, found: Instances) -> tuple[Segment, ...]:
        rows = zip(
            found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), found.areas.tolist(), strict=True
        )
        return tuple(
            self._segment(label, score, tuple(box), area, functools.partial(found.mask, index))
            for index, (label, score, box, area) in enumerate(rows)
        )

    def _of_panoptic(self, found: Panoptic) -> tuple[Segment, ...]:
        boxes = _boxes(found.ids)
        return tuple(
            self._segment(
                part.label, part.score, boxes[part.id], part.area, functools.partial(_equal, found.ids, part.id)
            )
            for part in found.segments
        )

    def _of_semantic(self, found: Int32[np.ndarray, "h w"]) -> tuple[Segment, ...]:
        boxes, areas = _boxes(found + 1), np.bincount(found.ravel() + 1)[1:]
        return tuple(
            self._segment(label, 1.0, boxes[label + 1], int(areas[label]), functools.partial(_equal, found, label))
            for label in np.flatnonzero(areas).tolist()
        )

    def _segment(
        self, label: int, score: float, box: Box, area: int, make_mask: Callable[[], Bool[np.ndarray, "h w"]]
    ) -> Segment:
        category = self.catalog.categories[label]
        return Segment(
            box=box,
            score=score,
            class_id=category.id,
            label=label,
            name=category.name,
            is_thing=category.is_thing,
            area=area,
            make_mask=make_mask,
        )


def _equal(ids: Int32[np.ndarray, "h w"], value: int) -> Bool[np.ndarray, "h w"]:
    return ids == value


def _boxes(ids: Int32[np.ndarray, "h w"]) -> dict[int, Box]:
    """The smallest box around each positive value."""
    places = enumerate(ndimage.find_objects(ids), 1)
    return {
        value: tuple(float(side) for side in (place[1].start, place[0].start, place[1].stop, place[0].stop))
        for value, place in places
        if place is not None
    }


def to_coco(instances: Instances, catalog: Catalog) -> list[dict[str, Any]]:
    """Entries of a COCO result file without the image: boxes as x, y, width, height; masks, if any, as run lengths."""
    corners = instances.boxes.astype(float)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
    entries = [
        {"category_id": catalog.categories[label].id, "score": score, "bbox": box}
        for label, score, box in zip(instances.labels.tolist(), instances.scores.tolist(), boxes, strict=True)
    ]
    if instances.bits is not None:
        for entry, segmentation in zip(entries, instances.run_lengths(), strict=True):
            entry["segmentation"] = segmentation
    return entries


def encode(masks: Bool[np.ndarray, "n h w"]) -> list[dict[str, Any]]:
    """COCO run lengths of masks, ready for JSON."""
    return encode_bits(np.packbits(masks, axis=-1), masks.shape[-1])

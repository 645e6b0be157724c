"""What a prediction of one image is: instances, a panoptic map, a semantic map, and how they are written to files."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32
from PIL import Image
from pycocotools import mask as coco_mask

from maskdino_jax.data.catalog import Catalog


@dataclasses.dataclass(frozen=True)
class Instances:
    """Countable objects, best first. One query may appear with several labels."""

    scores: Float32[np.ndarray, "n"]  # class probability times mask quality
    labels: Int32[np.ndarray, "n"]  # contiguous class ids
    boxes: Float32[np.ndarray, "n 4"]  # xyxy in pixels of the original image; may reach beyond it
    masks: Bool[np.ndarray, "n h w"]
    queries: Int32[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> "Instances":
        """Those with at least this score."""
        keep = self.scores >= score
        return Instances(**{name: value[keep] for name, value in vars(self).items()})


@dataclasses.dataclass(frozen=True)
class Segment:
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
    segments: tuple[Segment, ...]

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

    instances: Instances | None = None
    panoptic: Panoptic | None = None
    semantic: Int32[np.ndarray, "h w"] | None = None  # contiguous class of each pixel

    def to_dict(self, file_name: str, catalog: Catalog, score_threshold: float) -> dict[str, Any]:
        """Plain JSON: instances with at least `score_threshold`, and the segments of the panoptic map."""
        content: dict[str, Any] = {"file_name": file_name}
        if self.instances is not None:
            content["instances"] = to_coco(self.instances.above(score_threshold), catalog)
        if self.panoptic is not None:
            content["segments_info"] = self.panoptic.info(catalog)
        return content


def to_coco(instances: Instances, catalog: Catalog) -> list[dict[str, Any]]:
    """Entries of a COCO result file without the image: boxes as x, y, width, height; masks as run lengths."""
    corners = instances.boxes.astype(float)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    return [
        {"category_id": catalog.categories[label].id, "score": score, "bbox": box, "segmentation": run_lengths}
        for label, score, box, run_lengths in zip(
            instances.labels.tolist(), instances.scores.tolist(), boxes.tolist(), encode(instances.masks), strict=True
        )
    ]


def encode(masks: Bool[np.ndarray, "n h w"]) -> list[dict[str, Any]]:
    """COCO run lengths of masks, ready for JSON."""
    if not len(masks):
        return []
    columns_first = np.ascontiguousarray(masks.transpose(0, 2, 1)).view(np.uint8).T
    return [entry | {"counts": entry["counts"].decode("ascii")} for entry in coco_mask.encode(columns_first)]

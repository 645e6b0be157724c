"""Results in the formats of COCO: run lengths, panoptic PNG, and one JSON record for an image."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32
from PIL import Image
from pycocotools import mask as coco_mask

from maskdino_jax.data import Catalog, load_image
from maskdino_jax.inference.postprocess import Instances, Panoptic, Segments


def encode(masks: Bool[np.ndarray, "n h w"]) -> list[dict[str, Any]]:
    """COCO run lengths of masks, ready for JSON."""
    if not len(masks):
        return []
    columns_first = np.ascontiguousarray(masks.transpose(0, 2, 1)).view(np.uint8).T
    return [entry | {"counts": entry["counts"].decode("ascii")} for entry in coco_mask.encode(columns_first)]


def read_ids(path: Path) -> Int32[np.ndarray, "h w"]:
    """Segment ids of a COCO panoptic PNG: red + 256 green + 65536 blue."""
    channels = load_image(path).astype(np.int32)
    return channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]


def write_ids(path: Path, ids: Int32[np.ndarray, "h w"]) -> None:
    """The inverse of `read_ids`; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(channels).save(path)


def instance_records(instances: Instances, catalog: Catalog) -> list[dict[str, Any]]:
    """COCO results without the image id: category in the data set's own numbering, box as x, y, width, height."""
    boxes = np.concatenate([instances.boxes[:, :2], instances.boxes[:, 2:] - instances.boxes[:, :2]], axis=-1)
    return [
        {"category_id": catalog.categories[label].id, "score": score, "bbox": box, "segmentation": run_lengths}
        for score, label, box, run_lengths in zip(
            instances.scores.tolist(), instances.labels.tolist(), boxes.tolist(), encode(instances.masks), strict=True
        )
    ]


def panoptic_records(panoptic: Panoptic, catalog: Catalog) -> list[dict[str, Any]]:
    """COCO `segments_info` of a prediction, with its scores."""
    return [
        {
            "id": segment.id,
            "category_id": catalog.categories[segment.label].id,
            "isthing": int(segment.is_thing),
            "area": segment.area,
            "score": segment.score,
        }
        for segment in panoptic.segments
    ]


def to_json(file_name: str, segments: Segments, catalog: Catalog, score_threshold: float) -> dict[str, Any]:
    """One image's results; instances below the threshold are left out, and names stand beside the ids."""
    record: dict[str, Any] = {"file_name": file_name}
    if segments.instances is not None:
        record["instances"] = instance_records(segments.instances.above(score_threshold), catalog)
    if segments.panoptic is not None:
        record["panoptic_file"] = f"{Path(file_name).stem}_panoptic.png"
        record["segments_info"] = panoptic_records(segments.panoptic, catalog)
    names = {category.id: category.name for category in catalog.categories}
    for entry in record.get("instances", []) + record.get("segments_info", []):
        entry["category"] = names[entry["category_id"]]
    return record

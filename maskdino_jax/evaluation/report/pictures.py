"""Truth beside prediction, drawn alike, as pictures inside the page."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.dataset import Dataset
from maskdino_jax.data.runs import decode_runs, parse_runs
from maskdino_jax.evaluation.objects import Objects
from maskdino_jax.evaluation.regions import Regions, truth
from maskdino_jax.evaluation.report.analysis import expected_classes
from maskdino_jax.evaluation.report.predictions import Predictions
from maskdino_jax.inference.results import Instances, Panoptic, PanopticSegment, Segments
from maskdino_jax.inference.visualize import draw

_SHORT_SIDE, _LONG_SIDE = 400, 640  # pixels: small images are enlarged, large ones shrunk
_QUALITY = 80  # of JPEG


class Pictures:
    """Draws images of a data set by what the ranking measures: panoptic maps, detections or label maps."""

    def __init__(
        self, dataset: Dataset, predictions: Predictions, objects: Objects | None, measure: str, threshold: float
    ) -> None:
        """`objects`: the truth of detections; `threshold`: the score from which they are drawn."""
        self._dataset, self._predictions, self._objects = dataset, predictions, objects
        self._measure, self._threshold = measure, threshold

    def pair(self, record: int) -> tuple[str, str]:
        """The truth and the prediction of one image, as data URIs."""
        image = self._dataset.image(record)
        return tuple(_uri(_drawn(image, segments)) for segments in self._segments(record))

    def _segments(self, record: int) -> tuple[Segments, Segments]:
        dataset, catalog = self._dataset, self._dataset.catalog
        image_id = dataset.image_id(record)
        if self._measure == "PQ":
            maps = truth(dataset, record), self._predictions.panoptic(image_id)
            return tuple(Segments(catalog=catalog, panoptic=_panoptic(regions, catalog)) for regions in maps)
        if self._measure == "F1":
            found = [e for e in self._predictions.instances(image_id) if e["score"] >= self._threshold]
            true = [{**entry, "score": 1.0} for entry in self._objects[image_id] if not entry["iscrowd"]]
            return tuple(_instances(entries, catalog) for entries in (true, found))
        if self._predictions.has_label_maps:
            found = self._predictions.label_map(dataset.file_name(record))
        else:
            found = self._predictions.panoptic(image_id).classes(catalog.num_classes)
        return tuple(_classes(labels, catalog) for labels in (expected_classes(dataset, record), found))


def _panoptic(regions: Regions, catalog: Catalog) -> Panoptic:
    parts = zip(regions.segment_ids.tolist(), regions.labels.tolist(), strict=True)
    segments = [
        PanopticSegment(id=place, label=label, is_thing=catalog.categories[label].is_thing, score=1.0, area=0)
        for place, (_, label) in enumerate(parts, 1)
    ]
    return Panoptic(regions.positions(regions.ids).astype(np.int32), tuple(segments))


def _classes(labels: Int[np.ndarray, "h w"], catalog: Catalog) -> Segments:
    """Each class is one region; pixels without a class stay as they are."""
    ids = np.where(labels < catalog.num_classes, labels + 1, 0).astype(np.int32)
    present = np.unique(ids[ids > 0]).tolist()
    segments = tuple(PanopticSegment(id=n, label=n - 1, is_thing=False, score=1.0, area=0) for n in present)
    return Segments(catalog=catalog, panoptic=Panoptic(ids, segments))


def _instances(entries: Sequence[Mapping[str, Any]], catalog: Catalog) -> Segments:
    """Entries in COCO's form, the best first."""
    entries = sorted(entries, key=lambda entry: -entry["score"])
    boxes = np.array([entry["bbox"] for entry in entries], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    fields = {
        "scores": np.array([entry["score"] for entry in entries], np.float32),
        "labels": np.array([catalog.index(entry["category_id"]) for entry in entries], np.int32),
        "boxes": boxes,
        "queries": np.arange(len(entries), dtype=np.int32),
    }
    runs = [entry["segmentation"] for entry in entries if "segmentation" in entry]
    if len(runs) < len(entries) or not runs:
        return Segments(catalog=catalog, instances=Instances(bits=None, width=0, **fields))
    masks = np.stack([decode_runs(parse_runs(run), *run["size"]) for run in runs])
    return Segments(catalog=catalog, instances=Instances.from_masks(masks, **fields))


def _drawn(image: UInt8[np.ndarray, "h w 3"], segments: Segments) -> Image.Image:
    picture = Image.fromarray(draw(image, segments, score_threshold=0, short_side=_SHORT_SIDE))
    picture.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.LANCZOS)
    return picture


def _uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

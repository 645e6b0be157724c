"""Panoptic quality: how well the segments of a panoptic map match those of the ground truth (Kirillov et al. 2019)."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.dataset import Dataset
from maskdino_jax.evaluation.regions import Regions, read_ids, truth
from maskdino_jax.inference.results import Panoptic


@dataclasses.dataclass(frozen=True)
class Counts:
    """What is summed over images, for each class."""

    iou: Float[np.ndarray, "k"]  # total overlap of the matched pairs
    matched: Int[np.ndarray, "k"]  # true positives
    wrong: Int[np.ndarray, "k"]  # false positives
    missed: Int[np.ndarray, "k"]  # false negatives

    @classmethod
    def zeros(cls, classes: int) -> "Counts":
        return cls(np.zeros(classes), *(np.zeros(classes, np.int64) for _ in range(3)))

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in dataclasses.fields(self)))


def count(expected: Regions, found: Regions, classes: int) -> Counts:
    """Match the segments of one image.

    Two segments of one class match if they overlap by more than one half, which no segment can do with two others.
    Unlabelled pixels of the ground truth do not count in the union. Crowds are neither matched nor missed, and a
    prediction that lies by more than half on unlabelled pixels and the crowd of its class is not wrong.
    """
    shape = len(expected.labels) + 1, len(found.labels) + 1
    pairs = expected.positions() * shape[1] + found.positions()
    table = np.bincount(pairs.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
    overlap, unlabelled = table[1:, 1:], table[0, 1:]
    expected_area, found_area = table[1:].sum(axis=1), table[:, 1:].sum(axis=0)
    union = expected_area[:, None] + found_area - overlap - unlabelled
    iou = overlap / np.maximum(union, 1)
    same = (expected.labels[:, None] == found.labels) & ~expected.crowd[:, None]
    rows, columns = np.nonzero(same & (iou > 0.5))

    missed = ~expected.crowd
    missed[rows] = False
    ignored = unlabelled.copy()
    crowd_of = {expected.labels[row]: row for row in np.flatnonzero(expected.crowd)}  # the last, as the reference does
    for column, label in enumerate(found.labels):
        if label in crowd_of:
            ignored[column] += overlap[crowd_of[label], column]
    wrong = 2 * ignored <= found_area
    wrong[columns] = False

    per_class = lambda labels, weights=None: np.bincount(labels, weights, minlength=classes)
    return Counts(
        iou=per_class(expected.labels[rows], iou[rows, columns]),
        matched=per_class(expected.labels[rows]),
        wrong=per_class(found.labels[wrong]),
        missed=per_class(expected.labels[missed]),
    )


def summarize(counts: Counts, catalog: Catalog) -> dict[str, float]:
    """PQ, SQ and RQ as fractions of one: over all classes, things (`_th`), stuff (`_st`), and of each class.

    Averages run over the classes that occur in the ground truth or the predictions; what has no such class is left out.
    """
    size = counts.matched + (counts.wrong + counts.missed) / 2
    occurs = size > 0
    quality = {
        "PQ": counts.iou / np.where(occurs, size, 1),
        "SQ": counts.iou / np.maximum(counts.matched, 1),
        "RQ": counts.matched / np.where(occurs, size, 1),
    }
    groups: dict[str, Bool[np.ndarray, "k"]] = {"": occurs, "_th": occurs & catalog.is_thing}
    groups["_st"] = occurs & ~catalog.is_thing
    metrics = {
        f"panoptic_seg/{name}{suffix}": float(values[group].mean())
        for suffix, group in groups.items()
        if group.any()
        for name, values in quality.items()
    }
    for position in np.flatnonzero(occurs):
        for name, values in quality.items():
            metrics[f"panoptic_seg/{name}-{catalog.names[position]}"] = float(values[position])
    return metrics


class PanopticQuality:
    """Accumulates over a data set, and writes predictions in the COCO panoptic format if given a folder.

    `add` may be called from several threads.
    """

    def __init__(self, dataset: Dataset, output_dir: Path | None = None):
        if "panoptic" not in dataset.truths:
            raise ValueError(
                f"{dataset!r} has no panoptic ground truth: take 'panoptic' out of config.inference.tasks."
            )
        self._dataset = dataset
        self._output_dir = output_dir
        self._counts: dict[int, Counts] = {}  # of each record
        self._annotations: dict[int, dict[str, Any]] = {}

    def add(self, record: int, result: Panoptic) -> None:
        """Score the result of one image."""
        found = Regions(
            ids=result.ids,
            segment_ids=np.array([segment.id for segment in result.segments], np.int64),
            labels=np.array([segment.label for segment in result.segments], np.int64),
            crowd=np.zeros(len(result.segments), bool),
        )
        self._counts[record] = count(truth(self._dataset, record), found, self._dataset.catalog.num_classes)
        if self._output_dir is not None:
            self._write(record, result)

    def compute(self) -> dict[str, float]:
        """All metrics, see `summarize`; writes `panoptic_predictions.json`."""
        if self._output_dir is not None:
            categories = [
                {"id": entry.id, "name": entry.name, "isthing": int(entry.is_thing), "color": entry.color}
                for entry in self._dataset.catalog.categories
            ]
            content = {
                "annotations": [entry for _, entry in sorted(self._annotations.items())],
                "categories": categories,
            }
            (self._output_dir / "panoptic_predictions.json").write_text(json.dumps(content))
        catalog = self._dataset.catalog
        return summarize(sum(self._counts.values(), Counts.zeros(catalog.num_classes)), catalog)

    def _write(self, record: int, result: Panoptic) -> None:
        name = Path(self._dataset.file_name(record)).with_suffix(".png")
        result.save(self._output_dir / "panoptic_predictions" / name)
        self._annotations[record] = {
            "image_id": self._dataset.image_id(record),
            "file_name": name.as_posix(),
            "segments_info": result.info(self._dataset.catalog),
        }


def panoptic_quality(
    truth_json: Path, truth_dir: Path, predictions_json: Path, predictions_dir: Path
) -> dict[str, float]:
    """Score saved predictions against saved ground truth, both in the COCO panoptic format.

    Raises:
        ValueError: an image has no prediction, or a PNG and its JSON name different segments.
    """
    expected = json.loads(truth_json.read_text())
    catalog = Catalog.from_coco(expected["categories"])
    predictions = {entry["image_id"]: entry for entry in json.loads(predictions_json.read_text())["annotations"]}
    counts = Counts.zeros(catalog.num_classes)
    for entry in expected["annotations"]:
        if entry["image_id"] not in predictions:
            raise ValueError(f"{predictions_json} has no entry for image {entry['image_id']!r}: predict every image.")
        regions = _load(truth_dir, entry, catalog)
        found = _load(predictions_dir, predictions[entry["image_id"]], catalog)
        painted, named = set(np.unique(found.ids).tolist()) - {0}, set(found.segment_ids.tolist())
        if painted != named:
            raise ValueError(
                f"{predictions_dir / predictions[entry['image_id']]['file_name']} and {predictions_json} disagree on "
                f"segments {sorted(painted ^ named)[:5]}: list exactly the ids that are painted."
            )
        counts += count(regions, found, catalog.num_classes)
    return summarize(counts, catalog)


def _load(folder: Path, entry: Mapping[str, Any], catalog: Catalog) -> Regions:
    return Regions.from_coco(read_ids(folder / entry["file_name"]), entry["segments_info"], catalog)

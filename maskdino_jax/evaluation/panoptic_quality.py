"""Panoptic quality: how well the segments of a panoptic map match those of the ground truth (Kirillov et al. 2019)."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.dataset import Dataset
from maskdino_jax.evaluation.gathering import gathered
from maskdino_jax.evaluation.panoptic_file import PanopticFile
from maskdino_jax.evaluation.regions import Regions, overlaps, truth
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
    table = overlaps(expected, found)
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

    `add` may be called from several threads. What stays of an image are some bytes for each of its classes.
    """

    def __init__(self, dataset: Dataset, output_dir: Path | None = None):
        if "panoptic" not in dataset.truths:
            raise ValueError(
                f"{dataset!r} has no panoptic ground truth: take 'panoptic' out of config.inference.tasks."
            )
        self._dataset = dataset
        path = None if output_dir is None else output_dir / "panoptic_predictions.json"
        self._file = None if path is None else PanopticFile(path, dataset, dataset.catalog)
        self._counts: dict[int, Float[np.ndarray, "5 n"]] = {}  # of each record: the classes that occur, and Counts

    def add(self, record: int, result: Panoptic) -> None:
        """Score the result of one image."""
        counts = count(truth(self._dataset, record), regions_of(result), self._dataset.catalog.num_classes)
        table = np.stack([np.arange(len(counts.iou)), *vars(counts).values()])
        self._counts[record] = table[:, table[1:].any(axis=0)]
        if self._file is not None:
            self._file.add(record, result)

    def compute(self) -> dict[str, float]:
        """All metrics, see `summarize`; writes `panoptic_predictions.json`."""
        if self._file is not None:
            self._file.close()
        counts = {record: table for part in gathered(self._counts) for record, table in part.items()}
        catalog = self._dataset.catalog
        total = np.zeros((4, catalog.num_classes))
        for _, table in sorted(counts.items()):  # in this order, so that threads and processes do not change the sum
            total[:, table[0].astype(int)] += table[1:]
        return summarize(Counts(total[0], *total[1:].astype(np.int64)), catalog)


def regions_of(result: Panoptic) -> Regions:
    """The segments of a prediction."""
    return Regions(
        ids=result.ids,
        segment_ids=np.array([segment.id for segment in result.segments], np.int64),
        labels=np.array([segment.label for segment in result.segments], np.int64),
        crowd=np.zeros(len(result.segments), bool),
    )

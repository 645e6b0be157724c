"""Semantic segmentation: intersection over union of each class over all pixels of a data set."""

import threading

import numpy as np
from jaxtyping import Float, Int

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.dataset import Dataset
from maskdino_jax.evaluation import cityscapes
from maskdino_jax.evaluation.gathering import gathered
from maskdino_jax.evaluation.regions import Regions, overlaps, truth


def confusion(
    expected: Int[np.ndarray, "h w"], found: Int[np.ndarray, "h w"], classes: int
) -> Int[np.ndarray, "k k_or_none"]:
    """Pixels of each true class (row) by predicted class (column); value `classes` means none, and has the last column.

    Pixels without a true class do not count.
    """
    table = np.bincount((expected * (classes + 1) + found).ravel(), minlength=(classes + 1) ** 2)
    return table.reshape(classes + 1, classes + 1)[:classes]


def confusion_of_regions(expected: Regions, found: Regions, classes: int) -> Int[np.ndarray, "k k_or_none"]:
    """The same of two maps of segments, crowds included; pixels without a predicted segment are in the last column."""
    rows, columns = (np.concatenate([[classes], side.labels]) for side in (expected, found))
    table = np.zeros((classes + 1, classes + 1), np.int64)
    np.add.at(table, (rows[:, None], columns), overlaps(expected, found))
    return table[:classes]


def summarize(
    table: Int[np.ndarray, "k k_or_none"], catalog: Catalog, weighted: Float[np.ndarray, "3 k"] | None = None
) -> dict[str, float]:
    """mIoU, frequency weighted IoU, mean and overall pixel accuracy; IoU and accuracy of each class. Fractions of one.

    Only classes of the ground truth count; those without a pixel there are left out, and so is everything if nothing
    is labelled. The classes of Cityscapes have `IoU` and `IoU_sup` besides, and with `weighted` pixels of their objects
    `iIoU` and `iIoU_sup`, see `cityscapes`.
    """
    correct, expected, found = np.diag(table), table.sum(axis=1), table.sum(axis=0)[:-1]
    occurs = expected > 0
    if not occurs.any():
        return {}
    union = np.maximum(expected + found - correct, 1)
    iou = correct / union
    metrics = {
        "mIoU": iou[occurs].mean(),
        "fwIoU": (iou * expected).sum() / expected.sum(),
        "mACC": (correct[occurs] / expected[occurs]).mean(),
        "pACC": correct.sum() / expected.sum(),
    }
    present = [(position, catalog.names[position]) for position in np.flatnonzero(occurs)]
    metrics |= {f"IoU-{name}": iou[position] for position, name in present}
    metrics |= {f"ACC-{name}": correct[position] / expected[position] for position, name in present}
    metrics |= cityscapes.summarize(table, catalog.names, weighted)
    return {f"sem_seg/{name}": float(value) for name, value in metrics.items()}


class MeanIoU:
    """Accumulates over a data set. The ground truth is its label images, or the panoptic map painted with classes,
    crowds included.

    `add` may be called from several threads.
    """

    def __init__(self, dataset: Dataset):
        if "semantic" not in dataset.truths:
            raise ValueError(
                f"{dataset!r} has no ground truth of stuff: take 'semantic' out of config.inference.tasks."
            )
        self._dataset = dataset
        self._classes = dataset.catalog.num_classes
        self._lock = threading.Lock()
        self._table = np.zeros((self._classes, self._classes + 1), np.int64)
        self._weighted = np.zeros((3, self._classes)) if "objects" in dataset.truths else None

    def add(self, record: int, result: Int[np.ndarray, "h w"]) -> None:
        """Count the pixels of one image's map of contiguous classes."""
        if "panoptic" in self._dataset.truths:
            expected = truth(self._dataset, record).classes(self._classes)
        else:
            expected = self._dataset.semantic_map(record)
        table, weighted = confusion(expected, result, self._classes), 0.0
        if self._weighted is not None:
            weighted = cityscapes.weighted_pixels(self._dataset.object_numbers(record), result, self._dataset.catalog)
        with self._lock:
            self._table += table
            if self._weighted is not None:
                self._weighted += weighted

    def compute(self) -> dict[str, float]:
        """All metrics, see `summarize`."""
        weighted = None if self._weighted is None else sum(gathered(self._weighted))
        return summarize(sum(gathered(self._table)), self._dataset.catalog, weighted)

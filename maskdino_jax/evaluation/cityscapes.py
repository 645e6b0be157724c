"""The scores of the Cityscapes benchmark for maps of classes (Cordts et al. 2016, section 3.2.1)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from maskdino_jax.data.catalog import Catalog

_GROUPS = {  # the benchmark's categories and its 19 classes, in their order
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence"),
    "object": ("pole", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}
_CLASSES = tuple(name for names in _GROUPS.values() for name in names)
_GROUP = np.repeat(np.arange(len(_GROUPS)), [len(members) for members in _GROUPS.values()])  # of each class
_SIZES = {  # mean pixels of an object, as the official script has them
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
_FIRST_OBJECT = 1001  # in `instanceIds`; smaller numbers are labels of pixels without one


def weighted_pixels(
    numbers: Int[np.ndarray, "h w"], found: Int[np.ndarray, "h w"], catalog: Catalog
) -> Float[np.ndarray, "3 k"]:
    """Pixels of the objects of each class: all, those found as the class, those found as any class of its group.

    Those of an object count together as many as the mean object of its class has, however large it is.

    Args:
        numbers: of gtFine's `instanceIds`: 1000 times the label, and a running number.
        found: predicted contiguous classes.
    """
    position = {category.id: place for place, category in enumerate(catalog.categories)}
    sums = np.zeros((3, len(_CLASSES)))
    present, which = np.unique(numbers, return_inverse=True)
    group_of = np.append(_GROUP, -1)  # the class after the last one is none
    for place in np.flatnonzero(present >= _FIRST_OBJECT).tolist():
        label = position.get(int(present[place]) // 1000)
        if label is None:  # evaluation ignores caravans and trailers
            continue
        inside = found[which.reshape(numbers.shape) == place]
        shares = 1, (inside == label).mean(), (group_of[inside] == _GROUP[label]).mean()
        sums[:, label] += np.array(shares) * _SIZES[_CLASSES[label]]
    return sums


def summarize(
    table: Int[np.ndarray, "k k_or_none"], names: Sequence[str], weighted: Float[np.ndarray, "3 k"] | None = None
) -> dict[str, float]:
    """`IoU`, the mean over the classes, and `IoU_sup`, the mean over their groups; {} for other classes.

    A class or a group counts if it occurs in the ground truth or is predicted on labelled pixels. So `IoU` is mIoU
    wherever all classes occur. `iIoU` and `iIoU_sup` are of things, whose own pixels count by the objects.

    Args:
        table: pixels of each true class (row) by predicted class (column), see `mean_iou.confusion`.
        names: of the classes.
        weighted: sums of `weighted_pixels`; None: the objects are not known, and there is no `iIoU`.
    """
    if tuple(names) != _CLASSES:
        return {}
    coarse = np.zeros((len(_GROUPS), len(_GROUPS) + 1), np.int64)
    np.add.at(coarse, (_GROUP[:, None], np.append(_GROUP, len(_GROUPS))), table)
    metrics = {"IoU": _mean_iou(table), "IoU_sup": _mean_iou(coarse)}
    if weighted is None:
        return metrics
    things = np.isin(_CLASSES, list(_SIZES))
    of_groups = np.zeros((3, len(_GROUPS)))
    np.add.at(of_groups.T, _GROUP, weighted.T)
    with_things = np.isin(np.arange(len(_GROUPS)), _GROUP[things])
    scores = {
        "iIoU": _weighted_mean_iou(table, weighted[0], weighted[1], things),
        "iIoU_sup": _weighted_mean_iou(coarse, of_groups[0], of_groups[2], with_things),
    }
    return metrics | {name: score for name, score in scores.items() if score is not None}


def _mean_iou(table: Int[np.ndarray, "k k_or_none"]) -> float:
    correct = np.diag(table)
    union = table.sum(axis=1) + table.sum(axis=0)[:-1] - correct
    return float((correct[union > 0] / union[union > 0]).mean())


def _weighted_mean_iou(
    table: Int[np.ndarray, "k k_or_none"],
    expected: Float[np.ndarray, "k"],
    correct: Float[np.ndarray, "k"],
    things: Bool[np.ndarray, "k"],
) -> float | None:
    """The mean of things; pixels of others that are taken for one count as they are. None: there is nothing."""
    union = expected + table.sum(axis=0)[:-1] - np.diag(table)
    counts = things & (union > 0)
    return float((correct[counts] / union[counts]).mean()) if counts.any() else None

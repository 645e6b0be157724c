"""The scores of the Cityscapes benchmark (Cordts et al. 2016) that follow from the pixels of classes.

Its `iIoU` and `iIoU_sup` weigh pixels by the size of their object and so need the ids of instances; they are not given.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

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


def summarize(table: Int[np.ndarray, "k k_or_none"], names: Sequence[str]) -> dict[str, float]:
    """`IoU`, the mean over the classes, and `IoU_sup`, the mean over their groups; {} for other classes.

    A class or a group counts if it occurs in the ground truth or is predicted on labelled pixels. So `IoU` is mIoU
    wherever all classes occur.

    Args:
        table: pixels of each true class (row) by predicted class (column), see `mean_iou.confusion`.
        names: of the classes.
    """
    if tuple(names) != _CLASSES:
        return {}
    group = np.repeat(np.arange(len(_GROUPS)), [len(members) for members in _GROUPS.values()])
    coarse = np.zeros((len(_GROUPS), len(_GROUPS) + 1), np.int64)
    np.add.at(coarse, (group[:, None], np.append(group, len(_GROUPS))), table)
    return {"IoU": _mean_iou(table), "IoU_sup": _mean_iou(coarse)}


def _mean_iou(table: Int[np.ndarray, "k k_or_none"]) -> float:
    correct = np.diag(table)
    union = table.sum(axis=1) + table.sum(axis=0)[:-1] - correct
    return float((correct[union > 0] / union[union > 0]).mean())

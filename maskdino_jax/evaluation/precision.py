"""Precision and recall of a data set from its matches, with COCO's arithmetic."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from maskdino_jax.evaluation.matching import AREAS, MOST, THRESHOLDS, Candidates, Matches

RECALLS = np.linspace(0, 1, 101)  # where precision is read
LIMITS = (1, 10, MOST)  # detections of a class in an image, for the recall
SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """-1 where the truth has no object."""

    precision: Float[np.ndarray, "t r k a"]
    scores: Float[np.ndarray, "t r k a"]  # of the detection at which the recall is reached
    recall: Float[np.ndarray, "t k a m"]


def curves(found: Candidates, matches: Matches, categories: Sequence[int]) -> Curves:
    """The curves of each category. Detections of equal score count in the order of their images."""
    shape = len(THRESHOLDS), len(RECALLS), len(categories), len(AREAS)
    precision, scores = np.full(shape, -1.0), np.full(shape, -1.0)
    recall = np.full((len(THRESHOLDS), len(categories), len(AREAS), len(LIMITS)), -1.0)
    order = np.lexsort((-found.scores, found.labels))
    starts = np.searchsorted(found.labels[order], categories)
    ends = np.searchsorted(found.labels[order], categories, side="right")
    for k, category in enumerate(categories):
        mine = order[starts[k] : ends[k]]
        wanted = (~matches.object_ignored[:, found.object_labels == category]).sum(axis=1)
        hit, counts = matches.taken[..., mine] >= 0, ~matches.ignored[..., mine]
        for a in np.flatnonzero(wanted):
            true, false = hit[a] & counts[a], ~hit[a] & counts[a]
            for m, limit in enumerate(LIMITS):
                recall[:, k, a, m] = true[:, found.ranks[mine] < limit].sum(axis=1) / wanted[a]
            precision[:, :, k, a], scores[:, :, k, a] = _curve(true, false, found.scores[mine], wanted[a])
    return Curves(precision=precision, scores=scores, recall=recall)


def _curve(
    true: Bool[np.ndarray, "t d"], false: Bool[np.ndarray, "t d"], scores: Float[np.ndarray, "d"], wanted: Int
) -> tuple[Float[np.ndarray, "t r"], Float[np.ndarray, "t r"]]:
    """Precision at the recalls, made to fall, and the scores there; 0 beyond the last."""
    right, wrong = (np.cumsum(x, axis=1).astype(float) for x in (true, false))
    precision = right / (wrong + right + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    values, points = (np.zeros((len(true), len(RECALLS))) for _ in range(2))
    for t in range(len(true)):
        place = np.searchsorted(right[t] / wanted, RECALLS)
        place = place[place < len(scores)]
        values[t, : len(place)], points[t, : len(place)] = precision[t, place], scores[place]
    return values, points


def summarize(found: Curves, names: Sequence[str]) -> dict[str, float]:
    """COCO's twelve numbers and the AP of each class as fractions of one; what the truth has no object for is left out.

    Args:
        names: of the categories of `found`.
    """
    position = {area[0]: place for place, area in enumerate(AREAS)}  # s, m, l
    metrics = {"AP": _mean(found.precision[..., 0])}
    for percent in (50, 75):
        metrics[f"AP{percent}"] = _mean(found.precision[np.isclose(THRESHOLDS, percent / 100), ..., 0])
    for size in "sml":
        metrics[f"AP{size}"] = _mean(found.precision[..., position[size]])
    for place, limit in enumerate(LIMITS):
        metrics[f"AR{limit}"] = _mean(found.recall[..., 0, place])
    for size in "sml":
        metrics[f"AR{size}"] = _mean(found.recall[..., position[size], -1])
    for place, name in enumerate(names):
        metrics[f"AP-{name}"] = _mean(found.precision[:, :, place, 0])
    return {name: value for name, value in metrics.items() if value is not None}


def _mean(values: Float[np.ndarray, "..."]) -> float | None:
    known = values[values > -1]
    return float(np.mean(known)) if len(known) else None

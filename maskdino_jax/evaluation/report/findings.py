"""What a reader should know first: the few things about predictions that matter most, in words."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from maskdino_jax.evaluation.report.analysis import Analysis
from maskdino_jax.evaluation.report.charts import DASH
from maskdino_jax.evaluation.report.confusions import ranked_pairs
from maskdino_jax.evaluation.report.detections import Detections, best, calibration, confusion, sizes
from maskdino_jax.evaluation.report.errors import Cost, dearest

EXPLAINED = {
    "localisation": "overlaps an object of its class by 0.1 to 0.5: found, but the outline does not fit",
    "classification": "overlaps an object by 0.5 or more, but names another class",
    "duplicate": "a better detection has the same object already",
    "background": "overlaps no object by 0.1: there is nothing, or something nobody has annotated",
    "both": "overlaps an object of another class by 0.1 to 0.5: wrong place and wrong class",
    "missed": "an object about which there is no detection, nor one of the first two errors",
}
REMEDIES = {
    "localisation": "Look whether annotations follow the objects tightly and in the same way everywhere; larger images "
    "(data.eval_short_side, data.image_size) help where objects are small.",
    "classification": "Look at the confusion of classes: labels that annotators mix up as well, or classes with few "
    "examples.",
    "duplicate": "A higher score threshold hides most of these; they become fewer with longer training.",
    "background": "Look at the worst images for objects that nobody has annotated; if there are none, images without "
    "such objects belong into training.",
    "both": "Often small or hidden objects of rare classes: more examples of them.",
    "missed": "Look at recall by size: small objects need larger images (data.eval_short_side); crowded images need "
    "more queries (model.decoder.num_queries) and detections (inference.detections_per_image).",
}
KIND_NAMES = {"bbox": "boxes", "segm": "masks"}

_SHARE_OF_OBJECTS = 0.05  # a range of sizes with fewer is no finding
_SHARE_OF_CLASS, _LEAST = 0.05, 3  # taken for another class; fewer are no finding
_FEWER = 0.1  # by which recall must be lower to be one
_GAIN = 0.005  # of F1, from which another threshold is worth the change
_APART = 0.1  # of score and precision


@dataclasses.dataclass(frozen=True)
class Finding:
    """One sentence in bold, and what follows from it."""

    claim: str
    remedy: str
    code: str = ""  # to type


def findings(analysis: Analysis, costs: dict[str, Cost]) -> list[Finding]:
    """The most important first. `costs`: of the errors of the main detections; empty if there are none."""
    found = analysis.main
    result = []
    if found is not None and costs:
        result += [_error(analysis, costs), *_threshold(analysis, found), *_size(found, analysis.threshold)]
        result += [*_confused(confusion(found, analysis.threshold), found.names, "objects"), *_scores(found)]
    elif analysis.pixels is not None:
        table = np.concatenate([analysis.pixels, np.zeros((1, analysis.pixels.shape[1]), np.int64)])
        result += _confused(table, analysis.catalog.names, "pixels")
    return result + _classes(analysis)


def _error(analysis: Analysis, costs: dict[str, Cost]) -> Finding:
    kind = dearest(costs)
    cost = costs[kind]
    what = KIND_NAMES["segm" if "segm" in analysis.detections else "bbox"]
    names = {"missed": "Missed objects", "both": "Errors of place and class", "background": "Detections of nothing"}
    name = names.get(kind, f"Errors of {kind}" if kind != "duplicate" else "Duplicates")
    claim = f"{name} cost most: {100 * cost.ap:.1f} points of AP50 of the {what} ({cost.count} of them)."
    return Finding(claim, REMEDIES[kind])


def _threshold(analysis: Analysis, found: Detections) -> list[Finding]:
    rows = found.operating()
    top, now = best(rows), found.at(analysis.threshold)
    if top.f1 - now.f1 < _GAIN:
        return []
    claim = f"A score threshold of {top.threshold:.2f} is better than {now.threshold:.2f}."
    return [
        Finding(
            claim,
            f"F1 rises from {100 * now.f1:.1f} to {100 * top.f1:.1f}: precision {100 * now.precision:.0f} to "
            f"{100 * top.precision:.0f} %, recall {100 * now.recall:.0f} to {100 * top.recall:.0f} %.",
            f"--config.inference.score_threshold={top.threshold:.2f}",
        )
    ]


def _size(found: Detections, threshold: float) -> list[Finding]:
    bins = sizes(found, threshold)
    total, hits = sum(row[2] for row in bins), sum(row[3] for row in bins)
    common = [row for row in bins if row[2] >= _SHARE_OF_OBJECTS * total and row[2]]
    if len(common) < 2:
        return []
    low, high, count, hit = min(common, key=lambda row: row[3] / row[2])
    if hit / count > hits / total - _FEWER:
        return []
    claim = f"Objects {size_name(low, high)} pixels in size: {hit / count:.0%} are found; of all {hits / total:.0%}."
    return [Finding(claim, "The size is the square root of the area. Worst images show which ones they are.")]


def size_name(low: float, high: float) -> str:
    """Such as "under 8", "8 to 16" (with a dash) or "over 512"."""
    if low == 0:
        return f"under {high:g}"
    return f"over {low:g}" if high == np.inf else f"{low:g}{DASH}{high:g}"


def _confused(counts: Int[np.ndarray, "k1 k1"], names: Sequence[str], what: str) -> list[Finding]:
    """Of a table as `detections.confusion` makes it. `what` is counted."""
    pairs = ranked_pairs(counts, names)
    if not pairs or pairs[0][2] < max(_SHARE_OF_CLASS * pairs[0][3], _LEAST):
        return []
    true, named, count, total = pairs[0]
    claim = (
        f"\u201c{true}\u201d is most often taken for \u201c{named}\u201d: {count / total:.0%} of its {total} {what}."
    )
    return [Finding(claim, "Look whether the annotations tell the two apart in the same way everywhere.")]


def _scores(found: Detections) -> list[Finding]:
    bins = calibration(found)
    known = bins[bins[:, 2] > 0]
    if not len(known):
        return []
    gap = float(np.average(known[:, 1] - known[:, 0], weights=known[:, 2]))
    score, precision = (float(np.average(known[:, column], weights=known[:, 2])) for column in (0, 1))
    if abs(gap) < _APART:
        return []
    claim = f"Scores are too {'low' if gap > 0 else 'high'}: {score:.2f} on average, while {precision:.0%} are right."
    return [Finding(claim, "Read a score as a rank, not as a probability, or see the chart for what it is worth.")]


def _classes(analysis: Analysis) -> list[Finding]:
    """The classes with the lowest value of the first metric that has classes."""
    measures = {"segm/AP-": "mask AP", "bbox/AP-": "box AP", "panoptic_seg/PQ-": "PQ", "sem_seg/IoU-": "IoU"}
    for prefix, name in measures.items():
        values = [(value, key[len(prefix) :]) for key, value in analysis.metrics.items() if key.startswith(prefix)]
        if len(values) > 2:
            worst = ", ".join(f"{label} {100 * value:.1f}" for value, label in sorted(values)[:5])
            return [Finding(f"Weakest classes by {name}: {worst}.", "The table of classes has them all.")]
    return []

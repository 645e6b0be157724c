"""Why average precision is lost: the errors of TIDE (Bolya et al., ECCV 2020), and what each costs.

A detection that COCO's rules give no object at an overlap of 0.5 is one error, the first of these that it is:

- **localisation**: its best overlap with an object of its class is from 0.1 up to, not including, 0.5;
- **classification**: it overlaps an object of another class by 0.5 or more;
- **duplicate**: it overlaps an object of its class by 0.5 or more, which a better detection has taken;
- **background**: it overlaps no object by 0.1;
- **both**: it overlaps objects of other classes only, by 0.1 to 0.5: wrong place and wrong class.

An object that no detection has taken is **missed**, unless an error of localisation or classification is about it.

The cost of a kind is how much the mean AP at 0.5 rises if all its errors are fixed: the best-scored localisation error
about each untaken object, or classification error, becomes a right detection of that object; all other wrong detections
of the kind are taken away; missed objects are no longer asked for, and a class of which nothing is asked any more
counts as perfect. Costs do not add up: one error may hide another.

Crowds are no objects here, and detections that COCO's rules excuse because of one are no errors.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from maskdino_jax.evaluation.precision import RECALLS
from maskdino_jax.evaluation.report.detections import NEAR, RIGHT, Detections

KINDS = ("localisation", "classification", "duplicate", "background", "both", "missed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Errors:
    """The kind of each error, as a position in `KINDS`; -1: no error."""

    of_detections: Int[np.ndarray, "d"]
    about: Int[np.ndarray, "d"]  # the object of a localisation or classification error, or -1
    missed: Bool[np.ndarray, "g"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Of all errors of one kind."""

    count: int
    ap: float  # mean AP at 0.5 that is lost, a fraction of one


def classify(found: Detections) -> Errors:
    """The errors of all images."""
    same = found.labels[found.near_detection] == found.object_labels[found.near_object]
    own, own_object = _largest(found, same)
    other, other_object = _largest(found, ~same)
    wrong = found.counted & ~found.right
    kind = np.select(
        [(own >= NEAR) & (own < RIGHT), other >= RIGHT, own >= RIGHT, np.maximum(own, other) < NEAR], [0, 1, 2, 3], 4
    )
    kind = np.where(wrong, kind, -1)
    about = np.select([kind == 0, kind == 1], [own_object, other_object], -1)
    missed = found.wanted.copy()
    missed[found.taken[found.right]] = False
    missed[about[about >= 0]] = False
    return Errors(of_detections=kind, about=about, missed=missed)


def _largest(found: Detections, pairs: Bool[np.ndarray, "p"]) -> tuple[Float[np.ndarray, "d"], Int[np.ndarray, "d"]]:
    """The largest overlap of each detection among these pairs and the object it is with; 0 and -1 without one."""
    chosen = np.flatnonzero(pairs)
    order = chosen[np.lexsort((-found.near_object[chosen], found.near_overlap[chosen]))]  # of equal ones the first
    overlap, thing = np.zeros(len(found.labels)), np.full(len(found.labels), -1)
    overlap[found.near_detection[order]] = found.near_overlap[order]  # the last one stays
    thing[found.near_detection[order]] = found.near_object[order]
    return overlap, thing


def costs(found: Detections, errors: Errors) -> dict[str, Cost]:
    """What each kind costs, and besides all wrong detections (`wrong`) and all objects not found (`unfound`)."""
    wanted = np.bincount(found.object_labels[found.wanted], minlength=len(found.names))
    asked = wanted > 0
    kept = found.counted
    ap = lambda labels, right, kept, wanted: _mean_ap(labels, right, found.scores, kept, wanted, asked)
    now = ap(found.labels, found.right, kept, wanted)
    fewer = lambda things: wanted - np.bincount(found.object_labels[things], minlength=len(found.names))
    result = {}
    for number, kind in enumerate(KINDS[:-1]):
        mine = errors.of_detections == number
        saved = _saved(found, errors, mine)
        labels = found.labels.copy()
        labels[saved] = found.object_labels[errors.about[saved]]
        right = found.right.copy()
        right[saved] = True
        better = ap(labels, right, kept & (right | ~mine), wanted)
        result[kind] = Cost(count=int(mine.sum()), ap=max(better - now, 0.0))
    unfound = found.wanted.copy()
    unfound[found.taken[found.right]] = False
    for kind, things in (("missed", errors.missed), ("unfound", unfound)):
        better = ap(found.labels, found.right, kept, fewer(things))
        result[kind] = Cost(count=int(things.sum()), ap=max(better - now, 0.0))
    better = ap(found.labels, found.right, found.right, wanted)
    result["wrong"] = Cost(count=int(np.sum(kept & ~found.right)), ap=max(better - now, 0.0))
    return result


def _saved(found: Detections, errors: Errors, mine: Bool[np.ndarray, "d"]) -> Int[np.ndarray, "s"]:
    """The errors that become right if they are fixed: the best-scored one about each object that no one has taken."""
    free = found.wanted.copy()
    free[found.taken[found.right]] = False
    able = np.flatnonzero(mine & (errors.about >= 0))
    able = able[free[errors.about[able]]]
    able = able[np.argsort(-found.scores[able], kind="stable")]
    return able[np.unique(errors.about[able], return_index=True)[1]]


def _mean_ap(
    labels: Int[np.ndarray, "d"],
    right: Bool[np.ndarray, "d"],
    scores: Float[np.ndarray, "d"],
    kept: Bool[np.ndarray, "d"],
    wanted: Int[np.ndarray, "k"],
    asked: Bool[np.ndarray, "k"],
) -> float:
    """Mean over the classes that are `asked` of precision at 101 recalls."""
    order = np.flatnonzero(kept)
    order = order[np.lexsort((-scores[order], labels[order]))]
    classes = np.flatnonzero(asked)
    starts = np.searchsorted(labels[order], classes)
    ends = np.searchsorted(labels[order], classes, side="right")
    rows = zip(classes.tolist(), starts.tolist(), ends.tolist(), strict=True)
    values = [_ap(right[order[start:end]], int(wanted[label])) for label, start, end in rows]
    return float(np.mean(values)) if values else 0.0


def _ap(right: Bool[np.ndarray, "d"], wanted: int) -> float:
    """Of one class, its detections from the best on."""
    if wanted == 0:
        return 1.0
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a larger one
    place = np.searchsorted(hits / wanted, RECALLS)
    return float(np.append(precision, 0.0)[place].mean())


def dearest(costs: Mapping[str, Cost]) -> str:
    """The kind in `KINDS` that costs most."""
    return max(KINDS, key=lambda kind: costs[kind].ap)

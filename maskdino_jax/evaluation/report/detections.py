"""Detections of a data set beside its objects: which are right, at which score, and what is taken for what.

A detection is right if COCO's rules for average precision give it an object of its class at an overlap (intersection
over union) of 0.5.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask

from maskdino_jax.evaluation.matching import Candidates, Overlap, assign, boxes_overlap, candidates, masks_overlap
from maskdino_jax.evaluation.precision import Curves, curves, summarize

NEAR = 0.1  # overlap from which a detection has to do with an object at all
RIGHT = 0.5  # overlap from which it has found it
GRID = np.arange(1, 100) / 100  # score thresholds to choose from
_OVERLAP: dict[str, Overlap] = {"bbox": boxes_overlap, "segm": masks_overlap}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """One image: the candidates of average precision, and pairs of any two classes besides."""

    candidates: Candidates
    near_detection: Int[np.ndarray, "p"]
    near_object: Int[np.ndarray, "p"]  # no crowds
    near_overlap: Float[np.ndarray, "p"]  # at least NEAR
    in_crowd: Bool[np.ndarray, "d"]  # at least half of the detection lies in a crowd of any class


def scene(objects: Sequence[Mapping[str, Any]], entries: Sequence[Mapping[str, Any]], kind: str) -> Scene:
    """One image, from entries in COCO's form. `kind`: "bbox" or "segm", what overlaps are measured between."""
    entries = [_complete(entry) for entry in entries]
    found = candidates(objects, entries, kind, _OVERLAP[kind])
    overlap = np.zeros((len(found.places), len(objects)))
    if overlap.size:
        overlap = _OVERLAP[kind]([entries[place] for place in found.places], objects)
    near = (overlap >= NEAR) & ~found.object_crowd
    rows, columns = np.nonzero(near)
    return Scene(
        candidates=found,
        near_detection=rows,
        near_object=columns,
        near_overlap=overlap[rows, columns],
        in_crowd=((overlap >= RIGHT) & found.object_crowd).any(axis=1),
    )


def _complete(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """With a box; some result files have masks only."""
    return entry if "bbox" in entry else {**entry, "bbox": coco_mask.toBbox(entry["segmentation"]).tolist()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operating:
    """What a score threshold makes of detections."""

    threshold: float
    precision: float  # right among those above the threshold; 0 if there are none
    recall: float  # objects that are found
    f1: float  # harmonic mean of the two
    objects: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detections:
    """All images, for one kind of overlap. Classes are positions in `names`; d detections, g objects."""

    names: tuple[str, ...]
    image_count: int
    metrics: dict[str, float]  # of `precision.summarize`
    curves: Curves
    labels: Int[np.ndarray, "d"]
    scores: Float[np.ndarray, "d"]
    images: Int[np.ndarray, "d"]
    right: Bool[np.ndarray, "d"]
    counted: Bool[np.ndarray, "d"]  # False: neither right nor wrong, in a crowd of its class
    in_crowd: Bool[np.ndarray, "d"]
    taken: Int[np.ndarray, "d"]  # object of each detection, or -1
    object_labels: Int[np.ndarray, "g"]
    object_areas: Float[np.ndarray, "g"]  # pixels
    object_images: Int[np.ndarray, "g"]
    wanted: Bool[np.ndarray, "g"]  # no crowd
    near_detection: Int[np.ndarray, "p"]
    near_object: Int[np.ndarray, "p"]
    near_overlap: Float[np.ndarray, "p"]

    @classmethod
    def of(cls, scenes: Sequence[Scene], categories: Sequence[Mapping[str, Any]]) -> "Detections":
        """Match all images at once. `categories`: "id" and "name" of the classes that detections are scored for."""
        found = Candidates.joined([scene.candidates for scene in scenes])
        matches = assign(found)
        ids = [category["id"] for category in categories]
        names = tuple(category["name"] for category in categories)
        places = curves(found, matches, ids)
        position = {category: place for place, category in enumerate(ids)}
        known = lambda labels: np.array([position.get(label, -1) for label in labels.tolist()], np.int64)
        sizes = [(len(scene.candidates.labels), len(scene.candidates.object_labels)) for scene in scenes]
        starts = np.cumsum([(0, 0), *sizes], axis=0)[:-1]
        of_images = lambda counts: np.repeat(np.arange(len(scenes)), counts)
        join = lambda name: np.concatenate([getattr(scene, name) for scene in scenes])
        shift = lambda name, column: np.concatenate(
            [getattr(scene, name) + start for scene, start in zip(scenes, starts[:, column], strict=True)]
        )
        taken, ignored = matches.taken[0, 0], matches.ignored[0, 0]
        labels = known(found.labels)
        return cls(
            names=names,
            image_count=len(scenes),
            metrics=summarize(places, names),
            curves=places,
            labels=labels,
            scores=found.scores,
            images=of_images([size[0] for size in sizes]),
            right=(taken >= 0) & ~ignored,
            counted=~ignored & (labels >= 0),
            in_crowd=join("in_crowd"),
            taken=np.where(ignored, -1, taken),
            object_labels=known(found.object_labels),
            object_areas=found.object_areas,
            object_images=of_images([size[1] for size in sizes]),
            wanted=~found.object_crowd,
            near_detection=shift("near_detection", 0),
            near_object=shift("near_object", 1),
            near_overlap=join("near_overlap"),
        )

    def operating(self, label: int | None = None, thresholds: Float[np.ndarray, "t"] = GRID) -> list[Operating]:
        """What each threshold makes of one class, or of all together."""
        mine = self.counted if label is None else self.counted & (self.labels == label)
        objects = int(np.sum(self.wanted if label is None else self.wanted & (self.object_labels == label)))
        above = lambda scores: len(scores) - np.searchsorted(np.sort(scores), thresholds)
        kept, right = above(self.scores[mine]), above(self.scores[mine & self.right])
        precision, recall = right / np.maximum(kept, 1), right / max(objects, 1)
        f1 = 2 * right / np.maximum(kept + objects, 1)
        rows = zip(thresholds.tolist(), precision.tolist(), recall.tolist(), f1.tolist(), strict=True)
        return [
            Operating(threshold=place, precision=p, recall=r, f1=score, objects=objects) for place, p, r, score in rows
        ]

    def at(self, threshold: float, label: int | None = None) -> Operating:
        """What one threshold makes of one class, or of all together."""
        return self.operating(label, np.array([threshold]))[0]

    def per_image(self, threshold: float) -> Int[np.ndarray, "n 3"]:
        """Right and wrong detections with at least this score, and missed objects, of each image."""
        kept = self.counted & (self.scores >= threshold)
        count = lambda places: np.bincount(places, minlength=self.image_count)
        right = count(self.images[kept & self.right])
        return np.stack(
            [right, count(self.images[kept & ~self.right]), count(self.object_images[self.wanted]) - right], axis=1
        )

    def found(self, threshold: float) -> Bool[np.ndarray, "g"]:
        """Whether a detection with at least this score has found each object."""
        result = np.zeros(len(self.wanted), bool)
        result[self.taken[(self.scores >= threshold) & self.right]] = True
        return result


def best(rows: Sequence[Operating]) -> Operating:
    """The one with the largest F1; of equal ones that in the middle, which is the safest."""
    top = max(row.f1 for row in rows)
    equal = [row for row in rows if row.f1 == top]
    return equal[len(equal) // 2]


def confusion(found: Detections, threshold: float) -> Int[np.ndarray, "k1 k1"]:
    """Objects of each class (row) by the class of the detection that has found them (column).

    From the best score on, each detection takes the free object that it overlaps most, by 0.5 at least, whatever the
    classes. The last column counts objects that nothing has found, the last row detections that have found nothing;
    those in a crowd are left out.
    """
    classes = len(found.names)
    kept = (found.scores >= threshold) & found.counted
    pairs = np.flatnonzero((found.near_overlap >= RIGHT) & kept[found.near_detection])
    detection, target = found.near_detection[pairs], found.near_object[pairs]
    order = np.lexsort((-found.near_overlap[pairs], detection, -found.scores[detection]))
    table = np.zeros((classes + 1, classes + 1), np.int64)
    busy, taken = np.zeros(len(kept), bool), ~found.wanted
    for place, thing in zip(detection[order].tolist(), target[order].tolist(), strict=True):
        if not busy[place] and not taken[thing]:
            busy[place] = taken[thing] = True
            table[found.object_labels[thing], found.labels[place]] += 1
    np.add.at(table[:, classes], found.object_labels[~taken], 1)
    np.add.at(table[classes], found.labels[kept & ~busy & ~found.in_crowd], 1)
    return table


def calibration(found: Detections, bins: int = 10) -> Float[np.ndarray, "b 3"]:
    """Mean score, precision and number of the detections in each of equal bins of scores; NaN in empty ones."""
    scores, right = found.scores[found.counted], found.right[found.counted]
    place = np.clip((scores * bins).astype(int), 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, values, minlength=bins) / count for values in (scores, right.astype(float))]
    return np.stack([*means, count], axis=1)


def sizes(found: Detections, threshold: float) -> list[tuple[float, float, int, int]]:
    """Least and largest size of objects (square root of the area in pixels), their number and how many are found.

    Each bin reaches to twice its least size; small objects are in the first and large ones in the last.
    """
    if not found.wanted.any():
        return []
    size = np.sqrt(found.object_areas[found.wanted])
    hit = found.found(threshold)[found.wanted]
    power = np.clip(np.floor(np.log2(np.maximum(size, 1))).astype(int), 2, 9)
    return [
        (
            0.0 if step == 2 else 2.0**step,
            np.inf if step == 9 else 2.0 ** (step + 1),
            int(here.sum()),
            int(hit[here].sum()),
        )
        for step in range(power.min(), power.max() + 1)
        for here in [power == step]
    ]

"""Which detections belong to which objects: COCO's rules for average precision.

An image is reduced to its candidates, some bytes for each detection and each pair that overlaps enough, as its
predictions come. The assignment is made for all images at once: the best detections of all images and classes first,
then all second ones, and so on.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask

AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # pixels, inclusive
THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the overlap
MOST = 100  # detections of each class in an image that count

_LOW, _HIGH = np.array(list(AREAS.values()), float).T[:, :, None]

# Overlap of detections with objects, both given by their entries in COCO's form: [d, g].
Overlap = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], Float[np.ndarray, "d g"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidates:
    """What is kept of an image, or of many. Detections are ordered by class, then by falling score."""

    labels: Int[np.ndarray, "d"]  # category ids of the detections
    scores: Float[np.ndarray, "d"]
    areas: Float[np.ndarray, "d"]
    ranks: Int[np.ndarray, "d"]  # place within the class in the image
    places: Int[np.ndarray, "d"]  # position in the list that was given
    object_labels: Int[np.ndarray, "g"]
    object_areas: Float[np.ndarray, "g"]
    object_crowd: Bool[np.ndarray, "g"]
    # Pairs of one class that overlap by the lowest threshold at least, ordered by detection, then by object.
    pair_detection: Int[np.ndarray, "p"]
    pair_object: Int[np.ndarray, "p"]
    pair_overlap: Float[np.ndarray, "p"]

    @classmethod
    def joined(cls, images: Sequence["Candidates"]) -> "Candidates":
        """All images in one; detections are ordered by image first."""
        join = lambda name: [getattr(image, name) for image in images]
        parts = {field.name: join(field.name) for field in dataclasses.fields(cls)}
        for name, of in (("pair_detection", "labels"), ("pair_object", "object_labels")):
            starts = np.cumsum([0, *map(len, parts[of])])
            parts[name] = [part + start for part, start in zip(parts[name], starts[:-1], strict=True)]
        return cls(**{name: np.concatenate(values) for name, values in parts.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matches:
    """The assignment, for the area ranges and thresholds above."""

    taken: Int[np.ndarray, "a t d"]  # the object of each detection, or -1
    ignored: Bool[np.ndarray, "a t d"]  # neither right nor wrong: of a crowd, or of another size
    object_ignored: Bool[np.ndarray, "a g"]  # needs not be found


def candidates(
    objects: Sequence[Mapping[str, Any]], detections: Sequence[Mapping[str, Any]], kind: str, overlap: Overlap
) -> Candidates:
    """The candidates of one image.

    Args:
        objects: entries of an instances JSON with `category_id`, `area`, `iscrowd`.
        detections: entries of a result file with `category_id`, `score`.
        kind: "bbox" or "segm": what decides about the size of detections that have no `area`.
        overlap: of detections with objects, such as `boxes_overlap`.
    """
    labels = np.array([entry["category_id"] for entry in detections], np.int64)
    scores = np.array([entry["score"] for entry in detections], float)
    order = np.lexsort((-scores, labels))  # stable, as the reference sorts
    ranks = np.arange(len(order)) - np.searchsorted(labels[order], labels[order])
    order, ranks = order[ranks < MOST], ranks[ranks < MOST]
    labels = labels[order]
    object_labels = np.array([entry["category_id"] for entry in objects], np.int64)
    pairs = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for label in np.intersect1d(labels, object_labels):
        rows, columns = np.flatnonzero(labels == label), np.flatnonzero(object_labels == label)
        table = overlap([detections[place] for place in order[rows]], [objects[place] for place in columns])
        row, column = np.nonzero(table >= THRESHOLDS[0])
        pairs.append((rows[row], columns[column], table[row, column]))
    first, second, shared = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return Candidates(
        labels=labels,
        scores=scores[order],
        areas=_areas([detections[place] for place in order], kind),
        ranks=ranks,
        places=order,
        object_labels=object_labels,
        object_areas=np.array([entry["area"] for entry in objects], float),
        object_crowd=np.array([bool(entry.get("iscrowd", 0)) for entry in objects], bool),
        pair_detection=first,
        pair_object=second,
        pair_overlap=shared,
    )


def _areas(detections: Sequence[Mapping[str, Any]], kind: str) -> Float[np.ndarray, "d"]:
    if all("area" in entry for entry in detections):
        return np.array([entry["area"] for entry in detections], float)
    if kind == "bbox":
        return np.array([entry["bbox"][2] * entry["bbox"][3] for entry in detections], float)
    return coco_mask.area([entry["segmentation"] for entry in detections]).astype(float)


def assign(found: Candidates) -> Matches:
    """Go through the detections of each class from the best on; each takes the object it overlaps most, if it is free.

    Objects that count go before crowds and objects of another size; a crowd may be taken more than once. Of equal
    overlaps the last object wins, as in the reference.
    """
    object_ignored = found.object_crowd | (found.object_areas < _LOW) | (found.object_areas > _HIGH)
    shape = len(AREAS), len(THRESHOLDS)
    taken = np.full((*shape, len(found.labels)), -1)
    free = np.ones((*shape, len(found.object_labels)), bool)
    ranks = found.ranks[found.pair_detection]
    for rank in np.unique(ranks):  # no two of them in one class of one image
        pairs = np.flatnonzero(ranks == rank)
        objects, overlap = found.pair_object[pairs], found.pair_overlap[pairs]
        detections, starts = np.unique(found.pair_detection[pairs], return_index=True)
        owner = np.repeat(np.arange(len(starts)), np.diff([*starts, len(pairs)]))
        possible = free[..., objects] & (overlap >= THRESHOLDS[:, None])
        counts = possible & ~object_ignored[:, None, objects]
        any_counts = np.maximum.reduceat(counts, starts, axis=2)
        possible &= counts | ~any_counts[..., owner]
        best = np.maximum.reduceat(np.where(possible, overlap, -1), starts, axis=2)
        last = np.where(possible & (overlap == best[..., owner]), np.arange(len(pairs)), -1)
        pick = np.maximum.reduceat(last, starts, axis=2)
        chosen = np.where(pick >= 0, objects[pick], -1)
        taken[..., detections] = chosen
        area, threshold, place = np.nonzero(chosen >= 0)
        free[area, threshold, chosen[area, threshold, place]] = False
        free[..., found.object_crowd] = True
    outside = (found.areas < _LOW) | (found.areas > _HIGH)
    ignored_of = np.concatenate([object_ignored, np.zeros((len(AREAS), 1), bool)], axis=1)  # of object -1: no
    ignored = ignored_of[np.arange(len(AREAS))[:, None, None], taken] | ((taken < 0) & outside[:, None])
    return Matches(taken=taken, ignored=ignored, object_ignored=object_ignored)


def boxes_overlap(
    detections: Sequence[Mapping[str, Any]], objects: Sequence[Mapping[str, Any]]
) -> Float[np.ndarray, "d g"]:
    """Intersection over union of boxes; over the detection's own area where the object is a crowd."""
    first, second = (np.array([entry["bbox"] for entry in entries], float) for entries in (detections, objects))
    return np.asarray(coco_mask.iou(first, second, _crowd(objects)))


def masks_overlap(
    detections: Sequence[Mapping[str, Any]], objects: Sequence[Mapping[str, Any]]
) -> Float[np.ndarray, "d g"]:
    """The same of masks, which are run lengths on both sides."""
    first, second = ([entry["segmentation"] for entry in entries] for entries in (detections, objects))
    return np.asarray(coco_mask.iou(first, second, _crowd(objects)))


def _crowd(objects: Sequence[Mapping[str, Any]]) -> list[int]:
    return [int(bool(entry.get("iscrowd", 0))) for entry in objects]

"""Labelled regions of an image: the ground truth or the prediction of panoptic and semantic evaluation."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.dataset import Dataset
from maskdino_jax.data.images import load_image


@dataclasses.dataclass(frozen=True)
class Regions:
    """A map of segment ids and what each id means; pixels of other ids are unlabelled."""

    ids: Int32[np.ndarray, "h w"]
    segment_ids: Int[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]  # contiguous class ids
    crowd: Bool[np.ndarray, "n"]  # many objects in one segment: neither required nor wrong

    @classmethod
    def from_coco(cls, ids: Int32[np.ndarray, "h w"], info: Sequence[Mapping[str, Any]], catalog: Catalog) -> "Regions":
        """`info` is the "segments_info" of a COCO panoptic annotation."""
        return cls(
            ids=ids,
            segment_ids=np.array([segment["id"] for segment in info], np.int64),
            labels=np.array([catalog.index(segment["category_id"]) for segment in info], np.int64),
            crowd=np.array([segment.get("iscrowd", 0) for segment in info], bool),
        )

    def positions(self, ids: Int32[np.ndarray, "*p"]) -> Int[np.ndarray, "*p"]:
        """The positions of the segments with these ids, counted from 1; 0 where there is none."""
        order = np.argsort(self.segment_ids)
        known = self.segment_ids[order]
        if not len(known):
            return np.zeros(ids.shape, np.int64)
        place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.where(known[place] == ids, order[place] + 1, 0)

    def painted(self) -> set[int]:
        """The ids that pixels have, but for 0."""
        ids = self.ids.ravel()
        return set(np.unique(ids[np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))]).tolist()) - {0}

    def classes(self, unlabelled: int) -> Int[np.ndarray, "h w"]:
        """Contiguous class of each pixel, crowds included; `unlabelled` where there is no segment."""
        return np.concatenate([[unlabelled], self.labels])[self.positions(self.ids)]


def overlaps(first: Regions, second: Regions) -> Int[np.ndarray, "n m"]:
    """Pixels that each segment of the one shares with each of the other; row and column 0 are unlabelled.

    Pixels are counted by runs in which neither map changes: there are hundreds of times fewer.
    """
    a, b = first.ids.ravel(), second.ids.ravel()
    starts = np.flatnonzero(np.concatenate([[True], (a[1:] != a[:-1]) | (b[1:] != b[:-1])]))
    shape = len(first.labels) + 1, len(second.labels) + 1
    pairs = first.positions(a[starts]) * shape[1] + second.positions(b[starts])
    lengths = np.diff(starts, append=a.size)
    return np.bincount(pairs, lengths, minlength=shape[0] * shape[1]).astype(np.int64).reshape(shape)


def truth(dataset: Dataset, record: int) -> Regions:
    """Ground truth of one image of a panoptic data set."""
    return Regions.from_coco(dataset.panoptic_map(record), dataset.panoptic_records(record), dataset.catalog)


def read_ids(path: Path) -> Int32[np.ndarray, "h w"]:
    """Segment ids of a COCO panoptic PNG: red + 256 green + 65536 blue."""
    channels = load_image(path).astype(np.int32)
    return channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]

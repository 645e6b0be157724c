"""Boundary IoU (Cheng et al. 2021): masks are compared along their outlines, where large objects are hard too."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from maskdino_jax.data.runs import decode_runs, parse_runs
from maskdino_jax.evaluation.matching import masks_overlap
from maskdino_jax.inference.results import encode

_WIDTH = 0.02  # of the outline, as a share of the image's diagonal


def boundaries_overlap(
    detections: Sequence[Mapping[str, Any]], objects: Sequence[Mapping[str, Any]]
) -> Float[np.ndarray, "d g"]:
    """The smaller of the intersection over union of whole masks and of their outlines."""
    whole = masks_overlap(detections, objects)
    return np.minimum(whole, masks_overlap(_outlines(detections), _outlines(objects)))


def _outlines(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**entry, "segmentation": _outline_runs(entry["segmentation"])} for entry in entries]


def _outline_runs(segmentation: Mapping[str, Any]) -> dict[str, Any]:
    return encode(outline(decode_runs(parse_runs(segmentation), *segmentation["size"]))[None])[0]


def outline(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The pixels of a mask that are at most this far, 2 % of the diagonal, from one outside it or from the border."""
    distance = max(round(_WIDTH * float(np.hypot(*mask.shape))), 1)
    inner = mask.view(np.uint8)
    for axis in (0, 1):
        inner = ndimage.minimum_filter1d(inner, 2 * distance + 1, axis=axis, mode="constant", cval=0)
    return mask & ~inner.view(bool)

"""Axis-aligned boxes: formats, overlap, and the boxes around masks. All of it in float32."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

GIOU_EPSILON = 1e-6  # in both quotients, as in the official code: degenerate boxes give 0 and not NaN
LOGIT_EPSILON = 1e-5  # bounds the logit to +-11.5


def cxcywh_to_xyxy(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
    """Corners (x0, y0, x1, y1) of boxes given by centre and size, in the same unit."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([centre - size / 2, centre + size / 2], axis=-1)


def xyxy_to_cxcywh(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
    """Centre and size (cx, cy, w, h) of boxes given by their corners, in the same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def giou(first: Float[Array, "*#b 4"], second: Float[Array, "*#b 4"]) -> Float[Array, "*b"]:
    """Generalised intersection over union of xyxy boxes, box by box, in (-1, 1] (Rezatofighi et al. 2019, algorithm 1).

    The leading axes broadcast: `giou(a[:, None], b[None])` is the matrix of all pairs.
    """
    inner = jnp.minimum(first[..., 2:], second[..., 2:]) - jnp.maximum(first[..., :2], second[..., :2])
    outer = jnp.maximum(first[..., 2:], second[..., 2:]) - jnp.minimum(first[..., :2], second[..., :2])
    intersection, hull = _area(jnp.maximum(inner, 0)), _area(jnp.maximum(outer, 0))
    union = _area(first[..., 2:] - first[..., :2]) + _area(second[..., 2:] - second[..., :2]) - intersection
    return intersection / (union + GIOU_EPSILON) - (hull - union) / (hull + GIOU_EPSILON)


def pairwise_giou(first: Float[Array, "*b q 4"], second: Float[Array, "*b n 4"]) -> Float[Array, "*b q n"]:
    """Generalised intersection over union of every xyxy box of `first` with every one of `second`."""
    return giou(first[..., :, None, :], second[..., None, :, :])


def _area(size: Float[Array, "*b 2"]) -> Float[Array, "*b"]:
    return size[..., 0] * size[..., 1]


def logit(x: Float[Array, "*b"], eps: float = LOGIT_EPSILON) -> Float[Array, "*b"]:
    """Inverse of the sigmoid for shares of the image, finite also at 0 and 1 and beyond (clipped to them)."""
    x = jnp.clip(x.astype(jnp.float32), 0, 1)
    return jnp.log(jnp.maximum(x, eps) / jnp.maximum(1 - x, eps))


def masks_to_boxes(masks: Bool[Array, "*b q h w"], kind: str) -> Float[Array, "*b q 4"]:
    """The box around each mask, cxcywh as shares of the map's width and height (spec of box initialisation, 3.2).

    The two kinds are the two that exist in the released models, with their handling of empty masks:

    * `bitmask` ends after the last pixel; an empty mask gives the box (0, 0, 0, 0);
    * `mask2box` ends at the last pixel, so that one pixel has size 0; an empty mask gives a centre far beyond the
      image and a negative size, which `logit` clips to 1 and 0.

    Raises:
        ValueError: `kind` is neither.
    """
    if kind not in ("bitmask", "mask2box"):
        raise ValueError(f"kind = {kind!r} of masks_to_boxes: choose bitmask or mask2box.")
    (x0, x1), (y0, y1) = _extent(masks.any(axis=-2)), _extent(masks.any(axis=-1))
    corners = jnp.stack([x0, y0, x1, y1], axis=-1).astype(jnp.float32)
    empty = ~masks.any(axis=(-2, -1))[..., None]
    if kind == "bitmask":
        corners = corners + jnp.array([0, 0, 1, 1], jnp.float32)
        corners = jnp.where(empty, 0, corners)
    else:
        corners = jnp.where(empty, jnp.array([1e8, 1e8, 0, 0], jnp.float32), corners)
    height, width = masks.shape[-2:]
    return xyxy_to_cxcywh(corners) / jnp.array([width, height, width, height], jnp.float32)


def _extent(hit: Bool[Array, "*b w"]) -> tuple[Array, Array]:
    """Index of the first and of the last True."""
    return jnp.argmax(hit, axis=-1), hit.shape[-1] - 1 - jnp.argmax(hit[..., ::-1], axis=-1)

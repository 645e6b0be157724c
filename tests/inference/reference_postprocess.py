"""Post-processing in NumPy, step by step over whole images: what the device's part must agree with."""

import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32

from maskdino_jax.inference.frame import Frame
from maskdino_jax.inference.results import Instances, Panoptic, PanopticSegment

_CHUNK = 1 << 24  # mask values enlarged at a time
_BAND = 32  # rows of a resize matrix multiplied at a time


@functools.lru_cache(maxsize=256)
def resize_matrix(source: int, canvas: int, used: int, target: int) -> Float32[np.ndarray, "target source"]:
    """Two bilinear resizes of one axis as a single matrix: `source` to `canvas`, keep the first `used`, to `target`.

    The official order of work enlarges mask logits to the padded canvas, crops the padding off and resizes to the
    original image. Bilinear resizing is linear and acts on rows and columns separately, and a crop selects rows, so
    that the whole chain is `Ry @ mask @ Rx.T`, the same numbers without the large intermediate.
    """
    matrix = _bilinear(canvas, target=target, used=used) @ _bilinear(source, target=canvas, used=source)
    matrix = matrix.astype(np.float32)
    matrix.setflags(write=False)  # callers share it
    return matrix


def _bilinear(source: int, *, target: int, used: int) -> Float[np.ndarray, "target source"]:
    """Interpolation weights from the first `used` of `source` pixels, half-pixel centres, clamped at the borders."""
    position = np.clip((np.arange(target) + 0.5) * (used / target) - 0.5, 0, used - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, used - 1)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), low), 1 - (position - low))
    np.add.at(matrix, (np.arange(target), high), position - low)
    return matrix


def enlarge(
    masks: Float[np.ndarray, "n h4 w4"], frame: Frame, rows: slice = slice(None)
) -> Float32[np.ndarray, "n rows w"]:
    """Mask logits at the original size, or only the given rows of it."""
    masks = masks[:, : frame.extent[0] // frame.stride, : frame.extent[1] // frame.stride]
    down = resize_matrix(masks.shape[1], frame.extent[0], frame.size[0], frame.original_size[0])[rows]
    across = resize_matrix(masks.shape[2], frame.extent[1], frame.size[1], frame.original_size[1])
    first, last = _support(down)
    masks = np.ascontiguousarray(masks[:, first:last], np.float32)
    wide = np.empty((*masks.shape[:2], len(across)), np.float32)
    for block, reach in _bands(across):
        wide[..., block] = masks[..., reach] @ across[block, reach].T
    full = np.empty((len(masks), len(down), len(across)), np.float32)
    for block, reach in _bands(down[:, first:last]):
        np.matmul(down[block, first:last][:, reach], wide[:, reach], out=full[:, block])
    return full


def _bands(matrix: Float32[np.ndarray, "i j"]) -> Iterator[tuple[slice, slice]]:
    """Blocks of rows with the columns where they are not zero: a resize matrix is a band, most of it is zero."""
    for start in range(0, len(matrix), _BAND):
        block = slice(start, start + _BAND)
        yield block, slice(*_support(matrix[block]))


def _support(matrix: Float32[np.ndarray, "i j"]) -> tuple[int, int]:
    columns = np.flatnonzero(matrix.any(axis=0))
    return int(columns[0]), int(columns[-1]) + 1


def _probabilities(
    masks: Float[np.ndarray, "q h4 w4"], queries: Int[np.ndarray, "n"], frame: Frame
) -> Iterator[tuple[slice, Float32[np.ndarray, "m h w"], Float32[np.ndarray, "m h w"]]]:
    """Logits and probabilities of the masks of `queries` at the original size, a few at a time."""
    step = max(1, _CHUNK // (frame.original_size[0] * frame.original_size[1]))
    for start in range(0, len(queries), step):
        chunk = slice(start, min(start + step, len(queries)))
        logits = enlarge(masks[queries[chunk]], frame)
        yield chunk, logits, _sigmoid(logits)


def _sigmoid(x: Float[np.ndarray, "*s"]) -> Float32[np.ndarray, "*s"]:
    with np.errstate(over="ignore"):  # exp of a large negative logit is inf, and its probability 0
        y = np.exp(-x.astype(np.float32, copy=False))
    y += 1
    return np.reciprocal(y, out=y)


def _class_weights(probabilities: Float32[np.ndarray, "q k"], temperature: float) -> Float32[np.ndarray, "q k"]:
    """Softmax of the class probabilities over `temperature`, which sharpens them; 0 leaves them as they are."""
    if temperature == 0:
        return probabilities
    scaled = probabilities / np.float32(temperature)
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def instances(
    logits: Float[np.ndarray, "q k"],
    boxes: Float[np.ndarray, "q 4"],
    masks: Float[np.ndarray, "q h4 w4"],
    frame: Frame,
    *,
    top: int,
    is_thing: Bool[np.ndarray, "k"] | None = None,
) -> Instances:
    """The `top` best pairs of query and class, without suppression or threshold.

    The score is the class probability times the mean probability inside the mask. Where `is_thing` is given, pairs of
    stuff classes are dropped after the choice, so that fewer than `top` remain, as in the official panoptic mode. The
    box is the predicted one, moved to pixels of the original image and not clipped; scores and boxes serve box AP and
    mask AP alike.
    """
    classes = logits.shape[1]
    flat = _sigmoid(logits).ravel()
    best = np.argsort(-flat, kind="stable")[:top]
    queries, labels = best // classes, best % classes
    if is_thing is not None:
        keep = is_thing[labels]
        best, queries, labels = best[keep], queries[keep], labels[keep]

    distinct, place = np.unique(queries, return_inverse=True)
    quality = np.zeros(len(distinct), np.float32)
    inside = np.zeros((len(distinct), *frame.original_size), bool)
    for chunk, mask_logits, probabilities in _probabilities(masks, distinct, frame):
        np.greater(mask_logits, 0, out=inside[chunk])
        total = np.einsum("nhw,nhw->n", probabilities, inside[chunk], dtype=np.float32)
        quality[chunk] = total / (np.count_nonzero(inside[chunk], axis=(1, 2)) + 1e-6)

    scores = flat[best] * quality[place]
    order = np.argsort(-scores, kind="stable")
    return Instances.from_masks(
        scores=scores[order],
        labels=labels[order].astype(np.int32),
        boxes=_to_pixels(boxes[queries[order]], frame),
        masks=inside[place[order]],
        queries=queries[order].astype(np.int32),
    )


def _to_pixels(boxes: Float[np.ndarray, "n 4"], frame: Frame) -> Float32[np.ndarray, "n 4"]:
    """cxcywh relative to the canvas -> xyxy in pixels of the original image."""
    height, width = (
        canvas / used * original
        for canvas, used, original in zip(frame.extent, frame.size, frame.original_size, strict=True)
    )
    centre, half = boxes[:, :2].astype(np.float32), boxes[:, 2:].astype(np.float32) / 2
    corners = np.concatenate([centre - half, centre + half], axis=1)
    return corners * np.array([width, height, width, height], np.float32)


def panoptic(
    logits: Float[np.ndarray, "q k"],
    masks: Float[np.ndarray, "q h4 w4"],
    frame: Frame,
    is_thing: Bool[np.ndarray, "k"],
    *,
    object_threshold: float,
    overlap_threshold: float,
    temperature: float,
) -> Panoptic:
    """Let the confident queries compete for each pixel, and keep those that win most of what they claim.

    A query takes part if its best class probability exceeds `object_threshold`; it is ranked by the same class after
    sharpening with `temperature` (both as the official code does, which tests one quantity and ranks by the other).
    A pixel goes to the query with the largest product of class weight and mask probability. A segment is what a
    query owns inside its own mask (probability at least one half), unless the pixels it owns are fewer than
    `overlap_threshold` of its mask. Segments of one stuff class share an id (Kirillov et al. 2019, section 3).
    """
    probabilities = _sigmoid(logits)
    confidence = probabilities.max(axis=1)
    kept = np.flatnonzero(confidence > object_threshold)
    weights = _class_weights(probabilities[kept], temperature)
    labels = weights.argmax(axis=1) if len(kept) else np.zeros(0, int)
    weights = weights.max(axis=1, initial=0)

    owner = np.full(frame.original_size, -1, np.int32)
    strength = np.full(frame.original_size, -1, np.float32)
    inside = np.zeros((len(kept), *frame.original_size), bool)
    for chunk, _, mask_probabilities in _probabilities(masks, kept, frame):
        np.greater_equal(mask_probabilities, 0.5, out=inside[chunk])
        for k, mask in enumerate(mask_probabilities, chunk.start):
            mask *= weights[k]
            wins = mask > strength  # ties go to the earlier query
            np.copyto(strength, mask, where=wins)
            np.copyto(owner, np.int32(k), where=wins)

    ids = np.zeros(frame.original_size, np.int32)
    segments: dict[int, PanopticSegment] = {}
    stuff: dict[int, int] = {}  # class -> id
    for k, label in enumerate(labels.tolist()):
        owned = owner == k
        region = owned & inside[k]
        claimed, area = int(inside[k].sum()), int(region.sum())
        if not area or owned.sum() / claimed < overlap_threshold:
            continue
        thing = bool(is_thing[label])
        segment_id = len(segments) + 1 if thing else stuff.setdefault(label, len(segments) + 1)
        score = float(confidence[kept[k]])
        if segment_id in segments:
            score, area = max(score, segments[segment_id].score), area + segments[segment_id].area
        segments[segment_id] = PanopticSegment(id=segment_id, label=label, is_thing=thing, score=score, area=area)
        ids[region] = segment_id
    return Panoptic(ids, tuple(segments.values()))


def semantic(
    logits: Float[np.ndarray, "q k"],
    masks: Float[np.ndarray, "q h4 w4"],
    frame: Frame,
    *,
    temperature: float,
) -> Int32[np.ndarray, "h w"]:
    """The class with the largest sum over all queries of class weight times mask probability, at each pixel.

    No query is left out: one that is unsure adds nearly the same to every class.
    """
    weights = _class_weights(_sigmoid(logits), temperature).T
    height, width = frame.original_size
    result = np.empty((height, width), np.int32)
    step = max(1, _CHUNK // (max(logits.shape) * width))
    for start in range(0, height, step):
        rows = slice(start, start + step)
        probabilities = _sigmoid(enlarge(masks, frame, rows))
        result[rows] = np.tensordot(weights, probabilities, axes=1).argmax(axis=0)
    return result


def semantic_on_canvas(
    logits: Float[np.ndarray, "q k1"], masks: Float[np.ndarray, "q h4 w4"], frame: Frame
) -> Int32[np.ndarray, "h w"]:
    """With a "no object" column: class scores on the canvas, cropped to the image, then resized."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights = (weights / weights.sum(axis=1, keepdims=True))[:, :-1]
    canvas = Frame(frame.extent, frame.extent, frame.extent, frame.stride)
    scores = np.tensordot(weights.T, _sigmoid(enlarge(masks, canvas)), axes=1)
    scores = scores[:, : frame.size[0], : frame.size[1]]
    rows, columns = (
        _bilinear(used, target=original, used=used)
        for used, original in zip(frame.size, frame.original_size, strict=True)
    )
    return (rows @ scores @ columns.T).argmax(axis=0).astype(np.int32)

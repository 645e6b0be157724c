"""The device's part of post-processing of an image: from mask logits to bits, owners and classes of pixels.

Everything has a static shape: results lie in the corner of a target whose sides are rounded up (`Frame.target`), and
the taps that enlarge masks to it are arguments, so that one program serves all images of about one size. Masks of all
queries at the size of the image never exist at once: each program walks over a few masks or a few rows at a time.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

from maskdino_jax.inference.frame import BUCKET, Taps

_CACHED = 1 << 19  # mask values in work at a time on a CPU: what its cache holds
_PARALLEL = 1 << 24  # the same on an accelerator, which wants work for all its cores

T = TypeVar("T")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Picks:
    """The best pairs of query and class, best first, and the masks of their queries, each mask once."""

    scores: Float[Array, "n"]  # class probability times mask quality, or without masks class probability
    labels: Int[Array, "n"]
    queries: Int[Array, "n"]
    kept: Bool[Array, "n"]  # whether the class may be an instance
    boxes: Float[Array, "n 4"]  # cx, cy, w, h as shares of the extent
    place: Int[Array, "n"] | None  # which of `masks` it has, where kept; None: boxes only
    masks: UInt8[Array, "m h w8"] | None  # logit above 0, 8 pixels of a row in a byte, first pixel in the highest bit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Contest:
    """Which query won each pixel. Contestants 0, 1, ... are the confident queries in their order."""

    count: Int[Array, ""]
    labels: Int[Array, "q"]  # class of each contestant
    confidence: Float[Array, "q"]  # its best class probability
    claimed: Int[Array, "n"]  # pixels where its mask has a probability of at least one half
    owner: Int[Array, "h w"]  # contestant; -1 without any
    inside: Bool[Array, "h w"]  # whether the owner's mask has a probability of at least one half


def instances(
    logits: Float[Array, "q k"],
    boxes: Float[Array, "q 4"],
    masks: Float[Array, "q h4 w4"],
    to_original: tuple[Taps, Taps],
    allowed: Bool[Array, "k"],
    *,
    top: int,
) -> Picks:
    """The `top` best pairs of query and class, without suppression or threshold.

    The score is the class probability times the mean probability inside the mask. Pairs of classes that are not
    `allowed` are dropped after the choice, as in the official panoptic mode.
    """
    num_queries = len(logits)
    probabilities, queries, labels = _best_pairs(logits, top)
    kept = allowed[labels]
    order, count, rank = _in_order(jnp.zeros(num_queries, bool).at[queries].max(kept))
    height, width = _shape(to_original)
    step = _at_a_time(height * width)
    rows = -(-min(top, num_queries) // step) * step

    def add(start: Int[Array, ""], chunk: Int[Array, "n"], state: tuple[Array, Array]) -> tuple[Array, Array]:
        bits, quality = state
        enlarged = _enlarge(masks[chunk], to_original)
        inside = enlarged > 0
        total = jnp.sum(jnp.where(inside, jax.nn.sigmoid(enlarged), 0), axis=(1, 2))
        bits = lax.dynamic_update_slice(bits, jnp.packbits(inside, axis=-1), (start, 0, 0))
        mean = total / (jnp.sum(inside, axis=(1, 2)) + 1e-6)
        return bits, lax.dynamic_update_slice(quality, mean, (start,))

    empty = jnp.zeros((rows, height, width // 8), jnp.uint8), jnp.zeros(rows)
    bits, quality = _over_chunks(add, order, count, step, empty)
    place = rank[queries]
    scores = probabilities * quality[place]
    ranking = jnp.argsort(-scores, stable=True)
    values = Picks(
        scores=scores, labels=labels, queries=queries, kept=kept, boxes=boxes[queries], place=place, masks=bits
    )
    sort = lambda x: x if x is bits else x[ranking]
    return jax.tree.map(sort, values)


def detections(
    logits: Float[Array, "q k"], boxes: Float[Array, "q 4"], allowed: Bool[Array, "k"], *, top: int
) -> Picks:
    """As `instances`, without masks: the score is the class probability alone."""
    probabilities, queries, labels = _best_pairs(logits, top)
    return Picks(
        scores=probabilities,
        labels=labels,
        queries=queries,
        kept=allowed[labels],
        boxes=boxes[queries],
        place=None,
        masks=None,
    )


def contest(
    logits: Float[Array, "q k"],
    masks: Float[Array, "q h4 w4"],
    to_original: tuple[Taps, Taps],
    *,
    threshold: float,
    temperature: float,
) -> Contest:
    """Let the confident queries compete for each pixel; the first of equals wins.

    A query takes part if its best class probability exceeds `threshold`; it is ranked by the same class after
    sharpening with `temperature` (both as the official code does, which tests one quantity and ranks by the other).
    A pixel goes to the query with the largest product of class weight and mask probability.
    """
    probabilities = _probabilities(logits)
    confidence = probabilities.max(axis=1)
    weights = _sharpened(probabilities, temperature)
    labels, weights = weights.argmax(axis=1), weights.max(axis=1)
    order, count, _ = _in_order(confidence > threshold)
    height, width = _shape(to_original)
    step = min(8, _at_a_time(height * width))
    rows, columns = (taps.weights.any(axis=1) for taps in to_original)
    picture = rows[:, None] & columns  # not the filler, whose probability is one half

    def add(start: Int[Array, ""], chunk: Int[Array, "n"], state: tuple[Array, ...]) -> tuple[Array, ...]:
        strongest, owner, inside, claimed = state
        mask = jax.nn.sigmoid(_enlarge(masks[chunk], to_original))
        half = mask >= 0.5
        claimed = lax.dynamic_update_slice(claimed, jnp.sum(half & picture, axis=(1, 2)), (start,))
        for place in range(step):
            strength = jnp.where(start + place < count, mask[place] * weights[chunk[place]], -1)
            wins = strength > strongest
            strongest = jnp.where(wins, strength, strongest)
            owner = jnp.where(wins, (start + place).astype(owner.dtype), owner)
            inside = jnp.where(wins, half[place], inside)
        return strongest, owner, inside, claimed

    shape = height, width
    claimed = jnp.zeros(len(order) + step, jnp.int32)
    state = jnp.full(shape, -1.0), jnp.full(shape, -1, jnp.int16), jnp.zeros(shape, bool), claimed
    _, owner, inside, claimed = _over_chunks(add, order, count, step, state)
    return Contest(
        count=count,
        labels=labels[order],
        confidence=confidence[order],
        claimed=claimed,
        owner=owner,
        inside=inside,
    )


def classes_before(
    logits: Float[Array, "q k"],
    masks: Float[Array, "q h4 w4"],
    to_original: tuple[Taps, Taps],
    *,
    temperature: float,
    sums: bool = False,
) -> Int[Array, "h w"] | Float[Array, "h w k"]:
    """The class with the largest sum over all queries of class weight times mask probability, at each pixel of the
    file: masks are resized before they become probabilities. `sums`: the sums themselves.

    No query is left out: one that is unsure adds nearly the same to every class.
    """
    weights = _sharpened(_probabilities(logits), temperature)
    rows, columns = to_original
    masks = _queries_last(masks)
    read = _same if sums else best_class
    return _over_rows(lambda block: read(_sums(masks, block, columns, weights)), rows, weights, columns)


def classes_after(
    logits: Float[Array, "q k1"],
    masks: Float[Array, "q h4 w4"],
    to_canvas: tuple[Taps, Taps],
    to_original: tuple[Taps, Taps],
    *,
    sums: bool = False,
) -> Int[Array, "h w"] | Float[Array, "h w k"]:
    """The same for the softmax over classes and "no object", the last column of the logits. The sums are taken on the
    canvas and resized to the file: `to_original` starts from the canvas, as in the official semantic mode.
    """
    weights = jax.nn.softmax(logits.astype(jnp.float32))[:, :-1]
    canvas_rows, canvas_columns = to_canvas
    rows, columns = to_original
    masks = _queries_last(masks)
    read = _same if sums else best_class

    def block(part: Taps) -> Array:
        scores = 0
        for tap in range(part.weights.shape[1]):  # the few rows of the canvas that each row of the file lies between
            lines = jax.tree.map(lambda x, tap=tap: x[part.first + tap], canvas_rows)
            scores += part.weights[:, tap, None, None] * _sums(masks, lines, canvas_columns, weights)
        return read(columns(scores, axis=1))

    return _over_rows(block, rows, weights, max(canvas_columns, columns, key=lambda taps: len(taps.first)))


def _probabilities(logits: Float[Array, "q k"]) -> Float[Array, "q k"]:
    return jax.nn.sigmoid(logits.astype(jnp.float32))


def _best_pairs(logits: Float[Array, "q k"], top: int) -> tuple[Float[Array, "n"], Int[Array, "n"], Int[Array, "n"]]:
    """Class probability, query and class of the `top` most probable pairs, the best first."""
    probabilities, best = lax.top_k(_probabilities(logits).ravel(), min(top, logits.size))
    return probabilities, best // logits.shape[1], best % logits.shape[1]


def _sharpened(probabilities: Float[Array, "q k"], temperature: float) -> Float[Array, "q k"]:
    """Softmax of the class probabilities over `temperature`, which sharpens them; 0 leaves them as they are."""
    return probabilities if temperature == 0 else jax.nn.softmax(probabilities / temperature, axis=-1)


def _in_order(chosen: Bool[Array, "q"]) -> tuple[Int[Array, "q"], Int[Array, ""], Int[Array, "q"]]:
    """The chosen queries in their order (then the others), how many there are, and the place of each."""
    return jnp.argsort(~chosen, stable=True), jnp.sum(chosen), jnp.maximum(jnp.cumsum(chosen) - 1, 0)


def _shape(taps: tuple[Taps, Taps]) -> tuple[int, int]:
    return len(taps[0].first), len(taps[1].first)


def _at_a_time(size: int) -> int:
    """How many arrays of `size` values to work on at a time, a power of two."""
    values = _CACHED if jax.default_backend() == "cpu" else _PARALLEL
    return 1 << max(0, (values // size).bit_length() - 1)


def _over_chunks(
    add: Callable[[Int[Array, ""], Int[Array, "n"], T], T],
    order: Int[Array, "q"],
    count: Int[Array, ""],
    step: int,
    state: T,
) -> T:
    """`add` the first `count` entries of `order`, `step` at a time; the last chunk may hold others besides."""
    order = jnp.pad(order, (0, step))
    take = lambda number: lax.dynamic_slice(order, (number * step,), (step,))
    return lax.fori_loop(0, -(-count // step), lambda number, state: add(number * step, take(number), state), state)


def _enlarge(masks: Float[Array, "n h4 w4"], to_original: tuple[Taps, Taps]) -> Float[Array, "n h w"]:
    rows, columns = to_original
    return rows(columns(masks.astype(jnp.float32), axis=2), axis=1)


def _queries_last(masks: Float[Array, "q h4 w4"]) -> Float[Array, "h4 w4 q"]:
    """In this order a pixel's sum over queries is a row of a matrix product, and taps move whole rows of queries."""
    return masks.astype(jnp.float32).transpose(1, 2, 0)


def _sums(
    masks: Float[Array, "h4 w4 q"], rows: Taps, columns: Taps, weights: Float[Array, "q k"]
) -> Float[Array, "h w k"]:
    """Sum over queries of class weight times mask probability at some rows."""
    lines = lax.optimization_barrier(rows(masks, axis=0))  # else each line is computed again for each column
    return jnp.dot(jax.nn.sigmoid(columns(lines, axis=1)), weights, precision="highest")


def best_class(scores: Float[Array, "*n k"]) -> Int[Array, "*n"]:
    """First class with the largest score. Two plain reductions: XLA's `argmax` is several times slower on a CPU."""
    classes = scores.shape[-1]
    best = scores == scores.max(axis=-1, keepdims=True)
    return jnp.min(jnp.where(best, jnp.arange(classes), classes), axis=-1).astype(jnp.int16)


def _same(scores: Float[Array, "*n k"]) -> Float[Array, "*n k"]:
    return scores


def _over_rows(compute: Callable[[Taps], Array], rows: Taps, weights: Float[Array, "q k"], columns: Taps) -> Array:
    """`compute` some rows of the target at a time: [n, w] or [n, w, k] of each become [h, w] or [h, w, k]."""
    height = len(rows.first)
    step = min(BUCKET, _at_a_time(len(columns.first) * max(weights.shape)))
    blocks = jax.tree.map(lambda x: x.reshape(-1, step, *x.shape[1:]), rows)
    found = lax.map(compute, blocks)
    return found.reshape(height, *found.shape[2:])

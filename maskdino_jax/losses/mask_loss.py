"""Cross entropy and Dice of masks, at points that are mostly uncertain ones, for the queries that answer for a target.

The shapes provide for the largest number of objects, of which most images have few. The queries of all prediction
sets of an image therefore stand in one list, and a loop goes through those that exist, some at a time: full masks
exist for these alone, and what the loss costs follows the number of objects.

A loop with a number of turns that the data decide has no derivative in JAX. The gradient is computed in the same turn
as the loss: nothing is kept for a backward pass, neither masks nor points.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from maskdino_jax.config import LossConfig
from maskdino_jax.losses.functional import binary_cross_entropy, dice_loss
from maskdino_jax.ops.points import sample_masks, sample_packed, uncertain_points

# `count` uniform points in [0, 1)^2: (use, source of the image, index, count) -> [count, 2]. For the use `matching` the
# index is that of the prediction set; for `candidates` and `uniform` it is that of the row in `Rows`.
Draw = Callable[[str, Any, Int[Array, ""], int], Float[Array, "c 2"]]

# Rows at a time. 38,000 candidates with four corners each take 0.6 MB of every kind for each row: 32 rows fit into the
# cache of a CPU. A turn of the loop is 167 kernels on a GPU, which should have enough work to outlast their start.
_CHUNK_ON_CPU, _CHUNK = 32, 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Row i of an image says that the query with this `embed` answers for target `target[i]`, where `valid`."""

    embed: Float[Array, "b r d"]
    target: Int[Array, "b r"]
    valid: Bool[Array, "b r"]
    share: Float[Array, "b r"]  # factor of the row in the total


def chunk_size(platform: str) -> int:
    """How many rows at a time suit devices of a platform, `cpu` or another."""
    return _CHUNK_ON_CPU if platform == "cpu" else _CHUNK


def mask_losses(
    rows: Rows,
    features: Float[Array, "b h4 w4 d"],
    masks: UInt8[Array, "b n h w8"],
    sources: Any,
    draw: Draw,
    loss: LossConfig,
    chunk: int,
) -> tuple[Float[Array, "b"], Float[Array, "b r"], Float[Array, "b r"]]:
    """Total of each image, weighted by `rows.share` and `loss.weights`, and both losses of each row, 0 for filler.

    Only the total carries a gradient, to `rows.embed` and `features`.

    Args:
        masks: packed targets.
        sources: a tree with a leading axis for the images, from which `draw` makes the points.
        chunk: rows at a time, see `chunk_size`.
    """
    count = rows.valid.shape[1]
    filler = -count % chunk
    rows = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, filler), *[(0, 0)] * (x.ndim - 2))), rows)
    share = jnp.where(rows.valid, rows.share, 0)
    chunk_loss = functools.partial(_chunk_loss, draw, loss)
    total, losses = _images(chunk_loss, chunk, rows.embed, features, (rows.target, rows.valid, share, masks, sources))
    entropy, dice = jnp.moveaxis(jax.lax.stop_gradient(losses)[..., :count], 1, 0)
    return total, entropy, dice


def _chunk_loss(
    draw: Draw,
    loss: LossConfig,
    embed: Float[Array, "c d"],
    features: Float[Array, "h4 w4 d"],
    index: Int[Array, "c"],
    image: tuple,
) -> tuple[Float[Array, ""], Float[Array, "2 c"]]:
    """Weighted loss of the rows `index` of one image, and the two losses of each."""
    target, valid, share, masks, source = image
    logits = jnp.einsum("cd,hwd->chw", embed, features)
    points_of = lambda use, count: jax.vmap(lambda row: draw(use, source, row, count))(index)
    uncertain = int(loss.importance_ratio * loss.num_points)
    candidates = points_of("candidates", int(loss.oversample_ratio * loss.num_points))
    points = uncertain_points(logits, candidates, points_of("uniform", loss.num_points - uncertain), uncertain)
    sampled, labels = sample_masks(logits, points), sample_packed(masks[target[index]], points)
    entropy = jnp.mean(binary_cross_entropy(sampled, labels), axis=-1)
    dice = dice_loss(sampled, labels)
    total = jnp.sum(share[index] * (loss.weights.mask * entropy + loss.weights.dice * dice))
    return total, jnp.where(valid[index], jnp.stack([entropy, dice]), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _images(chunk_loss: Callable, chunk: int, embed: Array, features: Array, rest: tuple) -> tuple[Array, Array]:
    """Total [b] and losses [b, 2, r] of all images, one after the other."""
    values, _ = jax.lax.map(lambda item: _image(chunk_loss, chunk, *item, gradient=False), (embed, features, rest))
    return values


def _images_and_gradients(chunk_loss: Callable, chunk: int, embed: Array, features: Array, rest: tuple) -> tuple:
    return jax.lax.map(lambda item: _image(chunk_loss, chunk, *item, gradient=True), (embed, features, rest))


def _scale_gradients(_: Callable, __: int, gradients: tuple[Array, Array], slopes: tuple[Array, Array]) -> tuple:
    scaled = ((x * slopes[0].reshape(-1, *[1] * (x.ndim - 1))).astype(x.dtype) for x in gradients)
    return *scaled, None


_images.defvjp(_images_and_gradients, _scale_gradients)


def _image(chunk_loss: Callable, chunk: int, embed: Array, features: Array, image: tuple, *, gradient: bool) -> tuple:
    """Total and losses of one image, and the gradients of the total in `embed` and `features` (or None).

    The features of one image at a time are float32, as is the sum of their gradients over all rows.
    """
    valid, dtype, features = image[1], features.dtype, features.astype(jnp.float32)
    order = jnp.argsort(~valid, stable=True)  # existing rows first

    def turn(i: Int[Array, ""], sums: tuple) -> tuple:
        (total, losses), slopes = sums
        index = jax.lax.dynamic_slice(order, (i * chunk,), (chunk,))
        if gradient:
            both = jax.value_and_grad(chunk_loss, argnums=(0, 1), has_aux=True)
            (more, own), (d_embed, d_features) = both(embed[index], features, index, image)
            slopes = (slopes[0].at[index].set(d_embed), slopes[1] + d_features)
        else:
            more, own = chunk_loss(embed[index], features, index, image)
        return (total + more, losses.at[:, index].set(own)), slopes

    values = (jnp.float32(0), jnp.zeros((2, len(valid)), jnp.float32))
    slopes = (jnp.zeros_like(embed), jnp.zeros_like(features)) if gradient else None
    turns = -(-jnp.sum(valid) // chunk)
    values, slopes = jax.lax.fori_loop(0, turns, turn, (values, slopes))
    return values, slopes and (slopes[0], slopes[1].astype(dtype))

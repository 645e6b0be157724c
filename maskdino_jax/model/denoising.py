"""Unified denoising: noised ground truth as additional decoder queries (Mask DINO, section 3.3; DN-DETR).

The number of slots is fixed, so that every batch has the same shapes. With at most `most` objects in an image of the
batch, the slots hold `num_slots // most` groups of `most` slots each. What remains is inactive: nobody attends to it,
no loss counts it, and so every other number is as it would be without it. Slots of an active group whose image has
fewer objects are unused: they carry a zero content vector and the centre box, their group sees them, and the class
loss treats them as background.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from maskdino_jax.structures import DenoisingPlan, Targets


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
    """The random draws of one batch, one for each image and slot."""

    flip: Float[Array, "*b s"]  # uniform in [0, 1); below half the noise scale the label is replaced
    label: Int[Array, "*b s"]  # the replacement, uniform over all classes, so it may be the true one
    box: Float[Array, "*b s 4"]  # uniform in [0, 1); 0.5 leaves the coordinate where it is


def plan(valid: Bool[Array, "b n"], num_slots: int, most: Int[Array, ""]) -> DenoisingPlan:
    """Assign targets to slots; the group size is `most`, the largest number of objects over the whole batch.

    Without objects, or with more objects in an image than slots, there is no group and every slot is inactive.
    """
    size = jnp.maximum(most, 1)
    num_groups = jnp.where(most > 0, num_slots // size, 0)
    slot = jnp.arange(num_slots)
    group, target = slot // size, slot % size
    active = group < num_groups
    return DenoisingPlan(
        target=target, group=group, active=active, known=active & valid[:, target], num_groups=num_groups
    )


def noised_queries(
    plan: DenoisingPlan, targets: Targets, keys: Key[Array, "b"], noise_scale: float, num_classes: int
) -> tuple[Int[Array, "b s"], Float[Array, "b s 4"]]:
    """Labels and boxes of all slots with fresh noise, drawn from the key of each image; see `apply_noise`."""
    slots = len(plan.target)

    def draw(key: Key[Array, ""]) -> Noise:
        flip, label, box = jax.random.split(key, 3)
        return Noise(
            flip=jax.random.uniform(flip, (slots,)),
            label=jax.random.randint(label, (slots,), 0, num_classes),
            box=jax.random.uniform(box, (slots, 4)),
        )

    return apply_noise(plan, targets, jax.vmap(draw)(keys), noise_scale)


def apply_noise(
    plan: DenoisingPlan, targets: Targets, noise: Noise, noise_scale: float
) -> tuple[Int[Array, "b s"], Float[Array, "b s 4"]]:
    """Labels (0 where unknown; the caller zeroes that content) and cxcywh boxes in [0, 1] (0.5 where unknown).

    A box moves by up to `noise_scale` of its half size and grows or shrinks by up to `noise_scale` of its size.
    """
    labels = jnp.where(noise.flip < noise_scale / 2, noise.label, targets.labels[:, plan.target])
    boxes = targets.boxes[:, plan.target].astype(jnp.float32)
    size = boxes[..., 2:]
    reach = noise_scale * jnp.concatenate([size / 2, size], axis=-1)
    boxes = jnp.clip(boxes + (2 * noise.box - 1) * reach, 0, 1)
    return jnp.where(plan.known, labels, 0), jnp.where(plan.known[..., None], boxes, 0.5)


def attention_mask(plan: DenoisingPlan, num_queries: int) -> Bool[Array, "t t"]:
    """Which of the slots and queries (in this order; rows) may NOT attend to which (columns): True blocks.

    A slot holds the answer, so matching queries see none and slots see only those of their own group, where every
    target occurs once. All see the matching queries, so no row is blocked entirely.
    """
    slots = (plan.group[:, None] != plan.group[None]) | ~plan.active[None]
    return jnp.block(
        [
            [slots, jnp.zeros((slots.shape[0], num_queries), bool)],
            [jnp.ones((num_queries, slots.shape[0]), bool), jnp.zeros((num_queries, num_queries), bool)],
        ]
    )

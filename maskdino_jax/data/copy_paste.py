"""Simple copy-paste (Ghiasi et al. 2021): objects of one training image are laid over another one."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, UInt8

from maskdino_jax.data.masks import packed_areas, unpack_mask
from maskdino_jax.data.objects import Instances, Patch, Segments
from maskdino_jax.data.transforms import Example

_CHANCE = 0.5  # that an object is copied: a random subset, as in the paper


def choose(example: Example, rng: np.random.Generator) -> Bool[np.ndarray, "n"]:
    """Each thing with a chance of one half. Stuff has no outline of its own that could be laid elsewhere."""
    return (rng.random(len(example.labels)) < _CHANCE) & example.is_thing


def paste(base: Example, other: Example, chosen: Bool[np.ndarray, "n"]) -> Example:
    """Lay the chosen objects of `other` over `base`; both are crops of one size, of one data set.

    Pixels are replaced, without blending: the paper finds no gain in it. Masks lose what is covered, and their boxes
    follow; an outline that nothing lies over keeps its own box. Instances that vanish are dropped, segments stay with
    an empty mask, both as in `Objects.move`. Pasted objects come last, those without a pixel not at all.

    Raises:
        TypeError: the objects have no masks, or are of two kinds.
    """
    kinds = type(base.objects), type(other.objects)
    if kinds not in ((Instances, Instances), (Segments, Segments)):
        raise TypeError(f"{kinds[0].__name__} and {kinds[1].__name__} cannot be pasted: give two of one kind.")
    rasters = other.objects.rasters()
    pasted = np.flatnonzero(chosen & (rasters.areas > 0))
    masks = rasters.masks[pasted]
    covered = np.bitwise_or.reduce(masks, axis=0)
    if isinstance(base.objects, Instances):
        shapes, kept = _cut(base.objects, covered)
        objects = Instances(base.objects.size, shapes + tuple(other.objects.shapes[index] for index in pasted))
    else:
        objects, kept = _paint(base.objects, masks), np.arange(len(base.labels))
    return dataclasses.replace(
        base,
        image=np.where(unpack_mask(covered)[..., None], other.image, base.image),
        labels=np.concatenate([base.labels[kept], other.labels[pasted]]),
        is_thing=np.concatenate([base.is_thing[kept], other.is_thing[pasted]]),
        objects=objects,
    )


def _cut(objects: Instances, covered: UInt8[np.ndarray, "h w8"]) -> tuple[tuple, Int[np.ndarray, "n"]]:
    """What is left of the objects under packed pixels, and their positions. Those that nothing covers stay as they
    are."""
    masks = objects.rasters().masks
    left = masks & ~covered
    kept = np.flatnonzero(packed_areas(left))
    touched = (masks & covered).any(axis=(1, 2))
    return tuple(Patch(0, 0, left[index]) if touched[index] else objects.shapes[index] for index in kept), kept


def _paint(objects: Segments, masks: UInt8[np.ndarray, "n h w8"]) -> Segments:
    """The map with further segments, whose ids are new."""
    id_map = objects.id_map.astype(np.int32)  # a copy
    unused = max(int(id_map.max()), 0, *objects.ids) + 1
    ids = tuple(range(unused, unused + len(masks)))
    for id, mask in zip(ids, masks, strict=True):
        id_map[unpack_mask(mask)] = id
    return Segments(id_map, objects.ids + ids)

"""Run lengths of packed masks are those of pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskdino_jax.inference.run_lengths import encode_bits


def by_pycocotools(masks: np.ndarray) -> list[dict]:
    entries = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8))) if len(masks) else []
    return [entry | {"counts": entry["counts"].decode()} for entry in entries]


def encode(masks: np.ndarray) -> list[dict]:
    return encode_bits(np.packbits(masks, axis=-1), masks.shape[-1])


def test_a_mask_by_hand():
    """Down the columns of 3 x 2 pixels: 1 zero, then 3 ones that go on in the second column, then 2 zeros."""
    mask = np.array([[0, 1], [1, 0], [1, 0]], bool)
    assert encode(mask[None]) == [{"size": [3, 2], "counts": "132"}], "characters count from 0, which is 48"


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.98, 1])
def test_random_masks_of_any_size(share):
    rng = np.random.default_rng(int(100 * share))
    for _ in range(40):
        height, width, count = *rng.integers(1, 40, 2), rng.integers(0, 5)
        masks = rng.random((count, height, width)) < share
        masks[: count // 2, :, : width // 2] = True  # whole columns: runs that go on from one to the next
        assert encode(masks) == by_pycocotools(masks)


def test_long_runs_take_several_characters():
    masks = np.zeros((3, 1500, 1100), bool)
    masks[1, 700:, 1000:] = True
    masks[2, 3:1400:7, 5:1000:11] = True
    assert encode(masks) == by_pycocotools(masks)

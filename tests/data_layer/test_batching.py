"""Padding to static shapes, and masks as bits."""

import dataclasses
import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from maskdino_jax.data.batching import collate, sample
from maskdino_jax.data.masks import pack_mask, unpack_mask
from maskdino_jax.data.objects import Instances, Outline, Segments
from maskdino_jax.data.transforms import Example


@given(npst.arrays(bool, st.tuples(st.integers(0, 3), st.integers(1, 9), st.sampled_from([32, 64]))))
def test_packing_is_undone_by_unpacking(mask):
    packed = pack_mask(mask)
    assert packed.shape == (*mask.shape[:2], mask.shape[2] // 8)
    np.testing.assert_array_equal(unpack_mask(packed), mask)


def test_the_first_pixel_is_the_highest_bit():
    mask = np.zeros((1, 32), bool)
    mask[0, [0, 9]] = True
    np.testing.assert_array_equal(pack_mask(mask), [[128, 64, 0, 0]])


def rectangles(*corners):
    """A 32 x 64 image with one outline for each (x0, y0, x1, y1); its label is its position, odd ones are things."""
    outline = lambda x0, y0, x1, y1: Outline((np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float),))
    count = len(corners)
    return Example(
        image=np.full((32, 64, 3), 9, np.uint8),
        labels=np.arange(count),
        is_thing=np.arange(count) % 2 == 1,
        objects=Instances((32, 64), tuple(outline(*corner) for corner in corners)),
    )


def test_boxes_are_centre_and_size_as_shares_of_the_crop():
    packed = sample(rectangles((8, 4, 24, 20), (0, 0, 64, 32)), record=3, max_instances=5)
    np.testing.assert_array_equal(packed.boxes, [[16 / 64, 12 / 32, 16 / 64, 16 / 32], [0.5, 0.5, 1, 1]])
    assert packed.boxes.dtype == np.float32


def test_objects_come_first_and_the_rest_is_zero():
    batch = collate([sample(rectangles((8, 4, 24, 20), (0, 0, 8, 8)), 7, 4), sample(rectangles(), 5, 4)], 4)
    targets = batch.targets
    np.testing.assert_array_equal(targets.valid, [[True, True, False, False], [False] * 4])
    np.testing.assert_array_equal(targets.labels, [[0, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(targets.is_thing, [[False, True, False, False], [False] * 4])
    np.testing.assert_array_equal(batch.records, [7, 5])
    np.testing.assert_array_equal(batch.dropped, [0, 0])
    masks = unpack_mask(targets.masks)
    expected = np.zeros((32, 64), bool)
    expected[4:20, 8:24] = True
    np.testing.assert_array_equal(masks[0, 0], expected)
    np.testing.assert_array_equal(masks.sum(axis=(2, 3)), [[256, 64, 0, 0], [0, 0, 0, 0]])
    assert not targets.boxes[0, 2:].any()
    assert (batch.images.shape, batch.images.dtype) == ((2, 32, 64, 3), np.uint8)
    assert (targets.masks.shape, targets.masks.dtype) == ((2, 4, 32, 8), np.uint8)
    assert (targets.labels.dtype, targets.boxes.dtype, batch.records.dtype) == (np.int32, np.float32, np.int32)


def test_the_largest_objects_are_kept_in_their_order_and_the_others_counted():
    corners = [(0, 0, 2, 2), (0, 0, 10, 10), (0, 0, 4, 4), (0, 0, 20, 20), (4, 4, 8, 8)]
    packed = sample(rectangles(*corners), record=0, max_instances=3)
    np.testing.assert_array_equal(packed.labels, [1, 2, 3])  # of the two of 16 pixels, the first
    np.testing.assert_array_equal(packed.is_thing, [True, False, True])
    np.testing.assert_array_equal(packed.boxes[:, 2] * 64, [10, 4, 20])
    np.testing.assert_array_equal(unpack_mask(packed.masks).sum(axis=(1, 2)), [100, 16, 400])
    assert packed.dropped == 2


def test_of_many_equal_objects_the_first_are_kept():
    packed = sample(rectangles(*[(0, 0, 4, 4), (0, 0, 8, 8)] * 100), record=0, max_instances=50)
    np.testing.assert_array_equal(packed.labels, np.arange(1, 101, 2))  # 50 of the 100 large ones


def test_an_empty_segment_is_an_object_with_a_zero_mask_and_a_zero_box():
    example = Example(
        image=np.zeros((32, 32, 3), np.uint8),
        labels=np.array([4]),
        is_thing=np.array([True]),
        objects=Segments(np.full((32, 32), -1), (8,)),
    )
    targets = collate([sample(example, 0, 2)], 2).targets
    np.testing.assert_array_equal(targets.valid, [[True, False]])
    assert targets.labels[0, 0] == 4
    assert not targets.boxes.any()
    assert not targets.masks.any()


def test_objects_outside_of_the_crop_are_no_targets_unless_kept():
    """Three objects, the middle one without a pixel: it is neither a target nor counted as dropped."""
    example = rectangles((0, 0, 4, 4), (0, 0, 0, 0), (0, 0, 8, 8))
    packed = sample(example, record=0, max_instances=1, keep_empty=False)
    np.testing.assert_array_equal(packed.labels, [2])
    assert packed.dropped == 1
    np.testing.assert_array_equal(sample(example, 0, 3, keep_empty=False).labels, [0, 2])
    assert len(sample(example, 0, 3, keep_empty=True).labels) == 3


def test_what_crosses_the_pipe_is_the_image_and_a_bit_for_each_pixel_of_a_mask():
    """100 objects on 1024 x 1024 pixels: 3.1 MB and 13.1 MB; as bytes the masks alone would be 105 MB."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 120, (64, 64)).astype(np.int32).repeat(16, axis=0).repeat(16, axis=1)
    example = Example(
        image=rng.integers(0, 256, (1024, 1024, 3), dtype=np.uint8),
        labels=np.arange(120),
        is_thing=np.ones(120, bool),
        objects=Segments(ids, tuple(range(120))),
    )
    found = sample(example, record=0, max_instances=100)
    assert found.masks.shape == (100, 1024, 128)
    assert len(pickle.dumps(found)) < 1024 * 1024 * (3 + 100 / 8) + 10_000


def test_a_sample_holds_no_view_of_a_larger_array():
    """A view would send what it looks at, or keep it in memory."""
    corners = [(0, 0, 4, 4), (0, 0, 8, 8), (0, 0, 16, 16)]
    for limit in (1, 3):
        packed = sample(rectangles(*corners), record=0, max_instances=limit)
        arrays = [getattr(packed, field.name) for field in dataclasses.fields(packed)]
        assert all(
            array.base is None or array.base.nbytes <= array.nbytes for array in arrays if hasattr(array, "base")
        )

"""Packed masks: boxes and areas against those of whole masks; label maps against one comparison for each label."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from maskdino_jax.data.geometry import Geometry
from maskdino_jax.data.label_maps import index_map, map_rasters, present_labels
from maskdino_jax.data.masks import mask_box, pack_mask, packed_areas, packed_box, unpack_mask
from maskdino_jax.data.objects import Instances, Patch, RunLengths
from maskdino_jax.data.runs import encode_runs


@given(npst.arrays(bool, st.tuples(st.integers(0, 3), st.integers(1, 9), st.sampled_from([8, 24, 64]))))
def test_boxes_and_areas_of_packed_masks(masks):
    packed = pack_mask(masks)
    np.testing.assert_array_equal(packed_areas(packed), masks.sum(axis=(1, 2)))
    for mask, bits in zip(masks, packed, strict=True):
        np.testing.assert_array_equal(packed_box(bits), mask_box(mask))


sides = st.integers(1, 30)
maps = st.tuples(sides, sides).flatmap(
    lambda shape: npst.arrays(np.int32, shape, elements=st.sampled_from([0, 3, 7, 256, 70000]), fill=st.just(7))
)
IDS = (70000, 5, 3, 7)  # in no order; 5 is nowhere, 0 and 256 are not asked for


@given(maps)
def test_an_index_map_says_the_place_of_each_label(labels):
    positions, boxes = index_map(labels, IDS)
    assert positions.dtype == np.uint8
    for index, number in enumerate(IDS):
        np.testing.assert_array_equal(positions == index, labels == number)
        np.testing.assert_array_equal(boxes[index], mask_box(labels == number))


@given(maps)
def test_present_labels_are_the_different_values(labels):
    np.testing.assert_array_equal(present_labels(labels), np.unique(labels))


def test_more_labels_than_a_byte_holds():
    labels = np.arange(300, dtype=np.int32).reshape(15, 20)
    positions, _ = index_map(labels, range(300))
    np.testing.assert_array_equal(positions, labels)


geometries = st.builds(
    lambda scaled, corner, flip, flip_last: (scaled, corner, flip, flip_last),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.booleans(),
    st.booleans(),
)


def geometry(original, draws):
    scaled, corner, flip, flip_last = draws
    offset = tuple(round(max(side - limit, 0) * at) for side, limit, at in zip(scaled, (20, 21), corner, strict=True))
    return Geometry(original=original, flip=flip, scaled=scaled, offset=offset, window=(20, 21), flip_last=flip_last)


@given(maps, geometries)
def test_rasters_of_a_map_are_comparisons_with_the_moved_map(labels, draws):
    change = geometry(labels.shape, draws)
    masks, boxes, areas = map_rasters(labels, IDS, change)
    moved = change.move_map(labels, -1)
    for index, number in enumerate(IDS):
        mask = moved == number
        np.testing.assert_array_equal(unpack_mask(masks[index])[:, :21], mask)
        np.testing.assert_array_equal(boxes[index], mask_box(mask))
        assert areas[index] == mask.sum()


@given(maps, geometries)
def test_moved_run_lengths_are_the_moved_mask(labels, draws):
    mask, change = labels == 7, geometry(labels.shape, draws)
    expected = change.move_map(mask, False)
    moved, kept = Instances(mask.shape, (RunLengths(encode_runs(mask)),)).move(change)
    assert len(kept) == expected.any()
    if len(kept):
        masks, boxes, areas = moved.rasters()
        np.testing.assert_array_equal(unpack_mask(masks[0])[:, :21], expected)
        np.testing.assert_array_equal(boxes[0], mask_box(expected))
        assert areas[0] == expected.sum()
        for found, one in zip(moved.raster(0), (expected, mask_box(expected)), strict=True):
            np.testing.assert_array_equal(found, one)


def test_a_patch_can_be_moved_again():
    patch = Patch(2, 1, np.array([[0b11110000]], np.uint8))  # row 2, columns 8 to 11
    mirror = Geometry(original=(4, 16), flip=True, scaled=(4, 16), offset=(0, 0), window=(4, 16))
    _, box = patch.move(mirror).raster((4, 16))
    np.testing.assert_array_equal(box, [4, 2, 8, 3])
    away = Geometry(original=(4, 16), flip=False, scaled=(4, 16), offset=(0, 0), window=(2, 16))
    assert patch.move(away) is None

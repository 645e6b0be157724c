"""Run lengths against pycocotools, which wrote the format."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as coco_mask

from maskdino_jax.data.runs import decode_box, decode_runs, encode_runs, parse_runs

masks = npst.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@given(masks)
def test_what_pycocotools_encodes_is_read_back(mask):
    runs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    np.testing.assert_array_equal(decode_runs(parse_runs(runs), *mask.shape), mask)
    as_text = runs | {"counts": runs["counts"].decode()}  # as in a JSON file
    np.testing.assert_array_equal(parse_runs(as_text), parse_runs(runs))


@given(masks)
def test_encoding_and_decoding_are_inverse(mask):
    np.testing.assert_array_equal(decode_runs(encode_runs(mask), *mask.shape), mask)


def test_runs_of_many_digits_and_negative_differences():
    mask = np.zeros((1000, 1200), bool)
    mask[3:990, 5] = True
    mask[100:104, 1100:] = True
    runs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    np.testing.assert_array_equal(decode_runs(parse_runs(runs), 1000, 1200), mask)


def test_runs_go_down_the_columns_zeros_first():
    lengths = parse_runs({"size": [2, 3], "counts": [1, 2, 3]})
    np.testing.assert_array_equal(decode_runs(lengths, 2, 3), [[0, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize("counts", [[1, 2], "3", "", "o", [10, -4]])
def test_runs_that_do_not_cover_the_image_are_an_error(counts):
    with pytest.raises(ValueError, match=r"of the 2 x 3 in its size. Correct segmentation.counts"):
        parse_runs({"size": [2, 3], "counts": counts})


@given(masks)
def test_a_decoded_box_is_the_part_of_the_mask_that_is_not_empty(mask):
    (x, y), part = decode_box(encode_runs(mask), mask.shape[0])
    placed = np.zeros_like(mask)
    placed[y : y + part.shape[0], x : x + part.shape[1]] = part
    np.testing.assert_array_equal(placed, mask)
    assert part.size == 0 or (part[:, 0].any() and part[:, -1].any())


def test_a_decoded_box_is_tight_unless_a_run_goes_on_in_the_next_column():
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:6] = True
    corner, part = decode_box(encode_runs(mask), 6)
    assert (corner, part.shape) == ((3, 2), (2, 3))
    mask[:, 4] = True  # down to the last row, and the next column begins at the first one
    mask[0, 5] = True
    corner, part = decode_box(encode_runs(mask), 6)
    assert (corner, part.shape) == ((3, 0), (6, 3))

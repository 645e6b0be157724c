"""A window of Pillow's bilinear resize against the window cut out of the whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskdino_jax.data.resample import resize_window


def whole(image, scaled, flip):
    flipped = np.ascontiguousarray(image[:, ::-1]) if flip else image
    return np.asarray(Image.fromarray(flipped).resize(scaled[::-1], Image.Resampling.BILINEAR))


def assert_window(image, scaled, offset, size, flip):
    canvas = np.full((size[0] + 1, size[1] + 2, 3), 77, np.uint8)
    resize_window(image, scaled, offset, canvas[: size[0], : size[1]], flip=flip)
    expected = whole(image, scaled, flip)[offset[0] :, offset[1] :][: size[0], : size[1]]
    np.testing.assert_array_equal(canvas[: size[0], : size[1]], expected)
    assert np.all(canvas[size[0] :] == 77)
    assert np.all(canvas[:, size[1] :] == 77)


sides = st.integers(1, 60)


@given(
    original=st.tuples(sides, sides),
    scaled=st.tuples(st.integers(1, 130), st.integers(1, 130)),
    corner=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    share=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    flip=st.booleans(),
    levels=st.sampled_from([2, 3, 256]),
    seed=st.integers(0, 9),
)
def test_any_window_is_cut_out_of_pillows_resize(original, scaled, corner, share, flip, levels, seed):
    image = np.random.default_rng(seed).integers(0, levels, (*original, 3)) * (255 // (levels - 1))
    offset = tuple(int(part * (side - 1)) for part, side in zip(corner, scaled, strict=True))
    size = tuple(1 + int(part * (side - at - 1)) for part, side, at in zip(share, scaled, offset, strict=True))
    assert_window(image.astype(np.uint8), scaled, offset, size, flip)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scaled", [(768, 1024), (1365, 2048), (961, 1281), (480, 1000), (1000, 640), (333, 444)])
def test_photographs_of_common_sizes(coco_instances, scaled, flip):
    path = f"{coco_instances.root}/val2017/000000000885.jpg"
    image = np.asarray(Image.open(path).resize((640, 480)))
    size = min(scaled[0], 1024), min(scaled[1], 1024)
    offset = round((scaled[0] - size[0]) * 0.37), round((scaled[1] - size[1]) * 0.37)
    assert_window(image, scaled, offset, size, flip)


@pytest.mark.parametrize("sides", [(480, 2047), (480, 960), (320, 480), (427, 641), (500, 513)])
def test_all_differences_of_bytes_with_all_shares(sides):
    """Even rows are 0 or 255, odd ones differ by 0 to 255; 480 / 320 makes shares of 1/6, next to a tie."""
    rows = np.zeros((sides[0], 512), np.uint8)
    rows[:, 256:] = 255
    rows[1::2] = np.concatenate([np.arange(256), np.arange(256)[::-1]])
    image = np.repeat(rows[:, :, None], 3, axis=2)
    assert_window(image, (sides[1], 1024), (0, 0), (sides[1], 1024), False)
    assert_window(image.transpose(1, 0, 2), (1024, sides[1]), (0, 0), (1024, sides[1]), False)


def test_halves_round_up_as_in_pillow():
    """Twice as large, a step from 0 to 2 passes 0.5 and 1.5."""
    image = np.repeat(np.array([[[0]], [[2]]], np.uint8), 3, axis=2)
    out = np.empty((4, 1, 3), np.uint8)
    resize_window(image, (4, 1), (0, 0), out)
    np.testing.assert_array_equal(out[:, 0, 0], [0, 1, 2, 2])

"""Resize by the shorter side, crop, colours, flip: pixels against Pillow, labels against the rule, colours by hand."""

import colorsys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskdino_jax.config import DataConfig
from maskdino_jax.data.augmentation import augment
from maskdino_jax.data.colors import ColorDraws, draw_colors, hsv_to_rgb, rgb_to_hsv, shift_colors
from maskdino_jax.data.objects import Instances, Outline, Segments
from maskdino_jax.data.short_edge import ShortEdgeDraws, draw_short_edge, short_edge
from maskdino_jax.data.transforms import Example

PLAIN = ColorDraws(brightness=None, contrast=None, saturation=None, hue=None, contrast_first=True)


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def labelled(height, width):
    """Noise in which each pixel is an object of its own."""
    ids = np.arange(height * width, dtype=np.int32).reshape(height, width)
    return Example(
        image=noise(height, width),
        labels=np.zeros(1, int),
        is_thing=np.zeros(1, bool),
        objects=Segments(ids, (0,)),
    )


def draws(short_side, position=(0.0, 0.0), colors=None, flip=False):
    return ShortEdgeDraws(short_side=short_side, position=position, colors=colors, flip=flip)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("short_side", "position", "scaled", "offset"),
    [
        (64, (0.0, 0.0), (64, 96), (0, 0)),  # 40 x 60
        (64, (0.99, 0.99), (64, 96), (16, 32)),  # the crop of 48 x 64 at the other end
        (64, (0.5, 0.25), (64, 96), (8, 8)),  # 0.5 of 17 places, 0.25 of 33
        (90, (0.2, 0.7), (80, 120), (6, 39)),  # 135 columns are beyond the limit of 120
        (20, (0.7, 0.7), (20, 30), (0, 0)),  # smaller than the crop
        (52, (0.0, 0.5), (52, 78), (0, 7)),
    ],
)
def test_image_and_labels_are_resized_cut_flipped_and_padded(short_side, position, scaled, offset, flip):
    example = labelled(40, 60)
    moved = short_edge(example, draws(short_side, position, flip=flip), (48, 64), 120)
    image = np.asarray(Image.fromarray(example.image).resize(scaled[::-1], Image.Resampling.BILINEAR))
    rows, columns = np.floor(np.arange(scaled[0]) * 40 / scaled[0]), np.floor(np.arange(scaled[1]) * 60 / scaled[1])
    ids = example.objects.id_map[rows.astype(int)[:, None], columns.astype(int)]
    for whole, found, padding in ((image, moved.image, 128), (ids, moved.objects.id_map, -1)):
        crop = whole[offset[0] :, offset[1] :][:48, :64]
        crop = crop[:, ::-1] if flip else crop
        expected = np.full((48, 64, *crop.shape[2:]), padding)
        expected[: crop.shape[0], : crop.shape[1]] = crop
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("flip", [False, True])
def test_outlines_move_as_the_image_does(flip):
    image = np.zeros((32, 48, 3), np.uint8)
    image[3:9, 10:26] = 255
    outline = Outline((np.array([[10, 3], [26, 3], [26, 9], [10, 9]], float),))
    example = Example(
        image=image,
        labels=np.array([5]),
        is_thing=np.ones(1, bool),
        objects=Instances((32, 48), (outline,)),
    )
    moved = short_edge(example, draws(32, (0.1, 0.3), flip=flip), (24, 32), 48)
    np.testing.assert_array_equal(moved.objects.raster(0)[0], moved.image[..., 0] == 255)
    assert moved.objects.raster(0)[0].any()


def test_every_place_of_the_crop_is_drawn_equally_often():
    example = labelled(4, 11)
    corners = [
        short_edge(example, draws(4, (0.0, share)), (4, 8), 99).objects.id_map[0, 0]
        for share in np.linspace(0, 1, 400, endpoint=False)
    ]
    np.testing.assert_array_equal(np.bincount(corners), [100, 100, 100, 100])


def test_colours_change_the_crop_and_not_the_padding():
    brighter = ColorDraws(brightness=30.0, contrast=None, saturation=None, hue=None, contrast_first=True)
    plain = short_edge(labelled(8, 8), draws(8), (8, 12), 99).image
    shifted = short_edge(labelled(8, 8), draws(8, colors=brighter), (8, 12), 99).image
    np.testing.assert_array_equal(shifted[:, :8], np.minimum(plain[:, :8].astype(int) + 30, 255))
    np.testing.assert_array_equal(shifted[:, 8:], np.full((8, 4, 3), 128))


def test_draws_come_in_the_documented_order():
    data = DataConfig(short_sides=(256, 512, 1024), color_jitter=True)
    rng = np.random.default_rng(7)
    short_side, position = rng.choice([256, 512, 1024]), (rng.random(), rng.random())
    expected = ShortEdgeDraws(
        short_side=short_side, position=position, colors=draw_colors(rng), flip=rng.random() < 0.5
    )
    assert draw_short_edge(np.random.default_rng(7), data) == expected
    assert draw_short_edge(np.random.default_rng(7), DataConfig(short_sides=(256,))).colors is None


def test_the_config_chooses_the_augmentation():
    data = DataConfig(augmentation="short_edge", image_size=(32, 64), short_sides=(40,), long_side=50, flip=0.0)
    found = augment(labelled(20, 30), np.random.default_rng(3), data)
    expected = short_edge(labelled(20, 30), draw_short_edge(np.random.default_rng(3), data), (32, 64), 50)
    np.testing.assert_array_equal(found.image, expected.image)


def test_each_colour_step_happens_half_of_the_time_and_within_its_range():
    many = [draw_colors(np.random.default_rng(seed)) for seed in range(400)]
    limits = {"brightness": (-32, 32), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-18, 18)}
    for field, (low, high) in limits.items():
        values = [getattr(one, field) for one in many if getattr(one, field) is not None]
        assert 160 < len(values) < 240  # 200 expected, within four standard deviations
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high
    assert 160 < sum(one.contrast_first for one in many) < 240


def pixel(*rgb):
    return np.array([[rgb]], np.uint8)


@pytest.mark.parametrize(
    ("rgb", "hsv"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((255, 255, 255), (0, 0, 255)),
        ((255, 0, 0), (0, 255, 255)),
        ((0, 255, 0), (60, 255, 255)),
        ((0, 0, 255), (120, 255, 255)),
        ((255, 0, 128), (165, 255, 255)),  # 330 degrees: 180 - 30 * 128 / 255
        ((10, 20, 30), (105, 170, 30)),  # 210 degrees; 255 * 20 / 30
    ],
)
def test_hue_is_in_steps_of_two_degrees(rgb, hsv):
    np.testing.assert_array_equal(rgb_to_hsv(pixel(*rgb)), pixel(*hsv))


def test_hsv_agrees_with_the_standard_library_up_to_rounding():
    pixels = noise(40, 50)
    found = rgb_to_hsv(pixels).reshape(-1, 3).astype(float)
    exact = np.array([colorsys.rgb_to_hsv(*rgb) for rgb in pixels.reshape(-1, 3) / 255]) * [180, 255, 255]
    hue = np.abs(found[:, 0] - exact[:, 0])
    table = 0.5 / 4096  # rounding of the reciprocals, besides that of the result
    np.testing.assert_array_less(np.minimum(hue, 180 - hue), 0.5 + 5 * 255 * table)
    np.testing.assert_allclose(found[:, 1:], exact[:, 1:], atol=0.5 + 255 * table)


@given(st.integers(0, 179), st.integers(0, 255), st.integers(0, 255))
def test_rgb_agrees_with_the_standard_library(hue, saturation, value):
    exact = np.array(colorsys.hsv_to_rgb(hue / 180, saturation / 255, value / 255)) * 255
    np.testing.assert_allclose(hsv_to_rgb(pixel(hue, saturation, value))[0, 0], exact, atol=0.501)


@pytest.mark.parametrize(
    ("change", "rgb", "expected"),
    [
        ({"brightness": -20.5}, (10, 20, 200), (0, 0, 179)),  # below zero, cut off at the point
        ({"brightness": 30.9}, (10, 20, 250), (40, 50, 255)),
        ({"contrast": 1.5}, (11, 100, 200), (16, 150, 255)),
        ({"saturation": 0.5}, (200, 100, 100), (200, 151, 151)),  # from 127 to 63: 200 * (1 - 63 / 255) = 150.6
        ({"hue": 10}, (200, 0, 0), (200, 67, 0)),  # 20 degrees: a third of the way to yellow
        ({"hue": -10}, (200, 0, 0), (200, 0, 67)),  # hue 170
    ],
)
def test_each_step_by_hand(change, rgb, expected):
    moved = shift_colors(pixel(*rgb), ColorDraws(**{"contrast_first": True, **vars(PLAIN), **change}))
    np.testing.assert_array_equal(moved, pixel(*expected))


def test_contrast_comes_first_or_last():
    shift = lambda first: shift_colors(
        pixel(200, 100, 100),
        ColorDraws(brightness=None, contrast=1.5, saturation=0.5, hue=None, contrast_first=first),
    )
    np.testing.assert_array_equal(shift(True), pixel(255, 203, 203))  # 255, 150, 150; saturation 105 becomes 52
    np.testing.assert_array_equal(shift(False), pixel(255, 226, 226))  # 200, 151, 151; then times 1.5

"""Large-scale jittering: pixels against Pillow, outlines by hand, and everything moving together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from maskdino_jax.config import DataConfig
from maskdino_jax.data.geometry import Geometry
from maskdino_jax.data.masks import mask_box
from maskdino_jax.data.objects import Instances, Outline, RunLengths, Segments
from maskdino_jax.data.runs import encode_runs
from maskdino_jax.data.transforms import Draws, Example, draw, jitter

STILL = Draws(flip=False, scale=1.0, position=0.0)


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def example(objects, image=None):
    image = np.zeros((*objects.size, 3), np.uint8) if image is None else image
    count = len(objects)
    return Example(image=image, labels=np.arange(count), is_thing=np.ones(count, bool), objects=objects)


def outlines(height, width, *objects):
    """Each object is a list of polygons, each polygon a flat list x, y, x, y, ..."""
    polygons = lambda shape: tuple(np.array(polygon, float).reshape(-1, 2) for polygon in shape)
    return Instances((height, width), tuple(Outline(polygons(shape)) for shape in objects))


def by_pillow(image, draws, scaled, offset, size, padding):
    """Mirror, resize and paste with Pillow alone, sizes and offsets given."""
    picture = Image.fromarray(image)
    if draws.flip:
        picture = ImageOps.mirror(picture)
    picture = picture.resize(scaled[::-1], Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", size[::-1], (padding,) * 3)
    canvas.paste(picture, (-offset[1], -offset[0]))
    return np.asarray(canvas)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("scale", "position", "scaled", "offset"),
    [
        (1.0, 0.3, (48, 64), (0, 0)),  # 60 x 80 into 64 x 64: factor 0.8
        (0.25, 0.7, (12, 16), (0, 0)),
        (2.0, 0.25, (96, 128), (8, 16)),  # a quarter of 96 - 64 and of 128 - 64
        (1.5, 0.9, (72, 96), (7, 29)),  # 0.9 of 8 and of 32, rounded
    ],
)
def test_the_image_is_what_pillow_makes_of_it(flip, scale, position, scaled, offset):
    draws = Draws(flip=flip, scale=scale, position=position)
    image = noise(60, 80)
    moved = jitter(example(outlines(60, 80), image), draws, (64, 64)).image
    np.testing.assert_array_equal(moved, by_pillow(image, draws, scaled, offset, (64, 64), 128))


@pytest.mark.parametrize(("side", "expected"), [(5, 2), (7, 4)])  # 2.5 and 3.5
def test_sizes_round_half_to_even(side, expected):
    image = np.zeros((side, side, 3), np.uint8)
    moved = jitter(example(outlines(side, side), image), Draws(flip=False, scale=0.5, position=0), (side, side)).image
    seen = moved[..., 0] != 128
    assert (np.count_nonzero(seen[:, 0]), np.count_nonzero(seen[0])) == (expected, expected)


@given(
    original=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    scaled=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    share=st.floats(0, 1),
    flip=st.booleans(),
)
def test_a_map_moves_as_pillows_nearest_filter_moves_it(original, scaled, share, flip):
    window = (20, 24)
    offset = round(max(scaled[0] - 20, 0) * share), round(max(scaled[1] - 24, 0) * share)
    geometry = Geometry(original=original, flip=flip, scaled=scaled, offset=offset, window=window)
    labels = np.arange(original[0] * original[1], dtype=np.int32).reshape(original)
    whole = Image.fromarray(labels[:, ::-1].copy() if flip else labels).resize(scaled[::-1], Image.Resampling.NEAREST)
    expected = np.full(window, -7)
    seen = np.asarray(whole)[offset[0] :, offset[1] :][:20, :24]
    expected[: seen.shape[0], : seen.shape[1]] = seen
    np.testing.assert_array_equal(geometry.move_map(labels, padding=-7), expected)


def painted(kind):
    """An image that is white on the one object and black elsewhere; the object lies off centre."""
    mask = np.zeros((32, 32), bool)
    mask[3:9, 4:20] = True
    mask[9:15, 4:8] = True
    objects = {
        "outline": outlines(32, 32, [[4, 3, 20, 3, 20, 9, 8, 9, 8, 15, 4, 15]]),
        "runs": Instances((32, 32), (RunLengths(encode_runs(mask)),)),
        "segments": Segments(np.where(mask, 700, 0), (700,)),
    }[kind]
    return example(objects, np.repeat(255 * mask.astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["outline", "runs", "segments"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("size", "position"), [(32, 0.0), (16, 0.25)])  # the whole image, or a part of it
def test_image_mask_and_box_move_together(kind, flip, size, position):
    draws = Draws(flip=flip, scale=32 / size, position=position)
    moved = jitter(painted(kind), draws, (size, size))
    mask, box = moved.objects.raster(0)
    np.testing.assert_array_equal(mask, moved.image[..., 0] == 255)
    np.testing.assert_array_equal(box, mask_box(moved.image[..., 0] == 255))
    assert mask.any()


@pytest.mark.parametrize("kind", ["outline", "runs", "segments"])
def test_a_flip_mirrors_the_object(kind):
    plain, _ = jitter(painted(kind), STILL, (32, 32)).objects.raster(0)
    flipped, box = jitter(painted(kind), Draws(flip=True, scale=1.0, position=0.0), (32, 32)).objects.raster(0)
    np.testing.assert_array_equal(flipped, plain[:, ::-1])
    np.testing.assert_array_equal(box, [12, 3, 28, 15])  # from [4, 3, 20, 15] in 32 columns


def test_outline_masks_are_pycocotools_raster_of_the_moved_polygons():
    triangle, quad = [10.3, 4.2, 50.7, 20.1, 22.9, 55.5], [1.5, 30.25, 9, 31, 12.2, 47, 2, 40]
    moved = jitter(example(outlines(60, 80, [triangle, quad])), Draws(flip=True, scale=0.5, position=0.4), (64, 64))
    factor = 0.4  # 60 x 80 into half of 64 x 64
    by_hand = []
    for polygon in (triangle, quad):
        xy = np.reshape(polygon, (-1, 2)) * [-1, 1] + [80, 0]
        by_hand.append((xy * factor).ravel())
    expected = coco_mask.merge(coco_mask.frPyObjects(by_hand, 64, 64))
    mask, box = moved.objects.raster(0)
    assert coco_mask.encode(np.asfortranarray(mask, np.uint8)) == expected
    np.testing.assert_allclose(box, [(80 - 50.7) * 0.4, 4.2 * 0.4, (80 - 1.5) * 0.4, 55.5 * 0.4], rtol=1e-6)


def crop(objects, offset=4):
    """See a 16 x 16 image through the 8 x 8 window at (offset, offset)."""
    return jitter(example(objects), Draws(flip=False, scale=2.0, position=offset / 8), (8, 8)).objects


def test_boxes_are_the_extent_of_the_clipped_outline():
    clipped = crop(outlines(16, 16, [[0.5, 6.25, 9.5, 6.25, 9.5, 20, 0.5, 20]]))  # window [4, 12] both ways
    np.testing.assert_array_equal(clipped.raster(0)[1], [0, 2.25, 5.5, 8])


def test_an_outline_that_the_window_cuts_apart_becomes_two_polygons():
    letter_c = [0, 5, 16, 5, 16, 7, 2, 7, 2, 8, 16, 8, 16, 10, 0, 10]  # its back lies left of the window [4, 12]
    cut = crop(outlines(16, 16, [letter_c])).shapes[0]
    corners = sorted(sorted(map(tuple, polygon)) for polygon in cut.polygons)
    assert corners == [[(0, 1), (0, 3), (8, 1), (8, 3)], [(0, 4), (0, 6), (8, 4), (8, 6)]]


def test_an_outline_that_crosses_itself_is_mended():
    bow_tie = [4, 4, 12, 12, 12, 4, 4, 12]  # two triangles that meet at (8, 8)
    box = crop(outlines(16, 16, [bow_tie])).raster(0)[1].tolist()
    assert box in ([0, 0, 4, 8], [4, 0, 8, 8], [0, 0, 8, 8])  # which triangles stay is up to the geometry library


def test_an_outline_that_runs_back_on_itself_loses_the_spike():
    spiked = [5, 5, 7, 5, 11, 5, 7, 5, 7, 8, 5, 8]  # a 2 x 3 rectangle and a line to x = 11
    np.testing.assert_array_equal(crop(outlines(16, 16, [spiked])).raster(0)[1], [1, 1, 3, 4])


@pytest.mark.parametrize(
    "gone",
    [
        [0, 0, 3, 0, 3, 3],  # outside
        [0, 5, 4, 5, 4, 7, 0, 7],  # shares an edge with the window
        [0, 0, 8, 0, 0, 8],  # touches the window's corner
    ],
)
def test_objects_without_area_in_the_window_are_dropped_and_the_labels_follow(gone):
    objects = outlines(16, 16, [gone], [[5, 5, 9, 5, 9, 9]], [gone])
    moved = jitter(example(objects), Draws(flip=False, scale=2.0, position=0.5), (8, 8))
    np.testing.assert_array_equal(moved.labels, [1])
    assert len(moved.objects) == len(moved.is_thing) == 1


def test_slivers_of_a_hundred_thousandth_of_a_pixel_are_dropped():
    sliver = lambda width: [[3, 5, 4 + width, 5, 4 + width, 9, 3, 9]]  # this much of it lies in the window
    assert len(crop(outlines(16, 16, sliver(0.9e-5)))) == 0
    assert len(crop(outlines(16, 16, sliver(1.1e-5)))) == 1


def test_masks_outside_of_the_window_are_dropped():
    mask = np.zeros((16, 16), bool)
    mask[:4, :4] = True
    assert len(crop(Instances((16, 16), (RunLengths(encode_runs(mask)),)))) == 0


def test_panoptic_segments_outside_of_the_window_stay_with_an_empty_mask_and_a_zero_box():
    ids = np.zeros((16, 16), np.int32)
    ids[:4, :4] = 300
    ids[6:8, 9:10] = 5
    moved = jitter(
        Example(
            image=np.zeros((16, 16, 3), np.uint8),
            labels=np.array([3, 1]),
            is_thing=np.array([True, False]),
            objects=Segments(ids, (300, 5)),
        ),
        Draws(flip=False, scale=2.0, position=0.5),
        (8, 8),
    )
    np.testing.assert_array_equal(moved.labels, [3, 1])
    empty, zero = moved.objects.raster(0)
    assert not empty.any()
    np.testing.assert_array_equal(zero, [0, 0, 0, 0])
    np.testing.assert_array_equal(moved.objects.raster(1)[1], [5, 2, 6, 4])


def test_padding_belongs_to_no_segment():
    largest = 256**3 - 1  # white in a PNG
    full = Example(
        image=np.zeros((8, 8, 3), np.uint8),
        labels=np.zeros(1, int),
        is_thing=np.ones(1, bool),
        objects=Segments(np.full((8, 8), largest, np.int32), (largest,)),
    )
    moved = jitter(full, Draws(flip=False, scale=0.5, position=0), (8, 8))
    assert np.count_nonzero(moved.objects.raster(0)[0]) == 16


def test_draws_come_in_the_documented_order():
    data = DataConfig(flip=0.5, scale=(0.1, 2.0))
    rng = np.random.default_rng(7)
    coin, scale, position = rng.random(), rng.uniform(0.1, 2.0), rng.random()
    assert draw(np.random.default_rng(7), data) == Draws(flip=coin < 0.5, scale=scale, position=position)


def test_flip_is_a_probability():
    flips = lambda share: [draw(np.random.default_rng(k), DataConfig(flip=share)).flip for k in range(200)]
    assert not any(flips(0.0))
    assert all(flips(1.0))
    assert 25 < sum(flips(0.25)) < 75  # 50 expected, within four standard deviations

"""Resizing masks to the file, against recorded interpolations and JAX's own resize."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.inference.frame import Frame


@pytest.fixture(scope="module")
def recorded(golden):
    with np.load(golden / "unit" / "postprocess.npz") as arrays:
        return dict(arrays)


def enlarged(masks: np.ndarray, frame: Frame) -> np.ndarray:
    """Masks at the original size, the filler of the target cut off."""
    rows, columns = frame.to_original(frame.target)
    height, width = frame.original_size
    full = np.asarray(rows(columns(jnp.asarray(masks, jnp.float32), axis=2), axis=1))
    assert full.shape == (len(masks), *frame.target)
    assert not full[:, height:].any(), "filler is zero"
    assert not full[:, :, width:].any()
    return full[:, :height, :width]


@pytest.mark.parametrize("target", [(28, 36), (13, 10), (4, 5), (7, 18), (3, 20)])
def test_one_resize_matches_the_recorded_interpolation(recorded, target):
    expected = recorded[f"resize_7x9_to_{target[0]}x{target[1]}/output"][0]
    found = enlarged(recorded["resize/x"][0], Frame((7, 9), target, (7, 9), stride=1))
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_crop_then_resize_matches_the_recorded_one(recorded):
    x, size, out = (recorded[f"sem_seg_postprocess/{name}"] for name in ("x", "image_size", "out_size"))
    found = enlarged(x, Frame(tuple(size), tuple(out), x.shape[1:], stride=1))
    np.testing.assert_allclose(found, recorded["sem_seg_postprocess/output"], atol=1e-5)


@pytest.mark.parametrize(
    ("extent", "size", "original"),
    [
        ((64, 96), (60, 83), (47, 151)),
        ((64, 96), (64, 96), (64, 96)),
        ((128, 64), (101, 64), (400, 3)),
        ((32, 32), (1, 1), (5, 7)),
        ((32, 32), (32, 32), (1, 1)),
    ],
)
def test_one_sum_equals_upsample_crop_and_resize_one_after_the_other(extent, size, original):
    masks = np.random.default_rng(0).standard_normal((3, extent[0] // 4, extent[1] // 4)).astype(np.float32)
    resize = lambda x, shape: jax.image.resize(x, (3, *shape), "bilinear", antialias=False)
    expected = np.asarray(resize(resize(masks, extent)[:, : size[0], : size[1]], original))
    np.testing.assert_allclose(enlarged(masks, Frame(size, original, extent)), expected, atol=1e-5)


def test_the_two_steps_by_themselves_are_the_upsampling_and_the_resize():
    frame, canvas = Frame((60, 83), (47, 151), (64, 96)), (96, 128)
    masks = np.random.default_rng(1).standard_normal((2, 24, 32)).astype(np.float32)
    resize = lambda x, shape: np.asarray(jax.image.resize(x, (2, *shape), "bilinear", antialias=False))
    rows, columns = frame.to_canvas(canvas)
    on_canvas = np.asarray(rows(columns(jnp.asarray(masks), axis=2), axis=1))
    assert on_canvas.shape == (2, *canvas)
    np.testing.assert_allclose(on_canvas[:, :64, :96], resize(masks[:, :16, :24], (64, 96)), atol=1e-6)
    rows, columns = frame.canvas_to_original(frame.target)
    found = np.asarray(rows(columns(jnp.asarray(on_canvas), axis=2), axis=1))[:, :47, :151]
    np.testing.assert_allclose(found, resize(on_canvas[:, :60, :83], (47, 151)), atol=1e-5)


def test_a_constant_mask_stays_constant_because_the_weights_of_each_pixel_sum_to_one():
    frame = Frame((60, 83), (211, 97), (64, 96))
    np.testing.assert_allclose(enlarged(np.full((1, 16, 24), 3.0), frame), 3.0, rtol=1e-6)


def test_logits_beyond_the_extent_are_never_read():
    masks = np.random.default_rng(2).standard_normal((1, 16, 24)).astype(np.float32)
    poisoned = np.full((1, 40, 32), np.nan, np.float32)
    poisoned[:, :16, :24] = masks
    for size, original in (((60, 83), (47, 151)), ((64, 96), (64, 96))):
        frame = Frame(size, original, (64, 96))
        np.testing.assert_array_equal(enlarged(poisoned, frame), enlarged(masks, frame))


def test_originals_of_about_one_size_share_a_target():
    target = lambda height, width: Frame((64, 64), (height, width), (64, 64)).target
    assert target(480, 640) == target(385, 513) == (512, 640)
    assert target(1, 129) == (128, 256)

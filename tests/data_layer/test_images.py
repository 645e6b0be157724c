"""Reading files, and the resize and padding of evaluation."""

import numpy as np
import pytest
from PIL import Image

from maskdino_jax.config import DataConfig
from maskdino_jax.data import load_image, prepare_image
from maskdino_jax.data.images import canvas_size, shortest_edge_size


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_pixels_are_rgb_whatever_the_file_has(tmp_path):
    Image.fromarray(np.array([[0, 200]], np.uint8)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(load_image(tmp_path / "grey.png"), [[[0, 0, 0], [200, 200, 200]]])


def test_exif_orientation_turns_the_image_upright(tmp_path):
    pixels = noise(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "turned.png"), np.rot90(pixels, -1))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg: no such image. Restore it"):
        load_image(tmp_path / "gone.jpg")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_file(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match=rf"cut\.{suffix} cannot be read as an image .*: restore the file"):
        load_image(path)


def test_a_file_that_is_no_image(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.png cannot be read as an image"):
        load_image(tmp_path / "text.png")


def test_sixteen_bits_are_refused_rather_than_clipped(tmp_path):
    Image.fromarray(np.array([[0, 4000]], np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png has pixels of mode I;16, more than 8 bits: scale them"):
        load_image(tmp_path / "deep.png")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # 640 * 800 / 480 = 1066.67
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),  # 1199.06
        ((300, 900), (444, 1333)),  # the long side would be 2400: 800 * 1333 / 2400 = 444.33
        ((500, 500), (800, 800)),
        ((1, 5000), (1, 1333)),  # never nothing
    ],
)
def test_the_short_side_becomes_800_unless_the_long_side_would_pass_1333(size, expected):
    assert shortest_edge_size(*size, 800, 1333) == expected


def test_halves_round_up():
    assert shortest_edge_size(2, 5, 1, 100) == (1, 3)  # 2.5 columns
    assert shortest_edge_size(5, 2, 1, 100) == (3, 1)


def test_fixed_canvases_are_one_landscape_and_its_transpose():
    data = DataConfig(eval_canvas="fixed")
    assert canvas_size(480, 640, data) == (800, 1344)
    assert canvas_size(500, 500, data) == (800, 1344)
    assert canvas_size(640, 480, data) == (1344, 800)


def test_exact_canvases_fit_each_image():
    data = DataConfig(eval_canvas="exact")
    assert canvas_size(480, 640, data) == (800, 1088)
    assert canvas_size(300, 900, data) == (448, 1344)


@pytest.mark.parametrize("canvas", ["fixed", "exact"])
@pytest.mark.parametrize(("height", "width"), [(48, 100), (100, 48), (30, 30), (7, 90)])
def test_a_prepared_image_is_pillows_resize_then_zeros(height, width, canvas):
    data = DataConfig(eval_short_side=40, eval_long_side=70, eval_canvas=canvas)
    image = noise(height, width)
    prepared, (tall, wide) = prepare_image(image, data)
    resized = Image.fromarray(image).resize((int(wide), int(tall)), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(prepared[:tall, :wide], np.asarray(resized))
    assert not prepared[tall:].any()
    assert not prepared[:, wide:].any()
    assert prepared.shape[:2] == canvas_size(height, width, data)

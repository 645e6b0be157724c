"""Reading files, and the resize and padding of evaluation."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskdino_jax.config import DataConfig
from maskdino_jax.data import load_image, prepare_image
from maskdino_jax.data.images import canvas_size, image_size, load_labels, shortest_edge_size


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


def test_bucketed_canvases_have_the_formats_of_cameras():
    data = DataConfig()
    assert canvas_size(500, 500, data) == (800, 800)
    assert canvas_size(500, 501, data) == (800, 1088)  # 4:3 is 1066.67 columns
    assert canvas_size(480, 640, data) == (800, 1088)
    assert canvas_size(427, 640, data) == (800, 1216)  # 3:2 is 1200
    assert canvas_size(360, 640, data) == (800, 1344)  # 16:9 is 1422, beyond the limit
    assert canvas_size(640, 480, data) == (1088, 800)
    cityscapes = DataConfig(eval_short_side=1024, eval_long_side=2048)
    assert canvas_size(1024, 2048, cityscapes) == (1024, 2048)


def test_exact_canvases_fit_each_image():
    data = DataConfig(eval_canvas="exact")
    assert canvas_size(480, 640, data) == (800, 1088)
    assert canvas_size(300, 900, data) == (448, 1344)


sides = st.integers(1, 3000)


@given(sides, sides, st.sampled_from([(800, 1333), (512, 2048), (1024, 2048), (128, 224), (100, 100)]))
def test_a_bucketed_canvas_holds_the_exact_one(height, width, limits):
    short, long = limits
    exact = canvas_size(height, width, DataConfig(eval_short_side=short, eval_long_side=long, eval_canvas="exact"))
    canvas = canvas_size(height, width, DataConfig(eval_short_side=short, eval_long_side=long))
    assert all(side % 32 == 0 for side in canvas)
    assert canvas[0] >= exact[0]
    assert canvas[1] >= exact[1]
    assert canvas == canvas_size(width, height, DataConfig(eval_short_side=short, eval_long_side=long))[::-1]


@pytest.mark.parametrize(("limits", "most"), [((800, 1333), 7), ((512, 2048), 9), ((256, 256), 1)])
def test_bucketed_canvases_are_few(limits, most):
    data = DataConfig(eval_short_side=limits[0], eval_long_side=limits[1])
    assert len({canvas_size(height, 300, data) for height in range(30, 3000)}) == most


@pytest.mark.shared
def test_bucketed_canvases_waste_little_of_coco(shared):
    images = json.loads((shared / "data/coco/annotations/instances_val2017.json").read_text())["images"]
    area = lambda data: sum(np.prod(canvas_size(image["height"], image["width"], data)) for image in images)
    assert area(DataConfig()) < 1.05 * area(DataConfig(eval_canvas="exact"))


@pytest.mark.parametrize("canvas", ["bucketed", "exact"])
@pytest.mark.parametrize(("height", "width"), [(48, 100), (100, 48), (30, 30), (7, 90)])
def test_a_prepared_image_is_pillows_resize_then_zeros(height, width, canvas):
    data = DataConfig(eval_short_side=40, eval_long_side=70, eval_canvas=canvas)
    image = noise(height, width)
    prepared, (tall, wide), _ = prepare_image(image, data)
    resized = Image.fromarray(image).resize((int(wide), int(tall)), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(prepared[:tall, :wide], np.asarray(resized))
    assert not prepared[tall:].any()
    assert not prepared[:, wide:].any()
    assert prepared.shape[:2] == canvas_size(height, width, data)


def test_the_extent_is_the_size_rounded_up_and_only_buckets_have_one():
    image = noise(48, 100)  # becomes 34 x 70
    bucketed = prepare_image(image, DataConfig(eval_short_side=40, eval_long_side=70))
    np.testing.assert_array_equal(bucketed.size, [34, 70])
    np.testing.assert_array_equal(bucketed.extent, [64, 96])
    assert prepare_image(image, DataConfig(eval_short_side=40, eval_long_side=70, eval_canvas="exact")).extent is None


@given(st.integers(1, 200), st.integers(1, 200))
@settings(max_examples=20)
def test_the_extent_is_the_exact_canvas(height, width):
    small = {"eval_short_side": 40, "eval_long_side": 170}
    extent = prepare_image(np.zeros((height, width, 3), np.uint8), DataConfig(**small)).extent
    np.testing.assert_array_equal(extent, canvas_size(height, width, DataConfig(**small, eval_canvas="exact")))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_of_a_file_is_that_of_its_upright_pixels(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(2, 3)).save(tmp_path / "image.jpg", exif=exif)
    assert image_size(tmp_path / "image.jpg") == load_image(tmp_path / "image.jpg").shape[:2]


def test_labels_are_the_numbers_in_the_file_also_with_a_palette(tmp_path):
    labels = np.array([[0, 150], [3, 255]], np.uint8)
    grey = Image.fromarray(labels)
    coloured = Image.fromarray(labels)
    coloured.putpalette(bytes(range(256)) * 3)
    for name, picture in (("grey", grey), ("palette", coloured)):
        picture.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(load_labels(tmp_path / f"{name}.png"), labels)


def test_a_coloured_picture_holds_no_labels(tmp_path):
    Image.fromarray(noise(2, 2)).save(tmp_path / "color.png")
    with pytest.raises(ValueError, match=r"color\.png has pixels of mode RGB, not one label of 8 bits .* not coloured"):
        load_labels(tmp_path / "color.png")

"""Uploads are decoded within bounds, and the threshold moves without the model."""

import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from maskdino_jax.serve.gallery import FORMATS, Forgotten, Gallery, NotAnImage, TooManyPixels, decode
from tests.serve.images import encoded, opened


def _announcing(width: int, height: int) -> bytes:
    """A PNG of which the header alone is there."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + data + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_becomes_its_pixels(form: str) -> None:
    pixels = decode(encoded(40, 60, form)).astype(int)
    assert pixels.shape == (40, 60, 3)
    assert abs(pixels[0, 0] - 90).max() < 4  # JPEG and WebP are not exact
    assert abs(pixels[39, 59] - 255).max() < 4


def test_a_photo_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    pixels = decode(encoded(40, 60, "JPEG", exif=exif, quality=100))
    assert pixels.shape == (60, 40, 3)
    assert pixels[59, 0].min() > 240  # its lower right corner is now the lower left one
    assert pixels[59, 39].max() < 120


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_large_image_is_reduced_to_2048_pixels(form: str) -> None:
    assert decode(encoded(1000, 4096, form)).shape == (500, 2048, 3)


@pytest.mark.parametrize("data", [b"", b"%PDF-1.7 text", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n"])
def test_what_is_no_image_is_named(data: bytes) -> None:
    with pytest.raises(NotAnImage, match="not an image that can be read: give JPEG, PNG"):
        decode(data)


def test_a_damaged_image_is_named() -> None:
    with pytest.raises(NotAnImage, match="damaged"):
        decode(encoded(400, 600, "JPEG")[:-1500])


@pytest.mark.parametrize(("width", "height"), [(9000, 9000), (60000, 60000)])
def test_too_many_pixels_are_refused_by_the_header(width: int, height: int) -> None:
    with pytest.raises(TooManyPixels, match="at most 50 megapixels"):
        decode(_announcing(width, height))


def test_the_threshold_moves_without_the_model(gallery: Gallery, predictor) -> None:
    entry = gallery.add(encoded())
    assert entry.styles == ("detection", "instance", "panoptic", "semantic")
    for style in ("instance", "panoptic"):
        both, left, none = (opened(gallery.picture(entry.key, style, threshold)) for threshold in (0.1, 0.5, 0.95))
        plain = opened(gallery.picture(entry.key, style, 1.0))
        assert np.abs(none - plain).max() == 0  # nothing is so sure
        half = plain.shape[1] // 2
        inner = np.s_[:, half + 40 : -40]
        assert np.abs(left[inner] - plain[inner]).mean() < 1  # the right object has gone
        assert np.abs(both[inner] - plain[inner]).mean() > 10
        assert np.abs(left[:, 40 : half - 40] - plain[:, 40 : half - 40]).mean() > 10  # the left one has not
    assert entry.counts(0.1) == {"detection": 2, "instance": 2, "panoptic": 2, "semantic": 2}
    assert entry.counts(0.5) == {"detection": 1, "instance": 1, "panoptic": 1, "semantic": 2}
    assert predictor.calls == 1


def test_a_model_without_masks_has_one_picture(gallery: Gallery, predictor) -> None:
    predictor.masks = False
    entry = gallery.add(encoded())
    assert entry.styles == ("detection",)
    with pytest.raises(ValueError, match="there is detection of this image"):
        gallery.picture(entry.key, "panoptic", 0.5)


def test_the_oldest_of_nine_images_is_forgotten(gallery: Gallery) -> None:
    entries = [gallery.add(encoded(8, 8)) for _ in range(9)]
    assert gallery.entry(entries[1].key) is entries[1]
    with pytest.raises(Forgotten, match="choose it once more"):
        gallery.entry(entries[0].key)


def test_one_image_at_a_time_goes_through_the_model(gallery: Gallery, predictor) -> None:
    inside, most = [], []

    def slow(pixels: np.ndarray, *, score_threshold: float):
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.02)
        inside.pop()
        return type(predictor)()(pixels, score_threshold=score_threshold)

    gallery.predictor = slow
    threads = [threading.Thread(target=gallery.add, args=(encoded(8, 8),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]

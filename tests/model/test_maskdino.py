"""The assembled model: laws that hold for any weights, on the tiny variant."""

import functools

import jax
import numpy as np
import pytest

from maskdino_jax.config import Config, tiny
from maskdino_jax.model import ModelSpec
from tests.weights import random_variables


@functools.cache
def _detector(order: str = "fine_to_coarse", dtype: str = "float32"):
    config = Config()
    tiny(config)
    config.model.encoder.order = order
    config.model.dtype = dtype
    spec = ModelSpec(config.model, num_classes=5)
    variables = random_variables(spec)
    detect = jax.jit(lambda x, s: spec.bind(variables).detect(x, s))
    return lambda images, sizes: jax.tree.map(np.asarray, detect(images, np.array(sizes, np.int32)))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), np.uint8)


def test_each_image_is_seen_alone(images: np.ndarray) -> None:
    together = _detector()(images, [(96, 128)] * 2)
    swapped = _detector()(images[::-1], [(96, 128)] * 2)
    for field in ("logits", "boxes", "masks"):
        np.testing.assert_allclose(getattr(together, field), getattr(swapped, field)[::-1], atol=1e-4)
    assert np.abs(together.logits[0] - together.logits[1]).max() > 1e-2


def test_pixels_beyond_the_image_do_not_matter(images: np.ndarray) -> None:
    painted = images.copy()
    painted[0, 64:], painted[0, :, 100:] = 255, 0
    sizes = [(64, 100), (96, 128)]
    first, second = _detector()(images, sizes), _detector()(painted, sizes)
    np.testing.assert_array_equal(first.logits, second.logits)


def test_both_level_orders_run_and_differ(images: np.ndarray) -> None:
    fine = _detector()(images, [(96, 128)] * 2)
    coarse = _detector("coarse_to_fine")(images, [(96, 128)] * 2)
    assert fine.masks.shape == coarse.masks.shape == (2, 40, 24, 32)
    assert np.abs(fine.boxes - coarse.boxes).max() > 1e-3


def test_bfloat16_stays_close_to_float32(images: np.ndarray) -> None:
    """Rounding to 8 bits in 20 layers moves scores by some percent; heads and sampling stay in float32."""
    sizes = [(96, 128)] * 2
    single, half = _detector()(images, sizes), _detector(dtype="bfloat16")(images, sizes)
    assert half.logits.dtype == half.boxes.dtype == half.masks.dtype == np.float32
    # Which tokens are selected may change with rounding, so the sorted best class scores are compared.
    best = lambda found: np.sort(found.logits.max(axis=-1), axis=-1)
    rms = lambda values: np.sqrt(np.mean(values**2))
    assert 0 < rms(best(single) - best(half)) < 0.1 * rms(best(single))


def test_an_image_that_is_not_a_multiple_of_32_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        _detector()(np.zeros((1, 100, 128, 3), np.uint8), [(100, 128)])

"""Outlines of masks: by hand, and as the paper defines them."""

import numpy as np
import pytest
from scipy import ndimage

from maskdino_jax.evaluation.average_precision import average_precision
from maskdino_jax.evaluation.boundary import boundaries_overlap, outline
from maskdino_jax.inference.results import encode


def square(side: int, *corner: int) -> np.ndarray:
    """In an image of 100 x 100, whose outlines are 3 pixels wide: 2 % of 141."""
    mask = np.zeros((100, 100), bool)
    mask[corner[0] : corner[0] + side, corner[1] : corner[1] + side] = True
    return mask


def entry(mask: np.ndarray, **fields: object) -> dict:
    return {"segmentation": encode(mask[None])[0], **fields}


def test_an_outline_is_what_an_erosion_takes_away():
    """Boundary IoU (Cheng et al. 2021): with 3 x 3 pixels, as often as 2 % of the diagonal; the border is outside."""
    for seed, (height, width) in enumerate([(100, 100), (61, 203), (20, 10)]):
        noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), 4)
        mask = noise > 0
        times = max(round(0.02 * (height**2 + width**2) ** 0.5), 1)
        inner = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=times, border_value=0)
        np.testing.assert_array_equal(outline(mask), mask & ~inner)
        assert 0 < outline(mask).sum() < mask.sum() or times == 1


def test_the_outline_of_a_square_and_of_the_whole_image():
    assert outline(square(20, 30, 30)).sum() == 20**2 - 14**2
    assert outline(square(100, 0, 0)).sum() == 100**2 - 94**2


def test_overlap_is_the_smaller_of_masks_and_outlines():
    """Two squares of 20, two columns apart, share 360 pixels. Of these, 16 x 14 are inside of one of the outlines."""
    first, second = entry(square(20, 20, 20)), entry(square(20, 20, 22), iscrowd=0)
    shared = 360 - 16 * 14
    assert shared / (2 * 204 - shared) == 0.5
    assert boundaries_overlap([first], [second]).tolist() == [[0.5]]
    small, large = entry(square(5, 20, 20)), entry(square(6, 20, 20), iscrowd=0)
    assert boundaries_overlap([small], [large])[0, 0] == pytest.approx(25 / 36), "all of them is outline"


def test_average_precision_of_outlines_is_harder_for_large_objects():
    """The same shift by two columns: masks overlap by 360/440 = 0.82, outlines by 0.5."""
    fields = {"id": 1, "image_id": 1, "category_id": 1}
    truth = entry(square(20, 20, 20), bbox=[20, 20, 20, 20], area=400, **fields)
    found = entry(square(20, 20, 22), bbox=[22, 20, 20, 20], score=1.0, **fields)
    content = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "annotations": [truth],
        "categories": [{"id": 1, "name": "square"}],
    }
    metrics = average_precision(content, [found], [1], ("segm", "boundary"))
    assert metrics["segm/AP"] == pytest.approx(0.7), "0.50, 0.55, ... 0.80"
    assert metrics["boundary/AP"] == pytest.approx(0.1), "0.50 alone"

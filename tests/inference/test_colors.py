"""Colours of objects: hues of their classes, shades that the eye tells apart, names that can be read on them."""

import numpy as np
import pytest

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.inference.colors import SHADES, object_colors, readable_on, shades, to_lab

LISTS = ("coco_panoptic", "ade20k", "cityscapes")


def hues(colors: np.ndarray) -> np.ndarray:
    lab = to_lab(colors)
    return np.degrees(np.arctan2(lab[:, 2], lab[:, 1]))


def test_lab_is_that_of_the_tables():
    rgb = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (119, 119, 119)], np.uint8)
    table = [(53.24, 80.09, 67.20), (87.73, -86.18, 83.18), (32.30, 79.19, -107.86), (100, 0, 0), (0, 0, 0)]
    np.testing.assert_allclose(to_lab(rgb), [*table, (50.03, 0, 0)], atol=0.03)


@pytest.mark.parametrize("name", LISTS)
def test_thirty_objects_of_a_class_are_told_apart_and_look_like_their_class(name):
    for color in {category.color for category in Catalog.named(name).categories}:
        own = shades(color)
        assert own.shape == (SHADES, 3)
        assert tuple(own[0]) == color
        lab = to_lab(own[:30])
        distances = np.linalg.norm(lab[:, None] - lab, axis=-1)[~np.eye(30, dtype=bool)]
        assert distances.min() >= 8, f"{color}: 2.3 is just noticeable"
        if np.hypot(*lab[0, 1:]) >= 20:
            turned = np.abs((hues(own) - hues(own[:1]) + 180) % 360 - 180)
            assert turned.max() <= 35, f"{color}: degrees of hue"


def test_the_colour_of_an_object_depends_on_its_class_and_its_place_among_them_alone():
    catalog = Catalog.named("coco_panoptic")
    one = object_colors(np.array([0, 2, 0, 0]), catalog)
    other = object_colors(np.array([0, 0, 56, 2, 2, 0]), catalog)
    np.testing.assert_array_equal(one[[0, 2, 3]], other[[0, 1, 5]])
    np.testing.assert_array_equal(one[1], other[3])
    np.testing.assert_array_equal(one[0], catalog.categories[0].color)


def test_more_objects_than_shades_begin_anew():
    colors = object_colors(np.zeros(SHADES + 2, int), Catalog.named("cityscapes"))
    np.testing.assert_array_equal(colors[SHADES:], colors[:2])


@pytest.mark.parametrize("name", LISTS)
def test_letters_on_every_shade_have_the_contrast_of_large_print(name):
    """The contrast of WCAG 2: at least 3 to 1."""
    share = lambda rgb: np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = lambda color: float(share(np.array(color) / 255) @ (0.2126, 0.7152, 0.0722))
    for category in Catalog.named(name).categories:
        for shade in shades(category.color):
            high, low = sorted((luminance(shade), luminance(readable_on(tuple(shade)))), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 3, (category.name, shade)

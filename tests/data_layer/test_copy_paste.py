"""Objects of one image laid over another, in pictures of 4 x 8 pixels that can be worked by hand."""

import dataclasses

import numpy as np
import pytest

from maskdino_jax.config import Config, ConfigError
from maskdino_jax.data import open_dataset, train_batches
from maskdino_jax.data.batching import sample
from maskdino_jax.data.copy_paste import choose, paste
from maskdino_jax.data.masks import unpack_mask
from maskdino_jax.data.objects import Boxes, Instances, Outline, RunLengths, Segments
from maskdino_jax.data.runs import encode_runs
from maskdino_jax.data.transforms import Example
from maskdino_jax.validation import validate

BASE, OTHER = 10, 200  # grey levels
# . is nothing; a letter is one object
UNDER = """
aaaa..b.
aaaa..b.
........
cccccccc
"""
OVER = """
..xx....
..xx..y.
......y.
........
"""


def masks(text: str) -> dict[str, np.ndarray]:
    rows = np.array([list(line) for line in text.split()])
    return {letter: rows == letter for letter in sorted(set(rows.ravel()) - {"."})}


def example(text: str, grey: int, kind: str, labels: list[int], things: list[bool]) -> Example:
    found = masks(text)
    size = next(iter(found.values())).shape
    if kind == "segments":
        ids = {letter: 5 + number for number, letter in enumerate(found)}
        objects = Segments(sum(id * found[letter] for letter, id in ids.items()).astype(np.int32), tuple(ids.values()))
    else:
        objects = Instances(size, tuple(RunLengths(encode_runs(mask)) for mask in found.values()))
    return Example(
        image=np.full((*size, 3), grey, np.uint8),
        labels=np.array(labels, np.int32),
        is_thing=np.array(things),
        objects=objects,
    )


def under(kind: str) -> Example:
    return example(UNDER, BASE, kind, [0, 1, 2], [True, True, False])


def over(kind: str) -> Example:
    return example(OVER, OTHER, kind, [3, 4], [True, True])


def assert_shows(found: Example, picture: str, letters: str) -> None:
    """The objects, in the order of `letters`, are those of the picture, which may be empty."""
    expected = masks(picture)
    assert len(found.objects) == len(letters) == len(found.labels) == len(found.is_thing)
    for index, letter in enumerate(letters):
        mask, _ = found.objects.raster(index)
        np.testing.assert_array_equal(mask, expected.get(letter, np.zeros_like(mask)), err_msg=letter)
    lit = np.zeros(found.image.shape[:2], bool)
    for letter in "xy":
        lit |= expected.get(letter, False)
    for channel in range(3):
        np.testing.assert_array_equal(found.image[..., channel], np.where(lit, OTHER, BASE))


@pytest.mark.parametrize("kind", ["instances", "segments"])
def test_pixels_and_masks_are_covered_and_boxes_follow(kind):
    found = paste(under(kind), over(kind), np.array([True, True]))
    picture = """
        aaxx..b.
        aaxx..y.
        ......y.
        cccccccc
    """
    assert_shows(found, picture, "abcxy")
    np.testing.assert_array_equal(found.labels, [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(found.is_thing, [True, True, False, True, True])
    boxes = [found.objects.raster(index)[1].tolist() for index in range(5)]
    assert boxes == [[0, 0, 2, 2], [6, 0, 7, 1], [0, 3, 8, 4], [2, 0, 4, 2], [6, 1, 7, 3]]


@pytest.mark.parametrize("kind", ["instances", "segments"])
def test_what_is_not_chosen_stays_where_it_was(kind):
    found = paste(under(kind), over(kind), np.array([False, True]))
    picture = """
        aaaa..b.
        aaaa..y.
        ......y.
        cccccccc
    """
    assert_shows(found, picture, "abcy")
    np.testing.assert_array_equal(found.labels, [0, 1, 2, 4])
    nothing = paste(under(kind), over(kind), np.array([False, False]))
    assert_shows(nothing, UNDER, "abc")


@pytest.mark.parametrize(("kind", "left"), [("instances", "acx"), ("segments", "abcx")])
def test_an_object_that_vanishes_is_dropped_or_stays_empty_as_in_a_crop(kind, left):
    patch = """
        .....xx.
        .....xx.
        ........
        ........
    """
    found = paste(under(kind), example(patch, OTHER, kind, [3], [True]), np.array([True]))
    picture = """
        aaaa.xx.
        aaaa.xx.
        ........
        cccccccc
    """
    assert_shows(found, picture, left)
    for keep_empty in (True, False):
        labels = sample(found, 0, 10, keep_empty).labels.tolist()
        assert labels == ([0, 1, 2, 3] if kind == "segments" and keep_empty else [0, 2, 3])


def test_an_object_without_a_pixel_in_the_crop_is_not_pasted():
    empty = example(OVER, OTHER, "segments", [3, 4], [True, True])
    empty = dataclasses.replace(empty, objects=dataclasses.replace(empty.objects, ids=(5, 99)))
    found = paste(under("segments"), empty, np.array([True, True]))
    np.testing.assert_array_equal(found.labels, [0, 1, 2, 3])


def test_new_segments_have_ids_that_nothing_else_has():
    base = under("segments")
    base.objects.source[2, 0] = 77  # a crowd: in the map, but no object
    found = paste(base, over("segments"), np.array([True, True])).objects
    assert found.ids == (5, 6, 7, 78, 79)
    assert found.id_map[2, 0] == 77
    assert base.objects.source[0, 2] == 5  # the first image is not written to


def test_pasted_instances_may_overlap_each_other():
    other = over("instances")
    shapes = other.objects.shapes
    other = dataclasses.replace(other, objects=Instances((4, 8), (shapes[0], shapes[0])))
    found = paste(under("instances"), other, np.array([True, True]))
    first, second = (found.objects.raster(index)[0] for index in (3, 4))
    np.testing.assert_array_equal(first, second)
    assert first.sum() == 4


def test_an_outline_that_nothing_covers_keeps_the_box_of_its_vertices():
    base = under("instances")
    outline = Outline((np.array([[0.25, 2.5], [3.75, 2.5], [3.75, 4], [0.25, 4]]),))
    base = dataclasses.replace(base, objects=Instances((4, 8), (outline, *base.objects.shapes[1:])))
    found = paste(base, over("instances"), np.array([True, True]))
    np.testing.assert_array_equal(found.objects.raster(0)[1], [0.25, 2.5, 3.75, 4])


def test_things_are_chosen_with_a_chance_of_one_half_and_stuff_never():
    many = dataclasses.replace(
        under("instances"), labels=np.zeros(10_000, np.int32), is_thing=np.arange(10_000) % 2 == 0
    )
    chosen = choose(many, np.random.default_rng(0))
    assert not chosen[1::2].any()
    assert abs(chosen[::2].mean() - 0.5) < 0.03  # four standard deviations


def test_boxes_cannot_be_pasted():
    boxes = dataclasses.replace(over("instances"), objects=Boxes(np.zeros((2, 4))))
    with pytest.raises(TypeError, match="Instances and Boxes cannot be pasted"):
        paste(under("instances"), boxes, np.array([True, True]))


def first_batch(config: Config):
    with train_batches(open_dataset(config.data, "train"), config, 0) as batches:
        return next(batches)


def test_the_chance_decides_how_many_images_are_changed_and_the_others_stay_as_they_are(nuclei):
    nuclei.train.batch_size = 100
    nuclei.data.max_instances = 100
    plain = first_batch(nuclei)
    nuclei.data.copy_paste = 0.5
    pasted = first_batch(nuclei)
    np.testing.assert_array_equal(pasted.records, plain.records)
    changed = (pasted.images != plain.images).any(axis=(1, 2, 3))
    assert 25 < changed.sum() < 60  # some draw no object, or one outside of the crop
    same_masks = (pasted.targets.masks == plain.targets.masks).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(same_masks, ~changed)
    new = pasted.targets.valid.sum(axis=1).astype(int) - plain.targets.valid.sum(axis=1)
    assert new[changed].max() > 3


def test_masks_of_a_pasted_panoptic_image_do_not_overlap_and_their_boxes_fit(nuclei):
    nuclei.data.copy_paste = 1.0
    nuclei.data.max_instances = 100
    nuclei.train.batch_size = 20
    batch = first_batch(nuclei)
    for row in range(20):
        found = unpack_mask(batch.targets.masks[row])
        assert found.sum(axis=0).max() <= 1
        for mask, box in zip(found, batch.targets.boxes[row], strict=True):
            if mask.any():
                rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
                x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
                np.testing.assert_allclose(64 * box, [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])


def test_pasting_needs_objects_with_masks():
    config = Config()
    config.data.copy_paste = 0.5
    validate(config)
    config.data.format, config.data.classes = "semantic", "ade20k"
    with pytest.raises(ConfigError, match=r"config\.data\.copy_paste = 0\.5: label images have no objects"):
        validate(config)
    config = Config()
    config.model.masks, config.model.denoising.mode = False, "boxes"
    config.data.format, config.inference.tasks, config.best_metric = "coco_instances", ("detection",), "bbox/AP"
    validate(config)
    config.data.copy_paste = 0.5
    with pytest.raises(ConfigError, match=r"config\.data\.copy_paste = 0\.5: pasting needs masks"):
        validate(config)

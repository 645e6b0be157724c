"""Pictures: what is painted, where, and what is left alone."""

import dataclasses

import numpy as np
import pytest

from maskdino_jax.data.catalog import Catalog, Category
from maskdino_jax.inference.colors import shades
from maskdino_jax.inference.results import Instances, Panoptic, PanopticSegment, Segments
from maskdino_jax.inference.visualize import draw

CATALOG = Catalog(
    (
        Category(id=1, name="cat", is_thing=True, color=(220, 20, 60)),
        Category(id=2, name="sky", is_thing=False, color=(0, 0, 250)),
    )
)
GREY = np.full((600, 800, 3), 100, np.uint8)


def rectangles(*boxes: tuple[int, int, int, int], scores=None, shape=(600, 800)) -> Instances:
    masks = np.zeros((len(boxes), *shape), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    scores = np.full(len(boxes), 0.9) if scores is None else np.array(scores)
    return Instances.from_masks(
        scores=scores.astype(np.float32),
        labels=np.zeros(len(boxes), np.int32),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        masks=masks,
        queries=np.arange(len(boxes), dtype=np.int32),
    )


def region(number: int, label: int, is_thing: bool) -> PanopticSegment:
    return PanopticSegment(id=number, label=label, is_thing=is_thing, score=0.9, area=1)


def picture_of(**segments) -> np.ndarray:
    return draw(GREY, Segments(catalog=CATALOG, **segments), score_threshold=0.5)


def changed(picture: np.ndarray) -> np.ndarray:
    return (picture != 100).any(axis=-1)


def test_an_object_is_tinted_with_half_of_its_class_colour_and_the_rest_is_left_alone():
    picture = picture_of(instances=rectangles((200, 200, 500, 400)))
    assert picture.shape == GREY.shape
    np.testing.assert_allclose(picture[300, 350], [(100 + 220) / 2, (100 + 20) / 2, (100 + 60) / 2], atol=1)
    assert not changed(picture)[420:].any()
    assert not changed(picture)[:, 520:].any()


def test_every_object_of_a_class_has_its_own_shade():
    boxes = [(20 + 90 * n, 300, 100 + 90 * n, 380) for n in range(8)]
    picture = picture_of(instances=rectangles(*boxes))
    shades = np.array([picture[340, box[0] + 40] for box in boxes], int)
    distances = np.abs(shades[:, None] - shades).sum(axis=-1)[~np.eye(len(boxes), dtype=bool)]
    assert distances.min() >= 12


def test_objects_below_the_threshold_are_not_drawn():
    both = rectangles((200, 200, 500, 400), (50, 450, 150, 550), scores=[0.9, 0.49])
    np.testing.assert_array_equal(picture_of(instances=both), picture_of(instances=both.above(0.5)))
    assert not changed(picture_of(instances=both))[440:].any()


def test_an_object_too_small_for_a_name_changes_no_pixel_outside_of_itself_but_its_contour():
    found = changed(picture_of(instances=rectangles((300, 300, 330, 330))))
    rows, columns = (np.flatnonzero(found.any(axis=axis)) for axis in (1, 0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (300, 329, 300, 329)


@pytest.mark.parametrize("box", [(700, 0, 800, 100), (-300, -200, 200, 90), (650, 480, 1500, 900), (0, 0, 800, 600)])
def test_names_stay_inside_the_picture_even_for_boxes_that_reach_beyond_it(box):
    instance = rectangles((0, 0, 0, 0))
    instance.boxes[:] = box  # no mask: what is painted is the box and the label
    found = changed(picture_of(instances=instance))
    solid = (picture_of(instances=instance) == (220, 20, 60)).all(axis=-1)
    assert found.any()
    label_rows = np.flatnonzero(solid.sum(axis=1) > 40)
    assert len(label_rows) >= 12, "a label is a filled rectangle some lines high"


def test_names_do_not_cover_each_other():
    """Two objects in the same place have two labels; each is as large as one alone."""
    own = shades((220, 20, 60))[:2]
    label = lambda picture: np.sum((picture[:, :, None] == own).all(axis=-1))
    one = rectangles((300, 300, 500, 400))
    one.bits[:] = 0
    two = rectangles((300, 300, 500, 400), (300, 300, 500, 400))
    two.bits[:] = 0
    alone, together = label(picture_of(instances=one)), label(picture_of(instances=two))
    outline = 2 * 2 * (200 + 100)
    assert together - outline >= 1.8 * (alone - outline)


def test_the_panoptic_map_gives_regions_and_its_instances_take_their_colours():
    ids = np.ones((600, 800), np.int32)
    ids[200:400, 100:300], ids[200:400, 500:700] = 2, 3
    panoptic = Panoptic(ids, (region(1, 1, False), region(2, 0, True), region(3, 0, True)))
    alone = picture_of(panoptic=panoptic)
    np.testing.assert_allclose(alone[500, 30], [70, 70, 0.7 * 100 + 0.3 * 250], atol=1)
    np.testing.assert_allclose(alone[330, 200], [160, 60, 80], atol=1)
    beside = picture_of(panoptic=panoptic, instances=rectangles((500, 200, 700, 400)))
    np.testing.assert_array_equal(beside[330, 600], alone[330, 600])
    outline = beside[300, 500].astype(int)
    np.testing.assert_allclose((outline + 100) / 2, alone[330, 600], atol=1.5)


def test_a_semantic_map_alone_is_tinted_and_named():
    semantic = np.zeros((600, 800), np.int32)
    semantic[:, 400:] = 1
    picture = picture_of(semantic=semantic)
    np.testing.assert_allclose(picture[20, 20], [160, 60, 80], atol=1)
    np.testing.assert_allclose(picture[20, 780], [50, 50, 175], atol=1)
    for half in (picture[:, :400], picture[:, 400:]):
        assert (half == 255).all(axis=-1).sum() > 10, "white letters"


def test_a_small_image_is_enlarged_until_names_can_be_read():
    image = np.full((64, 128, 3), 100, np.uint8)
    segments = Segments(catalog=CATALOG, instances=rectangles((20, 20, 90, 60), shape=(64, 128)))
    picture = draw(image, segments, score_threshold=0.5)
    assert picture.shape == (512, 1024, 3)
    np.testing.assert_allclose(picture[400, 500], [160, 60, 80], atol=1)
    assert not changed(picture)[490:].any()


def test_nothing_found_leaves_the_image_as_it_is():
    nothing = rectangles()
    np.testing.assert_array_equal(picture_of(instances=nothing), GREY)
    np.testing.assert_array_equal(picture_of(panoptic=Panoptic(np.zeros((600, 800), np.int32), ())), GREY)


def test_no_result_at_all_is_an_error():
    with pytest.raises(ValueError, match="nothing to draw"):
        picture_of()


def test_a_detection_is_a_frame_with_a_name_around_pixels_that_stay():
    found = dataclasses.replace(rectangles((200, 200, 500, 400)), bits=None)
    picture = picture_of(instances=found)
    np.testing.assert_array_equal(picture[300, 200], (220, 20, 60))
    assert not changed(picture)[205:395, 205:495].any()
    assert not changed(picture)[:, 510:].any()
    assert (picture[150:200] == (220, 20, 60)).all(axis=-1).sum() > 500, "the name is on a filled rectangle"


def everything() -> Segments:
    """A cat in the middle of the sky, as every kind of result; its box is wider than its mask."""
    ids, semantic = np.ones((600, 800), np.int32), np.ones((600, 800), np.int32)
    ids[200:400, 300:600], semantic[200:400, 300:600] = 2, 0
    cat = rectangles((300, 200, 600, 400))
    cat.boxes[:] = (250, 150, 650, 450)
    panoptic = Panoptic(ids, (region(1, 1, False), region(2, 0, True)))
    return Segments(catalog=CATALOG, instances=cat, panoptic=panoptic, semantic=semantic)


RED, HALF_RED = (220, 20, 60), (160, 60, 80)


@pytest.mark.parametrize(
    ("style", "cat", "sky", "framed"),
    [
        (None, HALF_RED, (70, 70, 145), True),
        ("panoptic", HALF_RED, (70, 70, 145), False),
        ("instance", HALF_RED, (100, 100, 100), False),
        ("semantic", HALF_RED, (50, 50, 175), False),
        ("detection", (100, 100, 100), (100, 100, 100), True),
    ],
)
def test_a_style_shows_its_result_alone(style, cat, sky, framed):
    picture = draw(GREY, everything(), style=style, score_threshold=0.5)
    np.testing.assert_allclose(picture[380, 330], cat, atol=1)
    np.testing.assert_allclose(picture[30, 30], sky, atol=1)
    left, bottom = picture[250:440, 250], picture[450, 260:640]
    assert all((line == RED).all(axis=-1).mean() > 0.9 for line in (left, bottom)) == framed
    if style == "instance":
        assert not changed(picture)[:199].any()


def test_a_style_without_its_result_is_an_error():
    found = Segments(catalog=CATALOG, instances=rectangles((200, 200, 500, 400)))
    for style in ("panoptic", "semantic"):
        with pytest.raises(ValueError, match=f"style = '{style}': the segments hold no such result"):
            draw(GREY, found, style=style, score_threshold=0.5)
    boxes = dataclasses.replace(found, instances=dataclasses.replace(found.instances, bits=None))
    with pytest.raises(ValueError, match="style = 'instance'"):
        draw(GREY, boxes, style="instance", score_threshold=0.5)
    with pytest.raises(ValueError, match="style = 'masks': give one of instance, panoptic, semantic, detection"):
        draw(GREY, found, style="masks", score_threshold=0.5)


def test_a_name_inside_a_region_lies_where_it_is_widest():
    mask = np.zeros((600, 800), bool)
    mask[290:310, 50:500], mask[200:400, 500:700] = True, True  # a handle and a pan
    pan = rectangles((50, 200, 700, 400))
    pan.bits[:] = np.packbits(mask, axis=-1)
    plate = (draw(GREY, Segments(catalog=CATALOG, instances=pan), style="instance", score_threshold=0) == RED).all(-1)
    rows, columns = np.nonzero(plate)
    assert columns.min() >= 500
    assert columns.max() < 700
    assert abs(rows.mean() - 300) < 5


def test_pixels_without_a_class_are_left_alone():
    semantic = np.full((600, 800), -1, np.int32)
    semantic[:, 400:] = 1
    found = Segments(catalog=CATALOG, semantic=semantic)
    picture = draw(GREY, found, score_threshold=0)
    assert not changed(picture)[:, :400].any()
    np.testing.assert_allclose(picture[20, 780], [50, 50, 175], atol=1)
    assert [(part.name, part.area) for part in found.segments] == [("sky", 600 * 400)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((64, 64), (512, 512)), ((3, 5), (512, 853)), ((20, 2000), (41, 4096)), ((4100, 10), (4100, 10))],
)
@pytest.mark.parametrize("style", ["instance", "detection"])
def test_pictures_of_any_shape_are_drawn_and_none_is_enlarged_beyond_4096_pixels(size, expected, style):
    height, width = size
    found = rectangles((0, 0, width, max(height // 2, 1)), shape=size)
    image = np.full((*size, 3), 100, np.uint8)
    picture = draw(image, Segments(catalog=CATALOG, instances=found), style=style, score_threshold=0)
    assert picture.shape == (*expected, 3)
    assert changed(picture).any()
    assert not changed(picture)[-1].any()


def test_an_enlarged_region_keeps_its_place_and_share():
    """A disc of 20 pixels across becomes one of 160, round instead of stepped."""
    y, x = np.mgrid[:64, :64] + 0.5
    disc = rectangles((0, 0, 1, 1), shape=(64, 64))
    disc.bits[:] = np.packbits(((x - 30) ** 2 + (y - 34) ** 2 < 10**2), axis=-1)
    image = np.full((64, 64, 3), 100, np.uint8)
    found = Segments(
        catalog=CATALOG, instances=dataclasses.replace(disc, boxes=np.array([[20, 24, 40, 44]], np.float32))
    )
    picture = draw(image, found, style="instance", score_threshold=0)
    y, x = np.mgrid[:512, :512] + 0.5
    away = np.hypot(x - 240, y - 272)
    assert changed(picture)[away < 75].all()
    assert not changed(picture)[away > 86].any()


def test_the_name_of_an_object_in_pieces_is_at_the_largest_one():
    """The box around all of its pixels has its corners elsewhere."""
    whole = rectangles((600, 400, 640, 430))
    whole.bits[0, 20:24] |= rectangles((30, 0, 34, 600)).bits[0, 20:24]
    picture = draw(GREY, Segments(catalog=CATALOG, instances=whole), score_threshold=0.5, style="instance")
    rows, columns = np.nonzero(changed(picture))
    assert rows.min() in range(18, 21), "the small piece is tinted"
    named = rows > 30
    assert columns[named].min() > 500
    assert rows[named].min() > 350
    assert named.sum() > 1.2 * 40 * 30, "and there is a name, also outside of the mask"

"""Names in a picture: inside of it, apart from each other, off the small objects."""

import numpy as np
import pytest
from PIL import Image

from maskdino_jax.inference.labels import Label, Spot, corners, font_size, place, write

RED = (220, 20, 60)


def label(box, *texts: str, spots=None, on_plate: bool = True) -> Label:
    left, top, right, bottom = box
    room = (right - left) * (bottom - top) / 2
    return Label(texts=texts, spots=spots or corners(box, room), color=RED, box=box, on_plate=on_plate)


def crowd(size: tuple[int, int], count: int = 100) -> list[Label]:
    """Objects of all sizes, also such that reach beyond the picture."""
    rng = np.random.default_rng(0)
    width, height = size
    boxes = []
    for _ in range(count):
        x, y = rng.uniform(-0.05, 0.95) * width, rng.uniform(-0.05, 0.95) * height
        boxes.append((x, y, x + rng.uniform(0.02, 0.4) * width, y + rng.uniform(0.02, 0.4) * height))
    return [label(box, f"object {n} 87%", f"object {n}", on_plate=n % 5 > 0) for n, box in enumerate(boxes)]


@pytest.mark.parametrize("size", [(683, 512), (64, 64), (4000, 3000), (2000, 60), (60, 2000)])
def test_names_of_a_crowd_are_inside_and_apart(size):
    boxes = np.array([name.box for name in place(crowd(size), size)]).reshape(-1, 4)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= size).all()
    shared = np.minimum(boxes[:, None, 2:], boxes[:, 2:]) - np.maximum(boxes[:, None, :2], boxes[:, :2])
    assert not ((shared > 0).all(axis=-1) & ~np.eye(len(boxes), dtype=bool)).any()
    if min(size) > 500:
        assert len(boxes) > 50


def test_what_is_written_stays_within_the_boxes_of_the_names():
    names = place(crowd((683, 512)), (683, 512))
    picture = Image.new("RGB", (683, 512), (100, 100, 100))
    write(picture, names)
    outside = np.ones((512, 683), bool)
    for name in names:
        left, top, right, bottom = name.box
        outside[int(top) : int(bottom) + 2, int(left) : int(right) + 2] = False
        inside = np.asarray(picture)[int(top) : int(bottom) + 1, int(left) : int(right) + 1]
        assert (inside != 100).any(axis=-1).sum() > 20
    assert (np.asarray(picture)[outside] == 100).all()


def test_of_two_objects_in_one_place_the_larger_one_is_named():
    spot = (Spot(200, 200, 0.5, 0.5, 1e6),)
    small, large = label((150, 150, 250, 250), "small", spots=spot), label((100, 100, 300, 300), "large", spots=spot)
    assert [name.text for name in place([small, large], (400, 400))] == ["large"]


def test_a_name_goes_where_it_covers_no_smaller_object():
    large, small = label((100, 100, 400, 400), "table"), label((110, 70, 170, 98), "cup")
    alone = place([large], (500, 500))[0].box
    assert alone[3] == pytest.approx(100), "above the box"
    beside = next(name.box for name in place([large, small], (500, 500)) if name.text == "table")
    assert beside[1] >= 98 or beside[0] >= 170


def test_without_room_a_name_loses_its_score_or_letters_shrink_or_it_is_left_out():
    size = (1440, 1440)
    assert font_size(size) == 40
    texts = {}
    for side in (20, 110, 140, 150, 200, 400):
        names = place([label((500, 500, 500 + side, 500 + side), "nucleus 87%", "nucleus")], size)
        texts[side] = [(name.text, name.font_size) for name in names]
    assert texts == {
        20: [],
        110: [("nucleus", 30)],
        140: [("nucleus 87%", 30)],
        150: [("nucleus", 40)],
        200: [("nucleus 87%", 40)],
        400: [("nucleus 87%", 40)],
    }

"""Sheets of annotated images: what is on them, where, and in which order."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdino_jax.config import DataConfig, SplitConfig
from maskdino_jax.data import Dataset, open_dataset
from maskdino_jax.data.catalog import Catalog, Category
from maskdino_jax.data.objects import Boxes, Instances, RunLengths, Segments
from maskdino_jax.data.runs import encode_runs
from maskdino_jax.data.transforms import Example
from maskdino_jax.inference.colors import shades
from maskdino_jax.inference.contact_sheet import contact_sheet

PAPER, GREY, RED = 250, 100, (220, 20, 60)
HEIGHT, WIDTH = 300, 400


@dataclasses.dataclass
class Uniform:
    """Grey images with one red object in the left upper corner, a quarter of each unless `part` says another share."""

    kind: str
    count: int
    unreadable: tuple[int, ...] = ()
    truths: frozenset[str] = frozenset({"instances"})
    size: tuple[int, int] = (HEIGHT, WIDTH)
    part: int = 2  # sides of the image by those of its object
    annotations: Path = Path("annotations.json")

    catalog = Catalog((Category(id=1, name="cat", is_thing=True, color=RED),))

    def __len__(self) -> int:
        return self.count

    def file_name(self, index: int) -> str:
        return f"{index}.png"

    def __getitem__(self, index: int) -> Example:
        if index in self.unreadable:
            raise ValueError("broken")
        height, width = self.size
        mask = np.zeros((height, width), bool)
        mask[: height // self.part, : width // self.part] = True
        objects = {
            "boxes": lambda: Boxes(np.array([[0, 0, width / self.part, height / self.part]])),
            "instances": lambda: Instances(self.size, (RunLengths(encode_runs(mask)),)),
            "segments": lambda: Segments(np.where(mask, 7, 0).astype(np.int32), (7,)),
        }[self.kind]()
        image = np.full((height, width, 3), GREY, np.uint8)
        return Example(image=image, labels=np.array([0]), is_thing=np.array([True]), objects=objects)


def painted(sheet: np.ndarray, tint: tuple[int, ...]) -> float:
    """Share of the pixels that are grey with half of the tint over it."""
    return float((np.abs(sheet - (np.array(tint) + GREY) / 2) < 4).all(axis=-1).mean())


@pytest.mark.parametrize("kind", ["instances", "segments"])
def test_a_quarter_of_each_picture_has_the_colour_of_its_object(kind):
    sheet = contact_sheet(Uniform(kind, 3))
    assert sheet.shape[1:] == (1600, 3)
    grey = float((sheet == GREY).all(axis=-1).mean())
    assert 0.15 < painted(sheet, RED) / (grey + painted(sheet, RED)) < 0.25  # less the name and the outline


def test_boxes_are_drawn_without_tint_also_small_ones():
    sheet = contact_sheet(Uniform("boxes", 3))
    assert painted(sheet, RED) == 0
    small = contact_sheet(Uniform("boxes", 1, part=40))  # 16 x 12 pixels, too small for a name
    assert (small == RED).all(axis=-1).sum() == pytest.approx(2 * 2 * (16 + 12), abs=12)  # a line of two pixels


def test_three_pictures_of_4_by_3_fill_a_row_and_the_next_ones_come_below():
    one, two = contact_sheet(Uniform("instances", 3)), contact_sheet(Uniform("instances", 6))
    height = (1600 - 4 * 12) // 3 * 3 // 4
    assert abs(len(one) - (12 + height + 28 + 12)) <= 1
    assert abs(len(two) - (2 * len(one) - 12)) <= 1
    columns = (one[12 + height // 4 * 3] == GREY).all(axis=-1)  # below the objects: picture, gap, picture, gap, picture
    starts = np.flatnonzero(np.diff(np.concatenate([[0], columns])) == 1)
    np.testing.assert_allclose(starts, [12, 12 + 529, 12 + 2 * 529], atol=2)


def test_no_more_pictures_than_asked_for_and_unreadable_ones_are_passed_over():
    assert len(contact_sheet(Uniform("instances", 50), 3)) == len(contact_sheet(Uniform("instances", 3)))
    some = contact_sheet(Uniform("instances", 6, unreadable=(0, 2, 4)))
    assert len(some) == len(contact_sheet(Uniform("instances", 3)))
    assert contact_sheet(Uniform("instances", 2, unreadable=(0, 1))) is None


def test_a_panorama_is_as_wide_as_its_row_and_not_higher():
    sheet = contact_sheet(Uniform("instances", 1, size=(100, 1000)))
    rows = (sheet[:, 1000] == GREY).all(axis=-1).sum()
    assert abs(rows - 144) < 5  # 1440 wide in a place of 480 x 1440


def test_a_file_name_that_is_too_long_shows_its_end(monkeypatch):
    long = Uniform("instances", 3)
    plain = contact_sheet(long)
    monkeypatch.setattr(Uniform, "file_name", lambda self, index: "folder/" * 40 + f"{index}.png")
    sheet = contact_sheet(long)
    assert sheet.shape == plain.shape
    for left in (0, 529, 2 * 529):  # no caption reaches into the gap before the next picture
        np.testing.assert_array_equal(sheet[-30:, left : left + 11], PAPER)


def test_label_images_show_a_region_for_each_class_without_a_box(tmp_path: Path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), GREY, np.uint8)).save(tmp_path / "images" / "1.png")
    Image.fromarray(np.full((HEIGHT, WIDTH), 21, np.uint8)).save(tmp_path / "labels" / "1.png")  # a car, a thing
    split = SplitConfig(images="images", semantic="labels")
    dataset: Dataset = open_dataset(
        DataConfig(root=str(tmp_path), format="semantic", classes="ade20k", val=split), "val"
    )
    sheet = contact_sheet(dataset)
    color = np.array(dataset.catalog.categories[20].color)
    pixel = sheet[12 + 20, 12 + 20].astype(float)
    np.testing.assert_allclose(pixel, (GREY + color) / 2, atol=1.5)


class TwoCats(Uniform):
    """Two objects of one class, in the left and in the right half, with a margin between them."""

    def __getitem__(self, index: int) -> Example:
        ids = np.zeros((HEIGHT, WIDTH), np.int32)
        ids[:, : WIDTH // 2 - 20], ids[:, WIDTH // 2 + 20 :] = 7, 9
        image = np.full((HEIGHT, WIDTH, 3), GREY, np.uint8)
        both = np.array([True, True])
        return Example(image=image, labels=np.array([0, 0]), is_thing=both, objects=Segments(ids, (7, 9)))


@pytest.mark.parametrize(
    ("style", "second"),
    [("panoptic", tuple(shades(RED)[1])), ("instance", tuple(shades(RED)[1])), ("semantic", RED), ("detection", None)],
)
def test_a_sheet_shows_the_annotations_in_a_style(style, second):
    sheet = contact_sheet(TwoCats("segments", 1), style=style)
    left, right = sheet[12 + 60, 12 + 60].astype(float), sheet[12 + 60, 12 + 480 * 4 // 3 - 60].astype(float)
    if second is None:
        assert (left == GREY).all()
        assert (right == GREY).all()
        assert (sheet[:480] == RED).all(axis=-1).any(), "a box"
    else:
        np.testing.assert_allclose(left, (np.array(RED) + GREY) / 2, atol=1.5)
        np.testing.assert_allclose(right, (np.array(second, float) + GREY) / 2, atol=1.5)


def test_instances_cannot_be_shown_as_a_panoptic_map():
    with pytest.raises(ValueError, match="style = 'panoptic'"):
        contact_sheet(Uniform("instances", 1), style="panoptic")


def test_records_come_in_the_order_given():
    class Numbered(Uniform):
        def __getitem__(self, index: int) -> Example:
            return dataclasses.replace(
                super().__getitem__(index), image=np.full((HEIGHT, WIDTH, 3), 10 * index, np.uint8)
            )

    sheet = contact_sheet(Numbered("boxes", 9), 3, records=[5, 2, 7, 1])
    corners = [int(sheet[12 + 300, 12 + 300 + 529 * place, 0]) for place in range(3)]
    assert corners == [50, 20, 70]

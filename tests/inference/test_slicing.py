"""Tiles of a large image, and a detector that finds in each tile exactly what lies in it: joined, these parts are the
objects that were put into the image."""

import itertools

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from scipy import ndimage

from maskdino_jax.inference.cropped_masks import Crop, CroppedMasks, Rectangle
from maskdino_jax.inference.results import Instances, Panoptic, PanopticSegment, Segments, encode
from maskdino_jax.inference.slicing import Mosaic, Tile, tiles
from tests.inference.scenes import catalog_of

THINGS, SKY = (0, 1), 2  # two kinds of things, and stuff
CATALOG = catalog_of(True, True, False)


@pytest.mark.parametrize("overlap", [0.01, 0.2, 0.34, 0.5])
def test_tiles_cover_the_image_overlap_enough_and_divide_it(overlap):
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width, size = *rng.integers(1, 200, 2), int(rng.integers(2, 120))
        layout = tiles(height, width, size, overlap)
        decided = np.zeros((height, width), int)
        for shown, own in layout:
            decided[own.inside(Rectangle(0, 0, height, width))] += 1
            assert shown.meet(own) == own
            assert (shown.bottom - shown.top, shown.right - shown.left) == (min(size, height), min(size, width))
        assert (decided == 1).all()
        for low, high in (("top", "bottom"), ("left", "right")):
            spans = sorted({(getattr(tile.shown, low), getattr(tile.shown, high)) for tile in layout})
            assert all(end - start >= overlap * size for (_, end), (start, _) in itertools.pairwise(spans))


def test_no_tile_is_added_that_the_overlap_does_not_ask_for():
    assert [tile.shown[1::2] for tile in tiles(10, 180, 100, 0.2)] == [(0, 100), (80, 180)]
    assert [tile.own[1::2] for tile in tiles(10, 180, 100, 0.2)] == [(0, 90), (90, 180)]
    assert len(tiles(10, 181, 100, 0.2)) == 3
    assert tiles(10, 20, 0, 0.2) == tiles(10, 20, 20, 0.2) == [Tile(*[Rectangle(0, 0, 10, 20)] * 2)]


@pytest.mark.parametrize(
    ("size", "overlap", "name"), [(-1, 0.2, "size"), (1, 0.2, "size"), (9, 0.0, "overlap"), (9, 0.6, "overlap")]
)
def test_sizes_and_overlaps_that_cannot_be_are_errors(size, overlap, name):
    with pytest.raises(ValueError, match=f"slice_{name} = "):
        tiles(10, 20, size, overlap)


# --- a detector that sees what is there ------------------------------------------------------------------------------


def detections_in(ids: np.ndarray, labels: np.ndarray, *, boxes_only: bool = False) -> Instances:
    """The connected pieces of each object in a tile, with the boxes around them."""
    masks, found = [], []
    for number in np.unique(ids[ids > 0]).tolist():
        pieces, count = ndimage.label(ids == number, np.ones((3, 3)))
        masks += [pieces == piece for piece in range(1, count + 1)]
        found += [labels[number]] * count
    masks = np.array(masks, bool).reshape(-1, *ids.shape)
    boxes = [(x.start, y.start, x.stop, y.stop) for mask in masks for y, x in ndimage.find_objects(mask.astype(int))]
    fields = {
        "scores": np.array([mask.mean() for mask in masks], np.float32),
        "labels": np.array(found, np.int32),
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "queries": np.arange(len(masks), dtype=np.int32),
    }
    if boxes_only:
        return Instances(bits=None, width=0, **fields)
    return Instances.from_masks(masks, **fields)


def panoptic_in(ids: np.ndarray, labels: np.ndarray) -> Panoptic:
    """The same pieces as segments, and sky in the rest but for its last row."""
    found = detections_in(ids, labels)
    result, segments = np.zeros(ids.shape, np.int32), []
    for number, (label, mask, score) in enumerate(
        zip(found.labels.tolist(), found.masks, found.scores.tolist(), strict=True), 3
    ):
        result[mask] = number
        segments.append(PanopticSegment(id=number, label=label, is_thing=True, score=score, area=int(mask.sum())))
    sky = result == 0
    result[sky] = 2
    segments.append(PanopticSegment(id=2, label=SKY, is_thing=False, score=0.5, area=int(sky.sum())))
    return Panoptic(result, tuple(segments))


def sliced(ids: np.ndarray, labels: np.ndarray, size: int, overlap: float = 0.2, boxes_only: bool = False) -> Segments:
    layout = tiles(*ids.shape, size, overlap)
    mosaic = Mosaic(CATALOG, ids.shape, layout)
    for tile in layout:
        assert not mosaic.complete
        part = tile.pixels(ids)
        mosaic.add(
            Segments(
                catalog=CATALOG,
                instances=detections_in(part, labels, boxes_only=boxes_only),
                panoptic=None if boxes_only else panoptic_in(part, labels),
                semantic=np.where(part > 0, labels[part], SKY).astype(np.int32),
            )
        )
    assert mosaic.complete
    return mosaic.result()


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Discs, long bars and a U whose arms other tiles see apart, none touching another, on 150 x 210 pixels."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((150, 210), np.int32)
    y, x = np.mgrid[:150, :210]
    shapes = [(abs(y - 75) < 4) & (abs(x - 100) < 95)]
    arms = (abs(x - 30) < 4) | (abs(x - 52) < 5)
    shapes.append((x >= 27) & (x < 57) & (y > 84) & (y < 146) & (arms | (y > 138)))
    for _ in range(60):
        row, column, radius = rng.integers(0, 150), rng.integers(0, 210), rng.integers(2, 16)
        shapes.append((y - row) ** 2 + (x - column) ** 2 <= radius**2)
    for shape in shapes:
        if not ids[ndimage.binary_dilation(shape, np.ones((3, 3)), 2)].any():
            ids[shape] = ids.max() + 1
    return ids, np.append(0, rng.integers(0, 2, ids.max())).astype(np.int32)


def rows_of(masks: np.ndarray) -> set[bytes]:
    return {np.packbits(mask).tobytes() for mask in masks}


@pytest.mark.parametrize(("size", "overlap"), [(64, 0.2), (50, 0.1), (80, 0.5), (120, 0.3)])
def test_joined_parts_are_exactly_the_objects(size, overlap):
    for seed in range(4):
        ids, labels = scene(seed)
        found = sliced(ids, labels, size, overlap)
        objects = [ids == number for number in range(1, ids.max() + 1)]
        assert len(objects) > 8
        assert rows_of(found.instances.masks) == rows_of(objects)
        assert len(found.instances) == len(objects)
        for index, part in enumerate(found.of("instance")):
            (number,) = np.unique(ids[part.mask])
            ((y, x),) = ndimage.find_objects(part.mask.astype(int))
            assert part.label == labels[number]
            assert part.box == (x.start, y.start, x.stop, y.stop)
            assert part.area == found.instances.mask(index).sum() == (ids == number).sum()


@pytest.mark.parametrize(("size", "overlap"), [(64, 0.2), (80, 0.5)])
def test_maps_are_those_of_the_whole_image(size, overlap):
    ids, labels = scene(1)
    found = sliced(ids, labels, size, overlap)
    np.testing.assert_array_equal(found.semantic, np.where(ids > 0, labels[ids], SKY))
    panoptic = found.panoptic
    assert rows_of([panoptic.ids == part.id for part in panoptic.segments if part.is_thing]) == rows_of(
        [ids == number for number in range(1, ids.max() + 1)]
    )
    (sky,) = [part for part in panoptic.segments if not part.is_thing]
    np.testing.assert_array_equal(panoptic.ids == sky.id, ids == 0)
    assert sorted(part.id for part in panoptic.segments) == list(range(1, ids.max() + 2))
    assert all(part.area == (panoptic.ids == part.id).sum() for part in panoptic.segments)
    assert {part.label for part in panoptic.segments if part.is_thing} == set(labels[1:].tolist())


def test_an_image_no_larger_than_a_tile_keeps_its_results_as_they_are():
    ids, labels = scene(0)
    found = Segments(catalog=CATALOG, instances=detections_in(ids, labels))
    mosaic = Mosaic(CATALOG, ids.shape, tiles(*ids.shape, 210, 0.2))
    mosaic.add(found)
    assert mosaic.result() is found


def test_the_score_of_an_object_is_that_of_its_best_part_and_the_best_object_comes_first():
    ids = np.zeros((40, 180), np.int32)
    ids[10:20, 60:140] = 1  # 40 columns in the first tile, 60 in the second
    ids[30:32, 5:9] = 2
    found = sliced(ids, np.array([0, 1, 1]), 100).instances
    np.testing.assert_allclose(found.scores, [600 / 4000, 8 / 4000])
    assert np.all(found.mask(0) == (ids == 1))
    better = found.above(0.1)
    assert (len(better), better.areas.tolist(), better.masks.shape) == (1, [800], (1, 40, 180))
    assert found.labels.tolist() == [1, 1]


def parts_in(rows: list[list[tuple[int, int]]], labels: list[list[int]]) -> Instances:
    """Objects that two tiles of 100 x 100, 20 columns of them shared, see in given columns, ten rows each, joined."""
    layout = tiles(100, 180, 100, 0.2)
    mosaic = Mosaic(CATALOG, (100, 180), layout)
    for tile, spans, classes in zip(layout, rows, labels, strict=True):
        masks = np.zeros((len(spans), 100, 100), bool)
        for mask, (start, stop) in zip(masks, spans, strict=True):
            mask[50:60, start - tile.shown.left : stop - tile.shown.left] = True
        count = len(spans)
        found = Instances.from_masks(
            masks,
            scores=np.linspace(0.9, 0.5, count, dtype=np.float32),
            labels=np.array(classes, np.int32),
            boxes=np.zeros((count, 4), np.float32),
            queries=np.arange(count, dtype=np.int32),
        )
        mosaic.add(Segments(catalog=CATALOG, instances=found))
    return mosaic.result().instances


def spans_of(found: Instances) -> list[tuple[int, int]]:
    columns = [np.flatnonzero(mask.any(axis=0)) for mask in found.masks]
    return sorted((int(place[0]), int(place[-1]) + 1) for place in columns)


def test_different_classes_are_different_objects():
    assert spans_of(parts_in([[(60, 100)], [(80, 120)]], [[0], [1]])) == [(60, 100), (80, 120)]


def test_neighbours_that_touch_stay_apart_where_their_masks_are_not_exact():
    """The second object reaches three columns into what both tiles share; there the first tile gives two of them to
    the first object, which no border cuts."""
    found = parts_in([[(70, 99), (98, 100)], [(80, 97), (97, 130)]], [[0, 0], [0, 0]])
    assert spans_of(found) == [(70, 99), (97, 130)]


def test_a_part_that_only_one_tile_has_seen_stays():
    assert spans_of(parts_in([[(82, 95)], []], [[0], []])) == [(82, 95)]
    assert spans_of(parts_in([[], [(82, 95)]], [[], [0]])) == [(82, 95)]
    assert len(parts_in([[], []], [[], []])) == 0


def test_boxes_without_masks_are_joined_too():
    ids = np.zeros((60, 180), np.int32)
    ids[10:20, 60:140], ids[30:50, 10:30], ids[30:50, 84:96] = 1, 2, 3
    found = sliced(ids, np.array([0, 0, 0, 1]), 100, boxes_only=True).instances
    assert found.bits is None
    assert sorted(map(tuple, found.boxes.tolist())) == [(10, 30, 30, 50), (60, 10, 140, 20), (84, 30, 96, 50)]
    empty = sliced(np.zeros((60, 180), np.int32), np.array([0]), 100, boxes_only=True)
    assert empty.instances.bits is None
    assert empty.of("detection") == ()


def test_instances_of_tiles_without_any_are_instances():
    empty = sliced(np.zeros((60, 180), np.int32), np.array([0]), 100)
    assert empty.of("instance") == ()
    assert empty.instances.masks.shape == (0, 60, 180)
    assert empty.to_coco() == []


def panoptic_of(maps: list[np.ndarray], labels: list[list[int]]) -> Panoptic:
    """Maps of two tiles of 10 x 100, 20 columns of them shared, joined; a row of ids and the things' classes each."""
    layout = tiles(10, 180, 100, 0.2)
    mosaic = Mosaic(CATALOG, (10, 180), layout)
    for row, classes in zip(maps, labels, strict=True):
        ids = np.tile(row, (10, 1)).astype(np.int32)
        parts = [
            PanopticSegment(id=number, label=label, is_thing=label != SKY, score=0.5, area=int((ids == number).sum()))
            for number, label in enumerate(classes, 1)
        ]
        mosaic.add(Segments(catalog=CATALOG, panoptic=Panoptic(ids, tuple(parts))))
    return mosaic.result().panoptic


def row_of(start: int, stop: int) -> np.ndarray:
    return (np.arange(100) >= start) & (np.arange(100) < stop)


def test_things_of_different_classes_stay_apart_in_a_panoptic_map():
    """Both go through all of what is shared, from column 80 to 100; each tile decides half of it."""
    across = [row_of(50, 100), row_of(0, 40)]
    same, different = panoptic_of(across, [[0], [0]]), panoptic_of(across, [[0], [1]])
    assert [(part.label, part.area) for part in same.segments] == [(0, 700)]
    assert [(part.label, part.area) for part in different.segments] == [(0, 400), (1, 300)]
    assert different.ids[0, [49, 50, 89, 90, 119, 120]].tolist() == [0, 1, 1, 2, 2, 0]
    assert different.ids.dtype == np.int32


def test_a_thing_that_one_tile_alone_has_found_is_not_cut_where_another_tile_decides():
    """The first tile sees it in columns 86 to 98, the second one, which decides from column 90 on, nothing or stuff."""
    for others in ([], [SKY]):
        found = panoptic_of([row_of(86, 98), row_of(0, 100 * len(others))], [[0], others])
        assert [(part.label, part.area) for part in found.segments[:1]] == [(0, 120)]
        assert (found.ids[0] == 1).tolist() == ((np.arange(180) >= 86) & (np.arange(180) < 98)).tolist()
    other_thing = panoptic_of([row_of(86, 98), row_of(0, 100)], [[0], [1]])
    assert [part.area for part in other_thing.segments] == [40, 960], "columns 86 to 90; 80 to 86, and from 90 on"


# --- masks cut to their objects --------------------------------------------------------------------------------------


def test_run_lengths_of_cropped_masks_are_those_of_whole_ones():
    rng = np.random.default_rng(0)
    for _ in range(30):
        height, width = rng.integers(1, 40, 2)
        masks = np.zeros((6, height, width), bool)
        for mask, share in zip(masks, (1, 1, 0.5, 0.5, 0.1, 0.9), strict=True):
            top, left = rng.integers(0, height), rng.integers(0, width)
            part = mask[top : rng.integers(top, height) + 1, left : rng.integers(left, width) + 1]
            part |= rng.random(part.shape) < share
        masks[0, :, width // 2 :] = True  # whole columns, as far as the last one
        masks = masks[masks.any(axis=(1, 2))]
        cropped = CroppedMasks(tuple(Crop.around(mask, 0, 0) for mask in masks), (int(height), int(width)))
        np.testing.assert_array_equal(cropped.unpacked(), masks)
        assert cropped.run_lengths() == encode(masks)
        assert cropped.areas.tolist() == coco_mask.area(cropped.run_lengths()).tolist()


def test_what_cropped_masks_take_does_not_depend_on_the_size_of_the_image():
    ids = np.zeros((3000, 4000), np.int32)
    for number in range(40):
        ids[70 * number : 70 * number + 30, 90 * number : 90 * number + 40] = number + 1
    found = sliced(ids, np.zeros(41, np.int32), 1000).instances
    assert len(found) == 40
    assert sum(crop.bits.nbytes for crop in found.bits.crops) == 40 * 30 * 40 // 8
    assert len(found.above(0.0013)) == 0

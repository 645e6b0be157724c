"""Instances of an image and its mirror image, with a model that reads them off the pixels."""

import dataclasses

import numpy as np
import pytest

from maskdino_jax.config import Config
from maskdino_jax.inference.mirrored import Mirrored, merge, mirrored
from maskdino_jax.inference.postprocess import Postprocessor
from maskdino_jax.inference.results import Instances
from maskdino_jax.structures import EvalBatch, Outputs
from tests.inference.scenes import NEVER, SURE, catalog_of, outputs_of

HEIGHT, WIDTH = 32, 44  # on a canvas of 32 x 64


def rectangle(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def instances(*rows: tuple[float, int, tuple[int, int, int, int]], masks: bool = True) -> Instances:
    """Score, class, and corners of a rectangle for each."""
    scores, labels, boxes = (np.array(column) for column in zip(*rows, strict=True))
    fields = {
        "scores": scores.astype(np.float32),
        "labels": labels.astype(np.int32),
        "boxes": boxes.astype(np.float32),
        "queries": np.arange(len(rows), dtype=np.int32),
    }
    if not masks:
        return Instances(bits=None, width=WIDTH, **fields)
    return Instances.from_masks(np.stack([rectangle(*box) for box in boxes]), **fields)


def rows(found: Instances) -> list[tuple[float, int, tuple[int, ...]]]:
    return [
        (round(float(score), 4), int(label), tuple(box.astype(int).tolist()))
        for score, label, box in zip(found.scores, found.labels, found.boxes, strict=True)
    ]


@pytest.mark.parametrize("masks", [True, False])
def test_pairs_have_the_mean_score_and_the_shape_of_the_better_one(masks):
    first = instances(
        (0.9, 0, (0, 0, 10, 10)),  # half of it is also in ...
        (0.8, 0, (20, 0, 30, 10)),
        (0.4, 1, (20, 0, 30, 10)),
        masks=masks,
    )
    second = instances(
        (1.0, 0, (0, 0, 10, 5)),  # ... this one, IoU 1/2
        (0.6, 0, (24, 0, 34, 10)),  # IoU 6/14 with the second
        (0.2, 1, (20, 1, 30, 10)),
        (0.1, 0, (20, 20, 24, 24)),
        masks=masks,
    )
    merged = merge(first, second, most=10)
    assert rows(merged) == [
        (0.95, 0, (0, 0, 10, 5)),
        (0.4, 0, (20, 0, 30, 10)),
        (0.3, 1, (20, 0, 30, 10)),
        (0.3, 0, (24, 0, 34, 10)),
        (0.05, 0, (20, 20, 24, 24)),
    ]
    assert rows(merge(first, second, most=2)) == rows(merged)[:2]
    if masks:
        for box, mask in zip(merged.boxes.astype(int), merged.masks, strict=True):
            np.testing.assert_array_equal(mask, rectangle(*box))


def test_each_detection_is_in_one_pair_the_best_one_chooses_first():
    first = instances((0.9, 0, (0, 0, 10, 10)), (0.8, 0, (0, 0, 10, 9)))
    second = instances((0.7, 0, (0, 0, 10, 10)))
    assert rows(merge(first, second, most=10)) == [(0.8, 0, (0, 0, 10, 10)), (0.4, 0, (0, 0, 10, 9))]


def test_nothing_found_in_one_view_or_in_both():
    some = instances((0.9, 0, (0, 0, 10, 10)))
    none = some.above(1.0)
    assert rows(merge(some, none, most=10)) == rows(merge(none, some, most=10)) == [(0.45, 0, (0, 0, 10, 10))]
    assert len(merge(none, none, most=10)) == 0


def test_the_mirror_image():
    found = mirrored(instances((0.9, 0, (3, 2, 10, 30)), (0.8, 0, (0, 0, 44, 1))), WIDTH)
    assert rows(found) == [(0.9, 0, (34, 2, 41, 30)), (0.8, 0, (0, 0, 44, 1))]
    for box, mask in zip(found.boxes.astype(int), found.masks, strict=True):
        np.testing.assert_array_equal(mask, rectangle(*box))


def reads_pixels(batch: EvalBatch) -> Outputs:
    """A query for each colour; its class is the more certain the further to the left the colour lies."""
    logits, boxes, masks = [], [], []
    for image in batch.images:
        planes = image.transpose(2, 0, 1) > 0
        corners = np.array([corners_of(plane) for plane in planes])
        centres, sizes = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        logits.append([[2 - x / 16, NEVER] for x in centres[:, 0]])
        boxes.append(np.concatenate([centres, sizes], axis=1) / np.tile(image.shape[1::-1], 2))
        masks.append(np.where(planes, SURE, NEVER))
    return outputs_of(logits, boxes, masks)


def corners_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1; zeros of nothing."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 0, 0)


@pytest.mark.parametrize("task", ["instance", "detection"])
def test_scores_are_the_means_of_both_views_and_masks_lie_where_they_did(task):
    config = Config()
    config.inference.tasks = (task,)
    config.inference.detections_per_image = 3
    image = np.zeros((32, 64, 3), np.uint8)
    image[4:12, 2:9, 0] = image[20:30, 30:44, 1] = 255
    filler = np.zeros_like(image)
    batch = EvalBatch(
        images=np.stack([filler, image]),
        sizes=np.array([[32, 64], [HEIGHT, WIDTH]]),
        extents=None,
        original_sizes=np.array([[32, 64], [HEIGHT, WIDTH]]),
        records=np.array([0, 7]),
        valid=np.array([False, True]),
    )
    before = batch.images.copy()
    predict = reads_pixels
    if task == "detection":
        predict = lambda batch: dataclasses.replace(reads_pixels(batch), masks=None)
    views = Mirrored(predict, Postprocessor(catalog_of(True, True), config), task, most=3)
    [pending] = views.begin(batch)
    assert pending.record == 7
    found = views.finish(pending).instances
    np.testing.assert_array_equal(batch.images, before)
    probability = lambda centre: 1 / (1 + np.exp(centre / 16 - 2))
    both = lambda centre: (probability(centre) + probability(WIDTH - centre)) / 2
    seen = {int(query): index for index, query in enumerate(found.queries)}
    for query, centre in ((0, 5.5), (1, 37)):
        index, mask = seen[query], image[:HEIGHT, :WIDTH, query] > 0
        assert found.scores[index] == pytest.approx(both(centre), abs=1e-5)
        np.testing.assert_allclose(found.boxes[index], corners_of(mask), atol=1e-4)
        if task == "instance":
            np.testing.assert_array_equal(found.mask(index), mask)

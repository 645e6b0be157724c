"""What the report counts: cases worked by hand, and laws that tie it to the metrics."""

import numpy as np
import pytest

from maskdino_jax.evaluation.report import detections
from maskdino_jax.evaluation.report.detections import Detections, best, calibration, scene
from maskdino_jax.evaluation.report.errors import KINDS, classify, costs
from maskdino_jax.evaluation.report.findings import size_name

CAT, DOG = 5, 9
CATEGORIES = [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}]


def square(category: int, x: float, score: float | None = None, *, side: float = 10, crowd: int = 0) -> dict:
    """A box on one line of the image; with a score it is a detection."""
    entry = {"category_id": category, "bbox": [x, 0.0, side, side]}
    return entry | ({"iscrowd": crowd, "area": side * side} if score is None else {"score": score})


def detected(*images: tuple[list[dict], list[dict]]) -> Detections:
    """From objects and detections of each image."""
    return Detections.of([scene(objects, found, "bbox") for objects, found in images], CATEGORIES)


def lost(*images: tuple[list[dict], list[dict]]) -> dict[str, tuple[int, float]]:
    found = detected(*images)
    return {kind: (cost.count, pytest.approx(cost.ap)) for kind, cost in costs(found, classify(found)).items()}


# --- errors ----------------------------------------------------------------------------------------------------------

ONE_OF_EACH = (
    [square(CAT, 0), square(CAT, 100), square(DOG, 200), square(DOG, 300), square(DOG, 700)],
    [
        square(CAT, 0, 0.9),  # right
        square(CAT, 0, 0.8),  # once more
        square(CAT, 105, 0.7),  # a third of the second cat
        square(CAT, 200, 0.6),  # a dog
        square(CAT, 305, 0.5),  # a third of another dog
        square(DOG, 500, 0.4),  # nothing
    ],
)


def test_each_kind_of_error_is_recognised():
    found = detected(ONE_OF_EACH)
    errors = classify(found)
    kinds = [KINDS[kind] if kind >= 0 else "right" for kind in errors.of_detections]
    assert kinds == ["right", "duplicate", "localisation", "classification", "both", "background"]
    assert errors.about.tolist() == [-1, -1, 1, 2, -1, -1]
    assert errors.missed.tolist() == [False, False, False, True, True], "errors of place or class excuse two of them"


def test_what_fixing_each_kind_gains():
    """AP is 51/101 of cats (recalls 0 to 0.5 at precision 1) and 0 of dogs."""
    gains = lost(ONE_OF_EACH)
    assert gains["localisation"] == (1, (50 * 2 / 3) / 101 / 2), "right, wrong, right: two thirds above recall 0.5"
    assert gains["classification"] == (1, 34 / 101 / 2), "a dog with a better score than the wrong one: recall 1/3"
    assert gains["missed"] == (2, 0), "the one dog that is left is not found either"
    assert gains["duplicate"] == gains["background"] == gains["both"] == (1, 0), "they stand behind the right one"
    assert gains["wrong"] == (5, 0)
    assert gains["unfound"] == (4, 50 / 101 / 2 + 1 / 2), "nothing but the first cat is asked for: AP 1 of both"


@pytest.mark.parametrize(
    ("kind", "first"),
    [("background", square(CAT, 50, 0.9)), ("duplicate", None), ("both", square(CAT, 305, 0.9))],
)
def test_a_wrong_detection_before_the_right_one_costs_half(kind, first):
    """Precision is 1/2 at all recalls; without the wrong one it is 1. Dogs lose nothing, for a dog is missed anyway."""
    objects = [square(CAT, 0), square(DOG, 300)]
    if first is not None:
        assert lost((objects, [first, square(CAT, 0, 0.8)]))[kind] == (1, 0.5 / 2)
        return
    objects = [square(CAT, 0), square(CAT, 100)]
    found = [square(CAT, 0, 0.9), square(CAT, 0, 0.8), square(CAT, 100, 0.7)]
    assert lost((objects, found))[kind] == (1, 50 / 3 / 101), "two thirds for recalls above a half become one"


def test_only_the_best_error_about_an_object_becomes_right():
    found = [square(CAT, 5, 0.9), square(CAT, 5.5, 0.8), square(CAT, 100, 0.7)]
    gains = lost(([square(CAT, 0), square(CAT, 100)], found))
    assert gains["localisation"] == (2, 1 - (34 + 17) / 101 / 3), "both are in front of the right one: precision 1/3"


def test_the_best_error_is_the_one_with_the_best_score():
    gains = lost(([square(CAT, 0)], [square(CAT, 5, 0.9), square(CAT, 50, 0.85), square(CAT, 5, 0.8)]))
    assert gains["localisation"] == (2, 1), "it stands before the detection of nothing"


def test_a_localisation_error_about_an_object_that_is_found_is_only_taken_away():
    gains = lost(([square(CAT, 0), square(CAT, 100)], [square(CAT, 5, 0.9), square(CAT, 0, 0.8)]))
    assert gains["localisation"] == (1, 51 / 2 / 101), "precision 1/2 becomes 1 up to recall 1/2"
    assert gains["missed"] == (1, 50 / 2 / 101)


def test_missed_objects_are_no_longer_asked_for():
    assert lost(([square(CAT, 0), square(CAT, 100)], [square(CAT, 0, 0.9)]))["missed"] == (1, 50 / 101)
    assert lost(([square(CAT, 0)], []))["missed"] == (1, 1), "nothing is left to be found"


def test_place_comes_before_class_and_class_before_duplicate():
    """A detection that is several errors is the first of them, as in the reference."""
    crowdless = [square(CAT, 0), square(DOG, 1)]
    kinds = lambda objects, found: [KINDS[kind] for kind in classify(detected((objects, found))).of_detections[-1:]]
    assert kinds([square(CAT, 0), square(DOG, 6)], [square(CAT, 6, 0.5)]) == ["localisation"], "0.25 of cat, 1 of dog"
    assert kinds(crowdless, [square(CAT, 0, 0.9), square(CAT, 1, 0.5)]) == ["classification"], "also the cat again"


def test_overlaps_of_one_half_and_one_tenth_belong_to_the_upper_kind():
    def of(side: float, shift: float) -> list[str]:
        found = detected(([square(CAT, 0, side=side)], [square(CAT, shift, 0.5, side=side)]))
        return [KINDS[kind] for kind in classify(found).of_detections if kind >= 0]

    assert of(9, 3) == [], "6/12: exactly one half is right"
    assert of(9, 3.01) == ["localisation"]
    assert of(11, 9) == ["localisation"], "2/20: exactly one tenth"
    assert of(11, 9.01) == ["background"]
    kinds = [[KINDS[kind] for kind in classify(detected(image)).of_detections if kind >= 0] for image in (
        ([square(DOG, 0, side=9)], [square(CAT, 3, 0.5, side=9)]),
        ([square(CAT, 0, side=9)], [square(CAT, 0, 0.9, side=9), square(CAT, 3, 0.5, side=9)]),
    )]  # fmt: skip
    assert kinds == [["classification"], ["duplicate"]]


def test_crowds_are_not_missed_and_excuse_detections():
    found = detected(([square(CAT, 0, side=50, crowd=1)], [square(CAT, 0, 0.9), square(CAT, 10, 0.8)]))
    errors = classify(found)
    assert errors.of_detections.tolist() == [-1, -1]
    assert errors.missed.tolist() == [False]
    other = classify(detected(([square(CAT, 0, side=50, crowd=1)], [square(DOG, 0, 0.9)])))
    assert [KINDS[kind] for kind in other.of_detections] == ["background"], "a crowd is no cat to be mistaken"


def random_images(seed: int, count: int = 30) -> list[tuple[list[dict], list[dict]]]:
    draw = np.random.default_rng(seed)
    one = lambda score=None, crowd=0: square(
        int(draw.choice([CAT, DOG])), float(draw.integers(0, 60)), score, side=float(draw.integers(5, 20)), crowd=crowd
    )
    return [
        (
            [one(crowd=int(draw.random() < 0.1)) for _ in range(draw.integers(0, 6))],
            [one(round(float(draw.random()), 2)) for _ in range(draw.integers(0, 9))],
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_laws_of_errors(seed):
    """Every wrong detection is one error, no object is both found and missed, and no fix makes AP worse."""
    found = detected(*random_images(seed))
    errors = classify(found)
    np.testing.assert_array_equal(errors.of_detections >= 0, found.counted & ~found.right)
    assert not errors.missed[found.taken[found.right]].any()
    assert not errors.missed[~found.wanted].any()
    gains = costs(found, errors)
    assert sum(gains[kind].count for kind in KINDS[:-1]) == gains["wrong"].count > 20
    assert all(gain.ap >= 0 for gain in gains.values())
    ap = found.metrics["AP50"]
    everything = gains["unfound"].ap
    assert 0 < ap + everything <= 1 + 1e-12
    perfect = detected(*[(objects, [o | {"score": 0.9} for o in objects if not o["iscrowd"]])
                         for objects, _ in random_images(seed)])  # fmt: skip
    assert perfect.metrics["AP50"] == pytest.approx(1)
    assert {gain.ap for gain in costs(perfect, classify(perfect)).values()} == {0}


@pytest.mark.parametrize("seed", range(4))
def test_the_gain_of_removing_all_wrong_detections_starts_at_average_precision(seed):
    """Two ways to AP: the metric of the wrong-free detections is the metric of all and the gain."""
    images = random_images(seed)
    found = detected(*images)
    starts = np.cumsum([0, *(len(objects_found[1]) for objects_found in images)])
    kept = []
    for (objects, entries), start in zip(images, starts, strict=False):
        mine = found.right[start : start + len(entries)]
        order = np.lexsort((-np.array([e["score"] for e in entries]), np.array([e["category_id"] for e in entries])))
        kept.append((objects, [entries[place] for place, right in zip(order, mine, strict=True) if right]))
    gain = costs(found, classify(found))["wrong"].ap
    assert detected(*kept).metrics["AP50"] == pytest.approx(found.metrics["AP50"] + gain, abs=1e-9)


# --- thresholds, confusion, sizes, scores ----------------------------------------------------------------------------


def test_precision_and_recall_at_a_threshold():
    objects = [square(CAT, 0), square(CAT, 100), square(DOG, 200)]
    found = detected((objects, [square(CAT, 0, 0.9), square(CAT, 50, 0.6), square(CAT, 100, 0.3)]))
    low, high = found.at(0.3), found.at(0.61)
    assert (low.precision, low.recall, low.f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3)), "a score of 0.3 is not below"
    assert (high.precision, high.recall, high.f1, high.objects) == pytest.approx((1, 1 / 3, 1 / 2, 3))
    assert found.at(0.3, 0).recall == 1
    assert (found.at(0.95).precision, found.at(0.95).f1) == (0, 0)


def test_the_best_threshold_is_in_the_middle_of_the_best_ones():
    found = detected(([square(CAT, 0)], [square(CAT, 0, 0.8), square(CAT, 50, 0.4)]))
    top = best(found.operating())
    assert (top.f1, top.threshold) == (1, pytest.approx(0.61)), "0.41 to 0.80 are equally good"


def test_confusion_by_hand():
    table = detections.confusion(detected(ONE_OF_EACH), 0.45)
    assert table.tolist() == [
        [1, 0, 1],  # a cat is found, the other one is not
        [1, 0, 2],  # a dog is taken for a cat
        [3, 0, 0],  # the duplicate and the two that fit badly; the dog in nothing is below the threshold
    ]


def test_the_best_score_takes_an_object_whatever_its_class():
    found = detected(([square(CAT, 0)], [square(CAT, 0, 0.6), square(DOG, 0, 0.7)]))
    assert detections.confusion(found, 0.5).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_detections_in_a_crowd_of_any_class_are_not_confused():
    crowd = [square(CAT, 0, side=50, crowd=1)]
    found = detected((crowd, [square(CAT, 0, 0.9), square(DOG, 5, 0.9), square(DOG, 45, 0.9)]))
    assert detections.confusion(found, 0.5).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0]], "half of the last is outside"


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_the_confusion_are_the_objects(seed):
    found = detected(*random_images(seed))
    table = detections.confusion(found, 0.3)
    np.testing.assert_array_equal(table[:-1].sum(axis=1), np.bincount(found.object_labels[found.wanted], minlength=2))


def test_images_of_one_detection_each():
    found = detected(([square(CAT, 0)], [square(CAT, 0, 0.9)]), ([square(CAT, 0), square(DOG, 0)], []), ([], []),
                     ([], [square(DOG, 0, 0.6), square(DOG, 50, 0.4)]))  # fmt: skip
    assert found.per_image(0.5).tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 0], [0, 1, 0]]


def test_calibration_by_hand():
    found = detected(([square(CAT, 0)], [square(CAT, 0, 0.95), square(CAT, 50, 0.93), square(CAT, 80, 0.17)]))
    bins = calibration(found)
    assert bins[9].tolist() == pytest.approx([0.94, 0.5, 2])
    assert bins[1].tolist() == pytest.approx([0.17, 0, 1])
    assert bins[:, 2].sum() == 3
    assert np.isnan(bins[5, 0])


def test_sizes_by_hand():
    objects = [
        square(CAT, 0, side=7.9),
        square(CAT, 50, side=8),
        square(CAT, 100, side=15.9),
        square(CAT, 200, side=40),
    ]
    found = detected((objects, [square(CAT, 50, 0.9, side=8), square(CAT, 200, 0.3, side=40)]))
    assert detections.sizes(found, 0.5) == [(0, 8, 1, 0), (8, 16, 2, 1), (16, 32, 0, 0), (32, 64, 1, 0)]
    assert detections.sizes(found, 0.3)[-1] == (32, 64, 1, 1)
    assert [size_name(0, 8), size_name(8, 16), size_name(512, np.inf)] == ["under 8", "8\u201316", "over 512"]

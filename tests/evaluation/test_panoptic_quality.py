"""Panoptic quality against published numbers, the official evaluator's, and cases worked by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from maskdino_jax.data.catalog import Catalog, Category
from maskdino_jax.evaluation.panoptic_quality import Counts, PanopticQuality, count, summarize
from maskdino_jax.evaluation.regions import Regions, read_ids, truth
from maskdino_jax.evaluation.saved import score_panoptic
from maskdino_jax.inference.results import Panoptic, PanopticSegment


def regions(ids, labels: dict[int, int], crowd: tuple[int, ...] = ()) -> Regions:
    keys = np.array(list(labels), np.int64)
    return Regions(np.asarray(ids), keys, np.array(list(labels.values()), np.int64), np.isin(keys, crowd))


def of(expected: Regions, found: Regions, classes: int = 2) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in vars(count(expected, found, classes)).items()}


def catalog(things: int, stuff: int) -> Catalog:
    names = range(things + stuff)
    return Catalog(tuple(Category(id=n, name=str(n), is_thing=n < things, color=(0, 0, 0)) for n in names))


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_a_pair_matches_only_above_one_half():
    expected = regions([[1, 1, 1, 1]], {1: 0})
    assert of(expected, regions([[5, 5, 6, 6]], {5: 0, 6: 1})) == {
        "iou": [0, 0], "matched": [0, 0], "wrong": [1, 1], "missed": [1, 0],
    }  # fmt: skip
    assert of(expected, regions([[5, 5, 5, 6]], {5: 0, 6: 1})) == {
        "iou": [0.75, 0], "matched": [1, 0], "wrong": [0, 1], "missed": [0, 0],
    }  # fmt: skip


def test_unlabelled_pixels_do_not_count_in_the_union():
    found = of(regions([[1, 1, 1, 0, 0]], {1: 0}), regions([[5, 5, 5, 5, 5]], {5: 0}))
    assert found["iou"] == [1, 0]


def test_a_segment_of_another_class_is_wrong_and_leaves_the_true_one_missed():
    found = of(regions([[1, 1]], {1: 0}), regions([[5, 5]], {5: 1}))
    assert (found["wrong"], found["missed"], found["matched"]) == ([0, 1], [1, 0], [0, 0])


@pytest.mark.parametrize(("unlabelled", "wrong"), [(2, 1), (3, 0)])
def test_a_segment_mostly_on_unlabelled_pixels_is_not_wrong(unlabelled, wrong):
    ids = [0] * unlabelled + [1] * (4 - unlabelled) + [1] * 6
    assert of(regions([ids], {1: 0}), regions([[5] * 4 + [6] * 6], {5: 1, 6: 0}))["wrong"] == [0, wrong]


def test_a_crowd_is_never_matched_or_missed_and_excuses_only_its_own_class():
    expected = regions([[1, 1, 1, 1]], {1: 0}, crowd=(1,))
    nothing = [0, 0]
    assert of(expected, regions([[0, 0, 0, 0]], {})) == dict.fromkeys(("iou", "matched", "wrong", "missed"), nothing)
    assert of(expected, regions([[5, 5, 5, 5]], {5: 0}))["wrong"] == nothing
    assert of(expected, regions([[5, 5, 5, 5]], {5: 1}))["wrong"] == [0, 1]


def test_quality_is_the_total_overlap_over_half_the_sizes_of_both_sides():
    counts = Counts(np.array([1.5, 0, 0]), np.array([2, 0, 0]), np.array([1, 0, 0]), np.array([2, 1, 0]))
    metrics = summarize(counts, catalog(1, 2))
    assert metrics["panoptic_seg/PQ-0"] == pytest.approx(1.5 / 3.5)
    assert metrics["panoptic_seg/SQ-0"] == pytest.approx(0.75)
    assert metrics["panoptic_seg/RQ-0"] == pytest.approx(2 / 3.5)
    assert metrics["panoptic_seg/PQ"] == pytest.approx((1.5 / 3.5 + 0) / 2), "class 2 never occurs and does not count"
    assert metrics["panoptic_seg/PQ_th"] == pytest.approx(1.5 / 3.5)
    assert metrics["panoptic_seg/PQ_st"] == 0
    assert "panoptic_seg/PQ-2" not in metrics


def test_a_map_matches_itself_perfectly(blocks):
    regions = truth(blocks, 0)
    metrics = summarize(count(regions, regions, 3), blocks.catalog)
    assert {metrics[f"panoptic_seg/{name}"] for name in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st")} == {1.0}


def test_ids_survive_the_png(tmp_path):
    ids = np.array([[0, 1, 255, 256], [65535, 65536, 70000, 2**24 - 1]], np.int32)
    Panoptic(ids, ()).save(tmp_path / "new" / "ids.png")
    np.testing.assert_array_equal(read_ids(tmp_path / "new" / "ids.png"), ids)


# --- published and official numbers ----------------------------------------------------------------------------------


def categories_and_instances(pixels, things, classes) -> Regions:
    pixels = np.array(pixels)
    instances = np.where(np.isin(pixels[..., 0], things), pixels[..., 1], 0)  # instances of stuff do not count
    ids = 1 + pixels[..., 0] * 1000 + instances
    return regions(ids, {int(key): classes.index((key - 1) // 1000) for key in np.unique(ids)})


@pytest.mark.parametrize("case", [0, 1])
def test_the_examples_of_torchmetrics(golden, case):
    content = json.loads((golden / "evaluation" / "torchmetrics_pq.json").read_text())
    case = content["cases"][case]
    classes = [*case["things"], *case["stuffs"]]
    expected, found = (categories_and_instances(case[name], case["things"], classes) for name in ("target", "preds"))
    metrics = summarize(count(expected, found, len(classes)), catalog(len(case["things"]), len(case["stuffs"])))
    for name in {"PQ", "SQ", "RQ"} & case.keys():
        assert metrics[f"panoptic_seg/{name}"] == pytest.approx(case[name], abs=content["tolerance"])


def deeplab_pair(folder, name: str, content: dict, truth_name: str) -> tuple[Regions, Regions]:
    """Class 0 is ignored in the ground truth; predictions keep it as a class of its own."""
    read = lambda file: np.array(Image.open(folder / file))
    grey = lambda image: image if image.ndim == 2 else image[..., 0]
    colours = {tuple(map(int, key.split(","))): value for key, value in content["class_color_map"].items()}
    colour_image = np.array(Image.open(folder / f"{name}_pred_class.png").convert("RGB")).astype(int)
    classes = np.zeros(colour_image.shape[:2], int)
    for colour, label in colours.items():
        classes[(colour_image == colour).all(axis=-1)] = label
    found = 1 + classes * 1000 + grey(read(f"{name}_pred_instance.png"))
    expected = grey(read(truth_name)).astype(int)
    meaning = {int(key): label for key, label in content["gt_instance_to_class"][truth_name].items()}
    shown = np.where(np.isin(expected, [key for key, label in meaning.items() if label]), expected + 1, 0)
    return (
        regions(shown, {key + 1: label for key, label in meaning.items() if label}),
        regions(found, {int(key): (key - 1) // 1000 for key in np.unique(found)}),
    )


@pytest.mark.parametrize(
    ("case", "pictures"),
    [
        ("team", {"team": "team_gt_instance.png"}),
        ("bird_cat_team", {"bird": "bird_gt.png", "cat": "cat_gt.png", "team": "team_gt_instance.png"}),
    ],
)
def test_the_pictures_of_deeplab2(golden, case, pictures):
    folder = golden / "evaluation" / "deeplab2_pq"
    content = json.loads((folder / "expected.json").read_text())
    classes = content[case]["num_classes"]
    counts = Counts.zeros(classes)
    for name, truth_name in pictures.items():
        counts += count(*deeplab_pair(folder, name, content, truth_name), classes)
    kept = slice(1, None)
    assert counts.matched[kept].mean() == pytest.approx(content[case]["TP"])
    assert counts.missed[kept].mean() == pytest.approx(content[case]["FN"])
    assert counts.wrong[kept].mean() == pytest.approx(content[case]["FP"])
    metrics = summarize(Counts(*(values[kept] for values in vars(counts).values())), catalog(classes - 1, 0))
    for name in ("PQ", "SQ", "RQ"):
        assert metrics[f"panoptic_seg/{name}"] == pytest.approx(content[case][name], abs=content["tolerance"])


def check_official(metrics: dict[str, float], expected: dict, catalog: Catalog) -> None:
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for name in ("PQ", "SQ", "RQ"):
            assert metrics[f"panoptic_seg/{name}{suffix}"] == pytest.approx(
                expected["panoptic"][group][name.lower()], abs=1e-12
            )
    assert sum("PQ-" in name for name in metrics) == expected["panoptic"]["All"]["n"]
    for category in catalog.categories:
        for name in ("PQ", "SQ", "RQ"):
            official = expected["panoptic_per_class"][str(category.id)][name.lower()]
            assert metrics.get(f"panoptic_seg/{name}-{category.name}", 0) == pytest.approx(official, abs=1e-12)


def test_the_official_numbers_on_nuclei(golden, nuclei):
    folder = golden / "evaluation" / "nuclei_val"
    metrics = score_panoptic(
        nuclei.panoptic_json, nuclei.panoptic_dir, folder / "panoptic_pred.json", folder / "panoptic_pred"
    )
    check_official(metrics, json.loads((folder / "expected.json").read_text()), nuclei.catalog)


@pytest.mark.shared
def test_the_official_numbers_on_coco_with_crowds_and_unlabelled_pixels(shared):
    data, folder = shared / "data" / "coco", shared / "data" / "reference_eval" / "coco_val"
    truth_json = data / "annotations" / "panoptic_val2017.json"
    metrics = score_panoptic(
        truth_json, data / "panoptic_val2017", folder / "panoptic_pred.json", folder / "panoptic_pred"
    )
    catalog = Catalog.from_coco(json.loads(truth_json.read_text())["categories"])
    check_official(metrics, json.loads((folder / "expected.json").read_text()), catalog)


# --- the evaluator ---------------------------------------------------------------------------------------------------


def guess(blocks, record: int) -> Panoptic:
    """The first image as it is but for a bird that is taken for a car; of the second only the sky."""
    wanted = truth(blocks, record)
    ids, segments = np.zeros_like(wanted.ids), []
    for key, label in zip(wanted.segment_ids, wanted.labels, strict=True):
        name = blocks.catalog.names[label]
        if record == 0 or name == "sky":
            label = 0 if name == "bird" else int(label)
            area = int(np.sum(wanted.ids == key))
            number = len(segments) + 1
            segments.append(PanopticSegment(id=number, label=label, is_thing=label < 2, score=0.9, area=area))
            ids[wanted.ids == key] = len(segments)
    return Panoptic(ids, tuple(segments))


def test_saved_predictions_score_the_same_as_those_in_memory(blocks, tmp_path):
    evaluator = PanopticQuality(blocks, tmp_path)
    for record in (1, 0):
        evaluator.add(record, guess(blocks, record))
    metrics = evaluator.compute()
    # Cars: two of four found, and two segments (bird and crowd of birds) wrongly so called: 2 / (2 + 1 + 1).
    assert metrics["panoptic_seg/PQ-car"] == pytest.approx(0.5)
    assert metrics["panoptic_seg/PQ-bird"] == 0
    assert metrics["panoptic_seg/PQ-sky"] == 1
    saved = tmp_path / "panoptic_predictions.json"
    again = score_panoptic(blocks.panoptic_json, blocks.panoptic_dir, saved, saved.with_suffix(""))
    assert {name: value for name, value in again.items() if name.startswith("panoptic")} == metrics
    entries = json.loads(saved.read_text())["annotations"]
    assert [entry["image_id"] for entry in entries] == [500, 501]
    assert {segment["category_id"] for segment in entries[0]["segments_info"]} == {3, 90}, "ids of the data set"


def test_a_missing_image_and_a_png_of_other_segments_are_errors(blocks, tmp_path):
    evaluator = PanopticQuality(blocks, tmp_path)
    evaluator.add(0, guess(blocks, 0))
    evaluator.compute()
    saved = tmp_path / "panoptic_predictions.json"
    score = lambda: score_panoptic(blocks.panoptic_json, blocks.panoptic_dir, saved, saved.with_suffix(""))
    with pytest.raises(ValueError, match="no entry for image 501"):
        score()
    Panoptic(np.full((32, 48), 77, np.int32), ()).save(tmp_path / "panoptic_predictions" / "500.png")
    with pytest.raises(ValueError, match=r"500\.png .* disagree on segments \[1, 2, 3"):
        score()

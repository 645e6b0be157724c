"""The command that scores saved predictions: official numbers, what it needs, and what it says of mistakes."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.runs import parse_runs
from maskdino_jax.evaluation.score import main

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def score(capsys):
    """The last line of what it prints."""

    def run(**options: object) -> dict[str, float]:
        main([f"--{name.replace('_', '-')}={value}" for name, value in options.items()])
        lines = capsys.readouterr().out.strip().split("\n")
        assert any(line.split()[:3] in (["AP", "AP50", "AP75"], ["PQ", "SQ", "RQ"]) for line in lines), "a table"
        return json.loads(lines[-1])

    return run


@pytest.fixture
def files(golden, nuclei, tmp_path):
    """The options for copies of the official results on nuclei, to be changed."""
    folder = golden / "evaluation" / "nuclei_val"
    for name in ("instances_pred.json", "panoptic_pred.json"):
        shutil.copy(folder / name, tmp_path / name)
    shutil.copytree(folder / "panoptic_pred", tmp_path / "panoptic_pred")
    return {
        "instances": {"instances": nuclei.instances_json, "instances_predictions": tmp_path / "instances_pred.json"},
        "panoptic": {"panoptic": nuclei.panoptic_json, "panoptic_predictions": tmp_path / "panoptic_pred.json"},
        "dir": {"panoptic_dir": nuclei.panoptic_dir},
    }


def change(path, edit) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(edit(content) or content))


# --- official numbers ------------------------------------------------------------------------------------------------


def check(found: dict[str, float], expected: dict, categories: list[dict]) -> None:
    """All 24 numbers of AP and AR, 9 of PQ and three of each class, four of mIoU."""
    wanted = {
        f"{kind}/{name}": value for kind, values in expected["instances"].items() for name, value in values.items()
    }
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for name in ("PQ", "SQ", "RQ"):
            wanted[f"panoptic_seg/{name}{suffix}"] = expected["panoptic"][group][name.lower()]
    wanted |= {
        f"sem_seg/{name}": expected["semantic_from_panoptic"][name] for name in ("mIoU", "fwIoU", "mACC", "pACC")
    }
    assert len(wanted) == 24 + 9 + 4
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    for category in Catalog.from_coco(categories).categories:
        for name, value in expected["panoptic_per_class"][str(category.id)].items():
            if name in ("pq", "sq", "rq"):
                mine = found.get(f"panoptic_seg/{name.upper()}-{category.name}", 0)
                assert mine == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("engine", ["fast", "pycocotools"])
def test_every_official_number_on_nuclei(files, golden, nuclei, score, engine):
    found = score(**files["instances"], **files["panoptic"], **files["dir"], engine=engine)
    expected = json.loads((golden / "evaluation" / "nuclei_val" / "expected.json").read_text())
    check(found, expected, json.loads(nuclei.panoptic_json.read_text())["categories"])
    assert found["segm/APl"] == -1, "no large object; the official value says so too"


@pytest.mark.shared
def test_every_official_number_on_coco(shared, score):
    truth, folder = shared / "data" / "coco", shared / "data" / "reference_eval" / "coco_val"
    found = score(
        instances=truth / "annotations" / "instances_val2017.json",
        instances_predictions=folder / "instances_pred.json",
        panoptic=truth / "annotations" / "panoptic_val2017.json",
        panoptic_dir=truth / "panoptic_val2017",
        panoptic_predictions=folder / "panoptic_pred.json",
    )
    categories = json.loads((truth / "annotations" / "panoptic_val2017.json").read_text())["categories"]
    check(found, json.loads((folder / "expected.json").read_text()), categories)


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_published_numbers_of_boxes_alone_and_of_masks_alone(shared, score, kind):
    folder = shared / "data" / "eval_fixtures" / "coco_fake100"
    found = score(
        instances=folder / "instances_val2014_100.json",
        instances_predictions=folder / f"instances_val2014_fake{kind}100_results.json",
    )
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    expected = json.loads((folder / "expected.json").read_text())[kind]
    assert [found[f"{kind}/{name}"] for name in names] == [pytest.approx(value, abs=1e-12) for value in expected]
    kinds = {name.partition("/")[0] for name in found}
    assert kinds == ({"bbox"} if kind == "bbox" else {"bbox", "segm"}), "boxes of masks are those around them"


# --- what it takes ---------------------------------------------------------------------------------------------------


def test_the_truth_itself_scores_one_whatever_form_its_masks_have(nuclei, score, tmp_path):
    """A third of them each as compressed and as plain run lengths, and those of rectangles as polygons."""
    content = json.loads(nuclei.instances_json.read_text())
    results = []
    for place, entry in enumerate(content["annotations"]):
        if place % 3 == 0:
            x, y, width, height = entry["bbox"]
            entry["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        results.append(entry | {"score": 1.0})
        if place % 3 == 1:
            height, width = entry["segmentation"]["size"]
            runs = parse_runs(entry["segmentation"]).tolist()
            results[-1]["segmentation"] = {"size": [height, width], "counts": runs}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps(results))
    found = score(instances=tmp_path / "truth.json", instances_predictions=tmp_path / "results.json")
    assert found["bbox/AP"] == found["segm/AP"] == pytest.approx(1)


def test_without_a_box_the_size_is_that_of_the_mask(files, golden, score):
    """A file with boxes ranks masks by the areas of boxes, as pycocotools does."""
    change(files["instances"]["instances_predictions"], lambda entries: [entry.pop("bbox") for entry in entries][:0])
    found = score(**files["instances"])
    expected = json.loads((golden / "evaluation" / "nuclei_val" / "expected.json").read_text())["instances"]["segm"]
    assert found["segm/AP"] == pytest.approx(expected["AP"], abs=1e-9)
    assert abs(found["segm/APs"] - expected["APs"]) > 1e-6


def test_folders_are_those_beside_the_json(blocks, score):
    path = blocks.panoptic_json
    found = score(panoptic=path, panoptic_predictions=path)
    assert found["panoptic_seg/PQ"] == found["sem_seg/mIoU"] == 1


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda x: {"annotations": x}, "is no COCO result file"),
        (lambda x: x[0].update(image_id=123456789), "detection 0 is of image 123456789, which the ground truth lacks"),
        (lambda x: x[3].update(category_id=77), "detection 3 has category 77, the ground truth has 1"),
        (lambda x: x[2].pop("score") and None, "detection 2 has no score"),
        (lambda x: x[1].pop("bbox") and None, "1 detections have no bbox, others do"),
        (lambda x: x[0]["segmentation"].update(size=[9, 9]), r"size \[9, 9\], the image \[256, 256\]"),
    ],
)
def test_mistakes_in_instances(files, score, edit, message):
    change(files["instances"]["instances_predictions"], edit)
    with pytest.raises(SystemExit, match=message):
        score(**files["instances"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda x: x["annotations"].pop() and None, "has no entry for image"),
        (lambda x: x["annotations"][0]["segments_info"][0].update(category_id=9), "category id 9 is unknown"),
        (lambda x: x["annotations"][0]["segments_info"].pop() and None, "disagree on segments"),
        (lambda x: x["annotations"][0].update(file_name="none.png"), "none.png: no such image"),
        (lambda x: {"annotations": [{"image_id": 1}]}, "is no panoptic JSON"),
        (lambda x: x["annotations"], "has no list 'annotations'"),
    ],
)
def test_mistakes_in_panoptic_maps(files, score, edit, message):
    change(files["panoptic"]["panoptic_predictions"], edit)
    with pytest.raises(SystemExit, match=message):
        score(**files["panoptic"], **files["dir"])


def test_a_map_of_another_size(files, score, tmp_path):
    def empty(content: dict) -> None:
        entry = content["annotations"][0]
        entry["segments_info"] = []
        Image.fromarray(np.zeros((100, 256, 3), np.uint8)).save(tmp_path / "panoptic_pred" / entry["file_name"])

    change(files["panoptic"]["panoptic_predictions"], empty)
    with pytest.raises(SystemExit, match=r"has \(100, 256\) pixels, the ground truth \(256, 256\)"):
        score(**files["panoptic"], **files["dir"])


def test_options_that_do_not_fit(files, score, capsys):
    for options, message in (
        ({"instances": "a.json"}, "--instances and --instances-predictions belong together"),
        ({}, "nothing to score"),
    ):
        with pytest.raises(SystemExit):
            score(**options)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"nowhere.json: there is no such file"):
        score(**files["instances"] | {"instances": "nowhere.json"})
    with pytest.raises(SystemExit, match="is a panoptic JSON: give it as --panoptic"):
        score(**files["instances"] | {"instances": files["panoptic"]["panoptic"]})

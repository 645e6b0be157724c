"""The page: what is in it for each kind of data set, that it stands alone, and how it looks in a browser."""

import html.parser
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdino_jax import runner
from maskdino_jax.config import DataConfig, SplitConfig
from maskdino_jax.data import open_dataset
from maskdino_jax.evaluation.objects import objects_of
from maskdino_jax.evaluation.report import About, label_map_path, write_report
from tests.evaluation.blocks import blocks_config, write_blocks
from tests.evaluation.browser import Browser, program

CHAPTERS = ["first", "errors", "images", "threshold", "metrics", "curves", "confusion", "scores"]


class Reader(html.parser.HTMLParser):
    """Start tags with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source, self.tags, self.text = path.read_text(encoding="utf-8"), [], []
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def chapters(self):
        return [attributes["id"] for attributes in self.all("section")]


def save(dataset, folder: Path, *, instances=True, panoptic=True, masks=True, drop=0) -> Path:
    """The truth as predictions, without the first `drop` objects of each image."""
    folder.mkdir(parents=True)
    if instances:
        objects, entries = objects_of(dataset, True), []
        for record in range(len(dataset)):
            image_id = dataset.image_id(record)
            for one in objects[image_id][drop:]:
                run = one["segmentation"]
                text = run["counts"] if isinstance(run["counts"], str) else run["counts"].decode()
                entry = {key: one[key] for key in ("category_id", "bbox")} | {"image_id": image_id, "score": 0.75}
                entries.append(entry | ({"segmentation": run | {"counts": text}} if masks else {}))
        (folder / "instances_predictions.json").write_text(json.dumps(entries))
    if panoptic:
        shutil.copy(dataset.panoptic_json, folder / "panoptic_predictions.json")
        shutil.copytree(dataset.panoptic_dir, folder / "panoptic_predictions")
    return folder


def report(dataset, folder: Path, page: Path, threshold: float = 0.5, **about):
    analysis = write_report(
        dataset, folder, page, score_threshold=threshold, about=About(**{"config": "blocks_small"} | about)
    )
    return analysis, Reader(page)


@pytest.fixture(scope="module")
def nuclei_page(golden, nuclei, tmp_path_factory):
    """The page about the recorded predictions of nuclei."""
    folder, recorded = tmp_path_factory.mktemp("nuclei"), golden / "evaluation" / "nuclei_val"
    shutil.copy(recorded / "instances_pred.json", folder / "instances_predictions.json")
    shutil.copy(recorded / "panoptic_pred.json", folder / "panoptic_predictions.json")
    shutil.copytree(recorded / "panoptic_pred", folder / "panoptic_predictions")
    page = folder / "page" / "index.html"
    return page, *report(nuclei, folder, page, config="nuclei_panoptic_small", checkpoint="runs/nuclei", step=1800)


@pytest.fixture(scope="module")
def semantic_page(tmp_path_factory):
    """Label images alone: a quarter of the first class is taken for the second."""
    root = tmp_path_factory.mktemp("semantic")
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    labels = np.array([[1, 1, 1, 1], [2, 2, 0, 0]], np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    Image.fromarray(np.zeros((4, 8, 3), np.uint8)).save(root / "images" / "a.png")
    Image.fromarray(labels).save(root / "labels" / "a.png")
    config = DataConfig(
        root=str(root), format="semantic", classes="ade20k", val=SplitConfig(images="images", semantic="labels")
    )
    labels[:2, 6:] = 2
    path = label_map_path(root / "evaluation", "a.png")
    path.parent.mkdir(parents=True)
    ids = np.array([0, *(category.id for category in open_dataset(config, "val").catalog.categories)], np.uint8)
    Image.fromarray(ids[np.where(labels == 0, 5, labels)]).save(path)
    page = root / "report" / "index.html"
    return page, *report(open_dataset(config, "val"), root / "evaluation", page)


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_evaluation(golden, nuclei_page):
    _, analysis, read = nuclei_page
    expected = json.loads((golden / "evaluation" / "nuclei_val" / "expected.json").read_text())
    for name in ("PQ", "SQ", "RQ"):
        assert analysis.metrics[f"panoptic_seg/{name}"] == pytest.approx(
            expected["panoptic"]["All"][name.lower()], abs=1e-12
        )
    for name in ("AP", "AP50", "AR100"):
        assert analysis.metrics[f"bbox/{name}"] == pytest.approx(expected["instances"]["bbox"][name], abs=1e-12)
    assert analysis.metrics["sem_seg/mIoU"] == pytest.approx(expected["semantic_from_panoptic"]["mIoU"], abs=1e-12)
    assert f"{100 * expected['panoptic']['Things']['pq']:.1f}" in read.text
    assert f"{100 * expected['instances']['bbox']['AP']:.1f}" in read.text


def test_everything_is_there_for_panoptic_data(nuclei_page):
    _, analysis, read = nuclei_page
    assert read.chapters == CHAPTERS
    text = " ".join(read.text)
    assert "runs/nuclei, step 1\u202f800" in text
    assert "annotations/panoptic_val.json, 25 images" in text
    assert "--config.inference.score_threshold=0." in text
    values = [image.value for image in analysis.ranking.images]
    assert values == sorted(values)
    assert len(values) == 25
    assert len(read.all("img")) == 24, "twelve images, truth and prediction"


def test_the_page_stands_alone_and_is_small(nuclei_page):
    page, _, read = nuclei_page
    assert page.stat().st_size < 5e6
    assert {path.name for path in page.parent.iterdir()} == {"index.html"}
    references = [
        value for _, attributes in read.tags for key, value in attributes.items() if key in ("src", "href", "srcset")
    ]
    assert len(references) > 30
    assert all(reference.startswith(("data:", "#")) for reference in references)
    assert not re.search(r"https?://|url\(|@import", read.source)
    assert not [attributes for attributes in read.all("script") if attributes]


def test_readers_without_eyes_are_told_what_there_is(nuclei_page):
    _, _, read = nuclei_page
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), "no level is left out"
    assert all(re.match(r"(Truth|Prediction) of 00\d+\.png: \d+ right", one["alt"]) for one in read.all("img"))
    assert all(one["role"] == "img" and one["aria-label"] for one in read.all("svg"))
    assert all(one["aria-label"] for one in read.all("table"))
    assert all(one["scope"] in ("col", "row") for one in read.all("th"))
    assert read.all("html")[0]["lang"] == "en"
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {one["href"] for one in read.all("a")} == {f"#{one}" for one in read.chapters}


def test_perfect_predictions_have_no_errors(blocks, tmp_path):
    analysis, read = report(blocks, save(blocks, tmp_path / "evaluation"), tmp_path / "index.html")
    assert analysis.metrics["segm/AP"] == analysis.metrics["panoptic_seg/PQ"] == pytest.approx(1)
    assert analysis.ranking.measure == "PQ"
    assert {(one.value, one.wrong, one.missed) for one in analysis.ranking.images} == {(1.0, 0, 0)}
    assert read.chapters == CHAPTERS


def test_instances_alone(blocks, tmp_path):
    """Two of five objects are missing: the first one of each image."""
    folder = save(blocks, tmp_path / "evaluation", panoptic=False, drop=1)
    analysis, read = report(blocks, folder, tmp_path / "index.html")
    assert read.chapters == CHAPTERS
    assert "panoptic_seg/PQ" not in analysis.metrics
    assert analysis.pixels is None
    assert analysis.ranking.measure == "F1"
    assert [(one.record, one.value) for one in analysis.ranking.images] == [(1, 2 / 3), (0, 4 / 5)]
    text = " ".join(read.text)
    assert "Missed objects cost most" in text
    assert "Pixels" not in text


def test_detections_without_masks(blocks, tmp_path):
    folder = save(blocks, tmp_path / "evaluation", panoptic=False, masks=False)
    analysis, read = report(blocks, folder, tmp_path / "index.html")
    assert set(analysis.detections) == {"bbox"}
    assert not [name for name in analysis.metrics if name.startswith("segm")]
    assert read.chapters == CHAPTERS
    assert "Masks" not in " ".join(read.text)


def test_panoptic_maps_alone(blocks, tmp_path):
    folder = save(blocks, tmp_path / "evaluation", instances=False)
    analysis, read = report(blocks, folder, tmp_path / "index.html")
    assert analysis.main is None
    assert read.chapters == ["first", "images", "metrics", "confusion"]
    assert "of the panoptic map: there are no label maps" in " ".join(read.text)


def test_label_maps_alone(semantic_page):
    """12 of 16 pixels of the wall, 8 of 12 that are called building: IoU 3/4 and 2/3."""
    _, analysis, read = semantic_page
    assert analysis.metrics["sem_seg/mIoU"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert analysis.metrics["sem_seg/pACC"] == pytest.approx(5 / 6)
    assert read.chapters == ["first", "images", "metrics", "confusion"]
    assert (analysis.ranking.measure, analysis.ranking.images[0].value) == ("mIoU", pytest.approx(17 / 24))
    text = " ".join(read.text)
    assert "Of 148 other classes there is nothing to measure" in text
    assert "\u201cwall\u201d is most often taken for \u201cbuilding\u201d: 25% of its 16 pixels." in text
    assert "75.0" in text
    assert "25.0" in text, "of the wall is taken for building"
    assert len(read.all("img")) == 2


def test_no_detection_at_all(blocks, tmp_path):
    folder = save(blocks, tmp_path / "evaluation", panoptic=False)
    (folder / "instances_predictions.json").write_text("[]")
    analysis, read = report(blocks, folder, tmp_path / "index.html")
    assert analysis.metrics["bbox/AP"] == 0
    assert read.chapters == CHAPTERS


def test_of_images_without_a_right_detection_the_one_with_more_errors_is_worse(blocks, tmp_path):
    folder = save(blocks, tmp_path / "evaluation", panoptic=False)
    wrong = {"image_id": 501, "category_id": 7, "score": 0.9, "bbox": [0, 40, 8, 8]}
    (folder / "instances_predictions.json").write_text(json.dumps([wrong, wrong]))
    analysis, _ = report(blocks, folder, tmp_path / "index.html")
    found = [(one.record, one.value, one.wrong, one.missed) for one in analysis.ranking.images]
    assert found == [(1, 0, 2, 2), (0, 0, 0, 3)]


def test_names_of_classes_and_configs_are_no_markup(tmp_path):
    dataset = write_blocks(tmp_path)
    path = tmp_path / "panoptic.json"
    path.write_text(path.read_text().replace('"car"', '"<b>car & co</b>"'))
    dataset = open_dataset(
        DataConfig(root=str(tmp_path), val=SplitConfig(images="val", annotations="panoptic.json", panoptic="panoptic")),
        "val",
    )
    _, read = report(dataset, save(dataset, tmp_path / "evaluation"), tmp_path / "index.html", config="<i>x</i>")
    assert read.source.count("<b>car") == 0
    assert "<b>car & co</b>" in read.text
    assert "Evaluation of <i>x</i>" in read.text


def test_predictions_of_other_images_are_an_error(blocks, tmp_path):
    folder = save(blocks, tmp_path / "evaluation")
    content = json.loads((folder / "panoptic_predictions.json").read_text())
    content["annotations"][1]["image_id"] = 77
    (folder / "panoptic_predictions.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has no entry for image 501"):
        report(blocks, folder, tmp_path / "index.html")


def test_a_folder_without_predictions_is_an_error(blocks, tmp_path):
    with pytest.raises(FileNotFoundError, match="evaluate a checkpoint first"):
        report(blocks, tmp_path, tmp_path / "index.html")


def test_the_command_reads_what_an_evaluation_has_left(tmp_path):
    """No checkpoint is needed for predictions of another origin; what is known of ours is told."""
    dataset = write_blocks(tmp_path)
    save(dataset, tmp_path / "run" / "evaluation")
    config = blocks_config(tmp_path)
    config.name, config.inference.score_threshold = "blocks_small", 0.7
    page = runner.report(None, tmp_path / "run", config)
    assert page == tmp_path / "run" / "report" / "index.html"
    text = " ".join(Reader(page).text)
    assert "This page uses 0.7" in text
    assert "Checkpoint" not in text
    about = {"checkpoint": "runs/elsewhere", "step": 12345, "config": "blocks_large"}
    (tmp_path / "run" / "evaluation" / "about.json").write_text(json.dumps(about))
    text = " ".join(Reader(runner.report(None, tmp_path / "run", config)).text)
    assert "Evaluation of blocks_large" in text
    assert "runs/elsewhere, step 12\u202f345" in text


@pytest.mark.shared
def test_a_page_about_133_classes_is_bounded(shared, tmp_path):
    data, recorded = shared / "data" / "coco", shared / "data" / "reference_eval" / "coco_val"
    val = SplitConfig(
        images="val2017",
        annotations="annotations/panoptic_val2017.json",
        panoptic="panoptic_val2017",
        instances="annotations/instances_val2017.json",
    )
    for name in ("instances_pred.json", "panoptic_pred.json", "panoptic_pred"):
        (tmp_path / name.replace("pred", "predictions")).symlink_to(recorded / name)
    page = tmp_path / "report" / "index.html"
    analysis, read = report(open_dataset(DataConfig(root=str(data), val=val), "val"), tmp_path, page)
    expected = json.loads((recorded / "expected.json").read_text())
    assert analysis.metrics["panoptic_seg/PQ"] == pytest.approx(expected["panoptic"]["All"]["pq"], abs=1e-12)
    assert read.chapters == CHAPTERS
    assert page.stat().st_size < 10e6
    assert "The most confused pairs of classes" in " ".join(read.text)


# --- how it looks ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if program() is None:
        pytest.skip("no Chromium on this machine")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


WIDER = """[...document.querySelectorAll("body *")]
  .filter(one => !one.closest(".scroll") && !one.closest("svg"))
  .filter(one => one.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map(one => one.outerHTML.slice(0, 80))"""
CONTRAST = """[...document.querySelectorAll("p, td, th, a, dt, dd, h1, h2, h3, li, summary, code, span")].map(one => {
  const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const rgb = text => text.startsWith("color(") ? numbers(text).map((c, i) => i < 3 ? 255 * c : c) : numbers(text);
  const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  let under = one, back = [0, 0, 0, 0];
  while (under && back.length == 4 && back[3] == 0) {
    back = rgb(getComputedStyle(under).backgroundColor); under = under.parentElement;
  }
  const [a, b] = [light(rgb(getComputedStyle(one).color)), light(back)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
})"""  # of texts and what is behind them, by the formula of WCAG 2


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_and_can_be_read(browser, nuclei_page, width, dark, tmp_path):
    browser.open(nuclei_page[0], width, dark=dark)
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    assert browser.value(WIDER) == []
    assert browser.value("document.querySelectorAll('section').length") == len(CHAPTERS)
    assert browser.value("document.querySelectorAll('table').length") == 8
    assert browser.value("[...document.images].every(one => one.naturalWidth >= 200)")
    assert min(browser.value(CONTRAST)) >= 4.5, "WCAG AA"
    troubles = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [message for message in browser.messages if message["method"] in troubles] == []
    requests = [
        one["params"]["request"]["url"] for one in browser.messages if one["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in requests if not url.startswith("data:")] == [nuclei_page[0].absolute().as_uri()]
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.width == width
        background = picture.convert("L").getpixel((2, 2))
    assert background < 60 if dark else background > 240


def test_the_page_can_be_read_without_scripts(browser, nuclei_page):
    browser.open(nuclei_page[0], 1440, scripts=False)
    node = browser.ask("DOM.getDocument", depth=-1)["root"]["nodeId"]
    count = lambda selector: len(browser.ask("DOM.querySelectorAll", nodeId=node, selector=selector)["nodeIds"])
    assert count("section") == len(CHAPTERS)
    assert count("th button") == 0
    assert count("table.sortable tbody tr") == 3


def test_a_table_is_sorted_by_a_click(browser, nuclei_page):
    browser.open(nuclei_page[0], 1440)
    names = "[...document.querySelectorAll('#metrics table.sortable tbody th')].map(one => one.textContent)"
    click = "document.querySelectorAll('#metrics table.sortable th button')[{}].click()"
    assert browser.value(names) == ["nucleus", "background"]
    browser.value(click.format(0))
    assert browser.value(names) == ["background", "nucleus"], "by name"
    browser.value(click.format(1))
    assert browser.value(names) == ["nucleus", "background"], "by number of objects, the most first"
    browser.value(click.format(1))
    assert browser.value(names) == ["background", "nucleus"]


@pytest.mark.parametrize("width", [360, 1440])
def test_a_page_of_few_chapters_fits(browser, semantic_page, width):
    browser.open(semantic_page[0], width)
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    assert browser.value(WIDER) == []

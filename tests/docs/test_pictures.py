"""The program that makes the pictures of docs/pictures.md, on the test images."""

import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from maskdino_jax import runner
from maskdino_jax.data import load_image
from tests.docs.blocks import ROOT
from tests.e2e.conftest import COCO

SHEETS = ("panoptic", "instance", "semantic", "detection")


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_pictures", ROOT / "docs/pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sheets_show_what_may_be_shown_and_name_its_authors(program: ModuleType, tmp_path: Path) -> None:
    """One of the four images gets a licence that does not allow it."""
    root = Path(shutil.copytree(COCO, tmp_path / "coco"))
    path = root / program.ANNOTATIONS
    content = json.loads(path.read_text())
    first, hidden, *others = content["images"]
    hidden["license"] = 1
    path.write_text(json.dumps(content))
    program.main([f"--coco={root}", f"--output={tmp_path / 'out'}"])
    written = (tmp_path / "out/ATTRIBUTION.md").read_text()
    for image in (first, *others):
        assert f"| {image['file_name']} | [Attribution" in written
        assert image["flickr_url"] in written
    assert hidden["file_name"] not in written
    sheets = [tmp_path / f"out/sheet_{style}.jpg" for style in SHEETS]
    assert all(sheet.stat().st_size < program.LARGEST for sheet in sheets)
    shapes = {load_image(sheet).shape for sheet in sheets}
    assert {shape[1] for shape in shapes} == {1600}
    assert len(shapes) == 1, "the same images in each style"


def test_the_explanation_is_that_of_the_command(program: ModuleType, template: Path, tmp_path: Path) -> None:
    checkpoint = template / "runs/quickstart"
    program.explanation(checkpoint, tmp_path)
    (picture,) = runner.explain(checkpoint, program.SAMPLES / program.EXPLAINED, tmp_path, None)
    one, other = (load_image(path).astype(int) for path in (tmp_path / "explain.jpg", picture))
    assert one.shape == other.shape
    assert np.abs(one - other).mean() < 4, "but for what JPEG changes"
    assert json.loads(picture.with_suffix(".json").read_text())["objects"]


def test_the_pictures_of_the_page_are_small_and_those_of_the_program(program: ModuleType) -> None:
    page = (ROOT / "docs/pictures.md").read_text()
    named = [ROOT / "docs" / target for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)]
    assert {path.stem for path in named} == {*(f"sheet_{style}" for style in SHEETS), "sheet_nuclei", "explain"}
    assert all(path.stat().st_size < program.LARGEST for path in named)
    attribution = (ROOT / "docs/images/ATTRIBUTION.md").read_text()
    assert attribution.count("| http") == program.COUNT

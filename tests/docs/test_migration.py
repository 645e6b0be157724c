"""docs/migration.md: every official option is in it, and what it names of ours exists."""

import re
from pathlib import Path

import pytest

from maskdino_jax.config import Config, flatten
from maskdino_jax.validation import validate
from tests.docs.blocks import ROOT
from tests.test_configs import load

PAGE = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
OFFICIAL = {
    line
    for line in (Path(__file__).parent / "official_options.txt").read_text().splitlines()
    if not line.startswith("#")
}
OURS = flatten(Config())
# Rows of the tables of options: official options, ours or a dash, a note.
ROWS = [
    (theirs, ours, note)
    for theirs, ours, note in re.findall(r"^\| (.*?) \| (.*?) \| (.*?) ?\|$", PAGE, re.MULTILINE)
    if theirs.startswith("`") and " " not in theirs.replace("`, `", "")
]


def _quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_every_official_option_has_its_place_once() -> None:
    named = [name for theirs, _, _ in ROWS for name in _quoted(theirs)]
    assert sorted(named) == sorted(OFFICIAL)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_what_it_names_of_ours_exists(row: tuple[str, str, str]) -> None:
    _, ours, note = row
    assert ours == "-" or set(_quoted(ours)) <= set(OURS)
    dotted = {
        name.partition("=")[0] for name in _quoted(note) if re.match(r"(model|loss|data|train|optimizer)\.", name)
    }
    assert dotted <= set(OURS)


def test_options_in_the_text_exist() -> None:
    options = re.findall(r"--config\.([\w.]+)=", PAGE)
    assert options
    assert set(options) <= set(OURS)


def test_every_config_it_names_exists() -> None:
    named = set(re.findall(r"configs/(\w+)\.py:(\w+)", PAGE))
    assert len(named) >= 13
    for name, variant in named:
        validate(load(name, variant))


@pytest.mark.parametrize(
    ("official", "ours", "value"),
    [
        ("MODEL.MaskDINO.NUM_OBJECT_QUERIES: 300", "model.decoder.num_queries", 300),
        ("MODEL.SEM_SEG_HEAD.FEATURE_ORDER: low2high", "model.encoder.order", "fine_to_coarse"),
        ("MODEL.SEM_SEG_HEAD.DIM_FEEDFORWARD: 2048", "model.encoder.ffn_dim", 2048),
        ("MODEL.MaskDINO.INITIALIZE_BOX_TYPE: mask2box", "model.decoder.box_init", "mask2box"),
        ("SOLVER.STEPS: (327778, 355092)", "optimizer.milestones", (327_778, 355_092)),
        ("MODEL.MaskDINO.TEST.OBJECT_MASK_THRESHOLD: 0.25", "inference.object_threshold", 0.25),
    ],
)
def test_a_value_of_the_official_file_is_that_of_ours(official: str, ours: str, value: object) -> None:
    """maskdino_R50_bs16_50ep_3s_dowsample1_2048.yaml, and the row that leads from its option to ours."""
    name = official.partition(":")[0]
    assert any(name in _quoted(theirs) and ours in _quoted(column) for theirs, column, _ in ROWS)
    assert flatten(load("coco_instance", "r50"))[ours] == value

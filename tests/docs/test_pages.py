"""Pages lead to each other, and README has what its reader looks for in the order of a first visit."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT
from tests.test_configs import load

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:|#", target):
            continue
        path, _, heading = target.partition("#")
        found = page.parent / path
        assert found.exists(), f"{page.name}: {target}"
        if heading:
            lines = found.read_text(encoding="utf-8").splitlines()
            titles = [line.lstrip("# ").lower() for line in lines if line.startswith("#")]
            assert heading in [re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles], target


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    listed = {name.rpartition("/")[2] for name in re.findall(r"\]\(([\w./]+\.md)\)", contents)}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= listed | {"README.md"}


def test_readme_has_its_parts_in_order() -> None:
    parts = re.findall(r"^## (.*)$", README, re.MULTILINE)
    assert parts == [
        "First result",
        "In a notebook",
        "Install",
        "Evaluate",
        "Train",
        "Your own data",
        "One line each",
        "Map of the code",
        "Develop",
    ]
    head = README.partition("## ")[0]
    assert "![" in head
    assert "| task | backbone | paper | ours | how ours was obtained |" in head


def test_readme_names_a_config_for_each_official_file() -> None:
    named = re.findall(r"`configs/(\w+)\.py:(\w+)`", README)
    assert len(set(named)) >= 8
    for name, variant in named:
        load(name, variant)


def test_readme_names_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for found in re.findall(r"\[([a-z0-9,]+)\]\"", README) for name in found.split(",")}
    assert named <= set(extras)
    assert named

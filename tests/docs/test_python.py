"""The Python blocks of README and docs run, block after block as a reader would type them."""

import shutil
import sys
import types
from pathlib import Path

import pytest

from tests.docs import place
from tests.docs.blocks import LANGUAGES, PAGES, ROOT, Block, all_blocks, blocks

# Blocks that do not run here: what they begin with, and why.
ELSEWHERE: dict[str, str] = {}
_FAST = ("README.md",)  # the blocks of other pages take up to a minute
_MADE = {"docs/swap_a_part.md": "runs/converted"}  # what the blocks of a page make, and its commands read


def _pages() -> list:
    names = dict.fromkeys(block.page for block in all_blocks("python"))
    return [pytest.param(name, marks=() if name in _FAST else pytest.mark.slow, id=name) for name in names]


def _why_not(block: Block) -> str | None:
    return next((why for beginning, why in ELSEWHERE.items() if block.text.startswith(beginning)), None)


def run(name: str, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What the names of a page stand for after its blocks, run in the present folder as one module."""
    module = types.ModuleType(f"page_{Path(name).stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks(ROOT / name):
        if block.language == "python" and _why_not(block) is None:
            lines = "\n" * block.line + block.text  # so that a traceback has the line of the page
            exec(compile(lines, name, "exec"), module.__dict__)
    return module.__dict__


@pytest.mark.parametrize("name", _pages())
def test_the_blocks_of_a_page_run(
    name: str, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place.copy(template, tmp_path / "place"))
    if name in _MADE:
        shutil.rmtree(_MADE[name])
    names = run(name, monkeypatch)
    if name == "README.md":
        assert names["picture"].shape[:2] == (512, 512)
        assert str(names["result"].semantic.shape) in capsys.readouterr().out


def test_a_block_that_does_not_run_here_is_still_python() -> None:
    skipped = [block for block in all_blocks("python") if _why_not(block) is not None]
    for block in skipped:
        compile(block.text, block.place, "exec")
    assert len(skipped) >= len(ELSEWHERE), "a block of ELSEWHERE is in no page"


def test_every_block_says_its_language() -> None:
    odd = [block.place for page in PAGES for block in blocks(page) if block.language not in LANGUAGES]
    assert not odd, f"give one of {', '.join(LANGUAGES)}: {', '.join(odd)}"

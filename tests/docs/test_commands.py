"""Every command of README and docs is right, and runs: on the tiny variant where the real one is too large."""

import shutil
from pathlib import Path

import pytest

from tests.docs import place
from tests.docs.blocks import PAGES, Command, all_commands, blocks
from tests.docs.commands import main_arguments, rule_of

COMMANDS = all_commands()
# The first command of each of these modes runs in the fast tests; the others take the same way.
FAST_MODES = ("eval", "predict", "report", "check-data", "doctor", "prepare")


def _mode(command: Command) -> str:
    """What a command is for: a mode of main.py, or the program itself."""
    if command.words[:2] != ("python", "main.py") and command.words[0] != "maskdino":
        return " ".join(command.words[:3])
    modes = [word.removeprefix("--mode=") for word in main_arguments(command.words) if word.startswith("--mode=")]
    return modes[0] if modes else "train"


def _known(command: Command) -> bool:
    try:
        return rule_of(command.words).run is not None
    except LookupError:
        return False  # the test below says it


def _runs() -> list:
    """All commands that run, the slow ones marked."""
    seen: set[str] = set()
    parameters = []
    for command in filter(_known, COMMANDS):
        mode = _mode(command)
        fast = mode not in seen and (mode in FAST_MODES or "score" in mode)
        seen.add(mode)
        parameters.append(
            pytest.param(command, marks=() if fast else pytest.mark.slow, id=f"{command.place} {command}")
        )
    return parameters


@pytest.fixture
def here(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder: a copy of the place of the pages."""
    folder = place.copy(template, tmp_path / "place")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.place} {command}")
def test_it_is_right(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(place.ROOT / name)
    monkeypatch.chdir(tmp_path)
    rule_of(command.words).check(command.words)


@pytest.mark.parametrize("command", _runs())
def test_it_runs(command: Command, here: Path) -> None:
    made = ("--output=", "--workdir=") if _mode(command) == "train" else ("--output=",)
    for word in command.words:
        if word.startswith(made):
            shutil.rmtree(here / word.partition("=")[2], ignore_errors=True)
    rule_of(command.words).run(command.words)


def test_commands_are_fenced() -> None:
    """No page has a command in a block that is only indented, which nothing would test."""
    for page in PAGES:
        text = page.read_text()
        for block in blocks(page):
            text = text.replace(block.text, "")
        indented = [
            line for line in text.splitlines() if line.startswith(("    python ", "    maskdino ", "    make "))
        ]
        assert not indented, f"{page}: fence {indented}"

"""Fenced blocks of the pages, and the commands in them."""

import dataclasses
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "kernels/README.md")
LANGUAGES = ("bash", "python", "text", "json", "yaml", "toml", "html")  # only the first two are run
_FENCE = re.compile(r"^(```+)(\S*)\n(.*?)^\1 *$", re.DOTALL | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    page: str  # path below the root of the repository
    line: int  # of the opening fence, from 1
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a block."""

    place: str
    words: tuple[str, ...]  # as the shell splits them, without comments and variables set before it

    def __str__(self) -> str:
        return shlex.join(self.words)


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix()
    return [Block(name, text.count("\n", 0, found.start()) + 1, found[2], found[3]) for found in _FENCE.finditer(text)]


def commands(block: Block) -> list[Command]:
    """The commands of a block, continued lines joined; `cd` and a backslash are all of the shell that it may use."""
    lines = block.text.replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    variable = re.compile(r"[A-Z_]+=")
    bare = [tuple(words[next((n for n, word in enumerate(words) if not variable.match(word)), 0) :]) for words in split]
    return [Command(block.place, words) for words in bare if words]


def all_blocks(language: str) -> list[Block]:
    """Blocks of one language, of all pages."""
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def all_commands() -> list[Command]:
    """Commands of all pages; of those that stand there several times the first."""
    found: dict[tuple[str, ...], Command] = {}
    for block in all_blocks("bash"):
        for command in commands(block):
            found.setdefault(command.words, command)
    return list(found.values())

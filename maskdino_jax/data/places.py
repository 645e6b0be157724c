"""Where things may lie in a folder or archive of a user's, and what was recognised there."""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from maskdino_jax.config import SplitConfig
from maskdino_jax.data.files import children, find

SPLITS = {  # names that folders and files of a split go by
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_DEPTH = 3  # folders with nothing but a folder in them that are entered


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder or archive in which a data set may begin; paths are relative to the root that the user gave."""

    root: Path
    below: str  # of the root; empty: the root itself

    @classmethod
    def all_in(cls, root: Path) -> Iterator["Place"]:
        """The root, and what it holds if that is one folder or archive, and so on."""
        place = cls(root, "")
        yield place
        for _ in range(_DEPTH):
            folders, _ = place.children()
            if len(folders) != 1:
                return
            place = cls(root, place.path(folders[0]))
            yield place

    def path(self, *parts: str) -> str:
        """A path in this place, relative to the root."""
        return Path(self.below, *parts).as_posix()

    def find(self, *parts: str) -> Path | None:
        """Where that path is, also in an archive in the root; None: it is not there."""
        return find(self.root, self.path(*parts))

    def first(self, candidates: Iterable[str], member: str = "") -> str | None:
        """The first of some paths in this place that is there, or that holds `member`; relative to the root."""
        return next((self.path(path) for path in candidates if self.find(path, member)), None)

    def children(self, *parts: str) -> tuple[list[str], list[str]]:
        """Names of the folders and archives in a folder, and of the other files."""
        path = self.find(*parts)
        return children(path) if path else ([], [])

    def files(self, endings: tuple[str, ...], depth: int = 0) -> Iterator[str]:
        """Paths in this place of files that end so (lower case), in folders up to `depth`; archives do not count."""
        yield from self._files("", endings, depth)

    def _files(self, folder: str, endings: tuple[str, ...], depth: int) -> Iterator[str]:
        folders, files = self.children(folder)
        yield from (Path(folder, name).as_posix() for name in files if name.lower().endswith(endings))
        for name in folders:
            left = depth - (not name.endswith(".zip"))
            if left >= 0:
                yield from self._files(Path(folder, name).as_posix(), endings, left)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What lies somewhere: the values for the options of `config.data`."""

    kind: str  # in words
    format: str
    classes: str = ""
    train: SplitConfig
    val: SplitConfig
    why: str = ""  # what was guessed, in sentences

    def __str__(self) -> str:
        lines = [f"{self.kind}. {self.why}".strip(), f"train: {_say(self.train)}", f"val: {_say(self.val)}"]
        return "\n  ".join(lines + [f"classes: {self.classes}"] * bool(self.classes))

    @classmethod
    def of(cls, train: SplitConfig, val: SplitConfig | None, why: str = "", **what: str) -> "Layout":
        """Without a validation split, every tenth image of the training split is one."""
        if val is None:
            why = f"{why} There is no validation split: about every tenth image of train is held back for it.".strip()
            train, val = dataclasses.replace(train, part="rest"), dataclasses.replace(train, part="tenth")
        elif val == train:
            why = f"{why} Validation is on the images of training.".strip()
        return cls(train=train, val=val, why=why, **what)


def split_of(path: str) -> str | None:
    """The split that the name of a file, or else of the nearest of its folders, speaks of."""
    for name in (Path(path).stem, *(parent.name for parent in Path(path).parents)):
        for split, words in SPLITS.items():
            if re.search(rf"(?<![a-z])({'|'.join(words)})(?![a-z])", name.lower()):
                return split
    return None


def _say(split: SplitConfig) -> str:
    fields = {field.name: getattr(split, field.name) for field in dataclasses.fields(split)}
    return ", ".join(f"{name} {value}" for name, value in fields.items() if value and (name, value) != ("part", "all"))

"""Files of a data set, unpacked or inside of zip archives.

A path may lead into an archive: `coco/train2017.zip/train2017/000000000009.jpg`. Archives are opened once in each
process and never unpacked.
"""

import functools
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def open_file(path: Path) -> IO[bytes]:
    """A file to read from, anywhere in it.

    Raises:
        FileNotFoundError: there is no such file, also not in its archive.
        ValueError: the archive is damaged.
    """
    archive, member = _split(path)
    if archive is None:
        return path.open("rb")
    try:
        return _opened(archive, os.getpid()).open(member)
    except KeyError:
        raise FileNotFoundError(f"{archive} holds no {member}.") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # damaged, unknown compression, encrypted
        raise ValueError(f"{archive}: {member} cannot be read ({error}). Restore the archive, or unpack it.") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file; errors as in `open_file`."""
    with open_file(path) as file:
        try:
            return file.read()
        except (zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{path} is damaged ({error}). Restore the archive.") from error


def exists(path: Path) -> bool:
    """Whether there is such a file or folder."""
    archive, member = _split(path)
    if archive is None:
        return path.exists()
    names = _members(archive, os.getpid())
    return member in names or f"{member}/" in names or any(name.startswith(f"{member}/") for name in names)


def names_below(folder: Path, endings: tuple[str, ...]) -> list[str]:
    """Files in a folder and those below it that end so (lower case), as sorted paths relative to it."""
    archive, member = _split(folder)
    if archive is None:
        found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    else:
        prefix = f"{member}/" if member else ""
        found = (name[len(prefix) :] for name in _members(archive, os.getpid()) if name.startswith(prefix))
    return sorted(name for name in found if name.lower().endswith(endings))


def find(root: Path, relative: str) -> Path | None:
    """`root / relative`, or the same in a zip archive in `root`, such as those that COCO and ADE20K are published as.

    An archive may hold `relative` at its top or below a folder of its own name. None: there is neither.
    """
    return next((path for path in _places(root, relative) if exists(path)), None)


def _places(root: Path, relative: str) -> Iterator[Path]:
    yield root / relative
    archives = [root] if root.suffix == ".zip" else sorted(root.glob("*.zip"))
    for archive in archives:
        yield archive / relative
        yield archive / archive.stem / relative


def _split(path: Path) -> tuple[Path | None, str]:
    """The archive that a path leads into and the rest of it; None for a path that needs none."""
    if ".zip" not in str(path):
        return None, ""
    for parent in (path, *path.parents):
        if parent.suffix == ".zip" and parent.is_file():
            return parent, path.relative_to(parent).as_posix() if path != parent else ""
    return None, ""


@functools.lru_cache(maxsize=32)
def _opened(archive: Path, process: int) -> zipfile.ZipFile:
    """An open archive; `process` keeps a forked one from sharing the position in the file."""
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is no zip archive, or is cut short ({error}). Download it again.") from error


@functools.lru_cache(maxsize=32)
def _members(archive: Path, process: int) -> frozenset[str]:
    return frozenset(_opened(archive, process).namelist())

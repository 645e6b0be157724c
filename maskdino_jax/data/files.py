"""Files of a data set, unpacked or inside of zip archives.

A path may lead into an archive: `coco/train2017.zip/train2017/000000000009.jpg`, also into one that lies in another
archive. Archives are opened once in each process and never unpacked.
"""

import functools
import io
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_LOCAL_HEADER = struct.Struct("<26xHH")  # of a member; ends with the lengths of its name and of what follows that


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
    """Whether there is such a file or folder; an archive is a folder too."""
    archive, member = _split(path)
    if archive is None:
        return path.exists()
    return not member or member in _members(archive, os.getpid()) or member in _folders(archive, os.getpid())


def is_folder(path: Path) -> bool:
    """Whether there is such a folder or archive."""
    archive, member = _split(path)
    if archive is None:
        return path.is_dir()
    return not member or member in _folders(archive, os.getpid())


def leads_outside(name: str) -> bool:
    """Whether a path that an annotation file gives, relative to a folder, would leave that folder."""
    absolute = name.startswith(("/", "\\")) or name[1:3] in (":/", ":\\")
    return absolute or "\0" in name or ".." in name.replace("\\", "/").split("/")


def names_below(folder: Path, endings: tuple[str, ...]) -> list[str]:
    """Files in a folder and those below it that end so (lower case), as sorted paths relative to it."""
    archive, member = _split(folder)
    if archive is None:
        found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    else:
        prefix = f"{member}/" if member else ""
        found = (name[len(prefix) :] for name in _members(archive, os.getpid()) if name.startswith(prefix))
    return sorted(name for name in found if name.lower().endswith(endings))


def children(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted names in a folder: of folders and archives, and of other files; hidden ones are left out."""
    archive, member = _split(folder)
    if archive is None:
        names = [(entry.name, entry.is_dir()) for entry in os.scandir(folder)]
    else:
        inside = Path(member)
        names = [(Path(name).name, True) for name in _folders(archive, os.getpid()) if Path(name).parent == inside]
        names += [(Path(name).name, False) for name in _members(archive, os.getpid()) if Path(name).parent == inside]
    shown = sorted(
        (name, below or name.endswith(".zip")) for name, below in names if not name.startswith((".", "__MACOSX"))
    )
    return [name for name, below in shown if below], [name for name, below in shown if not below]


def find(root: Path, relative: str) -> Path | None:
    """`root / relative`, or the same in a zip archive in `root`, such as those that COCO and ADE20K are published as.

    An archive may hold `relative` at its top or below a folder of its own name, and may lie in another archive. None:
    there is neither.
    """
    return next((path for path in _places(root, relative) if exists(path)), None)


def _places(root: Path, relative: str) -> Iterator[Path]:
    yield root / relative
    archives = [root] if root.suffix == ".zip" else sorted(root.glob("*.zip"))
    for archive in archives:
        yield archive / relative
        yield archive / archive.stem / relative
    for archive in archives:
        for inner in names_below(archive, (".zip",)):
            name, *below = Path(relative).parts
            if Path(inner).stem == name:  # the others are not opened for it
                yield archive / inner / relative
                yield archive.joinpath(inner, *below)


def _split(path: Path) -> tuple[Path | None, str]:
    """The innermost archive that a path leads into and the rest of it; None for a path that needs none."""
    if ".zip" not in str(path):
        return None, ""
    for parent in (path, *path.parents):
        if parent.suffix == ".zip" and _is_archive(parent):
            return parent, path.relative_to(parent).as_posix() if path != parent else ""
    return None, ""


def _is_archive(path: Path) -> bool:
    if path.is_file():
        return True
    outer, member = _split(path.parent)
    return outer is not None and f"{member}/{path.name}".lstrip("/") in _members(outer, os.getpid())


@functools.lru_cache(maxsize=32)
def _opened(archive: Path, process: int) -> zipfile.ZipFile:
    """An open archive; `process` keeps a forked one from sharing the position in the file."""
    try:
        return zipfile.ZipFile(archive if archive.is_file() else _Stored.member(archive))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is no zip archive, or is cut short ({error}). Download it again.") from error


@functools.lru_cache(maxsize=32)
def _members(archive: Path, process: int) -> frozenset[str]:
    """All files in an archive."""
    return frozenset(name for name in _opened(archive, process).namelist() if not name.endswith("/"))


@functools.lru_cache(maxsize=32)
def _folders(archive: Path, process: int) -> frozenset[str]:
    """All folders in an archive, also those that have no entry of their own."""
    names = _opened(archive, process).namelist()
    below = {parent for parent in {name.rpartition("/")[0] for name in names} if parent}
    return frozenset(below | {folder.as_posix() for name in below for folder in Path(name).parents} - {"."})


class _Stored(io.RawIOBase):
    """An uncompressed member of an archive as a file of its own, in which any place is reached at once."""

    def __init__(self, path: Path, start: int, length: int) -> None:
        self._file, self._start, self._length, self._position = path.open("rb"), start, length, 0

    @classmethod
    def member(cls, path: Path) -> io.BufferedReader:
        """The archive that `path` leads to inside of another one.

        Raises:
            ValueError: it is compressed, so that its files could only be reached by unpacking all before them.
        """
        outer, name = _split(path.parent)
        name = f"{name}/{path.name}".lstrip("/")
        info = _opened(outer, os.getpid()).getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or not outer.is_file():
            raise ValueError(
                f"{outer} holds {name} compressed, so that it cannot be read in place: take that one archive out, such "
                f"as with `unzip -j {outer} {name} -d {outer.parent}`."
            )
        with outer.open("rb") as file:
            file.seek(info.header_offset)
            start = info.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size)))
        return io.BufferedReader(cls(outer, start, info.file_size))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        self._file.seek(self._start + self._position)
        content = self._file.read(max(min(len(buffer), self._length - self._position), 0))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()

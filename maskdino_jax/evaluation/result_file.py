"""A JSON list of what was found, written while the images come, in any order."""

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from maskdino_jax.evaluation.gathering import gathered


class ResultFile:
    """One JSON list. The entries of an image go to disk at once; `close` brings the images into order.

    `add` may be called from several threads. Of several processes each writes its own images beside the file, in a
    folder that all of them see, and the first one joins them.
    """

    def __init__(self, path: Path, head: str = "[", tail: str = "]") -> None:
        """`head` and `tail`: what goes before and after the entries."""
        self._path, self._head, self._tail = path, head, tail
        self._loose = _loose(path, jax.process_index())
        self._file = self._loose.open("wb")
        self._places: dict[int, tuple[int, int]] = {}  # of each image: start and length in the loose file
        self._lock = threading.Lock()

    def add(self, position: int, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write the entries of the image at `position`."""
        text = ",\n".join(json.dumps(entry) for entry in entries).encode()
        with self._lock:
            self._places[position] = self._file.tell(), len(text)
            self._file.write(text)

    def close(self) -> None:
        """Write the file. Until then there is none, or that of an earlier evaluation."""
        self._file.close()
        places = gathered(self._places)
        if jax.process_index() == 0:
            self._join(places)
        gathered(None)  # all of them are read
        self._loose.unlink()

    def _join(self, places: Sequence[Mapping[int, tuple[int, int]]]) -> None:
        order = sorted((position, owner) for owner, own in enumerate(places) for position in own)
        files = [_loose(self._path, owner).open("rb") for owner in range(len(places))]
        part = self._path.with_suffix(".part")
        with part.open("wb") as joined:
            joined.write(self._head.encode())
            separator = b""
            for position, owner in order:
                start, length = places[owner][position]
                if length:
                    files[owner].seek(start)
                    joined.write(separator + files[owner].read(length))
                    separator = b",\n"
            joined.write(self._tail.encode())
        for file in files:
            file.close()
        part.replace(self._path)


def _loose(path: Path, owner: int) -> Path:
    return path.with_suffix(f".unsorted{owner}")

"""A COCO result file that is written while its images come, in any order."""

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class ResultFile:
    """One JSON list. The entries of an image go to disk at once; `close` brings the images into order.

    `add` may be called from several threads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loose = path.with_suffix(".unsorted")
        self._file = self._loose.open("w+b")
        self._places: dict[int, tuple[int, int]] = {}  # of each image: start and length in the loose file
        self._lock = threading.Lock()

    def add(self, position: int, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write the entries of the image at `position`."""
        text = ", ".join(json.dumps(entry) for entry in entries).encode()
        with self._lock:
            self._places[position] = self._file.tell(), len(text)
            self._file.write(text)

    def close(self) -> None:
        """Write the file. Until then there is none, or that of an earlier evaluation."""
        part = self._path.with_suffix(".part")
        with self._file, part.open("wb") as sorted_file:
            separator = b"["
            for _, (start, length) in sorted(self._places.items()):
                if length:
                    self._file.seek(start)
                    sorted_file.write(separator + self._file.read(length))
                    separator = b",\n"
            sorted_file.write(b"]" if separator != b"[" else b"[]")
        part.replace(self._path)
        self._loose.unlink()

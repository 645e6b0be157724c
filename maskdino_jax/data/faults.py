"""What happens to a fault in a data set: it stops, or it is told to someone who counts it."""

import dataclasses
import logging
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import TypeAlias

# Called with the kind of the fault, such as "unknown category", and a message that names the place and the remedy. If
# it returns, the reader leaves out what is faulty and goes on.
Report: TypeAlias = Callable[[str, str], None]

BAD_POLYGON = "polygon without an area"
NO_POLYGON = "object without a polygon"
NO_AREA = "box without an area"
UNUSED_BOX = "broken box beside a mask"
OTHER_EXTENT = "box and mask disagree"
OUTSIDE = "object outside of its image"
LISTED_TWICE = "image listed twice"
LABELS_ALONE = "labels without an image"
CROWD = "crowd"
EMPTY_IMAGE = "image without an object"

# Training goes on without what is wrong there, as the reference does. Only someone who asked hears of it.
WARNINGS = frozenset({BAD_POLYGON, NO_POLYGON, NO_AREA, UNUSED_BOX, OTHER_EXTENT, OUTSIDE, LISTED_TWICE, LABELS_ALONE})
NOTES = frozenset({CROWD, EMPTY_IMAGE})  # nothing is wrong

_KEPT = 20  # messages of each kind; a data set may have a million faults of one


class DataError(ValueError):
    """A fault that was not passed over, with its kind."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)  # both are arguments, so that it travels between processes
        self.kind = kind

    def __str__(self) -> str:
        return self.args[1]


def stop(kind: str, message: str) -> None:
    """The report that makes every fault an error, but for `WARNINGS` and `NOTES`.

    Raises:
        DataError: with this message.
    """
    if kind not in WARNINGS | NOTES:
        raise DataError(kind, message)


def kind_of(error: Exception) -> str:
    """The kind of what reading a record raised."""
    if isinstance(error, FileNotFoundError):
        return "file missing"
    return error.kind if isinstance(error, DataError) else "unreadable record"


@dataclasses.dataclass(frozen=True)
class Faults:
    """The report that counts: all faults by kind, and the first messages of each."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    first: dict[str, list[str]] = dataclasses.field(default_factory=lambda: defaultdict(list))

    def __call__(self, kind: str, message: str) -> None:
        self.counts[kind] += 1
        if len(self.first[kind]) < _KEPT:
            self.first[kind].append(message)

    def log_left_out(self, place: str, shown: int = 3) -> None:
        """Say what reading leaves out that would have stopped it otherwise."""
        for kind, count in self.counts.items():
            if kind not in WARNINGS | NOTES:
                first = "\n  ".join(self.first[kind][:shown])
                logging.warning("%s: left out for %s: %d, such as\n  %s", place, kind, count, first)

"""What a check of a data set found, as a table and as JSON."""

import dataclasses
import statistics as numbers
from collections.abc import Iterator
from typing import Any

from maskdino_jax.data.dataset import Dataset
from maskdino_jax.data.statistics import SIZES, Statistics

_TITLES = {
    "error": "ERRORS: training would fail or be wrong",
    "warning": "WARNINGS: training goes on",
    "note": "NOTES",
}
_CLASSES_SHOWN = 40  # rows; of more classes the most and the least frequent ones
_MESSAGES_SHOWN = 3
_LONGEST = 600  # characters of a message


@dataclasses.dataclass(frozen=True)
class Finding:
    """Faults of one kind in one split ("both": between them)."""

    severity: str  # error: training or evaluation would stop or be wrong | warning | note
    split: str
    kind: str
    count: int
    first: tuple[str, ...]  # messages: place, value, remedy


@dataclasses.dataclass(frozen=True)
class Split:
    """One split and what was found in it."""

    dataset: Dataset | None  # None: it cannot be opened
    statistics: Statistics
    findings: tuple[Finding, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of a check."""

    splits: dict[str, Split]
    findings: tuple[Finding, ...]  # of both splits and between them

    @property
    def ok(self) -> bool:
        """Whether training and evaluation would work."""
        return not self.of("error")

    def verdict(self) -> str:
        """One line."""
        counts = [f"{len(self.of(severity))} kinds of {severity}s" for severity in ("error", "warning")]
        return f"{'The data are sound' if self.ok else 'The data need repair'}: {', '.join(counts)}"

    def of(self, severity: str) -> list[Finding]:
        """The findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        return {
            "ok": self.ok,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "splits": {name: dict(_rows(split)) for name, split in self.splits.items()},
            "classes": [
                {"id": id, "name": name, **dict(zip(self.splits, counts, strict=True))}
                for id, name, counts in self._classes()
            ],
        }

    def table(self) -> str:
        """Everything that fits on a screen or two, as text."""
        return "\n".join([*self._numbers(), "", *self._histogram(), *self._found()])

    def _numbers(self) -> Iterator[str]:
        columns = [dict(_rows(split)) for split in self.splits.values()]
        yield _line("", *self.splits)
        for row in columns[0]:
            if any(column[row] is not None for column in columns):
                yield _line(row, *(_text(column[row]) for column in columns))

    def _classes(self) -> list[tuple[int, str, list[int]]]:
        """Id, name and objects in each split, in the order of the class list."""
        catalog = next((split.dataset.catalog for split in self.splits.values() if split.dataset), None)
        return [
            (category.id, category.name, [split.statistics.of_class[position] for split in self.splits.values()])
            for position, category in enumerate(catalog.categories if catalog else ())
        ]

    def _histogram(self) -> Iterator[str]:
        classes = self._classes()
        rows = sorted((row for row in classes if any(row[2])), key=lambda row: -row[2][0])
        yield _line(f"objects of {len(rows)} classes", *self.splits)
        half = _CLASSES_SHOWN // 2
        for position, (_, name, counts) in enumerate(rows):
            if len(rows) <= _CLASSES_SHOWN or position < half or position >= len(rows) - half:
                yield _line(f"  {name[:32]}", *map(_text, counts))
            elif position == half:
                yield f"  ... {len(rows) - 2 * half} more in report.json"
        if len(rows) < len(classes):
            yield f"  ... {len(classes) - len(rows)} classes without an object"

    def _found(self) -> Iterator[str]:
        for severity, title in _TITLES.items():
            findings = self.of(severity)
            if findings:
                yield ""
                yield title
            for finding in findings:
                yield f"  {finding.split}: {finding.kind}: {finding.count}"
                if severity != "note":
                    yield from (f"    {_cut(message)}" for message in finding.first[:_MESSAGES_SHOWN])


def _rows(split: Split) -> Iterator[tuple[str, int | float | str | None]]:
    """Names and values of the table; None: does not apply."""
    found = split.statistics
    count = {finding.kind: finding.count for finding in split.findings}
    heights, widths = ([sides[axis] for sides in found.sides] for axis in (0, 1))
    middle = lambda sides: f"{min(sides)} / {int(numbers.median(sides))} / {max(sides)}" if sides else None
    yield "images", found.images
    yield "  unreadable", found.failures
    yield "  without an object", count.get("image without an object", 0)
    yield "  height: least / median / most", middle(heights)
    yield "  width: least / median / most", middle(widths)
    yield "  unlabelled pixels, %", round(100 * numbers.fmean(found.unlabelled), 1) if found.unlabelled else None
    yield "objects", found.objects
    yield "  in one image, on average", round(found.objects / found.images, 1) if found.images else None
    yield "  in one image, most", found.most
    for name, end in SIZES.items():
        limit = f"below {end**0.5:.0f} x {end**0.5:.0f} pixels" if name != "large" else "the rest"
        yield f"  {name}, {limit}", found.of_size[name]
    yield "crowds, left out", count.get("crowd", 0)


def _cut(message: str) -> str:
    return message if len(message) <= _LONGEST else f"{message[: _LONGEST - 20]}... (see report.json)"


def _text(value: int | float | str | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _line(name: str, *values: str) -> str:
    return f"{name:<36}" + "".join(f"{value:>22}" for value in values)

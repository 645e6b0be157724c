"""Pieces of HTML: sections, figures, and tables that scroll in their own frame."""

import dataclasses
import html
from collections.abc import Sequence

from maskdino_jax.evaluation.report.charts import DASH

escape = html.escape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """Of a table: what is shown, what it is sorted by, and how far its bar reaches, 0 to 1."""

    text: str
    key: float | str = ""
    bar: float | None = None


def percent(value: float | None, *, bar: bool = False) -> Cell:
    """A fraction of one in percent; a dash if it is not defined."""
    if value is None:
        return Cell(text=DASH, key=-1.0)
    return Cell(text=f"{100 * value:.1f}", key=round(value, 5), bar=value if bar else None)


def number(value: int) -> Cell:
    return Cell(text=f"{value:,}".replace(",", "\u202f"), key=value)


def word(content: str) -> Cell:
    return Cell(text=content, key=content.lower())


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, sortable: bool = False) -> str:
    """A table whose first column heads its rows. With a script it is sorted by a click on a column's head."""
    heads = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = []
    for first, *rest in rows:
        cells = f'<th scope="row" data-key="{escape(str(first.key))}">{escape(first.text)}</th>'
        cells += "".join(_cell(cell) for cell in rest)
        lines.append(f"<tr>{cells}</tr>")
    kind = "sortable" if sortable else ""
    return framed(caption, f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>", kind)


def framed(caption: str, content: str, kind: str = "") -> str:
    """A table in a frame that scrolls, under its caption, which stays. `kind`: class of the table."""
    name = escape(caption)
    return (
        f'<p class="caption" aria-hidden="true">{name}</p><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{name}"><table class="{kind}" aria-label="{name}">{content}</table></div>'
    )


def _cell(cell: Cell) -> str:
    bar = "" if cell.bar is None else f' class="bar" style="--v:{max(min(cell.bar, 1), 0):.3f}"'
    return f'<td data-key="{escape(str(cell.key))}"{bar}>{escape(cell.text)}</td>'


def figure(caption: str, drawing: str, below: str = "") -> str:
    """A chart under its title."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{drawing}{below}</figure>"


def figures(parts: Sequence[str]) -> str:
    """Side by side where there is room."""
    return f'<div class="figures">{"".join(parts)}</div>'


def paragraph(content: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(content)}</p>' if kind else f"<p>{escape(content)}</p>"


def details(summary: str, content: str) -> str:
    """Folded until a click on it."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


@dataclasses.dataclass(frozen=True)
class Section:
    """A chapter of the page; without content it is left out."""

    anchor: str
    title: str
    content: str

    def html(self) -> str:
        return f'<section id="{self.anchor}"><h2>{escape(self.title)}</h2>{self.content}</section>'

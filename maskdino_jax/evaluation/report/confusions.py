"""Tables of what is taken for what."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from maskdino_jax.evaluation.report.markup import Cell, escape, framed, number, percent, table, word


def heat_map(
    counts: Int[np.ndarray, "k1 k1"],
    classes: Int[np.ndarray, "n"],
    names: Sequence[str],
    caption: str,
    none: str,
    *,
    percent: bool = False,
) -> str:
    """True classes in rows, coloured by their share of the row; in the last row, of the column.

    Args:
        counts: the last column is for what got no class, the last row for what has no true one.
        classes: rows and columns that are shown.
        none: head of the last column.
        percent: numbers are shares of the row; else they are counts, and the last row is shown.
    """
    last = len(counts) - 1
    rows = [*classes.tolist(), *([] if percent else [last])]
    columns = [*classes.tolist(), *([last] if counts[:, last].any() or not percent else [])]
    heads = "".join(f'<th scope="col">{escape(none if k == last else names[k])}</th>' for k in columns)
    lines = []
    for row in rows:
        wholes = counts.sum(axis=0) if row == last else np.full(last + 1, counts[row].sum())
        cells = "".join(
            _cell(int(counts[row, k]), int(wholes[k]), row == k, percent, row == k == last) for k in columns
        )
        lines.append(f'<tr><th scope="row">{escape("false" if row == last else names[row])}</th>{cells}</tr>')
    head = f'<thead><tr><th scope="col">truth</th>{heads}</tr></thead>'
    return framed(caption, f"{head}<tbody>{''.join(lines)}</tbody>", "heat")


def _cell(count: int, whole: int, right: bool, in_percent: bool, corner: bool) -> str:
    if corner:
        return "<td></td>"
    share = count / max(whole, 1)
    shown = f"{100 * share:.1f}" if in_percent else str(count)
    kind = "right" if right else "off"
    return f'<td class="{kind}" style="--v:{share:.2f}">{shown if count else ""}</td>'


def pairs_table(pairs: Sequence[tuple[str, str, int, int]], what: str) -> str:
    """The most confused pairs: true class, predicted class, how many, of how many."""
    rows = [
        [word(true), Cell(text=named, key=place), number(count), percent(count / max(total, 1), bar=True)]
        for place, (true, named, count, total) in enumerate(pairs)
    ]
    return table("The most confused pairs of classes", ["true class", "taken for", what, "% of the class"], rows)


def ranked_pairs(counts: Int[np.ndarray, "k1 k1"], names: Sequence[str]) -> list[tuple[str, str, int, int]]:
    """Pairs of different classes, true and named: how many, of how many of the true class; the most frequent first.

    The last row and column of `counts` are for what has no class.
    """
    wrong = counts[:-1, :-1] * (1 - np.eye(len(names), dtype=np.int64))
    total = counts.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    places = [divmod(int(place), len(names)) for place in order]
    return [(names[true], names[named], int(wrong[true, named]), int(total[true])) for true, named in places]

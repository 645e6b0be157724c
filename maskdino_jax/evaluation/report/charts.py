"""Charts as inline SVG. Colours come from the page's style sheet, by the class of each shape.

All are drawn for about the width of a telephone, so that their text is readable there, and stand side by side on more.
"""

import html
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

DASH = "\u2013"  # for what is not defined, and between the ends of a range
WIDTH, HEIGHT = 340, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 8, 10, 40  # margins

Point = tuple[float, float]
Line = tuple[str, str, Sequence[Point]]  # name, class, points with x and y from 0 to 1


def svg(parts: Sequence[str], title: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    """A picture with a text for those who do not see it."""
    text = html.escape(title, quote=True)
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{text}">{"".join(parts)}</svg>'


def text(x: float, y: float, content: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{html.escape(content)}</text>'


def rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}" class="{kind}"/>'


def _x(value: float) -> float:
    return _LEFT + value * (WIDTH - _LEFT - _RIGHT)


def _y(value: float) -> float:
    return HEIGHT - _BOTTOM - value * (HEIGHT - _TOP - _BOTTOM)


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{_x(x):.1f} {_y(y):.1f}" for x, y in points)


def _axes(x_name: str, y_name: str) -> list[str]:
    """A unit square with light lines at each quarter."""
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path class="grid" d="M{_x(0):.1f} {_y(tick):.1f}H{_x(1):.1f}"/>')
        parts.append(text(_LEFT - 6, _y(tick) + 4, f"{tick:g}", "end", "tick"))
        parts.append(text(_x(tick), _y(0) + 15, f"{tick:g}", "end" if tick == 1 else "middle", "tick"))
    parts.append(text((_x(0) + _x(1)) / 2, HEIGHT - 6, x_name, "middle", "axis"))
    middle = (_y(0) + _y(1)) / 2
    turn = f'transform="rotate(-90 9 {middle:.1f})"'
    parts.append(f'<text x="9" y="{middle:.1f}" text-anchor="middle" class="axis" {turn}>{html.escape(y_name)}</text>')
    return parts


def lines(
    series: Sequence[Line], x_name: str, y_name: str, title: str, marks: Sequence[tuple[float, str, str]] = ()
) -> str:
    """Curves in the unit square. `marks`: x, name and class of vertical lines."""
    parts = _axes(x_name, y_name)
    for x, name, kind in marks:
        parts.append(f'<path class="mark {kind}" d="M{_x(x):.1f} {_y(0):.1f}V{_y(1):.1f}"><title>{name}</title></path>')
    for name, kind, points in series:
        if points:
            parts.append(f'<path class="line {kind}" d="{_path(points)}"><title>{html.escape(name)}</title></path>')
    return svg(parts, title)


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Names beside the colours of their classes, as HTML."""
    items = "".join(f'<li><i class="key {kind}"></i>{html.escape(name)}</li>' for name, kind in entries)
    return f'<ul class="legend">{items}</ul>'


def spark(series: Sequence[Line], title: str) -> str:
    """Small curves without numbers, in a frame."""
    width, height = 120, 72
    place = lambda points: "M" + "L".join(f"{x * width:.0f} {(1 - y) * (height - 2) + 1:.1f}" for x, y in points)
    parts = [rect(0, 0, width, height, "frame")]
    parts += [f'<path class="line {kind}" d="{place(points)}"/>' for _, kind, points in series if points]
    return svg(parts, title, width, height)


def bars(rows: Sequence[tuple[str, float, str, str]], title: str) -> str:
    """Horizontal bars: name, value of at least 0, what stands beside it, class."""
    step, left, right = 28, 96, 74
    largest = max([value for _, value, _, _ in rows] + [1e-9])
    parts = []
    for place, (name, value, note, kind) in enumerate(rows):
        y, length = place * step, value / largest * (WIDTH - left - right)
        parts.append(text(left - 8, y + 18, name, "end", "label"))
        parts.append(rect(left, y + 5, max(length, 1), step - 10, kind))
        parts.append(text(left + length + 6, y + 18, note, "start", "value"))
    return svg(parts, title, WIDTH, step * len(rows))


def columns(bins: Sequence[tuple[str, int, int]], x_name: str, title: str) -> str:
    """Columns whose lower part is filled: name, height, filled height; the share stands above each."""
    top, bottom, left = 22, 40, 6
    highest, step = max([total for _, total, _ in bins] + [1]), (WIDTH - 2 * left) / max(len(bins), 1)
    scale = (HEIGHT - top - bottom) / highest
    parts = [f'<path class="grid" d="M{left} {HEIGHT - bottom}H{WIDTH - left}"/>']
    for place, (name, total, filled) in enumerate(bins):
        x, base, wide = left + place * step, HEIGHT - bottom, min(step * 0.72, 60)
        start = x + (step - wide) / 2
        parts.append(rect(start, base - total * scale, wide, (total - filled) * scale, "bad"))
        parts.append(rect(start, base - filled * scale, wide, filled * scale, "good"))
        share = f"{filled / total:.0%}" if total else DASH
        parts.append(text(x + step / 2, base - total * scale - 6, share, "middle", "value"))
        parts.append(text(x + step / 2, base + 15, name, "middle", "tick"))
    parts.append(text(WIDTH / 2, HEIGHT - 6, x_name, "middle", "axis"))
    return svg(parts, title)


def mirrored(up: Float[np.ndarray, "b"], down: Float[np.ndarray, "b"], x_name: str, title: str) -> str:
    """Two histograms over 0 to 1 on one scale, one upwards and one downwards; columns that do not fit have a number."""
    bins, bottom = len(up), 40
    largest = lambda values: float(max(values.max(initial=0), 1))
    limits = [min(largest(values), 1.6 * largest(other)) for values, other in ((up, down), (down, up))]
    scale = (HEIGHT - bottom - 24) / sum(limits)
    base, step = 12 + limits[0] * scale, (WIDTH - 16) / bins
    parts = []
    for place, pair in enumerate(zip(up.tolist(), down.tolist(), strict=True)):
        x = 8 + place * step
        for count, limit, kind, sign in zip(pair, limits, ("good", "bad"), (-1, 1), strict=True):
            high = min(count, limit) * scale
            parts.append(rect(x + 0.5, base - high if sign < 0 else base, step - 1, high, kind))
            if count > limit:
                turned = f"translate({x + step / 2 + 4:.1f} {base + sign * (high - 5):.1f}) rotate(-90)"
                anchor = "end" if sign < 0 else "start"
                parts.append(f'<text class="inside" text-anchor="{anchor}" transform="{turned}">{count:g}</text>')
    parts.append(f'<path class="zero" d="M8 {base:.1f}H{WIDTH - 8}"/>')
    for tick in (0, 0.25, 0.5, 0.75, 1):
        anchor = {0: "start", 1: "end"}.get(tick, "middle")
        parts.append(text(8 + tick * (WIDTH - 16), HEIGHT - bottom + 15, f"{tick:g}", anchor, "tick"))
    parts.append(text(WIDTH / 2, HEIGHT - 6, x_name, "middle", "axis"))
    return svg(parts, title)


def reliability(points: Float[np.ndarray, "b 3"], x_name: str, y_name: str, title: str) -> str:
    """Dots for mean score, precision and number, which is the area of the dot. On the diagonal all is well."""
    parts = _axes(x_name, y_name)
    parts.append(f'<path class="diagonal" d="{_path([(0, 0), (1, 1)])}"/>')
    known = points[points[:, 2] > 0]
    if len(known):
        parts.append(f'<path class="line main thin" d="{_path(known[:, :2].tolist())}"/>')
    for score, precision, count in known.tolist():
        radius = 2.5 + 6.5 * math.sqrt(count / known[:, 2].max())
        note = f"mean score {score:.2f}: {precision:.0%} of {count:g} are right"
        dot = f'<circle cx="{_x(score):.1f}" cy="{_y(precision):.1f}" r="{radius:.1f}" class="dot">'
        parts.append(f"{dot}<title>{note}</title></circle>")
    return svg(parts, title)

"""The page as one file: styles, script, charts and pictures are all inside."""

import importlib.resources
from collections.abc import Sequence

from maskdino_jax.evaluation.report.analysis import Analysis
from maskdino_jax.evaluation.report.detections import best
from maskdino_jax.evaluation.report.markup import Section, escape

_TILES = (
    ("segm/AP", "mask AP"),
    ("bbox/AP", "box AP"),
    ("panoptic_seg/PQ", "PQ"),
    ("sem_seg/mIoU", "mIoU"),
)


def page(title: str, about: Sequence[tuple[str, str]], analysis: Analysis, sections: Sequence[Section]) -> str:
    """The whole document. `about`: what was evaluated, name and value."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in about)
    links = "".join(f'<li><a href="#{one.anchor}">{escape(one.title)}</a></li>' for one in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_part("page.css")}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<dl class="about">{rows}</dl>
<ul class="tiles">{_tiles(analysis)}</ul>
<nav aria-label="Chapters"><ul>{links}</ul></nav>
</header>
<main>
{"".join(one.html() for one in sections)}
</main>
<footer>Numbers are percent unless they say otherwise. Made by maskdino-jax.</footer>
<script>{_part("page.js")}</script>
</body>
</html>
"""


def _tiles(analysis: Analysis) -> str:
    tiles = [(f"{100 * analysis.metrics[key]:.1f}", name) for key, name in _TILES if key in analysis.metrics]
    if analysis.pixels_are_panoptic:
        tiles = [(value, "mIoU of panoptic maps" if name == "mIoU" else name) for value, name in tiles]
    found = analysis.main
    if found is not None and found.wanted.any():
        top = best(found.operating())
        tiles.append((f"{100 * top.f1:.1f}", f"best F1, at score {top.threshold:.2f}"))
        tiles.append((f"{int(found.wanted.sum()):,}".replace(",", "\u202f"), "objects"))
    return "".join(f"<li><b>{value}</b><span>{escape(name)}</span></li>" for value, name in tiles)


def _part(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")

"""The chapters of the page. Each is None where there is nothing to say."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from maskdino_jax.evaluation.matching import THRESHOLDS
from maskdino_jax.evaluation.precision import RECALLS
from maskdino_jax.evaluation.report import charts, detections
from maskdino_jax.evaluation.report.analysis import Analysis, Ranked
from maskdino_jax.evaluation.report.confusions import heat_map, pairs_table, ranked_pairs
from maskdino_jax.evaluation.report.detections import Detections
from maskdino_jax.evaluation.report.errors import KINDS, Cost
from maskdino_jax.evaluation.report.findings import EXPLAINED, KIND_NAMES, REMEDIES, Finding, size_name
from maskdino_jax.evaluation.report.markup import (
    Cell,
    Section,
    details,
    escape,
    figure,
    figures,
    framed,
    number,
    paragraph,
    percent,
    table,
    word,
)

_TWELVE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_LINES = (("IoU 0.50", "main"), ("IoU 0.75", "other"), ("mean of 0.50 to 0.95", "warm"))
_SPARKS = 12  # classes whose curves are shown unfolded
_SHOWN = 6  # of the worst images; the others are folded
_HEAT = 20  # classes of which a heat map can still be read
_PAIRS = 40  # rows of the table instead of it


def first(found: Sequence[Finding]) -> Section | None:
    """What stands out."""
    items = []
    for one in found:
        code = f"<br><code>{escape(one.code)}</code>" if one.code else ""
        items.append(
            f"<li><div><strong>{escape(one.claim)}</strong> <span>{escape(one.remedy)}</span>{code}</div></li>"
        )
    return Section("first", "What stands out", f'<ol class="findings">{"".join(items)}</ol>') if items else None


def lost(costs: dict[str, dict[str, Cost]]) -> Section | None:
    """Errors of detections by kind. `costs`: of boxes and of masks."""
    if not costs:
        return None
    parts = []
    for kind, of_kind in costs.items():
        rows = [
            (name, of_kind[name].ap, f"{100 * of_kind[name].ap:.1f}  ({of_kind[name].count})", "main")
            for name in sorted(KINDS, key=lambda name: -of_kind[name].ap)
        ]
        spoken = ", ".join(f"{name} {100 * value:.1f}" for name, value, _, _ in rows)
        below = paragraph(
            f"All {of_kind['wrong'].count} wrong detections together: {100 * of_kind['wrong'].ap:.1f}. All "
            f"{of_kind['unfound'].count} objects without a right one: {100 * of_kind['unfound'].ap:.1f}.",
            "note",
        )
        title = f"{KIND_NAMES[kind].capitalize()}: AP50 lost (number of errors)"
        parts.append(figure(title, charts.bars(rows, f"{title}: {spoken}"), below))
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>{EXPLAINED[name]}</td><td>{REMEDIES[name]}</td></tr>' for name in KINDS
    )
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("error", "what it is", "what to do"))
    meaning = framed("Kinds of errors", f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>", "words")
    note = paragraph(
        "How much AP50 would rise if one kind of error were fixed and all else stayed (TIDE, Bolya et al. 2020). The "
        "numbers do not add up, for one error may hide another.",
        "note",
    )
    return Section(
        "errors", "Where average precision is lost", note + figures(parts) + details("What they mean", meaning)
    )


def metrics(analysis: Analysis) -> Section:
    """All numbers, and those of the classes."""
    values, parts = analysis.metrics, []
    rows = [
        [word(KIND_NAMES[kind]), *(percent(values.get(f"{kind}/{name}")) for name in _TWELVE)]
        for kind in analysis.detections
    ]
    if rows:
        parts.append(table("Average precision and average recall, in percent", ["", *_TWELVE], rows))
    rows = [
        [word(name), *(percent(values.get(f"panoptic_seg/{column}{suffix}")) for column in ("PQ", "SQ", "RQ"))]
        for name, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st"))
        if f"panoptic_seg/PQ{suffix}" in values
    ]
    if rows:
        parts.append(table("Panoptic quality, in percent", ["", "PQ", "SQ", "RQ"], rows))
    if "sem_seg/mIoU" in values:
        names = ("mIoU", "fwIoU", "mACC", "pACC")
        of = " of the panoptic map: there are no label maps" if analysis.pixels_are_panoptic else ""
        rows = [[word("pixels"), *(percent(values[f"sem_seg/{name}"]) for name in names)]]
        parts.append(table(f"Semantic segmentation{of}, in percent", ["", *names], rows))
    return Section("metrics", "Metrics", "".join(parts) + "<h3>Classes</h3>" + _classes(analysis))


def _classes(analysis: Analysis) -> str:
    values, found = analysis.metrics, analysis.main
    known = [("box AP", "bbox/AP-"), ("mask AP", "segm/AP-")]
    known += [(name, f"panoptic_seg/{name}-") for name in ("PQ", "SQ", "RQ")] + [
        ("IoU", "sem_seg/IoU-"),
        ("accuracy", "sem_seg/ACC-"),
    ]
    columns = [(title, prefix) for title, prefix in known if any(key.startswith(prefix) for key in values)]
    objects = {}
    if found is not None:
        counts = np.bincount(found.object_labels[found.wanted], minlength=len(found.names))
        objects = dict(zip(found.names, counts.tolist(), strict=True))
    rows = []
    for name in analysis.catalog.names:
        cells = [values.get(prefix + name) for _, prefix in columns]
        if any(cell is not None for cell in cells):
            count = [number(objects[name]) if name in objects else percent(None)] if objects else []
            rows.append([word(name), *count, *(percent(cell, bar=True) for cell in cells)])
    heads = ["class", *(["objects"] if objects else []), *(title for title, _ in columns)]
    missing = analysis.catalog.num_classes - len(rows)
    note = paragraph(f"Of {missing} other classes there is nothing to measure.", "note") if missing else ""
    return table("Each class, in percent", heads, rows, sortable=True) + note


def threshold(analysis: Analysis) -> Section | None:
    """The best score threshold, of all and of each class."""
    found = analysis.main
    if found is None or not found.wanted.any():
        return None
    rows = found.operating()
    top, now = detections.best(rows), found.at(analysis.threshold)
    series = [
        (name, kind, [(row.threshold, getattr(row, field)) for row in rows if row.recall])
        for name, field, kind in (
            ("precision", "precision", "other"),
            ("recall", "recall", "warm"),
            ("F1", "f1", "main"),
        )
    ]
    marks = [(now.threshold, f"now {now.threshold:.2f}", "now"), (top.threshold, f"best {top.threshold:.2f}", "best")]
    title = "All classes, by score threshold"
    spoken = f"{title}: F1 is largest, {100 * top.f1:.1f} %, at {top.threshold:.2f}"
    chart = charts.lines(series, "score threshold", "share", spoken, marks)
    below = charts.legend([("precision", "other"), ("recall", "warm"), ("F1", "main")])
    below += paragraph("Upright lines: the threshold now (dashed) and the best one.", "note")
    words = (
        f"<p>Best for all classes together: <code>--config.inference.score_threshold={top.threshold:.2f}</code> with "
        f"F1 {100 * top.f1:.1f} (precision {100 * top.precision:.1f}, recall {100 * top.recall:.1f}). This page uses "
        f"{analysis.threshold:g}: F1 {100 * now.f1:.1f} (precision {100 * now.precision:.1f}, recall "
        f"{100 * now.recall:.1f}).</p>"
    )
    note = paragraph("F1 of detections that are right at IoU 0.5. Average precision does not depend on it.", "note")
    content = words + note + figures([figure(title, chart, below), _thresholds(found, analysis.threshold)])
    return Section("threshold", "Score threshold", content)


def _thresholds(found: Detections, now: float) -> str:
    rows = []
    for label, name in enumerate(found.names):
        mine = found.operating(label)
        if mine[0].objects:
            top, current = detections.best(mine), found.at(now, label)
            place = Cell(text=f"{top.threshold:.2f}", key=top.threshold) if top.f1 else percent(None)
            cells = [percent(value) for value in (top.precision, top.recall)]
            rows.append(
                [word(name), number(top.objects), place, *cells, percent(top.f1, bar=True), percent(current.f1)]
            )
    heads = ["class", "objects", "best", "precision", "recall", "F1", f"F1 at {now:g}"]
    return '<div class="wide">' + table("Best threshold of each class", heads, rows, sortable=True) + "</div>"


def curves(analysis: Analysis) -> Section | None:
    """Precision at each recall, of all and of each class."""
    parts = []
    for kind, found in analysis.detections.items():
        present = (found.curves.precision[0, 0, :, 0] > -1).nonzero()[0]
        if len(present):
            title = f"{KIND_NAMES[kind].capitalize()}, mean of {len(present)} classes"
            title = title if len(present) > 1 else f"{KIND_NAMES[kind].capitalize()}, {found.names[present[0]]}"
            series = _series(found.curves.precision[:, :, present, 0].mean(axis=2))
            parts.append(figure(title, charts.lines(series, "recall", "precision", title), charts.legend(_LINES)))
    if not parts:
        return None
    content, found = figures(parts), analysis.main
    order = sorted(
        (label for label in range(len(found.names)) if found.curves.precision[0, 0, label, 0] > -1),
        key=lambda label: found.metrics[f"AP-{found.names[label]}"],
    )
    if len(order) > 1:
        items = [_spark(found, label) for label in order]
        what = KIND_NAMES["segm" if "segm" in analysis.detections else "bbox"]
        content += f"<h3>Classes, the weakest first ({what})</h3>" + _sparks(items[:_SPARKS])
        if len(items) > _SPARKS:
            content += details(f"The other {len(items) - _SPARKS} classes", _sparks(items[_SPARKS:]))
    return Section("curves", "Precision and recall", content)


def _series(precision: Float[np.ndarray, "t r"], step: int = 1) -> list[charts.Line]:
    values = precision[0], precision[np.isclose(THRESHOLDS, 0.75).argmax()], precision.mean(axis=0)
    return [
        (name, kind, list(zip(RECALLS[::step].tolist(), line[::step].tolist(), strict=True)))
        for (name, kind), line in zip(_LINES, values, strict=True)
    ]


def _spark(found: Detections, label: int) -> str:
    name, value = found.names[label], found.metrics[f"AP-{found.names[label]}"]
    drawing = charts.spark(_series(found.curves.precision[:, :, label, 0], 2), f"{name}: AP {100 * value:.1f}")
    return f'<li>{drawing}<span><b title="{escape(name)}">{escape(name)}</b><i>{100 * value:.1f}</i></span></li>'


def _sparks(items: list[str]) -> str:
    return f'<ul class="sparks">{"".join(items)}</ul>'


def confusion(analysis: Analysis) -> Section | None:
    """What is taken for what: objects, and pixels."""
    parts, found = [], analysis.main
    if found is not None:
        counts = detections.confusion(found, analysis.threshold)
        present = np.flatnonzero(counts.sum(axis=0)[:-1] + counts.sum(axis=1)[:-1])
        note = f"Detections scored {analysis.threshold:g} or more against objects, at IoU 0.5 whatever the class."
        parts.append("<h3>Objects</h3>" + paragraph(note, "note"))
        if len(present) <= _HEAT:
            parts.append(heat_map(counts, present, found.names, "Objects (rows) by what they are taken for", "missed"))
        else:
            parts.append(pairs_table(ranked_pairs(counts, found.names)[:_PAIRS], "objects"))
            rows = [
                [
                    word(found.names[k]),
                    number(int(counts[k].sum())),
                    number(int(counts[k, k])),
                    number(int(counts[k, :-1].sum() - counts[k, k])),
                    number(int(counts[k, -1])),
                    number(int(counts[-1, k])),
                ]
                for k in present
            ]
            heads = ["class", "objects", "right", "other class", "missed", "false"]
            parts.append(details("Each class", table("What becomes of the objects", heads, rows, sortable=True)))
    if analysis.pixels is not None:
        parts.append("<h3>Pixels</h3>" + _pixels(analysis.pixels, analysis.catalog.names))
    return Section("confusion", "Confusion", "".join(parts)) if parts else None


def _pixels(table: Int[np.ndarray, "k k_or_none"], names: tuple[str, ...]) -> str:
    whole = np.concatenate([table, np.zeros((1, table.shape[1]), table.dtype)])
    present = np.flatnonzero(table.sum(axis=1) + table.sum(axis=0)[:-1])
    if len(present) <= _HEAT:
        caption = "Pixels of each class (rows) by predicted class, in percent"
        return heat_map(whole, present, names, caption, "none", percent=True)
    pairs = ranked_pairs(whole, names)[:_PAIRS]
    return pairs_table(pairs, "pixels")


def scores(analysis: Analysis) -> Section | None:
    """Sizes of objects, and what scores are worth."""
    found = analysis.main
    if found is None or not found.wanted.any():
        return None
    rows = detections.sizes(found, analysis.threshold)
    bins = [(f"{low:g}{charts.DASH}" if low else f"< {high:g}", count, hit) for low, high, count, hit in rows]
    title = f"Objects by size, found at score {analysis.threshold:g}"
    spoken = f"{title}: " + ", ".join(
        f"{size_name(low, high)} pixels {hit} of {count}" for low, high, count, hit in rows
    )
    chart = charts.columns(bins, "size: square root of the area, pixels", spoken)
    parts = [figure(title, chart, charts.legend([("found", "good"), ("missed", "bad")]))]
    edges = np.linspace(0, 1, 21)
    right, wrong = (np.histogram(found.scores[found.counted & mask], edges)[0] for mask in (found.right, ~found.right))
    title = "Detections by score"
    spoken = f"{title}: {right.sum()} right, {wrong.sum()} wrong"
    legend = charts.legend([("right, upwards", "good"), ("wrong, downwards", "bad")])
    parts.append(figure(title, charts.mirrored(right, wrong, "score", spoken), legend))
    title = "Is a score a probability?"
    points = detections.calibration(found)
    note = "Above the dotted line more detections are right than their score says. Large dots: many detections."
    chart = charts.reliability(points, "mean score", "precision", title)
    parts.append(figure(title, chart, paragraph(note, "note")))
    return Section("scores", "Sizes and scores", figures(parts))


def images(pictures: Sequence[tuple[Ranked, str, str, str]], measure: str, threshold: float) -> Section | None:
    """The worst images: rank, file name, and data URIs of truth and prediction."""
    if not pictures:
        return None
    what = {
        "PQ": "panoptic quality of the image, all its segments taken together",
        "F1": f"F1 of its detections scored {threshold:g} or more at IoU 0.5",
        "mIoU": "mean IoU of the classes in the image",
    }
    parts = []
    for one, name, true, found in pictures:
        errors = f"{one.right} right, {one.wrong} wrong, {one.missed} missed"
        if measure == "mIoU":
            errors = f"{one.right / max(one.right + one.wrong, 1):.0%} of the pixels right"
        sides = "".join(
            f'<div><span>{side}</span><img src="{uri}" alt="{side} of {escape(f"{name}: {errors}")}"></div>'
            for side, uri in (("Truth", true), ("Prediction", found))
        )
        caption = f"{escape(name)} <span>{measure} {100 * one.value:.1f} · {errors}</span>"
        parts.append(f'<figure><figcaption>{caption}</figcaption><div class="pair">{sides}</div></figure>')
    content = paragraph(f"The lowest {what[measure]}; truth beside prediction.", "note") + _gallery(parts[:_SHOWN])
    if len(parts) > _SHOWN:
        content += details(f"The next {len(parts) - _SHOWN}", _gallery(parts[_SHOWN:]))
    return Section("images", "Worst images", content)


def _gallery(parts: Sequence[str]) -> str:
    return f'<div class="images">{"".join(parts)}</div>'

"""From saved predictions to the page."""

import dataclasses
import logging
from pathlib import Path

from maskdino_jax.data.dataset import Dataset
from maskdino_jax.evaluation.objects import objects_of
from maskdino_jax.evaluation.report import sections
from maskdino_jax.evaluation.report.analysis import Analysis, analyse
from maskdino_jax.evaluation.report.errors import classify, costs
from maskdino_jax.evaluation.report.findings import findings
from maskdino_jax.evaluation.report.page import page
from maskdino_jax.evaluation.report.pictures import Pictures
from maskdino_jax.evaluation.report.predictions import Predictions

_WORST = 12  # images that are shown

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """What was evaluated, as far as it is known, for the head of the page."""

    config: str  # name of the config
    checkpoint: str = ""
    step: int | None = None


def write_report(dataset: Dataset, predictions: Path, path: Path, *, score_threshold: float, about: About) -> Analysis:
    """Write the page to `path` and return what it says.

    Args:
        predictions: folder with `instances_predictions.json`, `panoptic_predictions.json` and its folder of PNG, or
            `semantic_predictions`; what is not there is left out of the page.
        score_threshold: score from which a detection is counted in the confusion and drawn.

    Raises:
        FileNotFoundError: there are no predictions.
        ValueError: the predictions are of other images.
    """
    saved = Predictions(predictions, dataset.catalog)
    analysis = analyse(dataset, saved, score_threshold)
    lost = {kind: costs(found, classify(found)) for kind, found in analysis.detections.items() if found.wanted.any()}
    main = lost.get("segm", lost.get("bbox", {}))
    chapters = [
        sections.first(findings(analysis, main)),
        sections.lost(lost),
        _images(dataset, saved, analysis),
        sections.threshold(analysis),
        sections.metrics(analysis),
        sections.curves(analysis),
        sections.confusion(analysis),
        sections.scores(analysis),
    ]
    head = _about(about, dataset, saved, analysis)
    title = f"Evaluation of {about.config or 'a model'}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(title, head, analysis, [one for one in chapters if one is not None]), encoding="utf-8")
    logger.info("report of %d images: %s", analysis.images, path)
    return analysis


def _images(dataset: Dataset, saved: Predictions, analysis: Analysis) -> sections.Section | None:
    measure = analysis.ranking.measure
    objects = objects_of(dataset, saved.has_masks) if measure == "F1" else None
    pictures = Pictures(dataset, saved, objects, measure, analysis.threshold)
    worst = [
        (one, dataset.file_name(one.record), *pictures.pair(one.record)) for one in analysis.ranking.images[:_WORST]
    ]
    return sections.images(worst, measure, analysis.threshold)


def _about(about: About, dataset: Dataset, saved: Predictions, analysis: Analysis) -> list[tuple[str, str]]:
    step = "" if about.step is None else f"step {about.step:,}".replace(",", "\u202f")
    rows = [
        ("Checkpoint", ", ".join(part for part in (about.checkpoint, step) if part)),
        ("Data", f"{'/'.join(dataset.annotations.parts[-2:])}, {analysis.images} images"),
        ("Predictions", f"{saved.folder}, written {saved.written:%Y-%m-%d %H:%M}"),
    ]
    return [(name, value) for name, value in rows if value]

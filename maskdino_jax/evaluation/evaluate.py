"""Predict every image of a data set, score the results, and show the scores as a table."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from maskdino_jax.config import Config
from maskdino_jax.data import Dataset
from maskdino_jax.evaluation.average_precision import KINDS, AveragePrecision
from maskdino_jax.evaluation.gathering import Predict
from maskdino_jax.evaluation.loop import results
from maskdino_jax.evaluation.mean_iou import MeanIoU
from maskdino_jax.evaluation.panoptic_quality import PanopticQuality
from maskdino_jax.inference.augmented import Augmented
from maskdino_jax.inference.mirrored import Mirrored
from maskdino_jax.inference.postprocess import Pending, Postprocessor
from maskdino_jax.inference.results import Segments

logger = logging.getLogger(__name__)

OnResult = Callable[[int, Segments], None]  # record, results


def evaluate(
    predict: Predict,
    dataset: Dataset,
    config: Config,
    output_dir: Path | None = None,
    *,
    on_result: OnResult | None = None,
    log: Callable[[str], None] = logger.info,
) -> dict[str, float]:
    """Score the predictions for `config.inference.tasks` on a whole data set, as `config.evaluation` says.

    Of several processes each predicts and scores its share of the images; all of them return the same metrics, those
    that one process would find.

    Args:
        predict: runs the model on one batch, on devices of this process; it may return before they are done.
        output_dir: where predictions are written in COCO's formats (`instances_predictions.json`,
            `panoptic_predictions.json` with a folder of PNG), seen by all processes; None: nowhere.
        on_result: called once for every image of this process, for pictures.
        log: receives a line of progress from time to time.

    Returns:
        Every metric as a fraction of one: `bbox/AP`, `panoptic_seg/PQ`, `sem_seg/mIoU`, ... A metric that the ground
        truth does not define, such as the AP of a class without objects, is left out.

    Raises:
        ValueError: a task needs ground truth that the data set does not have.
    """
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)
    engine = config.evaluation.engine
    kinds = (*KINDS, "boundary") if config.evaluation.boundary else KINDS
    makers = {
        "instance": ("instances", lambda: AveragePrecision(dataset, output_dir, kinds, engine)),
        "detection": ("instances", lambda: AveragePrecision(dataset, output_dir, ("bbox",), engine)),
        "panoptic": ("panoptic", lambda: PanopticQuality(dataset, output_dir)),
        "semantic": ("semantic", lambda: MeanIoU(dataset)),
    }
    evaluators = {field: make() for field, make in (makers[task] for task in config.inference.tasks)}
    postprocessor = Postprocessor(dataset.catalog, config)

    def finish(pending: Pending) -> Segments:
        segments = postprocessor.finish(pending)
        for field, evaluator in evaluators.items():
            evaluator.add(pending.record, getattr(segments, field))
        return segments

    begin = lambda batch: postprocessor.begin(predict(batch), batch)
    for record, segments in results(begin, finish, dataset, config, log):
        if on_result is not None:
            on_result(record, segments)
    metrics: dict[str, float] = {}
    for evaluator in evaluators.values():
        metrics |= evaluator.compute()
    return metrics


def evaluate_augmented(
    predict: Predict, dataset: Dataset, config: Config, *, log: Callable[[str], None] = logger.info
) -> dict[str, float]:
    """Score predictions from several views of each image, as `config.evaluation` asks.

    Semantic maps are averaged over the sizes of `tta_short_sides` and mirror images; instances (`tta_instances`) are
    those of the image and its mirror image, merged.

    Returns:
        The metrics of `evaluate` with the suffix `_TTA`, such as `sem_seg_TTA/mIoU` and `segm_TTA/AP`.
    """
    options, metrics = config.evaluation, {}
    if options.tta_short_sides:
        own = _with_task(config, "semantic")
        views = Augmented(predict, Postprocessor(dataset.catalog, own), own)
        metrics |= _scored(views, "semantic", MeanIoU(dataset), dataset, own, log)
    if options.tta_instances:
        task = "instance" if "instance" in config.inference.tasks else "detection"
        own = _with_task(config, task)
        # Things only, where a panoptic task makes plain instances so.
        views = Mirrored(predict, Postprocessor(dataset.catalog, config), task, own.inference.detections_per_image)
        evaluator = AveragePrecision(dataset, None, KINDS if task == "instance" else ("bbox",), options.engine)
        metrics |= _scored(views, "instances", evaluator, dataset, own, log)
    return {f"{group}_TTA/{name}": value for key, value in metrics.items() for group, name in [key.split("/", 1)]}


def _with_task(config: Config, task: str) -> Config:
    return dataclasses.replace(config, inference=dataclasses.replace(config.inference, tasks=(task,)))


def _scored(
    views: Augmented | Mirrored,
    field: str,
    evaluator: MeanIoU | AveragePrecision,
    dataset: Dataset,
    config: Config,
    log: Callable[[str], None],
) -> dict[str, float]:
    """The metrics of `field` of the results that `views` give for every image."""

    def finish(pending: Pending) -> Segments:
        segments = views.finish(pending)
        evaluator.add(pending.record, getattr(segments, field))
        return segments

    for _ in results(views.begin, finish, dataset, config, log):
        pass
    return evaluator.compute()


_TABLES = (
    (
        ("AP", "AP50", "AP75", "APs", "APm", "APl"),
        (
            ("boxes", "bbox/{}"),
            ("masks", "segm/{}"),
            ("outlines", "boundary/{}"),
            ("boxes, augmented", "bbox_TTA/{}"),
            ("masks, augmented", "segm_TTA/{}"),
        ),
    ),
    (
        ("PQ", "SQ", "RQ"),
        (("panoptic", "panoptic_seg/{}"), ("things", "panoptic_seg/{}_th"), ("stuff", "panoptic_seg/{}_st")),
    ),
    (("mIoU", "fwIoU", "mACC", "pACC"), (("semantic", "sem_seg/{}"), ("augmented", "sem_seg_TTA/{}"))),
)
_OF_CLASSES = (("box AP", "bbox/AP-"), ("mask AP", "segm/AP-"), ("PQ", "panoptic_seg/PQ-"), ("IoU", "sem_seg/IoU-"))


def metrics_table(metrics: dict[str, float]) -> str:
    """An aligned table in percent: one block for each task, then the classes. A dash: not defined on this data set."""
    blocks = []
    for columns, lines in _TABLES:
        rows = [(title, [metrics.get(key.format(column)) for column in columns]) for title, key in lines]
        blocks.append(_block("", columns, [row for row in rows if any(value is not None for value in row[1])]))
    columns = [(title, prefix) for title, prefix in _OF_CLASSES if any(key.startswith(prefix) for key in metrics)]
    names = dict.fromkeys(key[len(prefix) :] for _, prefix in columns for key in metrics if key.startswith(prefix))
    rows = [(name, [metrics.get(prefix + name) for _, prefix in columns]) for name in names]
    blocks.append(_block("class", [title for title, _ in columns], rows))
    return "\n\n".join(block for block in blocks if block)


def _block(corner: str, columns: tuple[str, ...] | list[str], rows: list[tuple[str, list[float | None]]]) -> str:
    if not rows:
        return ""
    width = max(len(corner), 10, *(len(title) for title, _ in rows))
    lines = [f"{corner:<{width}}" + "".join(f"{column:>9}" for column in columns)]
    for title, values in rows:
        cells = ("-" if value is None else f"{100 * value:.2f}" for value in values)
        lines.append(f"{title:<{width}}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)

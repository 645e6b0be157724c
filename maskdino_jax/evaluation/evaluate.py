"""Predict every image of a data set, score the results, and show the scores as a table."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8

from maskdino_jax.config import Config
from maskdino_jax.data import Dataset, eval_batches
from maskdino_jax.evaluation.average_precision import AveragePrecision
from maskdino_jax.evaluation.mean_iou import MeanIoU
from maskdino_jax.evaluation.panoptic_quality import PanopticQuality
from maskdino_jax.inference.postprocess import Pending, Postprocessor
from maskdino_jax.inference.results import Segments
from maskdino_jax.structures import EvalBatch, Outputs

_THREADS = min(8, os.cpu_count() or 1)  # finish images; NumPy leaves the interpreter lock while it computes
_SECONDS_BETWEEN_LOGS = 15

logger = logging.getLogger(__name__)

Predict = Callable[[EvalBatch], Outputs]
OnResult = Callable[[int, UInt8[np.ndarray, "h w 3"], Segments], None]  # record, image as in its file, results


def evaluate(
    predict: Predict,
    dataset: Dataset,
    config: Config,
    output_dir: Path | None = None,
    *,
    on_result: OnResult | None = None,
    log: Callable[[str], None] = logger.info,
) -> dict[str, float]:
    """Score the predictions for `config.inference.tasks` on a whole data set.

    Args:
        predict: runs the model on one batch; it may return before the device is done.
        output_dir: where predictions are written in COCO's formats (`instances_predictions.json`,
            `panoptic_predictions.json` with a folder of PNG); None: nowhere.
        on_result: called once for every image, for pictures.
        log: receives a line of progress from time to time.

    Returns:
        Every metric as a fraction of one: `bbox/AP`, `panoptic_seg/PQ`, `sem_seg/mIoU`, ... A metric that the ground
        truth does not define, such as the AP of a class without objects, is left out.

    Raises:
        ValueError: a task needs ground truth that the data set does not have.
    """
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)
    makers = {
        "instance": ("instances", lambda: AveragePrecision(dataset, output_dir)),
        "detection": ("instances", lambda: AveragePrecision(dataset, output_dir, kinds=("bbox",))),
        "panoptic": ("panoptic", lambda: PanopticQuality(dataset, output_dir)),
        "semantic": ("semantic", lambda: MeanIoU(dataset)),
    }
    evaluators = {field: make() for field, make in (makers[task] for task in config.inference.tasks)}
    postprocessor = Postprocessor(dataset.catalog, config)
    start = last = time.monotonic()

    def finish(pending: Pending) -> tuple[int, Segments]:
        segments = postprocessor.finish(pending)
        for field, evaluator in evaluators.items():
            evaluator.add(pending.record, getattr(segments, field))
        return pending.record, segments

    begin = lambda batch: postprocessor.begin(predict(batch), batch)
    for done, (record, segments) in enumerate(_results(begin, finish, dataset, config), 1):
        if on_result is not None:
            on_result(record, dataset.image(record), segments)
        now = time.monotonic()
        if now - last > _SECONDS_BETWEEN_LOGS or done == len(dataset):
            last = now
            log(f"evaluated {done} of {len(dataset)} images, {done / (now - start):.1f} images/s")
    metrics: dict[str, float] = {}
    for evaluator in evaluators.values():
        metrics |= evaluator.compute()
    return metrics


def _results(
    begin: Callable[[EvalBatch], list[Pending]],
    finish: Callable[[Pending], tuple[int, Segments]],
    dataset: Dataset,
    config: Config,
) -> Iterator[tuple[int, Segments]]:
    """Results in the order of the batches. The device works one batch ahead of the threads that finish its images."""
    with eval_batches(dataset, config, config.inference.batch_size) as batches, ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[Future[tuple[int, Segments]]] = deque()

        def submit(images: list[Pending]) -> None:
            jax.block_until_ready([pending.found for pending in images])  # no more than two batches on the device
            waiting.extend(pool.submit(finish, pending) for pending in images)

        ahead: list[Pending] = []
        for batch in batches:
            now = begin(batch)
            submit(ahead)
            ahead = now
            while len(waiting) > 2 * _THREADS:  # as many as fit in memory
                yield waiting.popleft().result()
        submit(ahead)
        while waiting:
            yield waiting.popleft().result()


_TABLES = (
    (("AP", "AP50", "AP75", "APs", "APm", "APl"), (("boxes", "bbox/{}"), ("masks", "segm/{}"))),
    (
        ("PQ", "SQ", "RQ"),
        (("panoptic", "panoptic_seg/{}"), ("things", "panoptic_seg/{}_th"), ("stuff", "panoptic_seg/{}_st")),
    ),
    (("mIoU", "fwIoU", "mACC", "pACC"), (("semantic", "sem_seg/{}"),)),
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

"""The loop over a data set: perfect predictions score one, and the table says what the metrics are."""

import dataclasses
import json
import textwrap
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.config import EvaluationConfig
from maskdino_jax.data import Catalog
from maskdino_jax.evaluation.average_precision import AveragePrecision
from maskdino_jax.evaluation.evaluate import evaluate, metrics_table
from maskdino_jax.evaluation.mean_iou import MeanIoU
from maskdino_jax.evaluation.panoptic_quality import PanopticQuality
from maskdino_jax.evaluation.saved import score_panoptic
from maskdino_jax.inference.postprocess import Postprocessor
from maskdino_jax.inference.results import Instances, Panoptic, PanopticSegment
from tests.evaluation.blocks import CATEGORIES, blocks_config, perfect


@pytest.fixture
def config(blocks):
    return blocks_config(blocks.annotations.parent)


def test_perfect_predictions_score_one_in_every_metric(blocks, config, tmp_path):
    seen, lines = [], []

    def predict(batch):
        assert len(batch.records) == 2, "the images have different canvases, so that each batch has a row of filler"
        return jax.tree.map(jnp.asarray, perfect(blocks, batch))

    on_result = lambda record, segments: seen.append((record, segments))
    metrics = evaluate(predict, blocks, config, tmp_path, on_result=on_result, log=lines.append)
    assert set(metrics) >= {"bbox/AP", "segm/AP", "panoptic_seg/PQ", "panoptic_seg/PQ_st", "sem_seg/mIoU"}
    assert {name: value for name, value in metrics.items() if not name.endswith("AR1")} == {
        name: pytest.approx(1, abs=1e-6) for name in metrics if not name.endswith("AR1")
    }, "one detection for each image cannot find two cars"
    assert sorted((record, segments.panoptic.ids.shape) for record, segments in seen) == [(0, (32, 48)), (1, (48, 32))]
    assert lines[-1].startswith("evaluated 2 of 2 images")

    saved = tmp_path / "panoptic_predictions.json"
    again = score_panoptic(blocks.panoptic_json, blocks.panoptic_dir, saved, saved.with_suffix(""))
    assert again["panoptic_seg/PQ"] == 1
    written = json.loads((tmp_path / "instances_predictions.json").read_text())
    assert {entry["image_id"] for entry in written} == {500, 501}


def test_predicting_nothing_scores_zero_and_does_not_fail(blocks, config):
    metrics = evaluate(lambda batch: perfect(blocks, batch, silent=True), blocks, config)
    assert metrics["bbox/AP"] == metrics["segm/AP"] == metrics["panoptic_seg/PQ"] == 0


def test_only_the_tasks_asked_for_are_scored(blocks, config, tmp_path):
    config.inference.tasks = ("semantic",)
    metrics = evaluate(lambda batch: perfect(blocks, batch), blocks, config, tmp_path)
    assert {name.split("/")[0] for name in metrics} == {"sem_seg"}
    assert list(tmp_path.iterdir()) == []


def test_detection_scores_boxes_of_things_and_needs_no_masks(blocks, config, tmp_path):
    config.inference.tasks = ("detection",)
    boxes_only = lambda batch: dataclasses.replace(perfect(blocks, batch), masks=None)
    metrics = evaluate(boxes_only, blocks, config, tmp_path)
    assert {name.split("/")[0] for name in metrics} == {"bbox"}
    assert metrics["bbox/AP"] == pytest.approx(1)
    written = json.loads((tmp_path / "instances_predictions.json").read_text())
    assert {frozenset(entry) for entry in written} == {frozenset(("image_id", "category_id", "score", "bbox"))}


def test_a_batch_is_predicted_before_the_one_before_it_is_finished(blocks, config, monkeypatch):
    """So that the device works while the host finishes images."""
    config.inference.batch_size = 1
    events = []

    def predict(batch):
        events.append(f"predict {batch.records[0]}")
        return perfect(blocks, batch)

    def finish(self, pending):
        events.append(f"finish {pending.record}")
        return whole(self, pending)

    whole = Postprocessor.finish
    monkeypatch.setattr(Postprocessor, "finish", finish)
    evaluate(predict, blocks, config)
    assert events == ["predict 0", "predict 1", "finish 0", "finish 1"]


def test_an_error_in_a_thread_reaches_the_caller(blocks, config, monkeypatch):
    def finish(self, pending):
        raise RuntimeError(f"image {pending.record}")

    monkeypatch.setattr(Postprocessor, "finish", finish)
    with pytest.raises(RuntimeError, match="image 0"):
        evaluate(lambda batch: perfect(blocks, batch), blocks, config)


def test_a_model_of_other_classes_is_an_error(blocks, config):
    def predict(batch):
        return dataclasses.replace(perfect(blocks, batch), logits=np.zeros((2, 9, 5), np.float32))

    with pytest.raises(ValueError, match="5 columns of class scores but the catalog's 3 classes"):
        evaluate(predict, blocks, config)


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_a_task_without_ground_truth_is_an_error(blocks, config, task):
    config.inference.tasks = (task,)
    with pytest.raises(ValueError, match=f"take '{task}' out of config.inference.tasks"):
        evaluate(lambda batch: perfect(blocks, batch), dataclasses.replace(blocks, panoptic_dir=None), config)


def test_the_config_chooses_the_engine_and_outlines(blocks, config, tmp_path):
    score = lambda: evaluate(lambda batch: perfect(blocks, batch), blocks, config)
    config.inference.tasks = ("instance",)
    fast = score()
    config.evaluation.engine = "pycocotools"
    assert score() == fast
    config.evaluation = EvaluationConfig(boundary=True)
    metrics = score()
    assert metrics["boundary/AP"] == pytest.approx(1)
    assert {name: value for name, value in metrics.items() if not name.startswith("boundary")} == fast


def test_memory_does_not_grow_with_the_data_set(tmp_path):
    """Results of 100 masks take 600 kB for each image; some kB stay, what average precision needs of an image."""
    height, width, count = 200, 240, 60
    info = [{"id": 7, "category_id": 3, "iscrowd": 0}, {"id": 8, "category_id": 90, "iscrowd": 0}]
    dataset = Repeated(catalog=Catalog.from_coco(CATEGORIES), info=info, count=count)
    evaluators = AveragePrecision(dataset, tmp_path), PanopticQuality(dataset, tmp_path), MeanIoU(dataset)
    sizes = []
    tracemalloc.start()
    for record in range(count):
        noise = np.random.default_rng(record).random((100, height // 8, width // 8)) < 0.5
        instances = Instances.from_masks(
            noise.repeat(8, axis=1).repeat(8, axis=2),
            scores=np.linspace(1, 0, 100, dtype=np.float32),
            labels=np.zeros(100, np.int32),
            boxes=np.tile(np.float32([0, 0, width, height]), (100, 1)),
            queries=np.arange(100, dtype=np.int32),
        )
        ids = dataset.panoptic_map(record)
        segments = tuple(PanopticSegment(id=n, label=2 * (n - 7), is_thing=n == 7, score=1, area=9) for n in (7, 8))
        for evaluator, result in zip(evaluators, (instances, Panoptic(ids, segments), ids * 0), strict=True):
            evaluator.add(record, result)
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    metrics = [evaluator.compute() for evaluator in evaluators]
    assert metrics[1]["panoptic_seg/PQ"] == 1
    assert instances.bits.nbytes == 600_000
    assert (sizes[-1] - sizes[9]) / (count - 10) < 15_000


@dataclasses.dataclass(frozen=True)
class Repeated:
    """The same panoptic map again and again: left a thing, right stuff."""

    catalog: Catalog
    info: list
    count: int
    truths = frozenset({"panoptic", "semantic"})

    def __len__(self):
        return self.count

    def image_id(self, record):
        return record

    def file_name(self, record):
        return f"{record}.png"

    def instances_truth(self):
        return None

    def panoptic_records(self, record):
        return self.info

    def panoptic_map(self, record):
        return np.repeat(np.int32([7, 8]), 120)[None].repeat(200, axis=0)


def test_table_of_metrics():
    metrics = {
        "bbox/AP": 0.463,
        "bbox/AP50": 0.65,
        "segm/AP": 0.4159,
        "panoptic_seg/PQ": 0.5,
        "panoptic_seg/PQ_th": 1.0,
    }
    metrics |= {"bbox/AP-cat": 0.25, "panoptic_seg/PQ-cat": 0.5, "panoptic_seg/PQ-long name": 0.125}
    assert metrics_table(metrics) == textwrap.dedent(
        """\
                         AP     AP50     AP75      APs      APm      APl
        boxes         46.30    65.00        -        -        -        -
        masks         41.59        -        -        -        -        -

                         PQ       SQ       RQ
        panoptic      50.00        -        -
        things       100.00        -        -

        class        box AP       PQ
        cat           25.00    50.00
        long name         -    12.50"""
    )

"""The loop over a data set: perfect predictions score one, and the table says what the metrics are."""

import dataclasses
import json
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.evaluation.evaluate import evaluate, metrics_table
from maskdino_jax.evaluation.panoptic_quality import panoptic_quality
from maskdino_jax.inference.postprocess import Postprocessor
from tests.evaluation.blocks import blocks_config, perfect


@pytest.fixture
def config(blocks):
    return blocks_config(blocks.annotations.parent)


def test_perfect_predictions_score_one_in_every_metric(blocks, config, tmp_path):
    seen, lines = [], []

    def predict(batch):
        assert len(batch.records) == 2, "the images have different canvases, so that each batch has a row of filler"
        return jax.tree.map(jnp.asarray, perfect(blocks, batch))

    on_result = lambda record, image, segments: seen.append((record, image.shape, segments))
    metrics = evaluate(predict, blocks, config, tmp_path, on_result=on_result, log=lines.append)
    assert set(metrics) >= {"bbox/AP", "segm/AP", "panoptic_seg/PQ", "panoptic_seg/PQ_st", "sem_seg/mIoU"}
    assert {name: value for name, value in metrics.items() if not name.endswith("AR1")} == {
        name: pytest.approx(1, abs=1e-6) for name in metrics if not name.endswith("AR1")
    }, "one detection for each image cannot find two cars"
    assert sorted((record, shape) for record, shape, _ in seen) == [(0, (32, 48, 3)), (1, (48, 32, 3))]
    assert all(segments.panoptic.ids.shape == shape[:2] for _, shape, segments in seen)
    assert lines[-1].startswith("evaluated 2 of 2 images")

    saved = tmp_path / "panoptic_predictions.json"
    assert panoptic_quality(blocks.panoptic_json, blocks.panoptic_dir, saved, saved.with_suffix(""))[
        "panoptic_seg/PQ"
    ] == pytest.approx(1)
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

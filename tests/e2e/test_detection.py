"""Detection alone, on annotations that have no masks, and the fine-tuning that adds them."""

import contextlib
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from maskdino_jax import runner
from maskdino_jax.checkpoints import Checkpoints, Reader
from maskdino_jax.checkpoints.initial import start_from
from maskdino_jax.config import Config, ConfigError, SplitConfig
from maskdino_jax.data import Catalog, open_dataset, train_batches
from maskdino_jax.inference.predictor import Predictor
from maskdino_jax.model import ModelSpec
from maskdino_jax.train.step import build_train_step, init_state
from tests.e2e.conftest import COCO, smallest
from tests.weights import random_variables

SUFFIXES = ("", "_0", "_interm", "_dn", "_dn_0")
TERMS = {f"loss_{name}{suffix}" for name in ("ce", "bbox", "giou") for suffix in SUFFIXES}


@pytest.fixture(scope="module")
def boxes_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The instances of the test data as Objects365 has them: without "segmentation", of five classes."""
    root = tmp_path_factory.mktemp("boxes")
    for split in ("train", "val"):
        content = json.loads((COCO / f"annotations/instances_{split}2017.json").read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
            annotation["category_id"] = annotation["category_id"] % 5 + 1
        content["categories"] = [{"id": number, "name": f"class {number}"} for number in range(1, 6)]
        (root / f"{split}.json").write_text(json.dumps(content))
        (root / split).symlink_to(COCO / f"{split}2017")
    return root


def detection(root: Path) -> Config:
    config = smallest(steps=2)
    config.data.root, config.data.format = str(root), "coco_instances"
    config.data.train = SplitConfig(images="train", annotations="train.json")
    config.data.val = SplitConfig(images="val", annotations="val.json")
    config.model.masks, config.model.denoising.mode = False, "boxes"
    config.inference.tasks, config.best_metric = ("detection",), "bbox/AP"
    config.inference.score_threshold = 0.0
    config.data.eval_short_side = config.data.eval_long_side = 64  # one canvas
    config.train.batch_size = jax.device_count()
    return config


def load(workdir: Path) -> dict:
    return Reader(workdir).load(jax.sharding.SingleDeviceSharding(jax.devices()[0]))


@pytest.fixture(scope="module")
def pretrained(boxes_only: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir as a training without masks leaves it, with weights out of the hat."""
    workdir = tmp_path_factory.mktemp("pretrained")
    save(detection(boxes_only), workdir)
    return workdir


def save(config: Config, workdir: Path) -> None:
    """A checkpoint for the five classes."""
    catalog = Catalog.from_coco([{"id": number, "name": f"class {number}"} for number in range(1, 6)])
    with contextlib.closing(Checkpoints(workdir, config, catalog.to_dict())) as checkpoints:
        checkpoints.save({"step": 2, **jax.tree.map(jnp.asarray, random_variables(ModelSpec(config.model, 5)))})


def test_a_step_has_no_loss_of_masks(boxes_only: Path) -> None:
    config = detection(boxes_only)
    with train_batches(open_dataset(config.data, "train", masks=False), config, 0) as batches:
        batch = next(batches)
    spec, mesh = ModelSpec(config.model, 5), jax.make_mesh((1,), ("data",), (AxisType.Auto,), devices=jax.devices()[:1])
    state = jax.eval_shape(lambda: init_state(spec, config))
    _, metrics = jax.eval_shape(build_train_step(spec, config, mesh), state, batch)
    assert {name for name in metrics if name.startswith("loss_")} == TERMS


def test_a_semantic_model_takes_no_queries_from_the_tokens_it_does_not_select(pretrained: Path) -> None:
    config = smallest()
    config.model.decoder.query_source, config.model.class_scores = "learned", "softmax"
    fresh = random_variables(ModelSpec(config.model, 150), seed=1)
    found, trained = start_from(fresh, pretrained, config)["params"], load(pretrained)["params"]
    assert "query_selection" in trained
    assert "query_selection" not in found
    assert found["learned_queries"]["content"] is fresh["params"]["learned_queries"]["content"]
    for new, old in zip(jax.tree.leaves(found["decoder"]), jax.tree.leaves(trained["decoder"]), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.slow
def test_two_steps_train_boxes_and_leave_masks_to_the_weight_decay(boxes_only: Path, tmp_path: Path) -> None:
    config = detection(boxes_only)
    results = runner.train(config, tmp_path / "boxes")
    assert results
    assert all(name.startswith("bbox/") for name in results)
    steps = [json.loads(line) for line in (tmp_path / "boxes/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in steps if "loss" in line]
    assert len(steps) == 2
    assert all(line["loss"] == pytest.approx(sum(line[term] for term in TERMS), rel=1e-5) for line in steps)
    assert steps[1]["grad_norm"] > 0

    init = lambda: ModelSpec(config.model, 5).init(config.train.seed)["params"]["heads"]["mask_embed"]
    shrunk = (1 - config.optimizer.learning_rate * config.optimizer.weight_decay) ** 2
    trained = load(tmp_path / "boxes")["params"]["heads"]["mask_embed"]
    for before, after in zip(jax.tree.leaves(jax.jit(init)()), jax.tree.leaves(trained), strict=True):
        np.testing.assert_allclose(after, shrunk * before, rtol=1e-6)

    tuned = smallest(steps=1, init_from=str(tmp_path / "boxes"), batch_size=config.train.batch_size)
    results = runner.train(tuned, tmp_path / "masks")
    assert {"segm/AP", "panoptic_seg/PQ"} <= set(results)


def test_results_are_those_of_boxes_alone(pretrained: Path) -> None:
    results = runner.evaluate(pretrained, pretrained, None)
    assert "bbox/AP" in results
    assert all(name.startswith("bbox/") for name in results)
    assert json.loads((pretrained / "results.json").read_text()) == results
    written = json.loads((pretrained / "evaluation/instances_predictions.json").read_text())
    assert {frozenset(entry) for entry in written} == {frozenset(("image_id", "category_id", "score", "bbox"))}


def test_boxes_of_a_model_with_masks_are_evaluated_where_there_are_no_masks(boxes_only: Path, tmp_path: Path) -> None:
    trained = smallest()
    trained.model.decoder.box_init = "mask2box"
    save(trained, tmp_path)
    results = runner.evaluate(tmp_path, tmp_path, detection(boxes_only))
    assert "bbox/AP" in results
    assert all(name.startswith("bbox/") for name in results)


def test_predictions_are_pictures_and_boxes(pretrained: Path, tmp_path: Path) -> None:
    image = min((COCO / "val2017").glob("*.jpg"))
    (picture,) = runner.predict(pretrained, image, tmp_path, None)
    assert picture.is_file()
    (record,) = json.loads((tmp_path / "predictions/predictions.json").read_text())
    assert set(record) == {"file_name", "instances"}
    assert {frozenset(entry) for entry in record["instances"]} == {frozenset(("category_id", "score", "bbox"))}


def test_masks_of_a_model_that_learned_none_are_refused(pretrained: Path, boxes_only: Path) -> None:
    config = detection(boxes_only)
    config.inference.tasks = ("instance",)
    with pytest.raises(ConfigError, match=r"inference\.tasks = .*finds boxes: give \('detection',\)"):
        runner.evaluate(pretrained, pretrained / "masks", config)
    with pytest.raises(ValueError, match=r"inference\.tasks = .*a training without masks"):
        Predictor.from_checkpoint(pretrained, config=config)


def test_a_fine_tuning_with_masks_and_other_classes_starts_from_all_the_rest(
    pretrained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = smallest()
    fresh = random_variables(ModelSpec(config.model, 133), seed=1)
    caplog.set_level(logging.INFO)
    found = start_from(fresh, pretrained, config)
    trained = load(pretrained)
    branch = ("mask_embed", "lateral", "smooth", "mask_features", "class_embed", "label_enc")
    for path, value in jax.tree.leaves_with_path(found):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        kept = any(part in branch for part in name.split("/"))
        source = fresh if kept else trained
        for key in path:
            source = source[key.key]
        np.testing.assert_array_equal(value, source, err_msg=name)
        assert (name in caplog.text) == kept, name

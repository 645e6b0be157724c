"""Train, evaluate, continue, restore and predict through the runner, on four CPU devices in one process."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from maskdino_jax import runner
from maskdino_jax.checkpoints import Reader
from maskdino_jax.config import Config, ConfigError
from maskdino_jax.inference.predictor import Predictor
from maskdino_jax.train import loop
from maskdino_jax.train.memory import Forecast
from tests.e2e.conftest import COCO, smallest


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with a moving average, evaluated before and after."""
    workdir = tmp_path_factory.mktemp("run")
    runner.train(smallest(eval_at_start=True, ema_decay=0.5), workdir)
    return workdir


def _parameters(workdir: Path, item: str = "params") -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    latest = max((p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    tree = ocp.StandardCheckpointer().restore(latest / item)
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def test_the_log_has_every_step_and_every_loss_term(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    terms = {"loss_ce", "loss_mask", "loss_dice", "loss_bbox", "loss_giou"}
    suffixes = {"", "_0", "_interm", "_dn", "_dn_0"}
    assert {term + suffix for term in terms for suffix in suffixes} <= set(steps[0])
    assert steps[0]["loss"] == pytest.approx(sum(v for k, v in steps[0].items() if k.startswith("loss_")), rel=1e-5)
    assert steps[1]["images_per_second"] > 0


def test_results_are_those_of_all_tasks(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert {"bbox/AP", "segm/AP50", "panoptic_seg/PQ", "panoptic_seg/PQ_th", "sem_seg/mIoU"} <= set(results)
    assert json.loads((run / "before.json").read_text()).keys() == results.keys()
    assert (run / "evaluation/panoptic_predictions.json").is_file()
    assert (run / "evaluation/instances_predictions.json").is_file()


def test_pictures_of_predictions_are_in_the_log(run: Path) -> None:
    assert len(list((run / "evaluation").glob("*.png"))) == 2
    assert list((run / "tensorboard").glob("events*"))


def test_the_average_follows_the_parameters_and_is_what_is_evaluated(run: Path) -> None:
    params, average = _parameters(run), _parameters(run, "ema")
    assert params.keys() == average.keys()
    assert any(np.abs(params[name] - average[name]).max() > 1e-6 for name in params)
    reader = Reader(run)
    assert reader.config.train.ema_decay == 0.5
    assert reader.meta["metrics"]["panoptic_seg/PQ"] >= 0
    again = runner.evaluate(run, run / "again", None)
    stored = json.loads((run / "results.json").read_text())
    assert again["panoptic_seg/PQ"] == pytest.approx(stored["panoptic_seg/PQ"], abs=1e-6)
    assert again["sem_seg/mIoU"] == pytest.approx(stored["sem_seg/mIoU"], abs=1e-4)


def test_a_run_continues_where_it_stopped_bit_for_bit(run: Path, tmp_path: Path) -> None:
    """As after a kill between the checkpoints of steps 2 and 4: what comes after step 2 is lost and done again."""
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints/4")
    runner.train(smallest(ema_decay=0.5, eval_at_start=True), tmp_path)
    for item in ("params", "ema", "opt"):
        whole, parts = _parameters(run, item), _parameters(tmp_path, item)
        assert whole.keys() == parts.keys()
        for name, value in whole.items():
            np.testing.assert_array_equal(parts[name], value, err_msg=f"{item} {name}")


def test_a_finished_run_is_only_evaluated(run: Path) -> None:
    before = _parameters(run)
    runner.train(smallest(ema_decay=0.5), run)
    np.testing.assert_equal(_parameters(run), before)


def test_a_workdir_of_another_config_is_refused(run: Path) -> None:
    config = smallest(ema_decay=0.5)
    config.optimizer.learning_rate = 0.5
    with pytest.raises(ConfigError, match=r"(?s)learning_rate: 0\.0001 there, 0\.5 here.*new workdir"):
        runner.train(config, run)


def test_predictions_are_pictures_maps_and_json(run: Path, tmp_path: Path) -> None:
    pictures = runner.predict(run, COCO / "val2017", tmp_path, None)
    records = json.loads((tmp_path / "predictions/predictions.json").read_text())
    names = sorted(path.name for path in (COCO / "val2017").glob("*.jpg"))
    assert [record["file_name"] for record in records] == names
    for picture, name in zip(pictures, names, strict=True):
        with Image.open(COCO / "val2017" / name) as image, Image.open(picture) as drawn:
            assert drawn.width / drawn.height == pytest.approx(image.width / image.height, rel=0.01)
        assert (tmp_path / "predictions" / f"{Path(name).stem}_panoptic.png").is_file()


def test_the_predictor_answers_for_an_array_as_for_its_file(run: Path) -> None:
    predictor = Predictor.from_checkpoint(run)
    path = min((COCO / "val2017").glob("*.jpg"))
    with Image.open(path) as image:
        from_array = predictor(np.asarray(image.convert("RGB")))
    from_file = predictor(path)
    np.testing.assert_array_equal(from_array.semantic, from_file.semantic)
    assert predictor.catalog.names[0] == "person"


def test_no_checkpoint_is_an_error_that_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--checkpoint=.*neither a workdir"):
        runner.evaluate(tmp_path, tmp_path / "out", None)


def test_no_image_is_an_error(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--images="):
        runner.predict(run, tmp_path, tmp_path, None)


def test_a_batch_that_does_not_divide_among_devices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size = 6 .*4 devices.*multiple of 4"):
        runner.train(smallest(batch_size=6), tmp_path)


def test_categories_of_another_data_set_are_refused(run: Path, tmp_path: Path) -> None:
    config: Config = smallest()
    config.data.root = ""
    config.data.val.images, config.data.val.panoptic = "val", "panoptic_val"
    config.data.val.annotations = "annotations/panoptic_val.json"
    config.data.val.instances = "annotations/instances_val.json"
    with pytest.raises(ConfigError, match=r"(?s)categories are not those the checkpoint.*instead of \(1, .person.\)"):
        runner.evaluate(run, tmp_path, config)


def test_the_first_non_finite_number_stops_the_run_with_step_term_and_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object):
        def step(state: dict, batch: object) -> tuple[dict, dict]:
            number = int(state["step"]) + 1
            loss = jnp.float32(np.nan if number == 3 else 1)
            metrics = dict.fromkeys(("loss", "grad_norm", "learning_rate"), jnp.float32(1)) | {"loss_dice_0": loss}
            return {**state, "step": jnp.int32(number)}, metrics

        return step

    monkeypatch.setattr(runner, "_compile", build)
    with pytest.raises(loop.NonFiniteError, match=r"step 3: loss_dice_0 = nan on the images \d+, \d+, \d+, \d+"):
        runner.train(smallest(), tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_a_step_that_does_not_fit_is_refused_before_anything_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice can be followed in the same workdir: no run has begun there."""
    for name in ("trace_step", "compile_step"):
        monkeypatch.setattr(runner, name, lambda *_: None)
    monkeypatch.setattr(runner, "forecast", lambda *_: Forecast(needed=20 * 2**30, available=16 * 2**30))
    with pytest.raises(ConfigError, match=r"one step needs 20.0 GiB of 16.0 GiB .*--config.train.remat="):
        runner.train(smallest(), tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())
    config = smallest()
    config.model.dtype = "bfloat16"
    with pytest.raises(ConfigError, match="one step needs"):
        runner.train(config, tmp_path)

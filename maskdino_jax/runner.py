"""Composition root: puts data, model, losses, training, evaluation and checkpoints together for each mode."""

import contextlib
import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from jax.stages import Compiled
from PIL import Image

from maskdino_jax.checkpoints import Checkpoints
from maskdino_jax.checkpoints.initial import start_from
from maskdino_jax.checkpoints.weights import open_weights
from maskdino_jax.config import Config, ConfigError
from maskdino_jax.data import Dataset, open_dataset, train_batches
from maskdino_jax.data.check import check, require_same_classes
from maskdino_jax.data.datasets import recognize
from maskdino_jax.evaluation.evaluate import evaluate as run_evaluation
from maskdino_jax.evaluation.evaluate import evaluate_augmented, metrics_table
from maskdino_jax.evaluation.gathering import on_own_devices
from maskdino_jax.evaluation.report import LABEL_MAPS, About, Predictions, label_map_path, write_report
from maskdino_jax.evaluation.submission import ImageList, submit
from maskdino_jax.export import canvas_of, write_artifact
from maskdino_jax.inference.contact_sheet import contact_sheet
from maskdino_jax.inference.explain import Explainer
from maskdino_jax.inference.explain_picture import write_explanations
from maskdino_jax.inference.predictor import Predictor
from maskdino_jax.inference.sources import NamedImage, open_source
from maskdino_jax.inference.visualize import draw
from maskdino_jax.inference.writing import write_predictions
from maskdino_jax.losses.matcher import check_callback_threads
from maskdino_jax.meshes import make_mesh, replicated, state_sharding
from maskdino_jax.model import ModelSpec
from maskdino_jax.serve import Gallery
from maskdino_jax.serve import serve as run_server
from maskdino_jax.train.loop import train as run_training
from maskdino_jax.train.memory import compile_step, forecast, require_memory, trace_step
from maskdino_jax.train.metrics import MetricWriter
from maskdino_jax.train.profiler import Profiler
from maskdino_jax.train.step import State, init_state
from maskdino_jax.validation import validate
from maskdino_jax.workdir import CONFIG, claim, log_file, store, write_results

_COMPILATION = 3600  # seconds that processes wait for the one that compiles longest
_ABOUT = "about.json"  # beside predictions: what they were made with


def train(config: Config, workdir: Path) -> dict[str, float]:
    """Train to `config.train.steps`, continuing what is in `workdir`; returns the last evaluation."""
    config = _recognized(validate(config))
    data, validation = open_dataset(config.data, "train", masks=config.model.masks), _validation(config)
    require_same_classes(validation, data.catalog, f"{data.annotations} has")
    mesh = _mesh(config)
    spec = ModelSpec(config.model, data.catalog.num_classes)
    claim(workdir, config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(log_file(workdir / "log.txt"))
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir, config, data.catalog.to_dict())))
        writer = stack.enter_context(contextlib.closing(MetricWriter(workdir)))
        state = _initial_state(spec, config, mesh, checkpoints)
        evaluation = _Evaluation(spec, mesh, validation, config, workdir / "evaluation", writer)
        unfinished = int(state["step"]) < config.train.steps
        step = _compile(spec, config, mesh) if unfinished else None
        store(workdir / CONFIG, dataclasses.asdict(config))  # of a run that fits into memory
        before = _before(workdir / "before.json", evaluation, state) if config.train.eval_at_start else None
        if unfinished:
            state = _continue(state, step, config, mesh, data, checkpoints, writer, evaluation, workdir)
        else:
            logging.info("%s is trained to step %d already", workdir, config.train.steps)
            evaluation.of_state(state)
    write_results(evaluation.latest, before, workdir)
    return evaluation.latest


def _compile(spec: ModelSpec, config: Config, mesh: Mesh) -> Compiled:
    """The training step, ready to run; raises `ConfigError` if it does not fit into memory."""
    logging.info("compiling the training step")
    step = compile_step(trace_step(spec, config, mesh), config, mesh)
    require_memory(forecast(step, mesh), config, mesh.size)
    together = ocp.multihost.get_barrier_sync_fn()
    if together is not None:  # several processes: one that compiles longer must not be taken for lost
        together(key="maskdino_compiled", timeout_ms=_COMPILATION * 1000)
    return step


def _continue(
    state: State,
    step: Compiled,
    config: Config,
    mesh: Mesh,
    data: Dataset,
    checkpoints: Checkpoints,
    writer: MetricWriter,
    evaluation: "_Evaluation",
    workdir: Path,
) -> State:
    """Run the loop from the step of `state` to the last one."""
    hosts = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    with train_batches(data, config, int(state["step"]), **hosts) as batches:
        return run_training(
            state,
            step,
            batches,
            config=config,
            mesh=mesh,
            writer=writer,
            save=checkpoints.save,
            evaluate=evaluation.of_state,
            image_id=lambda record: str(data.image_id(record)),
            profiler=Profiler(config.train.profile_steps, workdir / "profile"),
        )


def evaluate(checkpoint: Path, workdir: Path, config: Config | None, *, label_maps: bool = False) -> dict[str, float]:
    """Evaluate a checkpoint of ours or, as `config` describes it, a file of the official implementation.

    The model is the checkpoint's; data and thresholds are those of `config` if given. With
    `config.evaluation.submission` the predictions are written for COCO's server instead, and there are no metrics.
    `label_maps`: semantic maps are kept as well as the other predictions.
    """
    weights = open_weights(checkpoint, config)
    config = _combine(weights.config, config)
    mesh = _mesh(None)
    if config.evaluation.submission:
        images = ImageList.read(config.data, weights.catalog)
        predict, config = on_own_devices(weights.spec, mesh, config)
        submit(predict(weights.load(replicated(mesh))), images, config, workdir)
        return {}
    config = _recognized(config)
    validation = _validation(config)
    require_same_classes(validation, weights.catalog, f"the checkpoint {checkpoint} was trained on")
    variables = weights.load(replicated(mesh))
    with contextlib.closing(MetricWriter(workdir)) as writer:
        evaluation = _Evaluation(weights.spec, mesh, validation, config, workdir / "evaluation", writer)
        augmented = bool(config.evaluation.tta_short_sides) or config.evaluation.tta_instances
        results = evaluation.of(
            variables, weights.step, augmented=augmented, label_maps=label_maps, checkpoint=checkpoint
        )
    write_results(results, None, workdir)
    return results


def predict(
    checkpoint: Path, images: str | Path, workdir: Path, config: Config | None, *, style: str | None = None
) -> list[Path]:
    """Write a picture for each image, panoptic PNGs and one `predictions.json`; returns the pictures' paths.

    Args:
        images: an image, a folder of them, a video, or an http(s) address.
        style: what the pictures show, see `draw`.
    """
    source, weights = _source(images), open_weights(checkpoint, config)
    variables = weights.load(jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    predictor = Predictor(weights.spec, variables, weights.catalog, _combine(weights.config, config))
    draw = lambda found: predictor.draw(found.image, found.segments, style)
    return write_predictions(predictor.stream(source), workdir / "predictions", draw)


def serve(checkpoint: Path, config: Config | None, *, host: str, port: int, max_upload_mb: float) -> None:
    """Show a page to try a checkpoint on images, until Ctrl-C; see `maskdino_jax.serve`."""
    weights = open_weights(checkpoint, config)
    variables = weights.load(jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    predictor = Predictor(weights.spec, variables, weights.catalog, _combine(weights.config, config))
    run_server(Gallery(predictor), weights.config.name, host=host, port=port, max_upload_mb=max_upload_mb)


def explain(checkpoint: Path, images: str | Path, workdir: Path, config: Config | None) -> list[Path]:
    """Write for each image how the decoder arrives at its objects, a picture and its numbers; returns the pictures."""
    source, weights = _source(images), open_weights(checkpoint, config)
    variables = weights.load(jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    explainer = Explainer(weights.spec, variables, weights.catalog, _combine(weights.config, config))
    return write_explanations(explainer, source, workdir / "explanations")


def export(
    checkpoint: Path, workdir: Path, config: Config | None, *, form: str, canvas: str | None, image: Path | None
) -> Path:
    """Write `export/model.FORM`, which runs without this package; returns its path. `canvas`: HEIGHTxWIDTH."""
    weights = open_weights(checkpoint, config)
    config = _combine(weights.config, config)
    canvas = canvas_of(canvas, config)
    return write_artifact(weights, config, workdir / "export", form=form, canvas=canvas, image=image)


def report(checkpoint: Path | None, workdir: Path, config: Config | None) -> Path:
    """Write a page about the predictions in `workdir`, `report/index.html`; returns its path.

    If there are none yet, the checkpoint (of `workdir` if none is given) is evaluated first. Predictions of another
    origin need `config` only, for their data.
    """
    output = workdir / "evaluation"
    if not Predictions.exist(output):
        evaluate(checkpoint or workdir, workdir, config, label_maps=True)
    path = output / _ABOUT
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if config is None:
        config = open_weights(checkpoint or Path(known.get("checkpoint", workdir)), None).config
    config = validate(config)
    page = workdir / "report" / "index.html"
    if jax.process_index() == 0:
        about = About(**{"config": config.name} | known)
        write_report(_validation(config), output, page, score_threshold=config.inference.score_threshold, about=about)
    return page


def check_data(config: Config, workdir: Path) -> bool:
    """Look both splits over; whether training would work.

    Writes `check/report.json` and, for each split, a sheet of annotated images, `check/train.png` and `check/val.png`.
    """
    validate(config)
    output = workdir / "check"
    output.mkdir(parents=True, exist_ok=True)
    summary = check(config)
    store(output / "report.json", summary.to_dict())
    for name, split in summary.splits.items():
        sheet = contact_sheet(split.dataset) if split.dataset else None
        if sheet is not None:
            Image.fromarray(sheet).save(output / f"{name}.png")
    logging.info("%s\n\n%s", config.data.root or "the images that come along", summary.table())
    logging.info("%s. All of it, and pictures: %s", summary.verdict(), output)
    return summary.ok


def _source(images: str | Path) -> Iterator[NamedImage]:
    """The images, opened before the weights: what is not there is told at once."""
    try:
        return open_source(images)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--images={error}") from error


def _recognized(config: Config) -> Config:
    """The config with what `data.format` "auto" finds spelled out."""
    return validate(dataclasses.replace(config, data=recognize(config.data, config.inference.tasks)))


def _with_masks(config: Config) -> bool:
    """Whether the results have masks."""
    return "detection" not in config.inference.tasks


def _validation(config: Config) -> Dataset:
    return open_dataset(config.data, "val", masks=_with_masks(config))


def _combine(trained: Config, given: Config | None) -> Config:
    """The trained model with the data and the thresholds of the given config."""
    if given is None:
        return validate(trained)
    taken = {name: getattr(given, name) for name in ("data", "inference", "evaluation", "best_metric")}
    return validate(dataclasses.replace(trained, **taken))


def _mesh(config: Config | None) -> Mesh:
    """All devices on one axis `data`; a training batch must divide among them."""
    devices = jax.device_count()
    if config is not None and (config.train.batch_size // config.train.accumulate) % devices:
        raise ConfigError(
            f"config.train.batch_size = {config.train.batch_size} in config.train.accumulate = "
            f"{config.train.accumulate} parts: a part does not divide among {devices} devices. Give a batch size that "
            f"is a multiple of {devices * config.train.accumulate}."
        )
    mesh = make_mesh(1 if config is None else config.mesh.fsdp)
    if config is not None and config.loss.matcher == "scipy":
        check_callback_threads(mesh)
    return mesh


def _initial_state(spec: ModelSpec, config: Config, mesh: Mesh, checkpoints: Checkpoints) -> State:
    """The newest checkpoint, or a fresh state."""
    init = functools.partial(init_state, spec, config)
    shapes = jax.eval_shape(init)
    placed = state_sharding(shapes, mesh)
    if checkpoints.latest_step is not None:
        place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        state = checkpoints.restore_latest(jax.tree.map(place, shapes, placed))
        logging.info("continuing from step %d", int(state["step"]))
        return state
    state = jax.jit(init, out_shardings=placed)()
    if config.train.init_from:
        variables = {"params": state["params"], "frozen": state["frozen"]}
        whole = jax.device_put(variables, replicated(mesh))
        loaded = start_from(whole, Path(config.train.init_from), config)
        state = {**state, **jax.device_put(loaded, {name: placed[name] for name in loaded})}
        if "ema" in state:
            state["ema"] = jax.tree.map(jnp.copy, state["params"])
    elif config.model.backbone.kind == "resnet" and config.model.backbone.norm == "frozen_bn":
        logging.warning(
            "the backbone starts from random weights with frozen norms: give config.train.init_from ImageNet weights, "
            "or train from scratch with config.model.backbone.norm='group_norm'"
        )
    count = sum(x.size for x in jax.tree.leaves(state["params"]))
    logging.info("%s: %.1f million trained parameters", config.name, count / 1e6)
    return state


class _Evaluation:
    """Evaluates on one data set, logs the numbers and some pictures, and remembers the latest results."""

    def __init__(
        self, spec: ModelSpec, mesh: Mesh, dataset: Dataset, config: Config, output: Path, writer: MetricWriter
    ) -> None:
        self._predict, self._config = on_own_devices(spec, mesh, config)
        self._dataset, self._output, self._writer = dataset, output, writer
        self.latest: dict[str, float] = {}

    def of_state(self, state: State) -> dict[str, float]:
        """Metrics of a training state: of its moving average where it has one."""
        variables = {"params": state.get("ema", state["params"]), "frozen": state["frozen"]}
        return self.of(variables, int(state["step"]))

    def of(
        self,
        variables: dict[str, Any],
        step: int,
        *,
        augmented: bool = False,
        label_maps: bool = False,
        checkpoint: Path | None = None,
    ) -> dict[str, float]:
        """Metrics of weights from a `checkpoint` or, None, of the run itself.

        `augmented`: with test-time augmentation besides. `label_maps`: semantic maps are written as well.
        """
        drawn: list[int] = []
        if jax.process_index() == 0:
            shutil.rmtree(self._output / LABEL_MAPS, ignore_errors=True)  # of an earlier evaluation

        def keep(record: int, segments: Any) -> None:
            if len(drawn) < self._config.train.log_images and jax.process_index() == 0:
                drawn.append(record)
                self._picture(record, self._dataset.image(record), segments, step)
            if label_maps and segments.semantic is not None:
                segments.save_label_map(label_map_path(self._output, self._dataset.file_name(record)))

        predict = self._predict(variables)
        self.latest = run_evaluation(predict, self._dataset, self._config, self._output, on_result=keep)
        if jax.process_index() == 0:
            source = str(checkpoint or self._output.parent)
            store(self._output / _ABOUT, {"checkpoint": source, "step": step, "config": self._config.name})
        if augmented:
            self.latest |= evaluate_augmented(predict, self._dataset, self._config)
        self._writer.scalars(step, self.latest)
        logging.info("evaluation at step %d\n%s", step, metrics_table(self.latest))
        return self.latest

    def _picture(self, record: int, image: Any, segments: Any, step: int) -> None:
        threshold = self._config.inference.score_threshold
        picture = draw(image, segments, score_threshold=threshold)
        name = Path(self._dataset.file_name(record)).stem
        self._writer.image(step, f"predictions/{name}", picture)
        Image.fromarray(picture).save(self._output / f"{name}.png")


def _before(path: Path, evaluation: _Evaluation, state: State) -> dict[str, float]:
    """Metrics before the first step, found once in the life of a workdir."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    results = evaluation.of_state(state)
    store(path, results)
    return results

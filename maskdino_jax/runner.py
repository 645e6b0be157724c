"""Composition root: puts data, model, losses, training, evaluation and checkpoints together for each mode."""

import contextlib
import dataclasses
import functools
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Compiled
from PIL import Image

from maskdino_jax.checkpoints import Checkpoints, Reader
from maskdino_jax.checkpoints.initial import start_from
from maskdino_jax.config import Config, ConfigError, from_dict
from maskdino_jax.data import Catalog, Dataset, open_dataset, train_batches
from maskdino_jax.evaluation.evaluate import evaluate as run_evaluation
from maskdino_jax.evaluation.evaluate import metrics_table
from maskdino_jax.inference.predictor import Detector, Predictor
from maskdino_jax.inference.visualize import draw
from maskdino_jax.losses.matcher import check_callback_threads
from maskdino_jax.model import ModelSpec
from maskdino_jax.train.loop import train as run_training
from maskdino_jax.train.memory import compile_step, forecast, require_memory, trace_step
from maskdino_jax.train.metrics import MetricWriter
from maskdino_jax.train.step import State, init_state
from maskdino_jax.validation import differences, validate

_CONFIG = "config.json"
_IMAGE_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def train(config: Config, workdir: Path) -> dict[str, float]:
    """Train to `config.train.steps`, continuing what is in `workdir`; returns the last evaluation."""
    validate(config)
    data, validation = open_dataset(config.data, "train", masks=config.model.masks), _validation(config)
    _require_same_classes(validation, data.catalog, f"{data.annotations} has")
    mesh = _mesh(config)
    spec = ModelSpec(config.model, data.catalog.num_classes)
    _claim(workdir, config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_log_file(workdir / "log.txt"))
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir, config, data.catalog.to_dict())))
        writer = stack.enter_context(contextlib.closing(MetricWriter(workdir)))
        state = _initial_state(spec, config, mesh, checkpoints)
        detector = Detector(spec, mesh, masks=_with_masks(config))
        evaluation = _Evaluation(detector, validation, config, workdir / "evaluation", writer)
        unfinished = int(state["step"]) < config.train.steps
        step = _compile(spec, config, mesh) if unfinished else None
        _store(workdir / _CONFIG, dataclasses.asdict(config))  # of a run that fits into memory
        before = _before(workdir / "before.json", evaluation, state) if config.train.eval_at_start else None
        if unfinished:
            state = _continue(state, step, config, mesh, data, checkpoints, writer, evaluation)
        else:
            logging.info("%s is trained to step %d already", workdir, config.train.steps)
            evaluation.of_state(state)
    _report(evaluation.latest, before, workdir)
    return evaluation.latest


def _compile(spec: ModelSpec, config: Config, mesh: Mesh) -> Compiled:
    """The training step, ready to run; raises `ConfigError` if it does not fit into memory."""
    logging.info("compiling the training step")
    step = compile_step(trace_step(spec, config, mesh), config, mesh)
    require_memory(forecast(step, mesh), config, mesh.size)
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
        )


def evaluate(checkpoint: Path, workdir: Path, config: Config | None) -> dict[str, float]:
    """Evaluate a checkpoint. The model is the checkpoint's; data and thresholds are those of `config` if given."""
    reader = Reader(checkpoint)
    config = _combine(reader.config, config)
    validation = _validation(config)
    _require_same_classes(validation, Catalog.from_dict(reader.catalog), f"the checkpoint {checkpoint} was trained on")
    mesh = _mesh(None)
    variables = reader.load(NamedSharding(mesh, P()))
    with contextlib.closing(MetricWriter(workdir)) as writer:
        detector = Detector(reader.spec, mesh, masks=_with_masks(config))
        evaluation = _Evaluation(detector, validation, config, workdir / "evaluation", writer)
        results = evaluation.of(variables, reader.step)
    _report(results, None, workdir)
    return results


def predict(checkpoint: Path, images: Path, workdir: Path, config: Config | None) -> list[Path]:
    """Write a picture for each image, panoptic PNGs and one `predictions.json`; returns the pictures' paths."""
    paths = [images] if images.is_file() else sorted(p for p in images.glob("*") if p.suffix.lower() in _IMAGE_TYPES)
    if not paths:
        raise FileNotFoundError(f"--images={images}: no such file, or a folder without {', '.join(_IMAGE_TYPES)}.")
    reader = Reader(checkpoint)
    predictor = Predictor.from_checkpoint(checkpoint, config=_combine(reader.config, config))
    output = workdir / "predictions"
    output.mkdir(parents=True, exist_ok=True)
    records, pictures = [], []
    for path in paths:
        segments = predictor(path)
        pictures.append(output / f"{path.stem}.png")
        Image.fromarray(predictor.draw(path, segments)).save(pictures[-1])
        threshold = predictor.config.inference.score_threshold
        records.append(segments.to_dict(path.name, threshold))
        if segments.panoptic is not None:
            segments.panoptic.save(output / f"{path.stem}_panoptic.png")
        logging.info("%s -> %s", path, pictures[-1])
    (output / "predictions.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    return pictures


def _with_masks(config: Config) -> bool:
    """Whether the results have masks."""
    return "detection" not in config.inference.tasks


def _validation(config: Config) -> Dataset:
    return open_dataset(config.data, "val", masks=_with_masks(config))


def _require_same_classes(validation: Dataset, trained: Catalog, where: str) -> None:
    """Predictions are numbered by position, so both lists must agree in ids, names and order."""
    found, wanted = ([(c.id, c.name) for c in catalog.categories] for catalog in (validation.catalog, trained))
    if found != wanted:
        different = next((pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]), None)
        detail = f"{different[0]} instead of {different[1]}" if different else f"{len(found)} instead of {len(wanted)}"
        raise ConfigError(
            f"config.data.val.annotations = {validation.annotations}: its categories are not those {where}: {detail}. "
            f"Give both the same list of categories."
        )


def _combine(trained: Config, given: Config | None) -> Config:
    """The trained model with the data and the thresholds of the given config."""
    if given is None:
        return validate(trained)
    taken = {name: getattr(given, name) for name in ("data", "inference", "best_metric")}
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
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    if config is not None and config.loss.matcher == "scipy":
        check_callback_threads(mesh)
    return mesh


def _abstract(function: Any, mesh: Mesh) -> Any:
    """Shapes of what `function` returns, replicated over the mesh."""
    whole = NamedSharding(mesh, P())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), jax.eval_shape(function))


def _initial_state(spec: ModelSpec, config: Config, mesh: Mesh, checkpoints: Checkpoints) -> State:
    """The newest checkpoint, or a fresh state."""
    init = functools.partial(init_state, spec, config)
    if checkpoints.latest_step is not None:
        logging.info("continuing from step %d", checkpoints.latest_step)
        return checkpoints.restore_latest(_abstract(init, mesh))
    whole = NamedSharding(mesh, P())
    state = jax.jit(init, out_shardings=whole)()
    if config.train.init_from:
        variables = {"params": state["params"], "frozen": state["frozen"]}
        loaded = jax.device_put(start_from(variables, Path(config.train.init_from), config), whole)
        state = {**state, **loaded}
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
        self, detector: Detector, dataset: Dataset, config: Config, output: Path, writer: MetricWriter
    ) -> None:
        together = config.inference.batch_size * detector.mesh.size
        inference = dataclasses.replace(config.inference, batch_size=together)
        self._config = dataclasses.replace(config, inference=inference)
        self._detector, self._dataset = detector, dataset
        self._output, self._writer = output, writer
        self.latest: dict[str, float] = {}

    def of_state(self, state: State) -> dict[str, float]:
        """Metrics of a training state: of its moving average where it has one."""
        variables = {"params": state.get("ema", state["params"]), "frozen": state["frozen"]}
        return self.of(variables, int(state["step"]))

    def of(self, variables: dict[str, Any], step: int) -> dict[str, float]:
        drawn: list[int] = []

        def keep(record: int, image: Any, segments: Any) -> None:
            if len(drawn) < self._config.train.log_images:
                drawn.append(record)
                self._picture(record, image, segments, step)

        predict = functools.partial(self._detector, variables)
        self.latest = run_evaluation(predict, self._dataset, self._config, self._output, on_result=keep)
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
    if not path.exists():
        _store(path, evaluation.of_state(state))
    return json.loads(path.read_text(encoding="utf-8"))


def _claim(workdir: Path, config: Config) -> None:
    """Make a new workdir; refuse one that another config has used."""
    path = workdir / _CONFIG
    if path.exists():
        changed = differences(from_dict(json.loads(path.read_text(encoding="utf-8"))), config)
        if changed:
            raise ConfigError(
                f"--workdir={workdir} holds a run of another config ({path}):\n  "
                + "\n  ".join(changed)
                + "\nUse a new workdir, or the options of that run."
            )
    workdir.mkdir(parents=True, exist_ok=True)


def _store(path: Path, value: Any) -> None:
    """Write JSON so that a reader never sees half of it."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1), encoding="utf-8")
    part.replace(path)


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Keep what the console shows."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _report(results: Mapping[str, float], before: Mapping[str, float] | None, workdir: Path) -> None:
    """The readable table and, last, one JSON line."""
    _store(workdir / "results.json", dict(results))
    if before:
        keys = [key for key in ("panoptic_seg/PQ", "segm/AP50", "segm/AP", "bbox/AP") if key in results]
        rows = [f"{key:<16} {100 * before[key]:6.1f} -> {100 * results[key]:5.1f}" for key in keys]
        logging.info("before and after training, in percent\n%s", "\n".join(rows))
    logging.info("results in %s", workdir / "results.json")
    sys.stdout.write(json.dumps(dict(results)) + "\n")
    sys.stdout.flush()

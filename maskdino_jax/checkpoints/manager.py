"""Checkpoints in `WORKDIR/checkpoints/STEP`, written by Orbax while training goes on.

Parameters, frozen statistics, moving average and optimizer state are separate items, so that weights restore without
the optimizer. The item `meta` explains the weights: step, config, metrics, and the classes with ids and colours.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from maskdino_jax.config import Config, from_dict
from maskdino_jax.model import ModelSpec

_FOLDER = "checkpoints"
_META = "meta"
_DAMAGE = (ValueError, LookupError, TypeError, OSError, RuntimeError)  # what Orbax and TensorStore raise, by no rule


class Checkpoints:
    """The checkpoints of one workdir. Saving is asynchronous; `close` waits for what is still being written."""

    def __init__(self, workdir: Path, config: Config, catalog: Mapping[str, Any]) -> None:
        self._explanation = {"config": dataclasses.asdict(config), "catalog": dict(catalog)}
        self._best_metric = config.best_metric
        best = lambda metrics: metrics[config.best_metric]
        _check_metrics(workdir / _FOLDER)
        self._manager = ocp.CheckpointManager(
            workdir.absolute() / _FOLDER,
            options=ocp.CheckpointManagerOptions(
                best_fn=best,  # without it the metrics are not stored, and the best is lost when a run continues
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(config.train.keep_checkpoints),
                        policies.BestN(get_metric_fn=best, n=1, keep_checkpoints_without_metrics=False),
                    ]
                ),
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, state: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Write the state of `state["step"]`; `metrics` of an evaluation of just this state compete for the best."""
        step = int(state["step"])
        ranked = dict(metrics) if metrics and self._best_metric in metrics else None
        items = {name: ocp.args.StandardSave(tree) for name, tree in _trees(state).items()}
        meta = {**self._explanation, "step": step, "metrics": dict(metrics) if metrics else None}
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta)),
                metrics=ranked,
                force=True,
            )

    def restore_latest(self, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """State of the newest checkpoint that can be read, placed as `abstract` (shapes, dtypes and shardings) says.

        Damaged ones before it are renamed to `STEP.damaged`, with a warning, so that their steps can be saved again.
        Several processes do not choose another one, for they might disagree.

        Raises:
            FileNotFoundError: there is no checkpoint.
            ValueError: none can be read; the message names the newest and what is wrong with it.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            raise FileNotFoundError(f"no checkpoint in {self._manager.directory}")
        damaged: dict[int, Exception] = {}
        for step in steps if jax.process_count() == 1 else steps[:1]:
            try:
                state = self._restore(step, abstract)
            except _DAMAGE as error:
                damaged[step] = error
            else:
                for older, error in damaged.items():
                    _set_aside(Path(self._manager.directory) / str(older), error)
                if damaged:
                    self._manager.reload()
                return state
        step, error = next(iter(damaged.items()))
        raise ValueError(
            f"{self._manager.directory / str(step)} cannot be read ({_short(error)}), nor is an older checkpoint tried "
            "that can. If it is damaged, delete it to continue from an older one; if it is of another version of this "
            "program, use that."
        ) from error

    def _restore(self, step: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
        items = {name: ocp.args.StandardRestore(tree) for name, tree in _trees(abstract).items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        number = jax.device_put(jax.numpy.int32(step), abstract["step"].sharding)
        return {**abstract, **{name: restored[name] for name in items}, "step": number}

    def wait(self) -> None:
        """Return when everything saved so far is on disk."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Failures of this save, or of the one before, which is written while training goes on.

        Raises:
            OSError: a checkpoint could not be written.
        """
        try:
            yield
        except _DAMAGE as error:
            raise OSError(
                f"a checkpoint in {self._manager.directory} could not be written ({_short(error)}). Older ones are "
                "sound: make room on that disk, or repair it, and the same command continues from the newest of them."
            ) from error


def _short(error: Exception) -> str:
    """An error of the storage library, which may fill a page: what it did, and at the end why it could not."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-150:]}"


def _set_aside(checkpoint: Path, error: Exception) -> None:
    """Rename a damaged checkpoint, so that its step can be saved again."""
    names = (checkpoint.with_name(f"{checkpoint.name}.damaged{count or ''}") for count in itertools.count())
    aside = next(name for name in names if not name.exists())
    logging.warning("%s is damaged (%s): it is now %s, and an older one serves", checkpoint, _short(error), aside)
    checkpoint.rename(aside)


def _check_metrics(folder: Path) -> None:
    """Set aside checkpoints whose metrics are damaged: Orbax, which ranks by them, would not even begin."""
    for path in folder.glob("*/metrics/metrics") if jax.process_index() == 0 else ():
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            _set_aside(path.parent.parent, error)


def _trees(state: Mapping[str, Any]) -> dict[str, Any]:
    """The items of a state that hold arrays; Orbax refuses empty ones, such as the statistics of a group norm."""
    return {name: tree for name, tree in state.items() if name != "step" and jax.tree.leaves(tree)}


def _steps(folder: Path) -> list[int]:
    """Finished checkpoints; Orbax gives a folder its final name last."""
    if not folder.is_dir():
        return []
    return sorted(int(child.name) for child in folder.iterdir() if child.name.isdigit() and (child / _META).is_dir())


def _locate(path: Path) -> tuple[Path, list[int]]:
    """Folder of checkpoints and the steps to choose from: all of a workdir, or the one that `path` names."""
    path = path.expanduser().absolute()
    if path.name.isdigit() and int(path.name) in _steps(path.parent):
        return path.parent, [int(path.name)]
    for folder in (path / _FOLDER, path):
        if _steps(folder):
            return folder, _steps(folder)
    raise FileNotFoundError(
        f"--checkpoint={path}: neither a workdir with finished checkpoints nor a checkpoint. Give the workdir of a "
        f"training run, or one of its {_FOLDER}/STEP folders."
    )


def _read_meta(checkpoint: Path) -> dict[str, Any]:
    """What explains the weights.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            meta = checkpointer.restore(checkpoint / _META)
        kinds = {"config": dict, "catalog": dict, "metrics": dict | None}
        odd = [name for name, kind in kinds.items() if not isinstance(meta[name], kind)]
        if odd or not isinstance(meta["catalog"]["categories"], list):
            raise ValueError(f"no {', '.join(odd) or 'categories'}")
    except (*_DAMAGE, RecursionError) as error:
        raise ValueError(
            f"{checkpoint / _META} is damaged ({_short(error)}). Give --checkpoint another of the "
            f"{_FOLDER}/STEP folders, or delete {checkpoint}."
        ) from error
    return meta


def _score(meta: Mapping[str, Any]) -> float:
    """The best metric of a checkpoint; below all others if it has none."""
    score = (meta["metrics"] or {}).get(str(meta["config"].get("best_metric")), -1.0)
    return score if isinstance(score, float) else -1.0


class Reader:
    """One checkpoint, opened for its weights: of a workdir the best by `best_metric`, or the latest if none has it."""

    def __init__(self, path: Path) -> None:
        self.folder, steps = _locate(path)
        metas = {step: _read_meta(self.folder / str(step)) for step in steps}
        self.step = max(steps, key=lambda step: (_score(metas[step]), step))
        self.meta = metas[self.step]
        self.config: Config = from_dict(self.meta["config"])
        self.catalog: dict[str, Any] = self.meta["catalog"]
        self.spec = ModelSpec(self.config.model, len(self.catalog["categories"]))

    def load(self, sharding: jax.sharding.Sharding) -> dict[str, Any]:
        """The weights of `spec`, see `variables`, placed on devices."""
        place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        return self.variables(jax.tree.map(place, jax.eval_shape(functools.partial(self.spec.init, 0))))

    def variables(self, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """Weights of the moving average where the run kept one, else the parameters, shaped and placed as `abstract`.

        Raises:
            ValueError: a parameter is missing, unknown or has another shape.
        """
        checkpoint = self.folder / str(self.step)
        weights = "ema" if (checkpoint / "ema").is_dir() else "params"
        logging.info("weights: %s of %s", weights, checkpoint)
        items = _trees({weights: abstract["params"], "frozen": abstract["frozen"]})
        with ocp.StandardCheckpointer() as checkpointer:
            restored = {name: checkpointer.restore(checkpoint / name, tree) for name, tree in items.items()}
        return {"params": restored[weights], "frozen": restored.get("frozen", {})}

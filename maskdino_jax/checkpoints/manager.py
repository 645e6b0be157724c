"""Checkpoints in `WORKDIR/checkpoints/STEP`, written by Orbax while training goes on.

Parameters, frozen statistics, moving average and optimizer state are separate items, so that weights restore without
the optimizer. The item `meta` explains the weights: step, config, metrics, and the classes with ids and colours.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from maskdino_jax.config import Config, from_dict

_FOLDER = "checkpoints"
_META = "meta"


class Checkpoints:
    """The checkpoints of one workdir. Saving is asynchronous; `close` waits for what is still being written."""

    def __init__(self, workdir: Path, config: Config, catalog: Mapping[str, Any]) -> None:
        self._explanation = {"config": dataclasses.asdict(config), "catalog": dict(catalog)}
        self._best_metric = config.best_metric
        best = lambda metrics: metrics[config.best_metric]
        self._manager = ocp.CheckpointManager(
            workdir.absolute() / _FOLDER,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(config.train.keep_checkpoints),
                        policies.BestN(get_metric_fn=best, n=1, keep_checkpoints_without_metrics=False),
                    ]
                )
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
        self._manager.save(
            step,
            args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta)),
            metrics=ranked,
            force=True,
        )

    def restore_latest(self, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """State of the newest checkpoint, placed as `abstract` (shapes, dtypes and shardings) says."""
        step = self.latest_step
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self._manager.directory}")
        items = {name: ocp.args.StandardRestore(tree) for name, tree in _trees(abstract).items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        number = jax.device_put(jax.numpy.int32(step), abstract["step"].sharding)
        return {**abstract, **{name: restored[name] for name in items}, "step": number}

    def wait(self) -> None:
        """Return when everything saved so far is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _trees(state: Mapping[str, Any]) -> dict[str, Any]:
    """The items of a state that hold arrays; Orbax refuses empty ones, such as the statistics of a group norm."""
    return {name: tree for name, tree in state.items() if name != "step" and jax.tree.leaves(tree)}


def _locate(path: Path) -> tuple[Path, int | None]:
    """Folder of checkpoints and, where `path` names one checkpoint, its step."""
    path = path.expanduser().absolute()
    if (path / _META).is_dir() and path.name.isdigit():
        return path.parent, int(path.name)
    for folder in (path / _FOLDER, path):
        if folder.is_dir() and any((child / _META).is_dir() for child in folder.iterdir()):
            return folder, None
    raise FileNotFoundError(
        f"--checkpoint={path}: neither a workdir with finished checkpoints nor a checkpoint. Give the workdir of a "
        f"training run, or one of its {_FOLDER}/STEP folders."
    )


def _best_step(manager: ocp.CheckpointManager) -> int:
    """Step with the best metric; the latest where none was evaluated."""
    best, best_value = manager.latest_step(), -1.0
    for step in manager.all_steps():
        meta = _read_meta(manager, step)
        value = (meta["metrics"] or {}).get(meta["config"]["best_metric"], -1.0)
        if value > best_value:
            best, best_value = step, value
    return best


def _read_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[_META]


class Reader:
    """One checkpoint, opened for its weights."""

    def __init__(self, path: Path) -> None:
        self.folder, step = _locate(path)
        self._manager = ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(read_only=True))
        self.step = _best_step(self._manager) if step is None else step
        self.meta = _read_meta(self._manager, self.step)
        self.config: Config = from_dict(self.meta["config"])
        self.catalog: dict[str, Any] = self.meta["catalog"]

    def variables(self, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """Weights of the moving average where the run kept one, else the parameters, shaped and placed as `abstract`.

        Raises:
            ValueError: a parameter is missing, unknown or has another shape.
        """
        averaged = (self.folder / str(self.step) / "ema").is_dir()
        weights = "ema" if averaged else "params"
        logging.info("weights: %s of %s/%d", weights, self.folder, self.step)
        items = {weights: abstract["params"], "frozen": abstract["frozen"]}
        wanted = {name: ocp.args.StandardRestore(tree) for name, tree in _trees(items).items()}
        restored = self._manager.restore(self.step, args=ocp.args.Composite(**wanted))
        return {"params": restored[weights], "frozen": restored.get("frozen", {})}

    def close(self) -> None:
        self._manager.close()

"""Checkpoints in `WORKDIR/checkpoints/STEP`, written by Orbax while training goes on.

Parameters, frozen statistics, moving average and optimizer state are separate items, so that weights restore without
the optimizer. The item `meta` explains the weights: step, config, metrics, and the classes with ids and colours.
"""

import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from maskdino_jax.config import Config, from_dict
from maskdino_jax.model import ModelSpec

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


class Reader:
    """One checkpoint, opened for its weights: of a workdir the best by `best_metric`, or the latest if none has it."""

    def __init__(self, path: Path) -> None:
        self.folder, steps = _locate(path)
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            metas = {step: checkpointer.restore(self.folder / str(step) / _META) for step in steps}
        score = lambda step: ((metas[step]["metrics"] or {}).get(metas[step]["config"]["best_metric"], -1.0), step)
        self.step = max(steps, key=score)
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

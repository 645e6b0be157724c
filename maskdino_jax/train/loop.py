"""The training loop: step, log, evaluate, save; stop cleanly on a signal, and at once on a non-finite value."""

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from maskdino_jax.config import Config
from maskdino_jax.meshes import images_sharding
from maskdino_jax.structures import Batch
from maskdino_jax.train.metrics import MetricWriter, Progress
from maskdino_jax.train.profiler import Profiler
from maskdino_jax.train.step import Metrics, State


class NonFiniteError(RuntimeError):
    """A loss term or the gradient is not a number; says at which step, which term and on which images."""


class Interrupted(SystemExit):
    """A signal ended the run after the state was saved; the exit status is 128 plus the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGINT and SIGUSR1 instead of dying from them; a second one acts as usual.

    Of several processes each hears of its own signals only. JAX tells the others of a SIGTERM, see `_stop`, so that one
    is left to it, and the others become one.
    """
    received: list[int] = []
    several = jax.process_count() > 1

    def note(number: int, _: Any) -> None:
        received.append(number)
        logging.warning("%s: saving after this step", signal.Signals(number).name)
        signal.signal(number, before[number])
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    numbers = [signal.SIGINT, signal.SIGUSR1] if several else [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(step: int, received: list[int]) -> int:
    """The signal after which the run ends with this step, the same step in all processes; 0 if there is none."""
    if jax.process_count() == 1:
        return received[0] if received else 0
    if not multihost_utils.reached_preemption_sync_point(step):
        return 0
    return received[0] if received else signal.SIGTERM


def check_finite(step: int, metrics: Mapping[str, Any], images: list[str]) -> None:
    """Raise `NonFiniteError` if a number of this step is not finite."""
    values = jax.device_get(dict(metrics))
    bad = [f"{name} = {float(value)}" for name, value in values.items() if not np.isfinite(value)]
    if bad:
        raise NonFiniteError(
            f"step {step}: {', '.join(bad)} on the images {', '.join(images)}. This step changed nothing, and the "
            f"latest checkpoint is sound. Look at these images with their annotations, lower "
            f"config.optimizer.learning_rate, or start with another config.train.seed."
        )


def place(batch: Batch, mesh: Mesh) -> Batch:
    """Put this process's part of a batch on its devices."""
    sharding = images_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


class _Ahead:
    """Batches that are on the devices before they are asked for. What goes wrong is raised when it is asked for."""

    def __init__(self, batches: Iterator[Batch], mesh: Mesh) -> None:
        self._batches, self._mesh = batches, mesh
        self._ready: tuple[list[int], Batch] | Exception | None = None

    def fetch(self) -> None:
        try:
            batch = next(self._batches)
            self._ready = batch.records.tolist(), place(batch, self._mesh)
        except Exception as error:  # also StopIteration: the step that runs now is to end as if nothing had happened
            self._ready = error

    def take(self) -> tuple[list[int], Batch]:
        """Records of the next batch, and the batch."""
        if self._ready is None:
            self.fetch()
        ready, self._ready = self._ready, None
        if isinstance(ready, Exception):
            raise ready
        return ready


def train(
    state: State,
    step_fn: Callable[[State, Batch], tuple[State, Metrics]],
    batches: Iterator[Batch],
    *,
    config: Config,
    mesh: Mesh,
    writer: MetricWriter,
    save: Callable[[State, Mapping[str, float] | None], None],
    evaluate: Callable[[State], dict[str, float]],
    image_id: Callable[[int], str],
    profiler: Profiler | None = None,
) -> State:
    """Run from the step of `state` to `config.train.steps`.

    While a step runs, the batch of the next one is placed on the devices, and the numbers of the one before are read.
    So the device never waits, and a non-finite value stops the run one step later.

    Raises:
        NonFiniteError: names step, terms and images.
        Interrupted: after a signal, when the state is saved.
    """
    options, start = config.train, int(state["step"])
    progress = Progress(options.steps, options.batch_size, start)
    profiler = profiler or Profiler("", Path())
    pending: tuple[int, Metrics, list[str]] | None = None
    ahead = _Ahead(batches, mesh)
    try:
        with signals() as received:
            for step in range(start + 1, options.steps + 1):
                with progress.waiting("data"):
                    records, batch = ahead.take()
                ids = [image_id(record) for record in records]
                with profiler.step(step):
                    state, metrics = step_fn(state, batch)
                if step < options.steps and not received:
                    with progress.waiting("data"):
                        ahead.fetch()
                if pending is not None:
                    with progress.waiting("device"):
                        check_finite(*pending)
                profiler.finish(step, metrics)
                pending = (step, metrics, ids)
                progress.stepped()
                last = step == options.steps
                if step == start + 1 or step % options.log_every == 0 or last:
                    with progress.waiting("device"):
                        check_finite(*pending)
                    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                    writer.scalars(step, values | progress.report(step, values))
                due = last or (options.eval_every > 0 and step % options.eval_every == 0)
                stop = _stop(step, received)
                if due or stop or step % options.checkpoint_every == 0:
                    check_finite(*pending)
                    results = evaluate(state) if due and not stop else None
                    save(state, results)
                    progress.restart(step)
                if stop:
                    raise Interrupted(stop)
    finally:
        progress.close()
        profiler.close()
        jax.block_until_ready(state)  # a host callback in flight at exit would abort the process
    return state

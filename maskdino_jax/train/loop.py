"""The training loop: step, log, evaluate, save; stop cleanly on a signal, and at once on a non-finite value."""

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maskdino_jax.config import Config
from maskdino_jax.structures import Batch
from maskdino_jax.train.metrics import MetricWriter, Progress
from maskdino_jax.train.step import Metrics, State


class NonFiniteError(RuntimeError):
    """A loss term or the gradient is not a number; says at which step, which term and on which images."""


class Interrupted(SystemExit):
    """A signal ended the run after the state was saved; the exit status is 128 plus the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying from them; a second one acts as usual."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        received.append(number)
        logging.warning("%s: saving after this step", signal.Signals(number).name)
        signal.signal(number, before[number])

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    sharding = NamedSharding(mesh, P("data"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


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
) -> State:
    """Run from the step of `state` to `config.train.steps`.

    Each step's numbers are read while the next step runs, so that a non-finite value stops the run one step later
    without ever making the device wait.

    Raises:
        NonFiniteError: names step, terms and images.
        Interrupted: after a signal, when the state is saved.
    """
    options, start = config.train, int(state["step"])
    progress = Progress(options.steps, options.batch_size)
    pending: tuple[int, Metrics, list[str]] | None = None
    try:
        with signals() as received:
            for step in range(start + 1, options.steps + 1):
                batch = next(batches)
                ids = [image_id(record) for record in batch.records.tolist()]
                state, metrics = step_fn(state, place(batch, mesh))
                if pending is not None:
                    check_finite(*pending)
                pending = (step, metrics, ids)
                last = step == options.steps
                if step == start + 1 or step % options.log_every == 0 or last:
                    check_finite(*pending)
                    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                    writer.scalars(step, values | progress.report(step, values))
                due = last or (options.eval_every > 0 and step % options.eval_every == 0)
                if due or received or step % options.checkpoint_every == 0:
                    check_finite(*pending)
                    results = evaluate(state) if due and not received else None
                    save(state, results)
                    progress.restart(step)
                if received:
                    raise Interrupted(received[0])
    finally:
        jax.block_until_ready(state)  # a host callback in flight at exit would abort the process
    return state

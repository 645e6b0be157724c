"""Record what devices and host do in some steps, to be looked at in TensorBoard or Perfetto."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax


class Profiler:
    """Writes a trace of the steps `first:last`, both included, into a folder; of none if `steps` is empty."""

    def __init__(self, steps: str, folder: Path) -> None:
        first, _, last = steps.partition(":")
        self._first, self._last = (int(first), int(last)) if steps else (0, -1)
        self._folder = folder
        self._running = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around what starts a step."""
        if self._first <= number <= self._last and not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number) if self._running else contextlib.nullcontext():
            yield

    def finish(self, number: int, result: Any) -> None:
        """After a step; waits for the result of the last one that is recorded."""
        if self._running and number >= self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """End the recording, also in the midst of it."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            logging.info("trace of the steps from %d on in %s; see docs/training.md", self._first, self._folder)

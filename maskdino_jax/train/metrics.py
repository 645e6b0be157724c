"""Where training numbers go: one line on the console, `metrics.jsonl`, and TensorBoard."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8
from tensorboardX import SummaryWriter

from maskdino_jax.losses.matcher import seconds_on_host
from maskdino_jax.progress import Bar


class MetricWriter:
    """Writes on process 0 only. `metrics.jsonl` holds one JSON object a line: `step`, `time` and the numbers."""

    def __init__(self, workdir: Path) -> None:
        self._active = jax.process_index() == 0
        if self._active:
            workdir.mkdir(parents=True, exist_ok=True)
            self._file = (workdir / "metrics.jsonl").open("a", encoding="utf-8")
            self._board = SummaryWriter(str(workdir / "tensorboard"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if not self._active:
            return
        line = {"step": step, "time": round(time.time(), 3), **{k: float(v) for k, v in values.items()}}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        if self._active:
            self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        if self._active:
            self._file.close()
            self._board.close()


class Progress:
    """Rate and remaining time of a run, measured since the last report so that compilation and evaluation stay out.

    The clock is one that never goes back, whatever happens to the time of the day.
    """

    def __init__(self, total: int, batch_size: int, start: int = 0) -> None:
        self._total, self._batch = total, batch_size
        self._bar, self._note = Bar("training", total, "step", start), ""
        self._step: int | None = None
        self._since = self._matching = 0.0
        self._waited = {"data": 0.0, "device": 0.0}

    def restart(self, step: int) -> None:
        """Start measuring at `step`."""
        self._step, self._since, self._matching = step, time.monotonic(), seconds_on_host()
        self._waited = dict.fromkeys(self._waited, 0.0)

    def stepped(self) -> None:
        """One more step is done, for the bar on a terminal."""
        self._bar.step(self._note)
        self._note = ""

    def close(self) -> None:
        self._bar.close()

    @contextlib.contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """Around what waits for `data` or for the `device`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._waited[name] += time.monotonic() - start

    def report(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Log one line and return the rate in images per second and where a step's time goes, if any was measured."""
        rate = {}
        speed = ""
        if self._step is not None and step > self._step:
            steps = step - self._step
            seconds = max(time.monotonic() - self._since, 1e-9) / steps
            rate = {"images_per_second": self._batch / seconds, "seconds_per_step": seconds}
            rate |= {f"seconds_{name}": waited / steps for name, waited in self._waited.items()}
            rate["seconds_matching"] = (seconds_on_host() - self._matching) / steps
            remaining = int(seconds * (self._total - step))
            eta = f"{remaining // 3600}:{remaining // 60 % 60:02d}:{remaining % 60:02d}"
            speed = f", {rate['images_per_second']:.2f} images/s, {seconds:.2f} s/step, ETA {eta}"
        logging.info(
            "step %d/%d: loss %.3f, gradient norm %.1f, learning rate %.1e%s",
            step,
            self._total,
            metrics["loss"],
            metrics["grad_norm"],
            metrics["learning_rate"],
            speed,
        )
        self._note = f"loss {metrics['loss']:.3f}"
        self.restart(step)
        return rate

"""The loop around a step that only counts: when it saves, evaluates and stops."""

import gzip
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from maskdino_jax.config import Config
from maskdino_jax.structures import Batch, Targets
from maskdino_jax.train import metrics
from maskdino_jax.train.loop import Interrupted, NonFiniteError, train
from maskdino_jax.train.metrics import MetricWriter
from maskdino_jax.train.profiler import Profiler


def _batches() -> Iterator[Batch]:
    targets = Targets(
        labels=np.zeros((1, 1), np.int32),
        boxes=np.zeros((1, 1, 4), np.float32),
        masks=np.zeros((1, 1, 8, 1), np.uint8),
        is_thing=np.zeros((1, 1), bool),
        valid=np.zeros((1, 1), bool),
    )
    index = 0
    while True:
        images = np.zeros((1, 8, 8, 3), np.uint8)
        yield Batch(
            images=images,
            targets=targets,
            records=np.array([index]),
            dropped=np.zeros(1, np.int32),
            skipped=np.zeros(1, np.int32),
        )
        index += 1


class Counter:
    """Records what the loop asks for; the step adds one and may misbehave at a given step."""

    def __init__(
        self,
        nan_at: int = 0,
        signal_at: int = 0,
        batches: Iterator[Batch] | None = None,
        number: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.saved: list[tuple[int, bool]] = []
        self.evaluated: list[int] = []
        self.nan_at, self.signal_at, self.number = nan_at, signal_at, number
        self.batches = batches or _batches()
        self.seen: list[Batch] = []

    def step(self, state: dict, batch: Batch) -> tuple[dict, dict]:
        step = int(state["step"]) + 1
        self.seen.append(batch)
        if step == self.signal_at:
            os.kill(os.getpid(), self.number)
        loss = jnp.float32(np.nan if step == self.nan_at else step)
        metrics = {"loss": loss, "loss_ce": loss, "grad_norm": jnp.float32(1), "learning_rate": jnp.float32(1)}
        return {"step": jnp.int32(step)}, metrics

    def run(self, workdir: Path, **options: Any) -> dict:
        config = Config()
        config.train.batch_size = 1
        for name, value in options.items():
            setattr(config.train, name, value)
        writer = MetricWriter(workdir)
        try:
            return train(
                {"step": jnp.int32(0)},
                self.step,
                self.batches,
                config=config,
                mesh=jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1]),
                writer=writer,
                save=lambda state, metrics: self.saved.append((int(state["step"]), metrics is not None)),
                evaluate=self.evaluate,
                image_id=lambda record: f"image{record}",
                profiler=Profiler(config.train.profile_steps, workdir / "profile"),
            )
        finally:
            writer.close()

    def evaluate(self, state: dict) -> dict[str, float]:
        self.evaluated.append(int(state["step"]))
        return {"panoptic_seg/PQ": 0.5}


def test_saves_and_evaluates_on_time_and_at_the_end(tmp_path: Path) -> None:
    counter = Counter()
    counter.run(tmp_path, steps=7, checkpoint_every=2, eval_every=3)
    assert counter.evaluated == [3, 6, 7]
    assert counter.saved == [(2, False), (3, True), (4, False), (6, True), (7, True)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_the_step_and_exits_with_its_status(tmp_path: Path, number: signal.Signals) -> None:
    counter = Counter(signal_at=5, number=number)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as raised:
        counter.run(tmp_path, steps=9, checkpoint_every=100, eval_every=0)
    assert raised.value.code == 128 + number
    assert counter.saved == [(5, False)]
    assert signal.getsignal(number) is before


def _lines(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_clock_that_goes_back_changes_nothing_but_the_time_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(1e9, -3600)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    counter = Counter()
    counter.run(tmp_path, steps=6, log_every=1, checkpoint_every=4, eval_every=0)
    lines = _lines(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(later["time"] < line["time"] for line, later in itertools.pairwise(lines))
    assert all(line["images_per_second"] > 0 for line in lines if line["step"] != 1 and line["step"] != 5)
    assert counter.saved == [(4, False), (6, True)]


def test_the_log_says_where_the_time_of_a_step_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that takes 20 ms for a batch; a solver that says that each step has cost it 2 s."""

    def slow() -> Iterator[Batch]:
        for batch in _batches():
            time.sleep(0.02)
            yield batch

    counter = Counter(batches=slow())
    monkeypatch.setattr(metrics, "seconds_on_host", lambda: 2.0 * len(counter.seen))
    counter.run(tmp_path, steps=5, log_every=4, checkpoint_every=100, eval_every=0)
    line = next(line for line in _lines(tmp_path) if line["step"] == 4)
    assert line["seconds_data"] >= 0.02
    assert line["seconds_matching"] == pytest.approx(2)
    assert line["seconds_data"] + line["seconds_device"] <= line["seconds_per_step"]


@pytest.mark.parametrize(("steps", "end"), [("2:3", 4), ("3:100", 4)])
def test_a_trace_is_written_of_the_steps_that_were_asked_for(tmp_path: Path, steps: str, end: int) -> None:
    """Also if the run ends before the last of them."""
    Counter().run(tmp_path, steps=end, eval_every=0, profile_steps=steps)
    (trace,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    first, last = map(int, steps.split(":"))
    recorded = {int(event["args"]["step_num"]) for event in events if event.get("name") == "train"}
    assert recorded == set(range(first, min(last, end) + 1))


def test_no_trace_is_written_unasked(tmp_path: Path) -> None:
    Counter().run(tmp_path, steps=2, eval_every=0)
    assert not (tmp_path / "profile").exists()


def test_a_nan_between_log_lines_is_found_one_step_later_and_named(tmp_path: Path) -> None:
    counter = Counter(nan_at=4)
    with pytest.raises(NonFiniteError, match=r"step 4: loss = nan, loss_ce = nan on the images image3\."):
        counter.run(tmp_path, steps=100, log_every=50, checkpoint_every=50, eval_every=0)
    assert counter.saved == []


def test_a_nan_is_never_saved(tmp_path: Path) -> None:
    counter = Counter(nan_at=4)
    with pytest.raises(NonFiniteError, match="step 4"):
        counter.run(tmp_path, steps=100, log_every=50, checkpoint_every=4, eval_every=0)
    assert counter.saved == []


class Watched:
    """Batches that note how many steps have begun and been saved when each is read; the given one cannot be read."""

    def __init__(self, broken: int = -1) -> None:
        self.counter: Counter | None = None
        self.read: list[tuple[int, int]] = []
        self.broken, self._batches = broken, _batches()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self.read.append((len(self.counter.seen), len(self.counter.saved)))
        if len(self.read) - 1 == self.broken:
            raise ValueError("this image is damaged")
        return next(self._batches)


def watched(broken: int = -1, **misbehaviour: int) -> tuple[Counter, Watched]:
    batches = Watched(broken)
    batches.counter = Counter(batches=batches, **misbehaviour)
    return batches.counter, batches


def test_the_next_batch_is_read_and_placed_once_a_step_has_begun(tmp_path: Path) -> None:
    counter, batches = watched()
    counter.run(tmp_path, steps=5, eval_every=0, checkpoint_every=1)
    assert batches.read == [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3)]  # none is read beyond the last step
    assert [int(batch.records[0]) for batch in counter.seen] == [0, 1, 2, 3, 4]
    assert all(isinstance(leaf, jax.Array) for batch in counter.seen for leaf in jax.tree.leaves(batch))


def test_a_batch_that_cannot_be_read_stops_the_run_only_when_its_turn_has_come(tmp_path: Path) -> None:
    """The third one: both steps before are finished, evaluated and saved."""
    counter, batches = watched(broken=2)
    with pytest.raises(ValueError, match="this image is damaged"):
        counter.run(tmp_path, steps=5, eval_every=2, checkpoint_every=1)
    assert len(batches.read) == 3
    assert counter.saved == [(1, False), (2, True)]


def test_a_nan_is_told_before_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    counter, _ = watched(broken=2, nan_at=2)
    with pytest.raises(NonFiniteError, match="step 2"):
        counter.run(tmp_path, steps=5, eval_every=0, checkpoint_every=1)


def test_a_signal_ends_the_run_without_reading_on(tmp_path: Path) -> None:
    counter, batches = watched(signal_at=3)
    with pytest.raises(Interrupted):
        counter.run(tmp_path, steps=9, eval_every=0, checkpoint_every=100)
    assert counter.saved == [(3, False)]
    assert len(batches.read) == 3


def test_batches_that_come_to_an_end_do_so_at_the_step_that_has_none(tmp_path: Path) -> None:
    counter = Counter(batches=itertools.islice(_batches(), 2))
    with pytest.raises(StopIteration):
        counter.run(tmp_path, steps=5, eval_every=0, checkpoint_every=1)
    assert counter.saved == [(1, False), (2, False)]

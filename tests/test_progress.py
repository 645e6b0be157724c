"""Bars are for terminals: they never reach a file, and never share a row with a log line."""

import importlib
import io
import logging
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from maskdino_jax.config import Config
from maskdino_jax.data import open_dataset
from maskdino_jax.data.check import check
from maskdino_jax.evaluation.loop import results
from maskdino_jax.inference.predictor import Prediction
from maskdino_jax.inference.results import Segments
from maskdino_jax.inference.writing import write_predictions
from maskdino_jax.progress import Bar
from maskdino_jax.train.metrics import Progress
from tests.inference.scenes import catalog_of

ROOT = Path(__file__).parent.parent
STEPS = 30
PROGRAM = f"""
import logging, sys, threading
from absl import logging as absl_logging
from maskdino_jax.progress import Bar
if sys.argv[2] == "absl":  # as in the command line
    absl_logging.use_absl_handler()
    absl_logging._warn_preinit_stderr = False
    absl_logging.set_verbosity("info")
else:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
logging.getLogger().addHandler(logging.FileHandler(sys.argv[1]))
with Bar("around", {STEPS}, "epoch") as around, Bar("inside", {STEPS}, "step") as bar:
    def log(step):
        logging.info("line %d ends here", step)
    for step in range({STEPS}):
        bar.step(note="loss 1.5")
        thread = threading.Thread(target=log, args=(step,))
        thread.start()
        around.step()
        thread.join()
logging.info("the end")
"""


def _run(folder: Path, handler: str, terminal: bool) -> tuple[str, str]:
    """What the program writes to standard error, and to its log file."""
    mine, theirs = pty.openpty() if terminal else os.pipe()
    command = [sys.executable, "-c", PROGRAM, str(folder / "log.txt"), handler]
    if terminal:
        termios.tcsetwinsize(theirs, (40, 100))
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    written = b""
    while True:
        try:
            block = os.read(mine, 65536)
        except OSError:  # so a terminal says that its other side is closed
            break
        if not block:
            break
        written += block
    os.close(mine)
    assert process.wait() == 0, written
    return written.decode(), (folder / "log.txt").read_text()


def _screen(text: str) -> list[str]:
    """The rows of a terminal that was written to: carriage return, line feed, one row up, end of row deleted."""
    rows, row, column = [[]], 0, 0
    for token in re.findall(r"\x1b\[[A-Z]|[\s\S]", text):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            rows += [[]] * (row == len(rows))
        elif token == "\x1b[A":
            row -= 1
        elif token == "\x1b[K":
            del rows[row][column:]
        else:
            rows[row] += [" "] * (column + 1 - len(rows[row]))
            rows[row][column] = token
            column += 1
    return ["".join(row).rstrip() for row in rows]


@pytest.mark.parametrize("handler", ["plain", "absl"])
def test_log_lines_stand_whole_above_the_bars(tmp_path: Path, handler: str) -> None:
    written, kept = _run(tmp_path, handler, terminal=True)
    assert "inside" in written
    assert "loss 1.5" in written
    shown = [re.sub(r"^I\d.*\] ", "", row) for row in _screen(written) if row]
    lines = [f"line {step} ends here" for step in range(STEPS)]
    assert shown == [*lines, "the end"]  # and the bars have gone
    assert kept.splitlines() == [*lines, "the end"]


def test_a_file_gets_no_bars(tmp_path: Path) -> None:
    written, kept = _run(tmp_path, "plain", terminal=False)
    assert written == kept
    assert written.splitlines() == [*(f"line {step} ends here" for step in range(STEPS)), "the end"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _check(folder: Path) -> None:
    check(_small())


def _predict(folder: Path) -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    found = Prediction("one.png", picture, Segments(catalog=catalog_of(True)))
    write_predictions([found], folder, lambda _: picture)


def _evaluate(folder: Path) -> None:
    config = _small()
    begin = lambda batch: [SimpleNamespace(record=record, found=0) for record in batch.records.tolist()]
    list(results(begin, lambda pending: pending, open_dataset(config.data, "val"), config))


def _train(folder: Path) -> None:
    progress = Progress(10, 2)
    progress.report(1, {"loss": 3.25, "grad_norm": 1.0, "learning_rate": 0.1})
    progress.stepped()
    progress.close()


def _small() -> Config:
    config = importlib.import_module("maskdino_configs.nuclei_panoptic").get_config("quick")
    config.data.workers = 0
    config.data.train.part = config.data.val.part = "tenth"
    config.data.eval_short_side, config.data.eval_long_side = 64, 64
    return config


@pytest.mark.parametrize(
    ("work", "title"),
    [(_check, "checking val"), (_predict, "predicting"), (_evaluate, "evaluating"), (_train, "training")],
)
@pytest.mark.parametrize("terminal", [True, False])
def test_what_takes_long_has_a_bar(
    work: Callable[[Path], None], title: str, terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    handles = [handler.handle for handler in logging.getLogger().handlers]
    work(tmp_path)
    assert (title in stream.getvalue()) == terminal
    assert [handler.handle for handler in logging.getLogger().handlers] == handles


def test_the_bar_of_training_shows_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    _train(tmp_path)
    assert "loss 3.250" in sys.stderr.getvalue()


def test_closing_twice_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = Bar("twice", None, "step")
    bar.close()
    bar.close()

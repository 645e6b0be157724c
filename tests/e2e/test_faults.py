"""What goes wrong outside of a run ends in a clear message, and the same command continues from there."""

import os
import shutil
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import COCO
from tests.e2e.processes import Started, arrays, finish, metrics, same, saved, start, wait_for_step

pytestmark = pytest.mark.slow
LAST = 6


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The end of a run that nothing has disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(start(workdir))
    return arrays(workdir, LAST)


def test_killed_while_a_checkpoint_is_written(tmp_path: Path, whole: dict[str, np.ndarray]) -> None:
    """What was being written counts for nothing, and its step is saved again."""
    workdir, parts = tmp_path / "run", []
    run = start(workdir)
    while not parts and run.process.poll() is None:
        parts = list(workdir.glob("checkpoints/4.*tmp*"))
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    assert parts, run.said()[-3000:]
    assert saved(workdir)[-1] in (2, 4)  # 4 if the last file was complete already
    finish(start(workdir))
    same(arrays(workdir, LAST), whole)


def test_the_newest_checkpoint_is_damaged(tmp_path: Path, whole: dict[str, np.ndarray]) -> None:
    workdir = tmp_path / "run"
    finish(start(workdir))
    for path in (workdir / f"checkpoints/{LAST}/params").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    again = start(workdir)
    finish(again)
    assert f"{workdir}/checkpoints/{LAST} is damaged" in again.said()
    assert "continuing from step 4" in again.said()
    same(arrays(workdir, LAST), whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_ends_with_a_status_of_its_own(
    tmp_path: Path, whole: dict[str, np.ndarray], number: signal.Signals
) -> None:
    """SLURM sends SIGUSR1 some time before the end of a job, if asked to (`--signal`)."""
    workdir = tmp_path / "run"
    run = start(workdir)
    wait_for_step(run, workdir, 3)
    run.process.send_signal(number)
    assert run.end() == 128 + number, run.said()[-3000:]
    assert saved(workdir)[-1] == metrics(workdir)[-1]["step"]
    finish(start(workdir))
    same(arrays(workdir, LAST), whole)


def _workers(run: Started) -> list[int]:
    """Processes of the loader: children that run Python of their own."""
    threads = Path(f"/proc/{run.process.pid}/task").glob("*/children")
    children = [child for thread in threads for child in thread.read_text().split()]
    command = lambda child: Path(f"/proc/{child}/cmdline").read_bytes()
    return [int(child) for child in children if b"spawn_main" in command(child)]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the workers in /proc")
def test_a_loader_process_is_killed(tmp_path: Path) -> None:
    """The run ends with an error instead of waiting for it."""
    workdir = tmp_path / "run"
    run = start(workdir, "--config.data.workers=1", "--config.train.steps=5000", "--config.train.checkpoint_every=5000")
    wait_for_step(run, workdir, 2)
    (worker,) = _workers(run)
    os.kill(worker, signal.SIGKILL)
    assert run.end(seconds=120) == 1
    assert "ChildProcessError: a loader process was ended from outside" in run.said()


def test_an_image_goes_bad_in_mid_epoch(tmp_path: Path) -> None:
    """The message names it; restored, or passed over by `config.data.on_error=skip`, it stops no one any more."""
    shutil.copytree(COCO, tmp_path / "data")
    image = min((tmp_path / "data/train2017").glob("*.jpg"))
    workdir, content = tmp_path / "run", image.read_bytes()
    options = (
        f"--config.data.root={tmp_path / 'data'}",
        "--config.train.checkpoint_every=1",
        "--config.train.steps=60",
    )
    run = start(workdir, *options)
    wait_for_step(run, workdir, 2)
    image.write_bytes(content[:1000])
    assert run.end() == 1
    assert f"{image} cannot be read as an image" in run.said()
    assert saved(workdir)
    skipping = start(workdir, *options, "--config.data.on_error=skip")
    reached = metrics(workdir)[-1]["step"] + 3
    wait_for_step(skipping, workdir, reached)
    skipping.process.send_signal(signal.SIGTERM)
    assert skipping.end() == 128 + signal.SIGTERM
    assert metrics(workdir)[-1]["records_skipped"] > 0


def _several(workdir: Path, *options: str, devices: int = 2) -> list[Started]:
    """Two processes that train together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = (f"--coordinator={address}", "--processes=2", *options)
    return [start(workdir, *common, f"--process={index}", devices=devices) for index in range(2)]


def _losses(workdir: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in metrics(workdir) if "loss" in line}


EIGHT = ("--config.train.batch_size=8", "--config.train.ema_decay=0.5")


def test_two_processes_train_and_one_process_or_eight_devices_continue(tmp_path: Path) -> None:
    """Loss curves are those of a run on one device, whoever computes them."""
    workdir = tmp_path / "two"
    runs = _several(workdir, *EIGHT, "--config.train.steps=3")
    for run in runs:
        finish(run)
    results = (workdir / "results.json").read_text()
    assert runs[0].said().count("results in ") == 1
    assert "results in " not in runs[1].said()
    alone = tmp_path / "alone"
    finish(start(alone, *EIGHT, "--config.train.steps=6"))
    assert "panoptic_seg/PQ" in results
    for devices in (1, 8):
        continued = tmp_path / f"on{devices}"
        shutil.copytree(workdir, continued)
        run = start(continued, *EIGHT, "--config.train.steps=6", devices=devices)
        finish(run)
        assert "continuing from step 3" in run.said()
        found, expected = _losses(continued), _losses(alone)
        assert found.keys() == expected.keys()
        np.testing.assert_allclose([found[step] for step in expected], list(expected.values()), rtol=1e-5)


def test_a_notice_to_one_of_two_processes_saves_and_ends_both(tmp_path: Path) -> None:
    workdir = tmp_path / "two"
    runs = _several(workdir, *EIGHT, "--config.train.steps=5000", "--config.train.checkpoint_every=5000")
    wait_for_step(runs[0], workdir, 3)
    runs[1].process.send_signal(signal.SIGUSR1)
    assert runs[1].end(seconds=300) == 128 + signal.SIGUSR1, runs[1].said()[-3000:]
    assert runs[0].end(seconds=300) == 128 + signal.SIGTERM, runs[0].said()[-3000:]
    assert saved(workdir) == [metrics(workdir)[-1]["step"]]


def test_a_process_that_disappears_ends_the_other(tmp_path: Path) -> None:
    """After a minute without a sign of life; no process waits for ever."""
    workdir = tmp_path / "two"
    runs = _several(workdir, *EIGHT, "--config.train.steps=5000", "--config.train.checkpoint_every=2")
    wait_for_step(runs[0], workdir, 3)
    runs[1].process.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    assert runs[1].end() == -signal.SIGKILL
    assert runs[0].end(seconds=180) != 0
    assert time.monotonic() - begin < 150
    assert saved(workdir)

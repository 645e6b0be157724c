"""Runs in processes of their own that are killed and started again end as a run that never was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.slow


def _start(workdir: Path) -> subprocess.Popen:
    command = [sys.executable, "main.py", "--config=tests/e2e/smallest_config.py", f"--workdir={workdir}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


def _finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()[-3000:]


def _wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Return as soon as the log says that `step` is done."""
    deadline = time.monotonic() + 600
    log = workdir / "metrics.jsonl"
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1].decode()[-3000:]
        if log.exists() and any(json.loads(line)["step"] >= step for line in log.read_text().splitlines()):
            return
        time.sleep(0.01)
    raise TimeoutError(f"step {step} not reached")


def _final(workdir: Path) -> dict[str, np.ndarray]:
    items = {name: ocp.StandardCheckpointer().restore(workdir / "checkpoints/6" / name) for name in ("params", "opt")}
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(items)}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    workdir = tmp_path_factory.mktemp("whole")
    _finish(_start(workdir))
    return _final(workdir)


def _check(workdir: Path, expected: dict[str, np.ndarray]) -> None:
    found = _final(workdir)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_killed_in_mid_epoch_and_started_again(tmp_path: Path, uninterrupted: dict[str, np.ndarray]) -> None:
    process = _start(tmp_path)
    _wait_for_step(process, tmp_path, 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    _finish(_start(tmp_path))
    _check(tmp_path, uninterrupted)


def test_sigterm_saves_first(tmp_path: Path, uninterrupted: dict[str, np.ndarray]) -> None:
    process = _start(tmp_path)
    _wait_for_step(process, tmp_path, 3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM, errors.decode()[-3000:]
    last = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][-1]
    saved = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert saved == last
    _finish(_start(tmp_path))
    _check(tmp_path, uninterrupted)

"""Runs of `main.py` in processes of their own, to be disturbed."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parent.parent.parent


@dataclasses.dataclass(frozen=True)
class Started:
    """A running process and the file with all that it says."""

    process: subprocess.Popen
    output: Path

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def end(self, seconds: float = 600) -> int:
        """Its exit status."""
        try:
            return self.process.wait(timeout=seconds)
        finally:
            self.process.kill()
            self.process.wait()


def start(workdir: Path, *options: str, devices: int = 1, environment: dict[str, str] | None = None) -> Started:
    """Train the smallest config in `workdir`; one process of several has `devices` of its own.

    Matching on the device: only programs without a callback are compiled once for all processes (jax 0.10).
    """
    command = [sys.executable, "main.py", "--config=tests/e2e/smallest_config.py", f"--workdir={workdir}"]
    variables = {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "NPROC": "16",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    workdir.parent.mkdir(parents=True, exist_ok=True)
    output = workdir.parent / f"{workdir.name}.{time.monotonic_ns()}.out"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--config.loss.matcher=device", *options],
            cwd=ROOT,
            env=os.environ | variables | (environment or {}),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return Started(process, output)


def finish(started: Started) -> None:
    """Wait for a run that is to succeed."""
    assert started.end() == 0, started.said()[-3000:]


def wait_for_step(started: Started, workdir: Path, step: int, seconds: float = 600) -> None:
    """Return as soon as the log says that `step` is done."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(line["step"] >= step for line in metrics(workdir)):
            return
        assert started.process.poll() is None, started.said()[-3000:]
        time.sleep(0.01)
    raise TimeoutError(f"step {step} not reached:\n{started.said()[-3000:]}")


def metrics(workdir: Path) -> list[dict[str, float]]:
    """The lines of the log that are whole."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def saved(workdir: Path) -> list[int]:
    """Steps of the finished checkpoints."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Everything in a checkpoint that is an array."""
    items = [path for path in (workdir / "checkpoints" / str(step)).iterdir() if path.name in ("params", "opt", "ema")]
    found = {path.name: ocp.StandardCheckpointer().restore(path) for path in items}
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(found)}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Raise unless all arrays are equal, bit for bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)

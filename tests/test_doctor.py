"""The doctor names what stands in the way of a training, and what to do."""

import collections
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from maskdino_jax import doctor
from maskdino_jax.config import Config, ConfigError
from tests.e2e.conftest import smallest

ROOT = Path(__file__).parent.parent


def _findings(config: Config, workdir: Path) -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine(config, workdir)}


def test_a_sound_machine_is_ready_and_nothing_is_left_behind(tmp_path: Path) -> None:
    findings = _findings(smallest(), tmp_path / "runs/new")
    assert [finding.what for finding in findings.values() if finding.level == doctor.ERROR] == []
    assert findings["jax"].found == jax.__version__
    assert findings["devices"].found.startswith("4 x cpu")
    assert findings["data, train"].found.startswith("4 images of 133 classes in ")
    assert findings["deformable attention"].found.startswith("plain XLA")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_as_large_as_is_said(tmp_path: Path) -> None:
    """Parameters, two moments of each, the moving average: four numbers of four bytes."""
    config = smallest()
    spec = doctor.ModelSpec(config.model, 133)
    count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: spec.init(0))["params"]))
    config.train.ema_decay, config.train.keep_checkpoints = 0.9, 98
    assert f"all that are kept {100 * 16 * count / 2**30:.2f}" in _findings(config, tmp_path)["disk"].found


def test_what_is_missing_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    config = smallest(init_from="/no/weights.pkl")
    config.data.train.panoptic = "elsewhere"
    config.model.deform_attn = "pallas"
    findings = _findings(config, tmp_path)
    errors = {what for what, finding in findings.items() if finding.level == doctor.ERROR}
    assert errors == {"data, train", "config.train.init_from", "deformable attention"}
    assert "config.data.train.panoptic" in findings["data, train"].found
    assert "the extra cuda12 or cuda13" in findings["deformable attention"].found


def test_a_wrong_option_is_an_error(tmp_path: Path) -> None:
    finding = _findings(smallest(steps=0), tmp_path)["config"]
    assert finding.level == doctor.ERROR
    assert "config.train.steps = 0" in finding.found


def test_a_full_disk_is_an_error_before_the_first_checkpoint_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(1000))
    finding = _findings(smallest(), tmp_path)["disk"]
    assert finding.level == doctor.ERROR
    assert "another disk" in finding.remedy


def test_a_workdir_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    finding = _findings(smallest(), tmp_path)["workdir"]
    assert finding.level == doctor.ERROR
    assert finding.found == f"{tmp_path}: Permission denied"


def _machine_with_a_gpu(folder: Path) -> dict[str, str]:
    """An environment in which the driver's program knows a GPU, and JAX does not."""
    program = folder / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "GPU 0: NVIDIA Test (UUID: GPU-0)"\n')
    program.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {key: value for key, value in os.environ.items() if key != "JAX_PLATFORMS"} | {"PATH": path}


def test_training_on_the_cpu_beside_a_gpu_is_refused_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", _machine_with_a_gpu(tmp_path)["PATH"])
    doctor.require_accelerator()  # the tests run with JAX_PLATFORMS=cpu
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", "")
    try:
        with pytest.raises(ConfigError, match=r"GPU 0: NVIDIA Test.*cuda13.*JAX_PLATFORMS=cpu"):
            doctor.require_accelerator()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        with pytest.raises(ConfigError, match=r"CUDA_VISIBLE_DEVICES='' hides it"):
            doctor.require_accelerator()
    finally:
        jax.config.update("jax_platforms", before)


def test_the_command_line_ends_with_a_status(tmp_path: Path) -> None:
    environment = _machine_with_a_gpu(tmp_path) | {"XLA_FLAGS": ""}

    def ended(**variables: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "main.py", "--mode=doctor", f"--workdir={tmp_path / 'run'}"]
        return subprocess.run(
            command, cwd=ROOT, env=environment | variables, capture_output=True, text=True, timeout=120, check=False
        )

    refused, on_purpose = ended(), ended(JAX_PLATFORMS="cpu")
    assert refused.returncode == 1
    assert "error    accelerator: JAX runs on the CPU, but GPU 0: NVIDIA Test" in refused.stderr
    assert on_purpose.returncode == 0, on_purpose.stderr
    assert "warning  accelerator: the CPU beside GPU 0" in on_purpose.stderr

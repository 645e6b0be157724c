"""The README's commands exist: targets are in the Makefile, and every main.py line parses into a valid config."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from maskdino_jax.config import flatten
from maskdino_jax.validation import validate
from tests.test_configs import load

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
LINES = [line for kind, block in BLOCKS if kind == "bash" for line in block.replace("\\\n", "").splitlines() if line]
RUNS = [line for line in LINES if line.startswith("python main.py")]
CONVERSIONS = [line for line in LINES if line.startswith("python -m maskdino_jax.checkpoints.torch_import ")]
TARGETS = [word for line in LINES if line.startswith("make") for word in line.partition("#")[0].split()[1:]]


def test_every_command_is_of_a_kind_tested_here() -> None:
    assert RUNS
    assert TARGETS[:2] == ["quickstart", "test"]
    assert len(CONVERSIONS) == 1
    others = [line for line in LINES if line not in CONVERSIONS and not line.startswith(("python main.py", "make "))]
    assert others == ['pip install -c constraints.txt ".[cuda13]"   # NVIDIA GPU with CUDA 13; cuda12 for CUDA 12; '
                      "leave it out for the CPU"]  # fmt: skip


@pytest.mark.parametrize("target", sorted(set(TARGETS)))
def test_the_target_exists(target: str) -> None:
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def _main_flags() -> set[str]:
    text = (ROOT / "maskdino_jax/cli.py").read_text()
    return set(re.findall(r"flags\.DEFINE_\w+\(\s*\"(\w+)\"", text)) | {"config"}


@pytest.mark.parametrize("line", RUNS)
def test_every_flag_and_option_exists(line: str) -> None:
    arguments = dict(word.removeprefix("--").split("=", 1) for word in shlex.split(line)[2:])
    options = {name.removeprefix("config."): arguments.pop(name) for name in list(arguments) if "." in name}
    assert set(arguments) <= _main_flags()
    path, _, variant = arguments.get("config", "configs/nuclei_panoptic.py").partition(":")
    config = validate(load(Path(path).stem, variant or "r50"))
    assert set(options) <= set(flatten(config))


@pytest.mark.parametrize("line", CONVERSIONS)
def test_a_conversion_has_the_flags_of_its_command(line: str) -> None:
    arguments = dict(word.removeprefix("--").split("=", 1) for word in shlex.split(line)[3:])
    text = (ROOT / "maskdino_jax/checkpoints/torch_import.py").read_text()
    assert set(arguments) == set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", text))
    path, _, variant = arguments["config"].partition(":")
    assert load(Path(path).stem, variant).data.classes


def test_every_config_it_names_exists() -> None:
    named = re.findall(r"`configs/(\w+)\.py:(\w+)`", (ROOT / "README.md").read_text())
    assert len(named) == 8
    for name, variant in named:
        load(name, variant)


def test_the_extras_and_the_files_it_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (ROOT / target).exists(), target

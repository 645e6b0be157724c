"""The README's commands exist: targets are in the Makefile, and every main.py line parses into a valid config."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from maskdino_jax.config import flatten, validate
from tests.test_configs import load

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
LINES = [line for kind, block in BLOCKS if kind == "bash" for line in block.replace("\\\n", "").splitlines() if line]
RUNS = [line for line in LINES if line.startswith("python main.py")]
TARGETS = [word for line in LINES if line.startswith("make") for word in line.partition("#")[0].split()[1:]]


def test_every_command_is_of_a_kind_tested_here() -> None:
    assert RUNS
    assert TARGETS[:2] == ["quickstart", "test"]
    others = [line for line in LINES if not line.startswith(("python main.py", "make "))]
    assert others == ['pip install -c constraints.txt ".[cuda13]"   # NVIDIA GPU with CUDA 13; cuda12 for CUDA 12; '
                      "leave it out for the CPU"]  # fmt: skip


@pytest.mark.parametrize("target", sorted(set(TARGETS)))
def test_the_target_exists(target: str) -> None:
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def _main_flags() -> set[str]:
    text = (ROOT / "main.py").read_text()
    return set(re.findall(r"flags\.DEFINE_\w+\(\s*\"(\w+)\"", text)) | {"config"}


@pytest.mark.parametrize("line", RUNS)
def test_every_flag_and_option_exists(line: str) -> None:
    arguments = dict(word.removeprefix("--").split("=", 1) for word in shlex.split(line)[2:])
    options = {name.removeprefix("config."): arguments.pop(name) for name in list(arguments) if "." in name}
    assert set(arguments) <= _main_flags()
    path, _, variant = arguments.get("config", "configs/nuclei_panoptic.py").partition(":")
    config = validate(load(Path(path).stem, variant or "r50"))
    assert set(options) <= set(flatten(config))


def test_the_extras_and_the_files_it_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (ROOT / target).exists(), target

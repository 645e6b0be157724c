"""The layer contract holds, and fails on a planted breach."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _lint(tree: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the packages, found before the installed ones."""
    ignore = shutil.ignore_patterns("samples", "__pycache__")
    shutil.copytree(ROOT / "maskdino_jax", tmp_path / "maskdino_jax", ignore=ignore)
    shutil.copytree(ROOT / "kernels", tmp_path / "maskdino_kernels", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        (None, "", None),
        ("model/heads.py", "import maskdino_kernels", "Kernels are reached through one door"),
        ("losses/costs.py", "import maskdino_jax.model.heads", "Data flows one way"),
        ("data/batching.py", "import flax", "Data is host code"),
    ],
)
def test_contracts(tree: Path, module: str | None, line: str, contract: str | None) -> None:
    if module is not None:
        with (tree / "maskdino_jax" / module).open("a") as file:
            file.write(f"\n{line}\n")
    ended = _lint(tree)
    assert (ended.returncode == 0) == (contract is None), ended.stdout
    if contract is not None:
        assert f"{contract} BROKEN" in ended.stdout

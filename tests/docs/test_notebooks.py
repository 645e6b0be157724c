"""The notebooks run from start to end, and are kept without what they showed."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.docs import place
from tests.docs.blocks import ROOT
from tests.docs.notebooks import code_cells

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def _execute(name: str, folder: Path) -> str:
    """What a notebook prints, run in `folder` by a process with one device, as a kernel would have it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.docs.notebooks", str(ROOT / "notebooks" / name)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=1200,
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
    return ended.stdout


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_it_is_kept_without_outputs(notebook: Path) -> None:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    assert set(content["metadata"]) == {"kernelspec", "language_info"}
    for cell in content["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_its_cells_are_python_of_the_line_length_of_the_code(notebook: Path) -> None:
    for source in code_cells(notebook):
        compile(source, notebook.name, "exec")  # no magics
        assert max(map(len, source.splitlines())) <= 120


def test_inference_takes_the_model_of_the_quick_start(template: Path, tmp_path: Path) -> None:
    folder = place.copy(template, tmp_path / "place")
    said = _execute("inference.ipynb", folder)
    assert "compiling the training step" not in said
    assert "[(1, 'nucleus', True), (2, 'background', False)]" in said
    assert "('person', 'bicycle', 'car', 'motorcycle', 'airplane')" in said
    assert not (folder / "runs/notebook").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inference.ipynb", "finetune.ipynb"])
def test_it_runs_in_a_folder_without_any_model(name: str, tmp_path: Path) -> None:
    for link in ("maskdino_jax", "configs", "docs"):
        (tmp_path / link).symlink_to(ROOT / link)
    started = time.monotonic()
    said = _execute(name, tmp_path)
    assert "compiling the training step" in said
    sys.stdout.write(f"{name}: {time.monotonic() - started:.0f} s\n")
    if name == "finetune.ipynb":
        results = json.loads((tmp_path / "runs/finetuned/results.json").read_text())
        assert {"segm/AP-small", "segm/AP-round", "segm/AP-oblong"} <= set(results)
        assert results["bbox/AP50"] > 0.05
        assert (tmp_path / "runs/finetuned/report/index.html").is_file()
    shutil.rmtree(tmp_path / "runs")

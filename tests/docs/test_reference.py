"""The API reference can be built, and has something to say about every public name."""

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import maskdino_jax
from tests.docs.blocks import ROOT

_PACKAGES = ("maskdino_jax.ops", "maskdino_jax.losses", "maskdino_jax.model")
_MODULES = (
    "maskdino_jax.config",
    "maskdino_jax.structures",
    "maskdino_jax.parts",
    "maskdino_jax.inference.predictor",
    "maskdino_jax.inference.results",
)


def _modules() -> list[str]:
    inside = [
        found.name
        for package in _PACKAGES
        for found in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}.")
    ]
    return [*inside, *_MODULES]


def _public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Functions and classes of a module, and what the classes define, by name."""
    for name, value in vars(module).items():
        own = inspect.isfunction(value) or inspect.isclass(value)
        if name.startswith("_") or not own or value.__module__ != module.__name__:
            continue
        yield name, value
        for member, part in vars(value).items() if inspect.isclass(value) else ():
            described = inspect.isfunction(part) or isinstance(part, property | classmethod | staticmethod)
            if described and not member.startswith("_"):
                yield f"{name}.{member}", part


def _says_something(name: str, value: object) -> bool:
    """Whether there is a docstring, other than the signature that a dataclass makes one of."""
    text = (value.__doc__ or "").strip()
    return bool(text) and not text.startswith(f"{name}(")


@pytest.mark.parametrize("name", _modules())
def test_every_public_name_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    silent = [member for member, value in _public(module) if not _says_something(member, value)]
    assert not silent, f"{name}: {', '.join(silent)}"


def test_the_names_of_the_package_have_docstrings() -> None:
    for name in maskdino_jax.__all__:
        assert _says_something(name, getattr(maskdino_jax, name)), name


@pytest.mark.slow
def test_the_reference_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="needs pdoc, of the extra `dev`")
    command = [sys.executable, "docs/reference.py", str(tmp_path / "api")]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stderr == ""
    page = (tmp_path / "api/maskdino_jax/inference/predictor.html").read_text()
    assert "Segments in the pixels of the original image" in page
    assert (tmp_path / "api/maskdino_kernels.html").is_file()

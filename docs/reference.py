"""The API reference, made of the docstrings: `make docs`, or `python docs/reference.py FOLDER`."""

import pkgutil
import sys
import warnings
from pathlib import Path

import maskdino_kernels
import pdoc

import maskdino_jax

PACKAGES = (maskdino_jax, maskdino_kernels)


def modules() -> list[str]:
    """All modules, also those of packages whose `__all__` leaves them out, which pdoc would skip."""
    names: list[str] = []
    known: set[str] = set()
    for package in PACKAGES:
        inside = (module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))
        for name in (package.__name__, *inside):
            if name not in known:
                names.append(name)
                known.update(pdoc.extract.walk_specs([name]))
    return names


def build(output: Path) -> Path:
    """Write the pages, one for each module; returns the first one. What cannot be documented is an error."""
    for name in maskdino_jax.__all__:  # found lazily: pdoc looks at what is there
        vars(maskdino_jax)[name] = getattr(maskdino_jax, name)
    pdoc.render.configure(docformat="google", footer_text="maskdino-jax")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc(*modules(), output_directory=output)
    return output / "index.html"


if __name__ == "__main__":
    sys.stdout.write(f"{build(Path(sys.argv[1]))}\n")

"""Run a notebook as plain Python, without Jupyter: `python -m tests.docs.notebooks NOTEBOOK`.

The cells are Python without magics, so that a kernel is not needed to try them. Like one, this shows the value of an
expression that ends a cell, but as text.
"""

import ast
import json
import sys
from pathlib import Path
from typing import Any


def code_cells(notebook: Path) -> list[str]:
    """The source of the code cells."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run(notebook: Path) -> dict[str, Any]:
    """The names that are left after the last cell."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(code_cells(notebook)):
        place = f"{notebook.name}[{number}]"
        tree = ast.parse(source, place)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, place, "exec"), names)
        if last is not None:
            shown = eval(compile(ast.Expression(last.value), place, "eval"), names)
            if shown is not None:
                sys.stdout.write(f"{shown!r}\n")
    return names


if __name__ == "__main__":
    run(Path(sys.argv[1]))

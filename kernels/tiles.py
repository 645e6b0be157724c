"""How many queries a program handles and how many warps run it, for each GPU: `tiles.json`, written by a sweep.

`python benchmarks/deform_attn.py --sweep` measures the alternatives on the GPU at hand and writes its entry.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator

import jax

PATH = pathlib.Path(__file__).with_name("tiles.json")
FEW = 1024  # queries up to this number are a decoder's: too few blocks to fill the GPU, unless they are small


@dataclasses.dataclass(frozen=True)
class Tile:
    """Queries of a program, a power of two, and warps that run it."""

    block: int
    warps: int


def workload(queries: int, *, backward: bool) -> str:
    """The name in the table of a pass over so many queries."""
    return f"{'backward' if backward else 'forward'}, {'few' if queries <= FEW else 'many'} queries"


_overrides: dict[bool, Tile] = {}


@contextlib.contextmanager
def override(tile: Tile, *, backward: bool) -> Iterator[None]:
    """Use this tile for everything that is traced meanwhile; for the sweep that fills the table."""
    _overrides[backward] = tile
    try:
        yield
    finally:
        del _overrides[backward]


def choose(queries: int, *, backward: bool) -> Tile:
    """The tile measured on this GPU; that of `default` on one that is not in the table or not there."""
    if backward in _overrides:
        return _overrides[backward]
    kind = jax.local_devices()[0].device_kind if jax.default_backend() == "gpu" else "default"
    table = _table()
    return Tile(**(table.get(kind) or table["default"])[workload(queries, backward=backward)])


@functools.cache
def _table() -> dict[str, dict[str, dict[str, int]]]:
    return json.loads(PATH.read_text())

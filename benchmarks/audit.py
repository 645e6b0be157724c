"""What a program does, read from its jaxpr and from its compiled form, without running it."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.extend import source_info_util
from jax.extend.core import Jaxpr
from jax.stages import Compiled

_BYTES = {"pred": 1, "bf16": 2, "f16": 2, **{f"{kind}{bits}": bits // 8 for kind in "suf" for bits in (8, 16, 32, 64)}}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_OPERATION = re.compile(r"= (?P<result>\(.*?\)|\S+) (?P<name>[\w-]+)\(.*")


@dataclasses.dataclass(frozen=True)
class Largest:
    """The largest operation of a kind; `where` is its line of the program, or of the source of a jaxpr."""

    size: int
    where: str


def _operations(compiled: Compiled, name: str) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Lines of the compiled program with an operation, and type and number of elements of what each returns."""
    for line in compiled.as_text().splitlines():
        found = _OPERATION.search(line)
        if found and found["name"] == name:
            arrays = _ARRAY.findall(found["result"])
            yield line.strip(), [(kind, math.prod(map(int, filter(None, sides.split(","))))) for kind, sides in arrays]


def largest_gather(program: Compiled | Jaxpr) -> Largest:
    """Bytes of the largest result of a gather, also of one that is part of a fusion and may never be stored."""
    if isinstance(program, Jaxpr):
        found = [(e.outvars[0].aval, e) for e in equations(program) if e.primitive.name == "gather"]
        sizes = [Largest(aval.size * aval.dtype.itemsize, _where(e)) for aval, e in found]
    else:
        gathers = _operations(program, "gather")
        sizes = [Largest(_BYTES[kind] * count, line) for line, results in gathers for kind, count in results]
    return max(sizes, key=lambda gather: gather.size, default=Largest(0, ""))


def largest_sort(program: Compiled | Jaxpr) -> Largest:
    """Elements of the largest array that is sorted; of a jaxpr, also of the largest whose best are chosen."""
    if isinstance(program, Jaxpr):
        found = [e for e in equations(program) if e.primitive.name in ("sort", "top_k", "approx_top_k")]
        sizes = [Largest(e.invars[0].aval.size, _where(e)) for e in found]
    else:
        sorts = _operations(program, "sort")
        sizes = [Largest(count, line) for line, results in sorts for _, count in results]
    return max(sizes, key=lambda sort: sort.size, default=Largest(0, ""))


def host_callbacks(program: Compiled | Jaxpr) -> int:
    """How many operations call Python; one in a loop counts once."""
    if isinstance(program, Jaxpr):
        return sum("callback" in e.primitive.name for e in equations(program))
    return sum("callback" in line for line, _ in _operations(program, "custom-call"))


def _where(equation: Any) -> str:
    shape = equation.outvars[0].aval.str_short()
    return f"{equation.primitive} -> {shape}, {source_info_util.summarize(equation.source_info)}"


def equations(jaxpr: Jaxpr) -> Iterator[Any]:
    """Every equation of a jaxpr and of those within it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in _inner_jaxprs(equation.params):
            yield from equations(inner)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(one, "jaxpr", one)
            if hasattr(inner, "eqns"):
                yield inner


def flops(jaxpr: Jaxpr, turns: int = 1) -> int:
    """Floating-point operations of matrix products and convolutions, two for each multiplication.

    Products with the zeros that pad a map, or that lie between its pixels in the gradient of a strided convolution,
    do not count. Of a choice the costliest branch counts. Inside `shard_map` it is the work of one device.

    Args:
        turns: of each loop whose number of turns depends on the data.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        inner = [flops(one, turns) for one in _inner_jaxprs(params)]
        if name == "dot_general":
            total += _product_flops(equation)
        elif name == "conv_general_dilated":
            total += _convolution_flops(equation)
        elif name == "cond":
            total += max(inner)
        elif name == "scan":
            total += params["length"] * sum(inner)
        elif name == "while":
            total += turns * sum(inner)
        else:
            total += sum(inner)
    return total


def _product_flops(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _convolution_flops(equation: Any) -> int:
    params, (left, right) = equation.params, (v.aval.shape for v in equation.invars)
    numbers, output = params["dimension_numbers"], equation.outvars[0].aval.shape
    positions = 1
    for axis in range(len(params["window_strides"])):
        specs = ((left, numbers.lhs_spec), (right, numbers.rhs_spec), (output, numbers.out_spec))
        size, taps, results = (shape[spec[axis + 2]] for shape, spec in specs)
        place = np.arange(results)[:, None] * params["window_strides"][axis] - params["padding"][axis][0]
        place = place + np.arange(taps) * params["rhs_dilation"][axis]
        gap = params["lhs_dilation"][axis]
        positions *= np.count_nonzero((place >= 0) & (place <= (size - 1) * gap) & (place % gap == 0))
    batch = left[numbers.lhs_spec[0]] // params["batch_group_count"]
    fan_in, fan_out = right[numbers.rhs_spec[1]], right[numbers.rhs_spec[0]]
    return int(2 * positions * batch * fan_in * fan_out)

"""A function as one flat sequence of few primitives, those that a converter to another format knows.

JAX traces a function to an expression in its primitives. Here that expression is evaluated again, on the tracers of
whoever converts it: functions in functions are opened, what does not depend on the arguments is computed, the branch of
the platform "any other" is taken, and the primitives of `_REWRITTEN` are expressed by others.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jaxtyping import Array

_SMALL = 2**16  # elements of a constant; larger ones are cheaper to make than to store
_CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "closed_call", "remat2", "checkpoint")
_MARKS = ("name", "stop_gradient", "optimization_barrier")  # tell JAX something, compute nothing


def in_few_primitives(function: Callable[..., Any], *arguments: jax.ShapeDtypeStruct) -> Callable[..., list[Any]]:
    """The same function of arguments of these shapes, which may have symbols for sides; its results as a flat list."""
    expression = jax.make_jaxpr(function)(*arguments)
    return lambda *values: _Evaluation().of(expression.jaxpr, expression.consts, *values)


class _Evaluation:
    """One walk through an expression; what is the same as before is not computed again."""

    def __init__(self) -> None:
        self._found: dict[Any, tuple[Sequence[Any], Sequence[Any]]] = {}

    def of(self, expression: Jaxpr, constants: Sequence[Any], *arguments: Any) -> list[Any]:
        values: dict[Any, Any] = dict(
            zip([*expression.constvars, *expression.invars], [*constants, *arguments], strict=True)
        )
        read = lambda atom: atom.val if isinstance(atom, Literal) else values[atom]
        for equation in expression.eqns:
            results = self._results(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in expression.outvars]

    def _results(self, equation: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        primitive, params = equation.primitive, equation.params
        if primitive.name == "platform_index":
            return [np.int32(params["platforms"].index(None))]
        if primitive.name == "cond" and _known(inputs[0]):
            branch: ClosedJaxpr = params["branches"][int(inputs[0])]
            return self.of(branch.jaxpr, branch.consts, *inputs[1:])
        if primitive.name in _CALLS:
            called = params.get("jaxpr") or params["call_jaxpr"]
            return self.of(called.jaxpr, called.consts, *inputs)
        if primitive.name in _MARKS:
            return inputs
        key = primitive, frozenset(params.items()), tuple(map(_identity, inputs))
        if key not in self._found:
            self._found[key] = _computed(equation, inputs), inputs  # the inputs are kept, lest others get their ids
        return self._found[key][0]


def _computed(equation: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
    primitive, params = equation.primitive, equation.params
    if all(map(_known, inputs)) and all(_small(variable.aval.shape) for variable in equation.outvars):
        with jax.ensure_compile_time_eval():
            results = primitive.bind(*inputs, **params)
    elif primitive.name in _REWRITTEN:
        results = _REWRITTEN[primitive.name](*inputs, **params)
    else:
        results = primitive.bind(*inputs, **params)
    return results if primitive.multiple_results else [results]


def _identity(value: Any) -> Any:
    """Equal for equal scalars and for the same array."""
    if _known(value) and np.ndim(value) == 0:
        return jax.typeof(value), np.asarray(value).tobytes()  # of bytes, since 0.0 equals -0.0
    return id(value)


def _known(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer)


def _small(shape: tuple[Any, ...]) -> bool:
    return all(isinstance(side, int) for side in shape) and math.prod(shape) <= _SMALL


# --- primitives by way of others ---
# jax2onnx 0.17 makes of them what does not run, or gives up where a side is a symbol.


def _div(x: Array, y: Array) -> Array:
    """The converter takes x / 2 for a mean of two summands, which ONNX has for floats only; not so x / -2."""
    if not jnp.issubdtype(x.dtype, jnp.integer):
        return lax.div(x, y)
    return lax.div(lax.neg(x), lax.neg(y))


def _rem(x: Array, y: Array) -> Array:
    return lax.sub(x, lax.mul(_div(x, y), y))


def _pad(x: Array, value: Array, *, padding_config: Sequence[tuple[int, int, int]]) -> Array:
    """Borders as arrays of their own."""
    for axis, (low, high, inner) in enumerate(padding_config):
        if low < 0 or high < 0 or inner:
            raise NotImplementedError(f"padding {padding_config}: only borders outside are rewritten")
        before, after = ((*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in (low, high))
        parts = [*([lax.broadcast(value, before)] if low else []), x, *([lax.broadcast(value, after)] if high else [])]
        x = lax.concatenate(parts, axis) if len(parts) > 1 else x
    return x


def _max_pool(
    x: Array, *, window_dimensions: Sequence[int], window_strides: Sequence[int], padding: Sequence[Any], **_: Any
) -> Array:
    """One axis after the other, the largest of shifted maps: the converter asks for a pooling of four axes."""
    x = _pad(x, jnp.array(-jnp.inf, x.dtype), padding_config=[(low, high, 0) for low, high in padding])
    for axis, (size, stride) in enumerate(zip(window_dimensions, window_strides, strict=True)):
        if size > 1:
            last = (x.shape[axis] - size) // stride * stride
            shifted = [lax.slice_in_dim(x, start, start + last + 1, stride, axis) for start in range(size)]
            x = functools.reduce(lax.max, shifted)
    return x


def _sum(x: Array, *, axes: Sequence[int], **params: Any) -> Array:
    """One axis after the other: runtimes add up in a row, and the variance of a group norm, a difference of two sums,
    would be wrong in the fourth digit."""
    for axis in sorted(axes, reverse=True):
        x = lax.reduce_sum_p.bind(x, axes=(axis,), **params)
    return x


_REWRITTEN = {"reduce_sum": _sum, "div": _div, "rem": _rem, "pad": _pad, "reduce_window_max": _max_pool}

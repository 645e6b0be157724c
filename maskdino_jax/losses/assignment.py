"""The assignment problem on an accelerator, by shortest augmenting paths (Jonker and Volgenant 1987; Crouse 2016).

`optax.assignment` solves one full matrix in float32. Here targets are padded, costs may be missing, and many problems
are solved at a time: each turn of the one loop takes a single step in each of them, so that none waits for another.

The loop computes in float64, as SciPy does, though the program around it has float32 only: assignments that differ in
the last digit of a cost must stay apart, beside placeholders far larger than any cost. It avoids operations that JAX
lowers by way of the 64-bit switch, which is off again by then, such as argmin.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

_NONE = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _State:
    """A matching that is optimal for the targets it serves, and the search for one more.

    The search walks from a waiting target to its queries, from a taken query to the target that has it, and on to the
    queries of that, until it finds a free one. A step costs what changing the query would, less the potentials, which
    make all steps non-negative; hence the nearest query not yet done is next, as in Dijkstra's algorithm.
    """

    potential: Float[Array, "c"]  # of a query: 0 while it is free, then falling
    target_of: Int[Array, "c"]
    query_of: Int[Array, "n"]
    distance: Float[Array, "c"]  # shortest known from the waiting target
    before: Int[Array, "c"]  # the target from which it was reached
    done: Bool[Array, "c"]  # the distance is final
    reached: Float[Array, ""]  # the largest final distance
    target: Int[Array, ""]  # the search stands here
    end: Int[Array, ""]  # a free query that was found, from which the path is followed back; else -1


def assign(cost: Float[Array, "q n"], count: Int[Array, ""]) -> Int[Array, "n"]:
    """Query of each of the first `count` targets at least total cost, -1 where there is none.

    With fewer queries than targets, `q` of these are served. As few costs as possible are used that are not finite
    (but as many of minus infinity). Exact up to float64 rounding of sums of float32 costs; deterministic. `jax.vmap`
    gives it many problems at a time.
    """
    queries, targets = cost.shape
    if targets == 0:
        return jnp.zeros(0, jnp.int32)
    real = _indices(targets) < count
    with jax.enable_x64(True):
        costs = _finite(cost.astype(jnp.float64).T, real)
        state = jax.lax.while_loop(
            lambda state: jnp.any(_waiting(state, real)), lambda state: _turn(state, costs, real), _start(costs, real)
        )
    return jnp.where(state.query_of < queries, state.query_of, _NONE)


def _finite(costs: Float[Array, "n q"], real: Bool[Array, "n"]) -> Float[Array, "n c"]:
    """Placeholders for missing costs, and at least as many queries as targets: an added one means to have none.

    Whatever is gained by a choice among finite costs does not make up for one placeholder, nor do all of these for an
    added query.
    """
    rows, columns = costs.shape
    known = jnp.isfinite(costs) & real[:, None]
    low, high = (f(costs, where=known, initial=worst) for f, worst in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf)))
    span = jnp.where(high >= low, high - low, 0.0) + 1.0
    missing = jnp.where(costs == -jnp.inf, -1.0, 1.0) * span * (rows + 1)
    unserved = jnp.broadcast_to(2.0 * span * (rows + 1) ** 2, (rows, max(rows - columns, 0)))
    return jnp.concatenate([jnp.where(known, costs - low, missing), unserved], axis=1)


def _start(costs: Float[Array, "n c"], real: Bool[Array, "n"]) -> _State:
    """Every target takes its cheapest query if no target before it wants the same one."""
    rows, columns = costs.shape
    query, target = _indices(columns)[None], _indices(rows)[:, None]
    cheapest = jnp.min(jnp.where(costs == jnp.min(costs, axis=1, keepdims=True), query, columns), axis=1)
    target_of = jnp.min(jnp.where((cheapest[:, None] == query) & real[:, None], target, rows), axis=0)
    query_of = jnp.max(jnp.where(target_of == target, query, _NONE), axis=1)
    state = _State(
        potential=jnp.zeros(columns, costs.dtype),
        target_of=jnp.where(target_of < rows, target_of, _NONE),
        query_of=query_of,
        distance=jnp.full(columns, jnp.inf, costs.dtype),
        before=jnp.full(columns, _NONE, jnp.int32),
        done=jnp.zeros(columns, bool),
        reached=jnp.zeros((), costs.dtype),
        target=jnp.int32(0),
        end=jnp.int32(_NONE),
    )
    return dataclasses.replace(state, target=_first(_waiting(state, real)))


def _turn(state: _State, costs: Float[Array, "n c"], real: Bool[Array, "n"]) -> _State:
    """One step of the search, or one step back on the path it has found."""
    searching = state.end == _NONE
    return jax.tree.map(lambda a, b: jnp.where(searching, a, b), _search(state, costs), _rewire(state, real))


def _search(state: _State, costs: Float[Array, "n c"]) -> _State:
    """Look at the queries of `state.target` and go on to the nearest one of all that are not done."""
    rows, columns = costs.shape
    query = _indices(columns)
    prices = jax.lax.dynamic_index_in_dim(costs, state.target, keepdims=False) - state.potential
    own = _pick(prices, query == _pick(state.query_of, _indices(rows) == state.target))  # 0 for the waiting target
    through = state.reached + prices - own
    nearer = ~state.done & (through < state.distance)
    distance = jnp.where(nearer, through, state.distance)
    left = jnp.where(state.done, jnp.inf, distance)
    reached = jnp.min(left)
    nearest = query == _first(left == reached)
    holder = _pick(state.target_of, nearest)
    found = holder == _NONE
    done = state.done | nearest
    return dataclasses.replace(
        state,
        # Keeps the steps non-negative, and those of the matched pairs and of the new path zero.
        potential=jnp.where(found & done, state.potential + distance - reached, state.potential),
        distance=distance,
        before=jnp.where(nearer, state.target, state.before),
        done=done,
        reached=reached,
        target=jnp.where(found, state.target, holder),
        end=jnp.where(found, _first(nearest), _NONE),
    )


def _rewire(state: _State, real: Bool[Array, "n"]) -> _State:
    """Give the query `state.end` to the target before it, whose own one comes next; at the start, search anew."""
    query, targets = _indices(len(state.potential)), _indices(len(real))
    target = _pick(state.before, query == state.end)
    freed = _pick(state.query_of, targets == target)
    state = dataclasses.replace(
        state,
        target_of=jnp.where(query == state.end, target, state.target_of),
        query_of=jnp.where(targets == target, state.end, state.query_of),
        end=freed,
    )
    again = freed == _NONE
    return dataclasses.replace(
        state,
        distance=jnp.where(again, jnp.inf, state.distance),
        done=~again & state.done,
        reached=jnp.where(again, 0.0, state.reached),
        target=jnp.where(again, _first(_waiting(state, real)), state.target),
    )


def _waiting(state: _State, real: Bool[Array, "n"]) -> Bool[Array, "n"]:
    return real & (state.query_of == _NONE)


def _indices(count: int) -> Int[Array, "c"]:
    return jnp.arange(count, dtype=jnp.int32)


def _first(true: Bool[Array, "c"]) -> Int[Array, ""]:
    """Index of the first true element."""
    return jnp.min(jnp.where(true, _indices(len(true)), len(true)))


def _pick(values: Shaped[Array, "c"], here: Bool[Array, "c"]) -> Shaped[Array, ""]:
    """The element that is `here`, 0 if none is."""
    return jnp.sum(jnp.where(here, values, 0), dtype=values.dtype)

"""Shortest augmenting paths against SciPy: equal totals, and equal assignments where there is one best."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from maskdino_jax.losses.assignment import assign

_KINDS = {
    "normal": lambda rng, shape: 100 * rng.standard_normal(shape),
    "negative": lambda rng, shape: -rng.random(shape) * 1e-3,
    "integers": lambda rng, shape: rng.integers(-9, 9, shape),
    "two values": lambda rng, shape: rng.integers(0, 2, shape),
    "one value": lambda rng, shape: np.full(shape, 7.0),
    # Everyone wants the same queries, so that nearly each target has to displace others.
    "contested": lambda rng, shape: rng.random((*shape[:2], 1)) * 20 + rng.random(shape),
    # Offsets of queries and of targets decide nothing, the last digits of float32 everything.
    "close": lambda rng, shape: (
        rng.integers(0, 1000, (*shape[:2], 1)) + rng.integers(0, 1000, (shape[0], 1, shape[2])) + _digits(rng, shape)
    ),
}


def _digits(rng, shape):
    return rng.integers(0, 4, shape) * 2.0**-13


@jax.jit
def _assign(cost, counts):
    return jax.vmap(assign)(cost, counts)


def _check(cost, counts, *, same=False):
    """Each problem's assignment serves as many targets as can be, distinctly, at SciPy's total cost."""
    found = np.asarray(_assign(jnp.asarray(cost), jnp.asarray(counts)))
    assert found.dtype == np.int32
    for one, count, query in zip(np.asarray(cost, np.float64), counts, found, strict=True):
        rows, columns = linear_sum_assignment(one[:, :count])
        served = np.flatnonzero(query >= 0)
        assert len(served) == len(columns)
        assert len(set(query[served])) == len(served)
        assert (served < count).all()
        assert one[query[served], served].sum() == pytest.approx(one[rows, columns].sum(), rel=1e-13, abs=1e-13)
        if same:
            np.testing.assert_array_equal(query[columns], rows)


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize(("q", "n"), [(9, 6), (6, 9), (8, 8), (1, 1)])
def test_total_cost_is_least_for_any_number_of_targets(kind, q, n):
    rng = np.random.default_rng(q * n)
    counts = np.concatenate([[0, n], rng.integers(0, n + 1, 30)]).astype(np.int32)
    _check(_KINDS[kind](rng, (32, q, n)).astype(np.float32), counts, same=kind in ("normal", "contested"))


def test_three_hundred_queries_and_targets_padded_to_a_hundred():
    rng = np.random.default_rng(0)
    counts = np.array([0, 1, 7, 20, 60, 100], np.int32)
    for kind in ("normal", "contested", "close"):
        _check(_KINDS[kind](rng, (6, 300, 100)).astype(np.float32), counts, same=kind != "close")


def test_a_chain_of_displacements_is_followed_to_its_end():
    """Target j costs 0 at query j and 1 at query j + 1; the last target accepts query 0 alone."""
    n = 12
    cost = np.full((n, n), 100, np.float32)
    for j in range(n - 1):
        cost[j, j], cost[j + 1, j] = 0, 1
    cost[0, n - 1] = 0
    np.testing.assert_array_equal(_assign(cost[None], jnp.array([n]))[0], [*range(1, n), 0])


def test_missing_costs_do_not_blur_the_others():
    rng = np.random.default_rng(0)
    cost = _KINDS["contested"](rng, (100, 8, 8)).astype(np.float32)
    cost[rng.random(cost.shape) < 0.6] = np.nan  # so many that the best paths lead over some of them
    cost[:50, :, 3] = np.inf
    found = np.asarray(_assign(cost, np.full(100, 8, np.int32)))
    for one, query in zip(np.where(np.isfinite(cost), cost, 1e4).astype(np.float64), found, strict=True):
        rows, columns = linear_sum_assignment(one)
        assert one[query, np.arange(8)].sum() == pytest.approx(one[rows, columns].sum(), abs=1e-9)


def test_missing_costs_are_used_as_little_as_can_be():
    cost = np.array([[1 + 2**-23, 1, np.nan], [1, 1, np.inf], [np.nan, -np.inf, np.inf]], np.float32)
    # Target 2 gets a missing cost from any query, target 1 minus infinity from query 2; target 0 takes the cheaper one.
    np.testing.assert_array_equal(_assign(cost[None], jnp.array([3]))[0], [1, 2, 0])
    nothing = np.full((1, 2, 3), np.nan, np.float32)
    assert sorted(np.asarray(_assign(nothing, jnp.array([3])))[0].tolist()) == [-1, 0, 1]


def test_without_columns_for_targets_the_result_is_empty():
    assert _assign(jnp.zeros((2, 5, 0)), jnp.zeros(2, jnp.int32)).shape == (2, 0)


def test_the_program_around_it_stays_in_float32():
    text = jax.jit(lambda x: assign(x, jnp.int32(2)) + jnp.ones(2)).lower(jnp.zeros((3, 2)))
    assert text.out_info.dtype == jnp.float32
    assert jnp.zeros(1).dtype == jnp.float32

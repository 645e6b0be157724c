"""Assignment on the host and on the device: SciPy as oracle, awkward shapes and values."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from scipy.optimize import linear_sum_assignment

from maskdino_jax.losses.matcher import check_callback_threads, match


def _cost(sets, b, q, n, seed=0):
    return np.random.default_rng(seed).standard_normal((sets, b, q, n)).astype(np.float32)


def _mesh(count=4):
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])


@pytest.fixture(params=["scipy", "device"])
def impl(request):
    return request.param


def _match(cost, counts, impl):
    matches = jax.jit(match, static_argnames="impl")(jnp.asarray(cost), jnp.array(counts), impl=impl)
    return jax.tree.map(np.asarray, matches)


def test_every_set_and_image_gets_the_assignment_that_scipy_finds(impl):
    cost, counts = _cost(3, 2, 7, 5), [4, 5]
    matches = _match(cost, counts, impl)
    for index in itertools.product(range(3), range(2)):
        rows, columns = linear_sum_assignment(cost[index][:, : counts[index[1]]])
        np.testing.assert_array_equal(matches.query[index][columns], rows)
        np.testing.assert_array_equal(np.flatnonzero(matches.valid[index]), np.sort(columns))


def test_the_assignment_costs_least_among_all_permutations(impl):
    cost = _cost(1, 1, 5, 3, seed=1)
    matches = _match(cost, [3], impl)
    best = min(sum(cost[0, 0, i, j] for j, i in enumerate(rows)) for rows in itertools.permutations(range(5), 3))
    assert cost[0, 0, matches.query[0, 0], np.arange(3)].sum() == pytest.approx(best)


def test_filler_targets_are_not_matched_however_cheap(impl):
    cost = _cost(1, 1, 4, 3)
    cost[..., 2] = -1e6
    matches = _match(cost, [2], impl)
    np.testing.assert_array_equal(matches.valid[0, 0], [True, True, False])
    none = _match(cost, [0], impl)
    assert not none.valid.any()


def test_with_fewer_queries_than_targets_each_query_serves_one(impl):
    matches = _match(_cost(2, 1, 3, 6), [6], impl)
    assert matches.valid.sum(axis=-1).tolist() == [[3], [3]]
    for index in range(2):
        assert sorted(matches.query[index, 0][matches.valid[index, 0]]) == [0, 1, 2]


def test_costs_that_are_not_finite_are_avoided_and_never_raise(impl):
    cost = np.full((1, 1, 3, 2), np.nan, np.float32)
    cost[0, 0, 1, 0], cost[0, 0, 2, 1] = 5, 7
    cost[0, 0, 0] = np.inf
    matches = _match(cost, [2], impl)
    np.testing.assert_array_equal(matches.query[0, 0], [1, 2])


def test_no_gradient_passes_the_assignment(impl):
    cost = jnp.asarray(_cost(1, 1, 4, 2))
    gradient = jax.jit(jax.grad(lambda x: match(x, jnp.array([2]), impl=impl).query.sum() + 0.0 * x.sum()))(cost)
    np.testing.assert_array_equal(gradient, 0)


def test_a_mesh_that_would_deadlock_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    with pytest.raises(ValueError, match="NPROC=16"):
        check_callback_threads(_mesh(4))
    check_callback_threads(_mesh(1))
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 0))
    check_callback_threads(_mesh(4))
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    monkeypatch.setenv("NPROC", "16")
    check_callback_threads(_mesh(4))

"""The ReLU whose derivative is read off its result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.model.layers import relu


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_that_of_jax_with_its_gradient(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, cotangent = (jnp.asarray(rng.standard_normal(1000), jnp.float32) for _ in range(2))
    x = x.at[:3].set(jnp.array([0.0, -0.0, 1e-30]))
    both = (jax.vjp(function, x) for function in (lambda x: relu(x, dtype), jax.nn.relu))
    (found, pull), (expected, expected_pull) = both
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pull(cotangent)[0], expected_pull(cotangent)[0])

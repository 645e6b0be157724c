"""A function in few primitives is the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from maskdino_jax.export.primitives import in_few_primitives

FORBIDDEN = {"pad", "rem", "reduce_window_max", "platform_index", "cond", "jit", "custom_jvp_call", "custom_vjp_call"}


def flattened(function, *arguments):
    """Results of the rewritten function, and the primitives it is made of."""
    shapes = [jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype) for x in arguments]
    rewritten = in_few_primitives(function, *shapes)
    expression = jax.make_jaxpr(rewritten)(*arguments)
    return jax.jit(rewritten)(*arguments)[0], [equation.primitive.name for equation in expression.eqns]


NUMBERS = np.array([-7, -2, -1, 0, 1, 5, 8], np.int32)
MAP = np.random.default_rng(0).normal(size=(2, 7, 9, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (lambda x: (x + 1) // 2, NUMBERS),
        (lambda x: lax.rem(x, jnp.int32(3)), NUMBERS),
        (lambda x: lax.div(x, jnp.int32(-3)), NUMBERS),
        (lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=2), MAP),
        (lambda x: nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1))), MAP),
        (lambda x: lax.platform_dependent(x, cpu=lambda x: x + 1, default=lambda x: x + 2) - 1, MAP),
        (lambda x: jax.nn.relu(x) + jax.jit(jnp.cumsum)(x.ravel()).reshape(x.shape), MAP),
    ],
)
def test_results_stay_and_primitives_go(function, argument) -> None:
    result, primitives = flattened(function, argument)
    expected = argument + 1 if "platform_dependent" in function.__code__.co_names else function(argument)
    # Sums of numbers up to 4 may be rounded twice instead of once
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=5e-7)
    assert not FORBIDDEN & set(primitives)


def test_what_is_the_same_is_computed_once() -> None:
    _, primitives = flattened(lambda x: jnp.sin(x * 2.0) + jnp.sin(x * 2.0) * jnp.sin(x * -2.0), MAP)
    assert primitives.count("sin") == 2
    result, primitives = flattened(lambda x: jnp.arctan2(x, 0.0) + jnp.arctan2(x, -0.0), np.float32([0.0, -0.0]))
    assert primitives.count("atan2") == 2, "zero and minus zero are not the same"
    np.testing.assert_allclose(result, [np.pi, -np.pi], rtol=1e-6)


def test_constants_are_computed_and_large_ones_are_not_stored() -> None:
    _, primitives = flattened(lambda x: x + jnp.sqrt(jnp.arange(8.0)) * jnp.sin(2.0), np.zeros(8, np.float32))
    assert primitives == ["add"]
    _, primitives = flattened(lambda x: x + jnp.zeros((1000, 1000)), np.zeros(1000, np.float32))
    assert "broadcast_in_dim" in primitives


def test_sums_go_axis_by_axis() -> None:
    """Float32 in a row loses digits that pairs keep."""
    x = np.full((1, 512, 512, 2), 0.1, np.float32)
    result, primitives = flattened(lambda x: x.sum((1, 2, 3)), x)
    assert primitives.count("reduce_sum") == 3
    np.testing.assert_allclose(result, [0.1 * 512 * 512 * 2], rtol=1e-6)

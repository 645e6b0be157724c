"""The Pallas kernels against the definition: interpreted on any machine, run where there is a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from maskdino_kernels import ms_deform_attn, ms_deform_attn_backward

from maskdino_jax.ops.deform_attn import deform_attn

LEVELS_1024 = ((128, 128), (64, 64), (32, 32), (16, 16))
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-2}


def random_inputs(b, q, level_sizes, *, m=8, d=32, p=4, reference_dim=2, dtype="float32", seed=0, spread=3.0):
    """Value, offsets, logits, references; `spread` in pixels or half box sizes, so that some samples lie outside."""
    rng = np.random.default_rng(seed)
    tokens, levels = sum(h * w for h, w in level_sizes), len(level_sizes)
    value = rng.normal(size=(b, tokens, m, d))
    offsets = rng.normal(size=(b, q, m, levels, p, 2)) * spread
    logits = rng.normal(size=(b, q, m, levels * p))
    references = rng.uniform(size=(b, q, reference_dim))
    return jnp.asarray(value, dtype), *(jnp.asarray(a, jnp.float32) for a in (offsets, logits, references))


def gradient_of(out_shape, dtype="float32", seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=out_shape), dtype)


def relative_error(actual, expected):
    actual, expected = np.asarray(actual, np.float32), np.asarray(expected, np.float32)
    return np.abs(actual - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-30)


@functools.partial(jax.jit, static_argnums=5, compiler_options={"xla_backend_optimization_level": 0})
def interpreted(value, offsets, logits, references, grad, level_sizes):
    """The result and all four gradients of the kernels."""
    inputs = value, offsets, logits, references
    out = ms_deform_attn(*inputs, level_sizes, interpret=True)
    return out, *ms_deform_attn_backward(*inputs, grad, level_sizes, interpret=True)


@functools.partial(jax.jit, static_argnums=(5, 6))
def through_the_door(value, offsets, logits, references, grad, level_sizes, impl="xla"):
    inputs = value, offsets, logits, references
    out, pull = jax.vjp(lambda *x: deform_attn(*x, level_sizes, impl), *inputs)
    return out, *pull(grad)


def assert_kernels_equal_the_definition(inputs, level_sizes):
    value, offsets, *_ = inputs
    grad = gradient_of((*offsets.shape[:2], value.shape[2] * value.shape[3]), value.dtype)
    actual, expected = interpreted(*inputs, grad, level_sizes), through_the_door(*inputs, grad, level_sizes)
    assert [(a.shape, a.dtype) for a in actual] == [(e.shape, e.dtype) for e in expected]
    errors = [relative_error(a, e) for a, e in zip(actual, expected, strict=True)]
    assert max(errors) <= TOLERANCE[value.dtype.name], errors


@pytest.mark.parametrize(
    ("q", "level_sizes", "m", "d", "p", "reference_dim", "dtype"),
    [
        (32, ((5, 7),), 1, 1, 1, 2, "float32"),  # whole blocks
        (5, ((6, 4), (3, 2)), 2, 6, 1, 4, "bfloat16"),  # less than a block; channels that are no power of two
        (45, ((9, 16), (5, 8), (1, 1)), 2, 4, 1, 2, "float16"),  # a tail after the last whole block
        (17, ((4, 5), (3, 3), (3, 1), (1, 2), (1, 1)), 1, 3, 1, 4, "float32"),
    ],
)
def test_interpreted_kernels_equal_the_definition(q, level_sizes, m, d, p, reference_dim, dtype):
    inputs = random_inputs(2, q, level_sizes, m=m, d=d, p=p, reference_dim=reference_dim, dtype=dtype)
    assert_kernels_equal_the_definition(inputs, level_sizes)


@settings(max_examples=2, deadline=None, derandomize=True)
@example(b=1, q=3, level_sizes=[(2, 3)], p=3, reference_dim=4, spread=1e4, seed=1)
@given(
    b=st.integers(1, 2),
    q=st.integers(1, 20),
    level_sizes=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=2),
    p=st.integers(1, 2),
    reference_dim=st.sampled_from([2, 4]),
    spread=st.sampled_from([0.5, 3.0, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_any_shape_equals_the_definition(b, q, level_sizes, p, reference_dim, spread, seed):
    level_sizes = tuple(level_sizes)
    inputs = random_inputs(b, q, level_sizes, m=1, d=2, p=p, reference_dim=reference_dim, spread=spread, seed=seed)
    assert_kernels_equal_the_definition(inputs, level_sizes)


def test_samples_of_one_pixel_add_up_in_its_gradient():
    q, p = 45, 2
    grad = np.random.default_rng(0).integers(-8, 8, (1, q, 4)).astype(np.float32)
    centre, offsets = np.full((1, q, 2), 0.5, np.float32), np.zeros((1, q, 1, 1, p, 2), np.float32)
    inputs = (np.ones((1, 1, 1, 4), np.float32), offsets, np.zeros((1, q, 1, p), np.float32), centre)
    _, by_value, *_ = interpreted(*inputs, grad, ((1, 1),))
    np.testing.assert_array_equal(by_value[0, 0, 0], grad[0].sum(axis=0))


def test_samples_on_the_border_and_infinitely_far_outside():
    level_sizes = ((2, 3),)
    value, offsets, logits, references = random_inputs(1, 6, level_sizes, m=1, d=2, p=1)
    places = [(0.0, 0.0), (1.0, 1.0), (0.5, -0.2), (1.1, 0.5), (0.5, 0.5), (0.5, 0.5)]  # corners, half a pixel beyond
    references = jnp.asarray(places, jnp.float32)[None]
    offsets = jnp.zeros_like(offsets).at[:, 4].set(jnp.inf).at[:, 5].set(-1e20)
    inputs = (value, offsets, logits, references)
    assert_kernels_equal_the_definition(inputs, level_sizes)
    actual = interpreted(*inputs, jnp.ones((1, 6, 2)), level_sizes)
    for i in (0, 2, 3, 4):  # all but the gradient by value, which has no axis of queries
        assert not np.asarray(actual[i][:, 4:]).any()
    assert np.asarray(actual[0][:, :4]).all()


@pytest.mark.parametrize(("b", "q"), [(0, 3), (2, 0)])
def test_no_image_and_no_query_give_empty_results_and_zero_gradients(b, q):
    level_sizes = ((2, 3),)
    inputs = random_inputs(b, q, level_sizes, m=2, d=4, p=1)
    out, *grads = interpreted(*inputs, jnp.zeros((b, q, 8)), level_sizes)
    assert out.shape == (b, q, 8)
    assert [g.shape for g in grads] == [a.shape for a in inputs]
    assert not any(np.asarray(g).any() for g in grads)


def test_images_on_different_devices_stay_there():
    level_sizes = ((3, 4),)
    inputs = (*random_inputs(4, 5, level_sizes, m=1, d=4, p=1), gradient_of((4, 5, 4)))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    divided = jax.device_put(inputs, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    compiled = interpreted.lower(*divided, level_sizes).compile()
    text = compiled.as_text()
    assert not [name for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if name in text]
    for actual, expected in zip(compiled(*divided), interpreted(*inputs, level_sizes), strict=True):
        assert actual.sharding.spec[0] == "data"
        np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int32"}, "int32.*float32, bfloat16, float16"),
        ({"level_sizes": ((2, 2),)}, "1 levels of 4 tokens.*value has 6 tokens"),
    ],
)
def test_unsupported_arguments_name_the_remedy(change, message):
    level_sizes = change.get("level_sizes", ((2, 3),))
    inputs = random_inputs(1, 2, ((2, 3),), m=1, p=1, dtype=change.get("dtype", "float32"))
    for call in (ms_deform_attn, lambda *x, **options: ms_deform_attn_backward(*x[:4], None, *x[4:], **options)):
        with pytest.raises(ValueError, match=message):
            call(*inputs, level_sizes, interpret=True)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2**-8), ("float16", 2**-10)])
@pytest.mark.parametrize(
    ("b", "q", "level_sizes", "reference_dim"),
    [
        (2, 21760, LEVELS_1024, 2),
        (1, 22323, ((100, 168), (50, 84), (25, 42), (13, 21)), 2),  # 800 x 1344; the last block has a tail
        (2, 400, LEVELS_1024, 4),
        (1, 300, LEVELS_1024, 4),
        (1, 1, ((3, 5),), 2),
        (1, 87, ((16, 16), (8, 8), (4, 4), (2, 2), (1, 1)), 4),
        (0, 10, ((3, 5),), 2),
    ],
)
def test_gpu_kernels_equal_the_definition(b, q, level_sizes, reference_dim, dtype, tolerance):
    inputs = random_inputs(b, q, level_sizes, reference_dim=reference_dim, dtype=dtype)
    grad = gradient_of((b, q, 256), dtype)
    actual, expected = (through_the_door(*inputs, grad, level_sizes, impl) for impl in ("pallas", "xla"))
    # The order of atomic additions changes from run to run; both sum in float32 and round once.
    assert max(relative_error(a, e) for a, e in zip(actual, expected, strict=True)) <= tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("d", [24, 48])
def test_gpu_kernels_take_channels_that_are_no_power_of_two(d):
    inputs = random_inputs(1, 50, ((6, 5), (3, 2)), d=d)
    grad = gradient_of((1, 50, 8 * d))
    actual, expected = (through_the_door(*inputs, grad, ((6, 5), (3, 2)), impl) for impl in ("pallas", "xla"))
    assert max(relative_error(a, e) for a, e in zip(actual, expected, strict=True)) <= 1e-5


@pytest.mark.gpu
def test_gpu_repeats_deterministic_gradients_bit_for_bit():
    inputs, grad = random_inputs(2, 21760, LEVELS_1024), gradient_of((2, 21760, 256))
    first, *others = (through_the_door(*inputs, grad, LEVELS_1024, "deterministic") for _ in range(4))
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)

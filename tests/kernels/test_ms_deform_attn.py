"""The Pallas kernel against the definition: interpreted and lowered on any machine, run where there is a GPU."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import maskdino_kernels
import numpy as np
import pytest
from maskdino_kernels import ms_deform_attn

from maskdino_jax.ops.deform_attn import deform_attn

LEVELS_1024 = ((128, 128), (64, 64), (32, 32), (16, 16))


def random_inputs(b, q, level_sizes, *, m=8, d=32, p=4, reference_dim=2, dtype="float32", seed=0):
    """Value, offsets, logits, references; some samples lie outside the image."""
    rng = np.random.default_rng(seed)
    tokens, levels = sum(h * w for h, w in level_sizes), len(level_sizes)
    value = rng.normal(size=(b, tokens, m, d))
    offsets = rng.normal(size=(b, q, m, levels, p, 2)) * 3
    logits = rng.normal(size=(b, q, m, levels * p))
    references = rng.uniform(size=(b, q, reference_dim))
    return jnp.asarray(value, dtype), *(jnp.asarray(a, jnp.float32) for a in (offsets, logits, references))


def relative_error(actual, expected):
    actual, expected = np.asarray(actual, np.float32), np.asarray(expected, np.float32)
    return np.abs(actual - expected).max() / np.abs(expected).max()


@contextlib.contextmanager
def pretend_gpu():
    """Lower for an H200 that is not there: jax 0.10 needs no device for it, newer ones an abstract one."""
    if jax.__version_info__ < (0, 11):
        yield
        return
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        yield


def lower_for_cuda(function, *shapes):
    with pretend_gpu():
        return jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("q", "level_sizes", "m", "d", "p", "reference_dim"),
    [
        (32, ((5, 7),), 1, 1, 1, 2),  # one full block
        (1, ((6, 4), (3, 2)), 2, 8, 4, 4),  # less than a block
        (45, ((9, 16), (5, 8), (3, 1), (1, 1)), 3, 4, 3, 2),  # a tail after the first block; three points
        (33, ((4, 5), (3, 3), (2, 2), (1, 2), (1, 1)), 2, 16, 2, 4),
    ],
)
def test_interpreted_kernel_equals_the_definition(q, level_sizes, m, d, p, reference_dim):
    inputs = random_inputs(2, q, level_sizes, m=m, d=d, p=p, reference_dim=reference_dim)
    kernel = jax.jit(functools.partial(ms_deform_attn, level_sizes=level_sizes, interpret=True))
    expected = jax.jit(functools.partial(deform_attn, level_sizes=level_sizes))(*inputs)
    assert relative_error(kernel(*inputs), expected) <= 2e-6


def test_interpreted_kernel_takes_bfloat16_and_infinite_offsets():
    level_sizes = ((6, 4), (3, 2))
    value, offsets, logits, references = random_inputs(1, 7, level_sizes, m=2, d=8, dtype="bfloat16")
    offsets = offsets.at[:, 3].set(jnp.inf).at[:, 4].set(-1e20)
    inputs = (value, offsets, logits, references)
    actual = jax.jit(functools.partial(ms_deform_attn, level_sizes=level_sizes, interpret=True))(*inputs)
    expected = jax.jit(functools.partial(deform_attn, level_sizes=level_sizes))(*inputs)
    assert actual.dtype == jnp.bfloat16
    assert not np.asarray(actual[:, 3:5], np.float32).any()
    assert relative_error(actual, expected) <= 2**-8  # the sums agree to float32; one may round up and one down


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("b", "q", "reference_dim"), [(16, 21760, 2), (1, 300, 4)], ids=["encoder", "decoder"])
def test_kernel_lowers_for_cuda_without_a_gpu(b, q, reference_dim, dtype):
    shapes = (
        jax.ShapeDtypeStruct((b, 21760, 8, 32), dtype),
        jax.ShapeDtypeStruct((b, q, 8, 4, 4, 2), jnp.float32),
        jax.ShapeDtypeStruct((b, q, 8, 16), jnp.float32),
        jax.ShapeDtypeStruct((b, q, reference_dim), jnp.float32),
    )
    text = lower_for_cuda(functools.partial(ms_deform_attn, level_sizes=LEVELS_1024), *shapes)
    kernels = [line for line in text.splitlines() if "custom_call" in line and "triton" in line]
    assert len(kernels) == 1
    assert "gather" not in text, "the kernel itself reads the samples"
    # A GPU does not stop at the end of an array: the last block of queries has to be there in full.
    assert f"tensor<{b}x8x32x{-(-q // 32) * 32}xf32>" in kernels[0]


def test_door_joins_the_kernel_with_the_gradients_of_the_definition(monkeypatch):
    level_sizes = ((6, 4), (3, 2))
    inputs = random_inputs(1, 5, level_sizes, m=2, d=8)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    calls = []

    def interpreted(*args):
        calls.append(args[-1])
        return ms_deform_attn(*args, interpret=True)

    monkeypatch.setattr(maskdino_kernels, "ms_deform_attn", interpreted)

    def run(impl, *inputs):
        out, pull = jax.vjp(lambda *x: deform_attn(*x, level_sizes, impl=impl), *inputs)
        return out, *pull(jnp.sin(jnp.arange(out.size)).reshape(out.shape))

    actual, expected = (jax.jit(functools.partial(run, impl))(*inputs) for impl in ("pallas", "xla"))
    assert calls == [level_sizes]
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) <= 2e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d": 24}, "24 channels a head.*power of two.*impl='xla'"),
        ({"dtype": "float16"}, "float16.*float32 or bfloat16"),
        ({"level_sizes": ((2, 2),)}, "1 levels of 4 tokens.*value has 6 tokens"),
    ],
)
def test_unsupported_arguments_name_the_remedy(change, message):
    level_sizes = change.pop("level_sizes", ((2, 3),))
    inputs = random_inputs(1, 2, ((2, 3),), m=1, p=1, **change)
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(*inputs, level_sizes, interpret=True)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2**-8)])
@pytest.mark.parametrize(
    ("b", "q", "level_sizes", "reference_dim"),
    [
        (2, 21760, LEVELS_1024, 2),
        (1, 22323, ((100, 168), (50, 84), (25, 42), (13, 21)), 2),  # 800 x 1344; the last block has a tail
        (2, 400, LEVELS_1024, 4),
        (1, 300, LEVELS_1024, 4),
        (1, 1, ((3, 5),), 2),
        (1, 87, ((16, 16), (8, 8), (4, 4), (2, 2), (1, 1)), 4),
    ],
)
def test_gpu_kernel_equals_the_definition(b, q, level_sizes, reference_dim, dtype, tolerance):
    inputs = random_inputs(b, q, level_sizes, reference_dim=reference_dim, dtype=dtype)
    actual, expected = (
        jax.jit(functools.partial(deform_attn, level_sizes=level_sizes, impl=impl))(*inputs)
        for impl in ("pallas", "xla")
    )
    assert relative_error(actual, expected) <= tolerance


@pytest.mark.gpu
@pytest.mark.parametrize(("q", "reference_dim"), [(21760, 2), (300, 4)], ids=["encoder", "decoder"])
def test_gpu_gradients_equal_those_of_the_definition(q, reference_dim):
    inputs = random_inputs(1, q, LEVELS_1024, reference_dim=reference_dim)
    grad = jnp.asarray(np.random.default_rng(1).normal(size=(1, q, 256)), jnp.float32)

    def run(impl, *inputs):
        out, pull = jax.vjp(lambda *x: deform_attn(*x, LEVELS_1024, impl=impl), *inputs)
        return out, *pull(grad)

    actual, expected = (jax.jit(functools.partial(run, impl))(*inputs) for impl in ("pallas", "xla"))
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) <= 1e-5  # the order of atomic additions changes from run to run

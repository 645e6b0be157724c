"""Which implementation of deformable attention runs where, and what the log says of it; sums in a fixed order."""

import functools
import logging

import jax
import jax.numpy as jnp
import maskdino_kernels
import numpy as np
import pytest

from maskdino_jax.ops import deform_attn as door
from maskdino_jax.ops import deform_attn_xla

LEVEL_SIZES = ((3, 4), (2, 1))
KERNELS = {name: getattr(maskdino_kernels, name) for name in ("ms_deform_attn", "ms_deform_attn_backward")}


class Device:
    def __init__(self, capability):
        self.device_kind, self.compute_capability = "NVIDIA H200", capability


def random_inputs(dtype="float32"):
    rng = np.random.default_rng(0)
    shapes = ((2, 14, 1, 4), (2, 5, 1, 2, 1, 2), (2, 5, 1, 2), (2, 5, 4))
    value, *rest = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return value.astype(dtype), *rest


def attend_and_pull(impl, *inputs):
    out, pull = jax.vjp(lambda *x: door.deform_attn(*x, LEVEL_SIZES, impl), *inputs)
    return out, *pull(jnp.sin(jnp.arange(out.size)).reshape(out.shape).astype(out.dtype))


def assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        a, e = np.asarray(a, np.float32), np.asarray(e, np.float32)
        np.testing.assert_allclose(a, e, atol=1e-5 * np.abs(e).max())


@pytest.fixture
def gpu(monkeypatch, caplog):
    """A machine that says it has a GPU, with the definition as its kernels; returns the names of those traced."""
    calls = []

    def forward(*args, level_sizes):
        calls.append("forward")
        return deform_attn_xla.forward(*args, level_sizes)

    def backward(*args, level_sizes):
        calls.append("backward")
        return deform_attn_xla.backward(*args, level_sizes, False)

    monkeypatch.setattr(maskdino_kernels, "ms_deform_attn", forward)
    monkeypatch.setattr(maskdino_kernels, "ms_deform_attn_backward", backward)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Device("9.0")])
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cuda, default: cuda(*args))
    door._kernel_agrees.cache_clear()
    caplog.set_level(logging.INFO)
    yield calls
    door._kernel_agrees.cache_clear()


def test_auto_takes_the_kernels_after_they_have_agreed_and_says_so_once(gpu, caplog):
    inputs = random_inputs()
    jax.eval_shape(functools.partial(attend_and_pull, "xla"), *inputs)
    assert gpu == []
    jax.eval_shape(functools.partial(attend_and_pull, "auto"), *inputs)
    assert gpu == ["forward", "backward"] * 2, "first on a small example, then on ours"
    jax.eval_shape(functools.partial(attend_and_pull, "auto"), *inputs)
    assert gpu == ["forward", "backward"] * 3
    jax.eval_shape(functools.partial(attend_and_pull, "deterministic"), *inputs)
    assert gpu == ["forward", "backward"] * 3 + ["forward"]
    assert [r.getMessage() for r in caplog.records] == [
        "Deformable attention of float32 values runs as a Pallas kernel on NVIDIA H200."
    ]


def test_the_kernels_agree_with_the_definition(gpu, monkeypatch):
    for name, kernel in KERNELS.items():
        monkeypatch.setattr(maskdino_kernels, name, functools.partial(kernel, interpret=True))
    assert door._disagreement("float32") is None


@pytest.mark.parametrize("name", ["ms_deform_attn", "ms_deform_attn_backward"])
def test_auto_does_not_trust_a_kernel_with_wrong_numbers(gpu, caplog, monkeypatch, name):
    kernel = getattr(maskdino_kernels, name)
    monkeypatch.setattr(
        maskdino_kernels, name, lambda *args, **options: jax.tree.map(lambda a: a * 1.1, kernel(*args, **options))
    )
    assert not door.runs_kernel("auto", "bfloat16")
    assert "runs as plain XLA on NVIDIA H200: the kernel is wrong there, relative errors" in caplog.text


def test_auto_falls_back_where_the_kernel_does_not_compile(gpu, caplog, monkeypatch):
    def broken(*args, **options):
        raise NotImplementedError("no such\ninstruction")

    monkeypatch.setattr(maskdino_kernels, "ms_deform_attn", broken)
    assert not door.runs_kernel("auto", "float16")
    assert "plain XLA on NVIDIA H200: the kernel does not run: NotImplementedError no such instruction" in caplog.text


@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [
        ("7.5", "float32", "NVIDIA H200 has compute capability 7.5, the kernel needs 8.0"),
        ("gfx90a", "float32", "NVIDIA H200 is no NVIDIA GPU"),
        ("9.0", "float64", "values are float64, the kernel takes float32, bfloat16, float16"),
    ],
)
def test_unsupported_gpu_falls_back_with_a_message_unless_the_kernel_was_asked_for(
    gpu, caplog, monkeypatch, capability, dtype, reason
):
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(capability)])
    assert not door.runs_kernel("auto", dtype)
    assert not door.runs_kernel("deterministic", dtype)
    assert [r.getMessage() for r in caplog.records] == [
        f"Deformable attention of {dtype} values runs as plain XLA on NVIDIA H200: {reason}."
    ]
    with pytest.raises(ValueError, match=f"'pallas'.*{reason}.*--config.model.deform_attn=auto"):
        door.runs_kernel("pallas", dtype)


def test_without_a_gpu_auto_is_the_definition_and_says_nothing(caplog):
    caplog.set_level(logging.INFO)
    inputs = random_inputs()
    actual, expected = (jax.jit(functools.partial(attend_and_pull, impl))(*inputs) for impl in ("auto", "xla"))
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, e)
    assert not [r for r in caplog.records if "Deformable" in r.getMessage()]


def test_kernel_in_a_program_for_the_cpu_is_the_definition(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(maskdino_kernels, "unsupported", lambda dtype: None)
    inputs = random_inputs()
    actual, expected = (jax.jit(functools.partial(attend_and_pull, impl))(*inputs) for impl in ("pallas", "xla"))
    assert_same(actual, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ordered_sums_equal_the_scattered_ones(dtype):
    inputs = random_inputs(dtype)
    actual, expected = (jax.jit(functools.partial(attend_and_pull, impl))(*inputs) for impl in ("deterministic", "xla"))
    assert [a.dtype for a in actual] == [e.dtype for e in expected]
    assert_same(actual, expected)


def test_ordered_sums_have_no_addition_without_an_order():
    text = {
        impl: jax.jit(functools.partial(attend_and_pull, impl)).lower(*random_inputs()).as_text()
        for impl in ("deterministic", "xla")
    }
    assert "stablehlo.scatter" in text["xla"]
    assert "stablehlo.scatter" not in text["deterministic"]


def test_ordered_sums_of_one_pixel_full_of_samples():
    q, p = 40, 2
    grad = np.random.default_rng(0).integers(-8, 8, (1, q, 4)).astype(np.float32)
    centre, offsets = np.full((1, q, 2), 0.5, np.float32), np.zeros((1, q, 1, 1, p, 2), np.float32)
    offsets[:, ::2] = 1e9  # far outside
    inputs = (np.ones((1, 1, 1, 4), np.float32), offsets, np.zeros((1, q, 1, p), np.float32), centre)
    inputs = tuple(jnp.asarray(a) for a in inputs)

    @jax.jit
    def by_value(grad, *inputs):
        return jax.vjp(lambda *x: door.deform_attn(*x, ((1, 1),), "deterministic"), *inputs)[1](grad)[0]

    np.testing.assert_array_equal(by_value(grad, *inputs)[0, 0, 0], grad[0, 1::2].sum(axis=0))

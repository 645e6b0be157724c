"""The kernels become Triton code for an H200 on machines without a GPU, and their atomic additions carry no fence."""

import contextlib
import functools
import re
import warnings

import jax
import jax.numpy as jnp
import pytest
from maskdino_kernels import ms_deform_attn, ms_deform_attn_backward, relaxed_atomics

from maskdino_jax.meshes import make_mesh
from maskdino_jax.model import ModelSpec
from maskdino_jax.ops import deform_attn
from maskdino_jax.train.memory import trace_step
from tests.e2e.conftest import smallest

LEVELS_1024 = ((128, 128), (64, 64), (32, 32), (16, 16))


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


@pytest.fixture
def lower(monkeypatch):
    """A function that lowers for CUDA; returns the program around the kernel and the Triton code of the kernel."""
    from jax._src.pallas.triton import lowering

    modules, original = [], lowering.lower_jaxpr_to_triton_module

    def spy(*args, **kwargs):
        result = original(*args, **kwargs)
        modules.append(str(result.module))
        return result

    monkeypatch.setattr(lowering, "lower_jaxpr_to_triton_module", spy)

    def run(function, *shapes):
        modules.clear()
        with pretend_gpu():
            text = jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
        (kernel,) = modules
        return text, kernel

    return run


def shapes(b, q, reference_dim, dtype, level_sizes=LEVELS_1024, d=32):
    tokens, k = sum(h * w for h, w in level_sizes), len(level_sizes) * 4
    return (
        jax.ShapeDtypeStruct((b, tokens, 8, d), dtype),
        jax.ShapeDtypeStruct((b, q, 8, len(level_sizes), 4, 2), jnp.float32),
        jax.ShapeDtypeStruct((b, q, 8, k), jnp.float32),
        jax.ShapeDtypeStruct((b, q, reference_dim), jnp.float32),
    )


def backward(level_sizes):
    return functools.partial(ms_deform_attn_backward, level_sizes=level_sizes)


@pytest.mark.parametrize(
    ("b", "q", "reference_dim", "block", "dtype"),
    [(16, 21760, 2, 32, "bfloat16"), (1, 300, 4, 16, "float32"), (1, 300, 4, 16, "float16")],
)
def test_forward_lowers_to_one_kernel(lower, b, q, reference_dim, block, dtype):
    text, _ = lower(functools.partial(ms_deform_attn, level_sizes=LEVELS_1024), *shapes(b, q, reference_dim, dtype))
    kernels = [line for line in text.splitlines() if "custom_call" in line and "triton" in line]
    assert len(kernels) == 1
    assert "gather" not in text, "the kernel itself reads the samples"
    # A GPU does not stop at the end of an array: the last block of queries has to be there in full.
    assert f"tensor<{b}x8x32x{-(-q // block) * block}xf32>" in kernels[0]


@pytest.mark.parametrize(
    ("b", "q", "reference_dim", "level_sizes", "d", "dtype"),
    [
        (16, 21760, 2, LEVELS_1024, 32, "bfloat16"),
        (1, 300, 4, LEVELS_1024, 32, "float32"),
        (2, 33, 2, ((256, 256), *LEVELS_1024), 32, "bfloat16"),  # Swin-L
        (1, 1, 4, ((5, 3),), 24, "float16"),
    ],
    ids=["encoder", "decoder", "five levels", "odd"],
)
def test_backward_lowers_without_a_fence_at_its_atomic_additions(lower, b, q, reference_dim, level_sizes, d, dtype):
    arguments = shapes(b, q, reference_dim, dtype, level_sizes, d)
    text, kernel = lower(backward(level_sizes), *arguments, jax.ShapeDtypeStruct((b, q, 8 * d), dtype))
    assert "scatter" not in text
    assert "gather" not in text
    additions = re.findall(r"tt\.atomic_rmw (\w+), (\w+)", kernel)
    assert additions == [("fadd", "relaxed")] * (len(level_sizes) * 4 * 4)  # points, corners


def test_where_jax_has_moved_its_private_parts_one_warning_and_the_public_addition(lower, monkeypatch):
    def moved():
        raise ImportError("cannot import name 'dialect'")

    monkeypatch.setattr(relaxed_atomics, "_make_relaxed_add", moved)
    arguments = (*shapes(1, 16, 2, "float32", ((2, 2),)), jax.ShapeDtypeStruct((1, 16, 256), jnp.float32))
    relaxed_atomics.relaxed_add.cache_clear()
    try:
        with pytest.warns(UserWarning, match="has moved.*cannot import name 'dialect'.*kernels/README.md") as caught:
            _, kernel = lower(backward(((2, 2),)), *arguments)
        assert len([w for w in caught if w.category is UserWarning]) == 1
        assert re.findall(r"tt\.atomic_rmw (\w+), (\w+)", kernel) == [("fadd", "acq_rel")] * 16
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            lower(lambda *x: backward(((2, 2),))(*x), *arguments)
    finally:
        relaxed_atomics.relaxed_add.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whole_training_step_lowers_with_a_kernel_for_every_attention(monkeypatch, dtype):
    if jax.__version_info__ >= (0, 11):  # a mesh of abstract devices cannot hold the rest of the step
        from jax._src.pallas.triton import gpu_info

        monkeypatch.setattr(gpu_info, "get_device_kind", lambda: "NVIDIA H200")
        monkeypatch.setattr(gpu_info, "get_device_platform", lambda: "gpu")
    monkeypatch.setattr(deform_attn, "runs_kernel", lambda impl, dtype: True)
    config = smallest()
    config.model.dtype = dtype
    config.loss.matcher = "device"  # JAX lowers a callback for the platform at hand only
    step = trace_step(ModelSpec(config.model, 133), config, make_mesh(1, jax.devices()[:1]))
    text = step.lower(lowering_platforms=("cuda",)).as_text()
    kernels = [line for line in text.splitlines() if "custom_call" in line and "triton" in line]
    assert len(kernels) == 2 * (config.model.encoder.layers + config.model.decoder.layers)

"""Multi-scale deformable attention: the definition, and the door to the GPU kernels in `maskdino_kernels`.

Each head of each query looks at `p` points on each of `l` feature levels and adds up what it finds there (Deformable
DETR, Zhu et al. 2021, section 4.1, eq. 3). Levels are flattened row by row and lie one after the other on axis `t`.
A pixel's value sits at its centre, half a pixel from its border, and everything beyond the image is zero.
"""

import concurrent.futures
import functools

import jax
import numpy as np
from absl import logging
from jaxtyping import Array, Float

from maskdino_jax.ops import deform_attn_xla

LevelSizes = tuple[tuple[int, int], ...]

IMPLS = ("auto", "xla", "pallas", "deterministic")
TOLERANCE = {"float32": 1e-4}  # of the kernel, relative to the largest number; 2e-2 for shorter types


def deform_attn(
    value: Float[Array, "b t m d"],
    offsets: Float[Array, "b q m l p 2"],
    logits: Float[Array, "b q m l*p"],
    references: Float[Array, "b q 2"] | Float[Array, "b q 4"],
    level_sizes: LevelSizes,
    impl: str = "xla",
) -> Float[Array, "b q m*d"]:
    """Sample `value` at the offset points of every query and average with softmax weights.

    With a reference point (x, y) offsets are pixels of the level they look at. With a reference box (cxcywh) they are
    shares of the box: an offset of `p` moves a sample by half the box, from its centre to its border.

    Args:
        value: projected tokens of all levels, heads apart; float32, bfloat16 or float16.
        offsets: (x, y) of each sample relative to the reference.
        logits: one for each sample; the softmax runs over all levels and points together, level-major.
        references: points or boxes divided by the width and height of the image, the same for all levels.
        level_sizes: (height, width) of each level in pixels.
        impl: `xla` runs on every device; `pallas` is the GPU kernel; `auto` takes the kernel where it runs and agrees
            with `xla`; `deterministic` is `auto` with gradients that a GPU repeats bit for bit, slower.

    Returns:
        The heads side by side, in the type of `value`. Coordinates, weights and sums are float32 whatever that type.

    Raises:
        ValueError: the levels do not add up to `t`, or `impl` is unknown or does not run here.
    """
    tokens = sum(height * width for height, width in level_sizes)
    if len(level_sizes) != offsets.shape[3] or tokens != value.shape[1]:
        raise ValueError(
            f"level_sizes {level_sizes} are {len(level_sizes)} levels of {tokens} tokens together, but offsets have "
            f"{offsets.shape[3]} levels and value has {value.shape[1]} tokens. Pass the (height, width) of every level."
        )
    kernel = runs_kernel(impl, value.dtype.name)
    return _attend(value, offsets, logits, references, level_sizes, kernel, impl == "deterministic")


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(value, offsets, logits, references, level_sizes, kernel, ordered):
    del ordered  # the forward pass has no additions whose order could change
    inputs = (value, offsets, logits, references)
    definition = functools.partial(deform_attn_xla.forward, level_sizes=level_sizes)
    if not kernel:
        return definition(*inputs)
    from maskdino_kernels import ms_deform_attn  # here, so that the package works without Pallas

    on_gpu = functools.partial(ms_deform_attn, level_sizes=level_sizes)
    return jax.lax.platform_dependent(*inputs, cuda=on_gpu, default=definition)


def _attend_forward(value, offsets, logits, references, level_sizes, kernel, ordered):
    # Only the arguments are kept for the backward pass: sample positions and weights are cheaper to compute again
    # than to store, six layers of them.
    inputs = (value, offsets, logits, references)
    return _attend(*inputs, level_sizes, kernel, ordered), inputs


def _attend_backward(level_sizes, kernel, ordered, inputs, grad):
    definition = functools.partial(deform_attn_xla.backward, level_sizes=level_sizes, ordered=ordered)
    if ordered or not kernel:
        return definition(*inputs, grad)
    from maskdino_kernels import ms_deform_attn_backward

    on_gpu = functools.partial(ms_deform_attn_backward, level_sizes=level_sizes)
    return jax.lax.platform_dependent(*inputs, grad, cuda=on_gpu, default=definition)


_attend.defvjp(_attend_forward, _attend_backward)


def runs_kernel(impl: str, dtype: str) -> bool:
    """Whether `impl` means the GPU kernel for values of type `dtype` on the machine at hand.

    Raises:
        ValueError: `impl` is unknown, or is `pallas` where that does not run.
    """
    if impl not in IMPLS:
        raise ValueError(
            f"config.model.deform_attn is {impl!r}: use 'auto', 'xla' (any device), 'pallas' (NVIDIA GPU) or "
            "'deterministic' (any device, gradients that repeat bit for bit)."
        )
    on_gpu = jax.default_backend() == "gpu"
    if impl == "pallas":
        reason = _unsupported(dtype) if on_gpu else f"JAX runs on {jax.default_backend()!r}"
        if reason:
            raise ValueError(
                f"config.model.deform_attn is 'pallas', a GPU kernel, but {reason}. "
                "Pass --config.model.deform_attn=auto, or install JAX with CUDA (the extra cuda12 or cuda13)."
            )
        return True
    return impl != "xla" and on_gpu and _kernel_agrees(dtype)


def _unsupported(dtype: str) -> str | None:
    from maskdino_kernels import unsupported  # here, so that the package works without Pallas

    return unsupported(dtype)


@functools.cache
def _kernel_agrees(dtype: str) -> bool:
    """Whether the kernel runs on this GPU and gives the definition's numbers. Says in the log what runs, once."""
    device = jax.local_devices()[0].device_kind
    reason = _unsupported(dtype)
    if not reason:
        # The caller is being traced. A thread of its own computes numbers at once, whatever meshes are set there.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reason = pool.submit(_disagreement, dtype).result()
    if reason:
        logging.warning("Deformable attention of %s values runs as plain XLA on %s: %s.", dtype, device, reason)
    else:
        logging.info("Deformable attention of %s values runs as a Pallas kernel on %s.", dtype, device)
    return not reason


def _disagreement(dtype: str) -> str | None:
    """What is wrong with the kernel's result or gradients on a small example."""
    level_sizes, rng = ((6, 5), (3, 2)), np.random.default_rng(0)
    shapes = ((2, 36, 1, 32), (2, 40, 1, 2, 1, 2), (2, 40, 1, 2), (2, 40, 4))
    value, *rest = (rng.uniform(-1, 1, size=shape).astype(np.float32) for shape in shapes)
    inputs = (value.astype(dtype), *rest)

    @functools.partial(jax.jit, static_argnums=0)
    def run(kernel, *inputs):
        out, pull = jax.vjp(lambda *x: _attend(*x, level_sizes, kernel, False), *inputs)
        return out, *pull(out)

    try:
        actual, expected = ([np.asarray(a, np.float32) for a in run(kernel, *inputs)] for kernel in (True, False))
    except Exception as error:  # a compiler that fails may raise anything
        return f"the kernel does not run: {type(error).__name__} {' '.join(str(error).split())[:200]}"
    errors = [float(np.abs(a - e).max() / np.abs(e).max()) for a, e in zip(actual, expected, strict=True)]
    if not max(errors) <= TOLERANCE.get(dtype, 2e-2):  # also when an error is NaN
        return f"the kernel is wrong there, relative errors {errors} of the result and its gradients"
    return None

"""Multi-scale deformable attention against recorded tensors, a loop over pixels, and the laws it must obey."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdino_jax.ops.deform_attn import deform_attn

NAMES = ("value", "offsets", "logits", "references")


attend = jax.jit(deform_attn, static_argnums=4)


@functools.partial(jax.jit, static_argnums=5)
def attend_and_pull(value, offsets, logits, references, grad, level_sizes):
    """The result and the gradients by all four arguments."""
    out, pull = jax.vjp(lambda *x: deform_attn(*x, level_sizes), value, offsets, logits, references)
    return out, pull(grad)


def random_inputs(seed, *, b, q, m, d, p, level_sizes, reference_dim, spread=3.0):
    """Value, offsets, logits, references; `spread` in pixels or half box sizes, so that some samples lie outside."""
    rng = np.random.default_rng(seed)
    levels, tokens = len(level_sizes), sum(h * w for h, w in level_sizes)
    arrays = (
        rng.normal(size=(b, tokens, m, d)),
        rng.normal(size=(b, q, m, levels, p, 2)) * spread,
        rng.normal(size=(b, q, m, levels * p)),
        rng.uniform(size=(b, q, reference_dim)),
    )
    return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


def loop_oracle(value, offsets, logits, references, level_sizes):
    """Equation 3 of Deformable DETR read aloud: every sample is a loop over the pixels that touch it."""
    value, offsets, logits, references = (np.asarray(a, np.float64) for a in (value, offsets, logits, references))
    b, q, m, levels, p, _ = offsets.shape
    out = np.zeros((b, q, m, value.shape[-1]))
    for i, j, head in itertools.product(range(b), range(q), range(m)):
        weights = np.exp(logits[i, j, head] - logits[i, j, head].max())
        weights = (weights / weights.sum()).reshape(levels, p)
        start = 0
        for level, (height, width) in enumerate(level_sizes):
            image = value[i, start : start + height * width, head].reshape(height, width, -1)
            start += height * width
            for point in range(p):
                size, offset = np.array([width, height]), offsets[i, j, head, level, point]
                if references.shape[-1] == 2:
                    place = references[i, j] + offset / size
                else:
                    place = references[i, j, :2] + offset / p * references[i, j, 2:] * 0.5
                x, y = place * size - 0.5
                for row in range(max(0, math.floor(y)), min(height, math.floor(y) + 2)):
                    for column in range(max(0, math.floor(x)), min(width, math.floor(x) + 2)):
                        share = (1 - abs(x - column)) * (1 - abs(y - row))
                        out[i, j, head] += weights[level, point] * share * image[row, column]
    return out.reshape(b, q, -1)


def dense_oracle(value, offsets, logits, references, level_sizes):
    """Every sample as a sum over all pixels with weights max(0, 1 - |distance|) on each axis; JAX differentiates it."""
    b, q, m, levels, p, _ = offsets.shape
    weights = jax.nn.softmax(logits).reshape(b, q, m, levels, p)
    out, start = 0, 0
    for level, (height, width) in enumerate(level_sizes):
        size = jnp.array([width, height])
        image = value[:, start : start + height * width].reshape(b, height, width, m, -1)
        start += height * width
        centre, offset = references[:, :, None, None], offsets[:, :, :, level]
        move = offset / size if centre.shape[-1] == 2 else offset / p * centre[..., 2:] * 0.5
        x, y = jnp.moveaxis((centre[..., :2] + move) * size - 0.5, -1, 0)
        near_x = jnp.maximum(0, 1 - jnp.abs(x[..., None] - jnp.arange(width)))
        near_y = jnp.maximum(0, 1 - jnp.abs(y[..., None] - jnp.arange(height)))
        out += jnp.einsum("bqmp,bqmph,bqmpw,bhwmd->bqmd", weights[:, :, :, level], near_y, near_x, image)
    return out.reshape(b, q, -1)


def assert_close(actual, expected, tolerance, name=""):
    """Error relative to the largest expected number, because a sum's rounding follows its largest term."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"{name}: relative error {error:.2e} is above {tolerance:.0e}"


# A head with one channel looks at the 2 x 2 image 1 2 / 3 4.
@pytest.mark.parametrize(
    ("reference", "offset", "expected"),
    [
        ((0.5, 0.5), (0.0, 0.0), 2.5),  # the middle of all four
        ((0.5, 0.5), (0.5, 0.0), 3.0),  # half a pixel to the right: between 2 and 4
        ((0.5, 0.5), (0.5, -0.5), 2.0),  # x is to the right and y is down
        ((0.0, 0.0), (0.0, 0.0), 0.25),  # the corner of the image: three of four neighbours are zeros
        ((0.5, 0.5), (2.0, 0.0), 0.0),  # a whole pixel beyond the border
        ((0.5, 0.5, 0.5, 1.0), (1.0, 0.0), 3.0),  # one point: offset 1 is half the box's width
        ((0.5, 0.5, 0.5, 0.5), (1.0, -1.0), 2.0),
    ],
)
def test_one_sample_by_hand(reference, offset, expected):
    value = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)
    offsets = jnp.array(offset).reshape(1, 1, 1, 1, 1, 2)
    logits = jnp.full((1, 1, 1, 1), 7.0)
    out = attend(value, offsets, logits, jnp.array(reference).reshape(1, 1, -1), ((2, 2),))
    assert out.item() == expected


def test_weights_are_a_softmax_over_levels_and_points_together():
    value = jnp.array([8.0, 4.0]).reshape(1, 2, 1, 1)  # two levels of one pixel
    logits = jnp.log(jnp.array([1.0, 2.0, 3.0, 2.0])).reshape(1, 1, 1, 4)
    out = attend(value, jnp.zeros((1, 1, 1, 2, 2, 2)), logits, jnp.full((1, 1, 2), 0.5), ((1, 1), (1, 1)))
    np.testing.assert_allclose(out.item(), 8 * 3 / 8 + 4 * 5 / 8, rtol=1e-6)


SHAPES = st.fixed_dictionaries(
    {
        "b": st.integers(1, 2),
        "q": st.integers(1, 5),
        "m": st.integers(1, 3),
        "d": st.integers(1, 5),
        "p": st.integers(1, 4),
        "level_sizes": st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=5).map(tuple),
        "reference_dim": st.sampled_from([2, 4]),
        "spread": st.sampled_from([0.5, 3.0, 1e4]),
    }
)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(shape=SHAPES, seed=st.integers(0, 2**31))
def test_any_shape_equals_the_loop_over_pixels_and_its_slopes(shape, seed):
    level_sizes = shape["level_sizes"]
    inputs = random_inputs(seed, **shape)
    rng = np.random.default_rng(seed)
    grad = rng.normal(size=(shape["b"], shape["q"], shape["m"] * shape["d"])).astype(np.float32)
    out, grads = attend_and_pull(*inputs, grad, level_sizes)
    expected = loop_oracle(*inputs, level_sizes)
    np.testing.assert_allclose(out, expected, atol=2e-5 * max(1, np.abs(expected).max()))

    wide = [np.asarray(a, np.float64) for a in inputs]
    for i, name in enumerate(NAMES):
        step = rng.normal(size=wide[i].shape)
        step *= 1e-7 / np.linalg.norm(step)
        ahead, behind = (loop_oracle(*wide[:i], wide[i] + s, *wide[i + 1 :], level_sizes) for s in (step, -step))
        slope = np.sum((ahead - behind) * grad) / 2e-7
        actual = np.sum(np.asarray(grads[i], np.float64) * step) / 1e-7
        scale = max(1, np.linalg.norm(grads[i]))
        assert abs(actual - slope) <= 1e-4 * scale, f"{name}: slope {actual}, should be {slope}; scale {scale}"


@pytest.mark.parametrize("reference_dim", [2, 4])
def test_gradients_equal_those_of_a_sum_over_all_pixels(reference_dim):
    level_sizes = ((5, 7), (3, 2), (1, 1))
    inputs = random_inputs(7, b=2, q=9, m=2, d=4, p=3, level_sizes=level_sizes, reference_dim=reference_dim, spread=2.0)
    grad = np.random.default_rng(8).normal(size=(2, 9, 8)).astype(np.float32)

    def dense(grad, *inputs):
        out, pull = jax.vjp(lambda *x: dense_oracle(*x, level_sizes), *inputs)
        return out, *pull(grad)

    out, grads = attend_and_pull(*inputs, grad, level_sizes)
    with jax.enable_x64(True):
        wide = jax.jit(dense)(*(jnp.asarray(np.asarray(a, np.float64)) for a in (grad, *inputs)))
        expected = [np.asarray(a) for a in wide]
    for name, actual, wanted in zip(("result", *NAMES), (out, *grads), expected, strict=True):
        assert_close(actual, wanted, 5e-6, name)


@pytest.mark.parametrize("case", ["r50_4l", "r50_3l", "swinl_5l"])
def test_recorded_forward_and_gradients(golden, case):
    with np.load(golden / "unit" / "ms_deform_attn.npz") as file:
        recorded = {key.removeprefix(f"{case}/"): file[key] for key in file if key.startswith(f"{case}/")}
    level_sizes = tuple((int(h), int(w)) for h, w in recorded["shapes"])
    sizes = np.array([(w, h) for h, w in level_sizes], np.float32)[:, None]
    # Written as our arguments: references at the origin, offsets in pixels, logits whose softmax is the weights.
    weights = recorded["attention_weights"]
    offsets, logits = recorded["sampling_locations"] * sizes, np.log(weights).reshape(*weights.shape[:3], -1)
    references = np.zeros((*weights.shape[:2], 2), np.float32)
    inputs = (recorded["value"], offsets, logits, references, recorded["grad_output"])
    out, (grad_value, grad_offsets, grad_logits, _) = attend_and_pull(*inputs, level_sizes)
    by_weight = recorded["grad_attention_weights"]
    expected_logits = weights * (by_weight - (weights * by_weight).sum((-2, -1), keepdims=True))

    assert_close(out, recorded["output"], 2e-6, "output")
    assert_close(grad_value, recorded["grad_value"], 2e-6, "gradient by value")
    assert_close(grad_logits, expected_logits.reshape(logits.shape), 5e-6, "gradient by logits")
    # The first nine queries lie on pixel centres and borders, where the derivative by the position jumps.
    inner = slice(9, None)
    by_location = (np.asarray(grad_offsets) * sizes)[:, inner]
    assert_close(by_location, recorded["grad_sampling_locations"][:, inner], 2e-5, "gradient by location")


@pytest.mark.parametrize("case", ["module_ref2", "module_ref4"])
def test_recorded_module_with_its_projections(golden, case):
    with np.load(golden / "unit" / "ms_deform_attn.npz") as file:
        recorded = {key.removeprefix(f"{case}/"): file[key] for key in file if key.startswith(f"{case}/")}

    def project(name, x):
        return x @ recorded[f"param/{name}.weight"].T + recorded[f"param/{name}.bias"]

    level_sizes = tuple((int(h), int(w)) for h, w in recorded["shapes"])
    b, q, _ = recorded["query"].shape
    m, levels, p = 8, len(level_sizes), 4
    value = project("value_proj", recorded["input_flatten"]).reshape(b, -1, m, 4)
    offsets = project("sampling_offsets", recorded["query"]).reshape(b, q, m, levels, p, 2)
    logits = project("attention_weights", recorded["query"]).reshape(b, q, m, levels * p)
    # The recording has another reference on each level. Ours is that of level 0; offsets make up the difference.
    references = recorded["reference_points"][:, :, None, :, None]
    first = references[:, :, :, :1]
    if case == "module_ref2":
        offsets = offsets + (references - first) * np.array([(w, h) for h, w in level_sizes])[:, None]
    else:
        move = references[..., :2] - first[..., :2] + offsets / p * references[..., 2:] * 0.5
        offsets = move * p / first[..., 2:] / 0.5
    inputs = (value, offsets, logits, recorded["reference_points"][:, :, 0])
    out = attend(*(np.asarray(a, np.float32) for a in inputs), level_sizes)
    assert_close(project("output_proj", np.asarray(out)), recorded["output"], 5e-6, case)


def test_samples_of_one_pixel_add_up_in_its_gradient():
    q, p = 300, 2
    grad = np.random.default_rng(0).integers(-8, 8, (1, q, 4)).astype(np.float32)
    centre, offsets = np.full((1, q, 2), 0.5, np.float32), np.zeros((1, q, 1, 1, p, 2), np.float32)
    inputs = (np.ones((1, 1, 1, 4), np.float32), offsets, np.zeros((1, q, 1, p), np.float32), centre)
    _, (grad_value, *_) = attend_and_pull(*inputs, grad, ((1, 1),))
    np.testing.assert_array_equal(grad_value[0, 0, 0], grad[0].sum(axis=0))


def test_bfloat16_values_are_summed_in_float32():
    level_sizes = ((6, 5), (3, 2))
    value, *rest = random_inputs(1, b=2, q=40, m=2, d=8, p=4, level_sizes=level_sizes, reference_dim=2)
    value, grad = value.astype(jnp.bfloat16), jax.random.normal(jax.random.key(2), (2, 40, 16), jnp.bfloat16)
    narrow = jax.tree.leaves(attend_and_pull(value, *rest, grad, level_sizes))
    wide = jax.tree.leaves(attend_and_pull(value.astype(jnp.float32), *rest, grad.astype(jnp.float32), level_sizes))
    assert [a.dtype.name for a in narrow] == ["bfloat16", "bfloat16", "float32", "float32", "float32"]
    for a, b in zip(narrow[:2], wide[:2], strict=True):  # rounded once, at the end
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b.astype(jnp.bfloat16), np.float32))
    for a, b in zip(narrow[2:], wide[2:], strict=True):
        assert_close(a, b, 1e-6)


@pytest.mark.parametrize("axis", [0, 1])  # far along x or y, inside along the other
def test_samples_far_outside_are_zero_and_so_are_their_gradients(axis):
    level_sizes = ((3, 4),)
    value, _, logits, _ = random_inputs(3, b=1, q=3, m=1, d=2, p=1, level_sizes=level_sizes, reference_dim=2)
    references, grad = jnp.full((1, 3, 2), 0.5), jnp.ones((1, 3, 2))
    for distance in (10, 1e3, 1e20, np.inf, -10, -1e3, -1e20, -np.inf):
        far = jnp.zeros((1, 3, 1, 1, 1, 2)).at[..., axis].set(distance)
        for array in jax.tree.leaves(attend_and_pull(value, far, logits, references, grad, level_sizes)):
            np.testing.assert_array_equal(array, np.zeros(array.shape))


def test_forward_and_backward_never_hold_all_samples():
    level_sizes = ((32, 32), (16, 16), (8, 8), (4, 4))
    q, m, d, p = sum(h * w for h, w in level_sizes), 8, 32, 4
    inputs = random_inputs(0, b=1, q=q, m=m, d=d, p=p, level_sizes=level_sizes, reference_dim=2)

    def run(grad, *inputs):
        out, pull = jax.vjp(lambda *x: deform_attn(*x, level_sizes), *inputs)
        return out, pull(grad)

    compiled = jax.jit(run).lower(jnp.zeros((1, q, m * d)), *inputs).compile()
    all_samples = q * m * len(level_sizes) * p * 4 * d * 4  # bytes
    assert compiled.memory_analysis().temp_size_in_bytes < all_samples / 5


def test_images_on_different_devices_stay_there():
    level_sizes = ((4, 4), (2, 2))
    inputs = random_inputs(0, b=2, q=6, m=2, d=4, p=2, level_sizes=level_sizes, reference_dim=4)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    inputs = jax.device_put(inputs, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))

    def run(*inputs):
        out, pull = jax.vjp(lambda *x: deform_attn(*x, level_sizes), *inputs)
        return out, pull(out)

    text = jax.jit(run).lower(*inputs).compile().as_text()
    assert not [name for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if name in text]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"impl": "cuda"}, "config.model.deform_attn is 'cuda'.*xla.*pallas"),
        (
            {"impl": "pallas"},
            "config.model.deform_attn is 'pallas'.*JAX runs on 'cpu'.*--config.model.deform_attn=auto",
        ),
        ({"level_sizes": ((2, 2), (1, 1))}, "2 levels of 5 tokens.*1 levels and value has 6 tokens"),
        ({"level_sizes": ((2, 2),)}, "1 levels of 4 tokens.*value has 6 tokens"),
    ],
)
def test_wrong_arguments_name_the_remedy(change, message):
    inputs = random_inputs(0, b=1, q=2, m=1, d=2, p=1, level_sizes=((2, 3),), reference_dim=2)
    with pytest.raises(ValueError, match=message):
        deform_attn(*inputs, **{"level_sizes": ((2, 3),)} | change)

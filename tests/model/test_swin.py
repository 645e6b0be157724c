"""The Swin backbone against recordings of the official one, and the laws of its extents and of stochastic depth."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskdino_jax.config import BackboneConfig, backbone
from maskdino_jax.model.keys import Keys
from maskdino_jax.model.swin import (
    Block,
    PatchEmbed,
    PatchMerging,
    Stage,
    Swin,
    WindowAttention,
    branch_factors,
    relative_position_index,
)
from maskdino_jax.train.optimizer import decays
from tests.parity.official import recorded_weight

_LEAVES = {"kernel": "weight", "scale": "weight"}
_SMALL = BackboneConfig(kind="swin", depths=(1, 2, 1), width=32, window=3)


def _paths(state: Any) -> dict[str, jax.ShapeDtypeStruct]:
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _official_name(path: str) -> str:
    module, _, leaf = path.rpartition("/")
    return ".".join([*module.split("/"), _LEAVES.get(leaf, leaf)]).lstrip(".")


def _official_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if path.endswith("kernel"):
        return (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape[::-1]
    return shape


def _module(build: Callable[[Keys], Any], value: Callable[[str, tuple[int, ...]], np.ndarray]) -> Any:
    """The module with the parameters that `value` gives for official names and shapes."""
    graph, state = nnx.split(nnx.eval_shape(lambda: build(Keys(0))))

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        ours = jax.tree_util.keystr(path, simple=True, separator="/")
        weight = value(_official_name(ours), _official_shape(ours, leaf.shape))
        if ours.endswith("kernel"):
            weight = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        return jnp.asarray(weight)

    return nnx.merge(graph, nnx.State(jax.tree_util.tree_map_with_path(fill, nnx.to_pure_dict(state))))


def _by_rule(prefix: str) -> Callable[[str, tuple[int, ...]], np.ndarray]:
    """The rule of the recordings: a weight is a function of its official name."""
    return lambda name, shape: recorded_weight(prefix + name, shape)


@functools.cache
def _small(dtype: str = "float32") -> Swin:
    return _swin(_SMALL, dtype)


def _swin(config: BackboneConfig, dtype: str = "float32") -> Swin:
    return _module(lambda rngs: Swin(config, dtype=dtype, rngs=rngs), _by_rule("backbone."))


@functools.lru_cache(maxsize=8)
def _compiled(module: Any) -> Callable[..., Any]:
    """The parameters are arguments of the compiled function, lest XLA folds them."""
    graph, state = nnx.split(module)
    return functools.partial(jax.jit(lambda state, *args: nnx.merge(graph, state)(*args)), state)


def _run(module: Any, *args: Any) -> Any:
    """The result as NumPy arrays, compiled once for a module."""
    with jax.default_matmul_precision("highest"):
        return jax.tree.map(np.asarray, _compiled(module)(*args))


def _noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "unit/swin.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(("window", "heads"), [(7, 3), (12, 4)])
def test_attention_within_windows(recorded: dict[str, np.ndarray], window: int, heads: int) -> None:
    name = f"window_attn_w{window}"
    x = recorded[f"{name}/x"]
    windows, tokens, dim = x.shape
    attention = _module(
        lambda rngs: WindowAttention(dim, heads, window, dtype="float32", rngs=rngs),
        lambda leaf, _: recorded[f"{name}/param/{leaf}"],
    )
    blocked = np.unpackbits(recorded[f"{name}/mask"], count=2 * tokens**2).reshape(1, 2, tokens, tokens).astype(bool)
    free = _run(attention, x[None])[0]
    masked = _run(attention, x.reshape(windows // 2, 2, tokens, dim), blocked).reshape(x.shape)
    np.testing.assert_allclose(free, recorded[f"{name}/output"], atol=5e-6)
    np.testing.assert_allclose(masked, recorded[f"{name}/output_mask"], atol=5e-6)
    rows = relative_position_index(window).sum(axis=1)
    np.testing.assert_array_equal(rows, recorded[f"{name}/relative_position_index_rowsum"])


@pytest.mark.parametrize(("window", "heads"), [(7, 3), (12, 4)])
def test_a_stage_on_a_map_that_windows_do_not_fill(recorded: dict[str, np.ndarray], window: int, heads: int) -> None:
    """17 x 20 tokens: both paddings of the windows, the shifted masks, and merging of an odd number of rows."""
    name = f"basic_layer_w{window}"
    size, merged = tuple(recorded[f"{name}/HW"]), tuple(recorded[f"{name}/down_HW"])
    x = recorded[f"{name}/x"]
    x, dim = x.reshape(len(x), *size, -1), x.shape[-1]
    rule = _by_rule(f"unit/swin{window}/layer/")
    build = lambda depth: _module(lambda rngs: Stage(dim, heads, window, depth, True, dtype="float32", rngs=rngs), rule)
    both = build(2)
    for depth, key in ((1, "block0_out_noshift"), (2, "block1_out_shift")):
        found = _run(both if depth == 2 else build(1), x, None, None)
        np.testing.assert_allclose(found.reshape(len(x), -1, dim), recorded[f"{name}/{key}"], atol=2e-5)
    down = _run(both.downsample, found, None)
    assert down.shape[1:3] == merged
    np.testing.assert_allclose(down.reshape(len(x), -1, 2 * dim), recorded[f"{name}/downsampled"], atol=2e-5)


def test_patches(recorded: dict[str, np.ndarray]) -> None:
    embed = _module(
        lambda rngs: PatchEmbed(16, dtype="float32", rngs=rngs),
        lambda leaf, _: recorded[f"patch_embed/param/{leaf}"],
    )
    image = recorded["patch_embed/x"].transpose(0, 2, 3, 1)
    image = np.pad(image, ((0, 0), (0, 2), (0, 3), (0, 0)))  # to whole patches, as the canvas of the model always is
    found = _run(embed, image).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, recorded["patch_embed/output"], atol=1e-5)


@pytest.mark.shared
def test_the_whole_backbone(shared: Path) -> None:
    """Swin-T on the recorded pair of images; every twelfth channel, and mean and deviation of all."""
    folder = shared / "golden/swin"
    images, mean, std = np.zeros((2, 192, 224, 3), np.float32), (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    with np.load(folder / "panoptic_swint_eval_outputs.npz") as arrays:
        for index, canvas in enumerate(images):
            pixels = arrays[f"input/image{index}"].transpose(1, 2, 0)
            canvas[: pixels.shape[0], : pixels.shape[1]] = (pixels - np.array(mean)) / std
    maps = _run(_swin(backbone("swin_t")), images)
    with np.load(folder / "panoptic_swint_eval_features.npz") as arrays:
        for name, found in maps.items():
            found = found.transpose(0, 3, 1, 2)
            every = found.shape[1] // arrays[f"backbone/{name}"].shape[1]
            np.testing.assert_allclose(found[:, ::every], arrays[f"backbone/{name}"], atol=5e-5)
            moments = np.stack([found.mean(axis=(2, 3)), found.std(axis=(2, 3))], axis=-1)
            np.testing.assert_allclose(moments, arrays[f"backbone/{name}_stats"], atol=5e-5)


@pytest.mark.parametrize(
    ("variant", "count"),
    [("swin_t", 27_520_698), ("swin_s", 48_838_602), ("swin_b", 86_880_376), ("swin_l", 195_201_204)],
)
def test_parameter_counts(variant: str, count: int) -> None:
    config = backbone(variant)
    module = nnx.eval_shape(lambda: Swin(config, dtype="float32", rngs=Keys(0)))
    assert sum(math.prod(leaf.shape) for leaf in _paths(nnx.state(module, nnx.Param)).values()) == count
    assert module.channels == {f"res{i + 2}": config.width * 2**i for i in range(4)}


@pytest.mark.shared
@pytest.mark.parametrize("variant", ["swin_t", "swin_l"])
def test_names_and_shapes_are_those_of_the_official_state(shared: Path, variant: str) -> None:
    """So are the parameters that weight decay spares."""
    file = shared / f"golden/state_dict_panoptic_{variant.replace('_', '')}.json"
    official = {
        name.removeprefix("backbone."): (tuple(entry["shape"]), entry["weight_decay"] > 0)
        for name, entry in json.loads(file.read_text())["entries"].items()
        if name.startswith("backbone.") and not name.endswith("relative_position_index")
    }
    module = nnx.eval_shape(lambda: Swin(backbone(variant), dtype="float32", rngs=Keys(0)))
    paths = _paths(nnx.state(module, nnx.Param))
    ours = {
        _official_name(path): (_official_shape(path, leaf.shape), decays(f"backbone/{path}"))
        for path, leaf in paths.items()
    }
    assert ours == official


def test_weight_decay_spares_norms_and_position_biases() -> None:
    module = nnx.eval_shape(lambda: Swin(_SMALL, dtype="float32", rngs=Keys(0)))
    decayed = {path for path in _paths(nnx.state(module, nnx.Param)) if decays(f"backbone/{path}")}
    kinds = {"/".join(path.split("/")[-2:]) for path in decayed}
    assert kinds == {
        *("proj/kernel", "proj/bias", "qkv/kernel", "qkv/bias", "reduction/kernel"),
        *("fc1/kernel", "fc1/bias", "fc2/kernel", "fc2/bias"),
    }


def test_initial_values_are_those_of_pytorch() -> None:
    """Weights and biases uniform in one over the square root of the fan-in, the bias table normal with 0.02."""
    build = lambda: Swin(BackboneConfig(depths=(1,), width=64, window=7), dtype="float32", rngs=Keys(0))
    values = {name: np.asarray(x) for name, x in _paths(jax.jit(lambda: nnx.state(build(), nnx.Param))()).items()}
    for module, fan_in in {"patch_embed/proj": 48, "layers/0/blocks/0/mlp/fc2": 256}.items():
        for leaf in ("kernel", "bias"):
            largest = np.abs(values[f"{module}/{leaf}"]).max()
            assert 0.9 / math.sqrt(fan_in) < largest <= 1 / math.sqrt(fan_in)
    assert abs(values["layers/0/blocks/0/attn/relative_position_bias_table"].std() - 0.02) < 0.002


@pytest.mark.parametrize(("window", "size"), [(7, (30, 23)), (4, (12, 17))])
def test_a_stage_sees_an_extent_as_a_map_of_its_own(window: int, size: tuple[int, int]) -> None:
    """Extents that end inside a window, at its border, before half of it, and at the edge of the canvas."""
    stage = _module(lambda rngs: Stage(8, 2, window, 2, True, dtype="float32", rngs=rngs), _by_rule("stage."))
    extents = np.array([(window + 2, 2 * window), (2, size[1]), (2 * window + 1, window // 2 + 5)], np.int32)
    x = _noise(3, *size, 8)  # what lies beyond an extent is noise here: it must not leak
    full = _run(stage, x, extents, None)
    merged = _run(stage.downsample, full, extents)
    for image, (height, width) in enumerate(extents.tolist()):
        alone = _run(stage, x[image : image + 1, :height, :width], None, None)
        np.testing.assert_allclose(full[image, :height, :width], alone[0], atol=1e-5)
        half = _run(stage.downsample, alone, None)[0]
        np.testing.assert_allclose(merged[image, : half.shape[0], : half.shape[1]], half, atol=1e-5)


def test_the_backbone_sees_an_extent_as_a_canvas_of_its_own() -> None:
    extents = np.array([(96, 160), (128, 64)], np.int32)
    images = _noise(2, 128, 160, 3)
    for image, (height, width) in zip(images, extents, strict=True):
        image[height:], image[:, width:] = 0, 0
    swin = _small()
    maps = _run(swin, images, extents)
    for index, (height, width) in enumerate(extents.tolist()):
        alone = _run(swin, images[index : index + 1, :height, :width])
        for name, expected in alone.items():
            found = maps[name][index, : expected.shape[1], : expected.shape[2]]
            np.testing.assert_allclose(found, expected[0], atol=2e-5)


def test_merging_order_by_hand() -> None:
    """Channels: top left, bottom left, top right, bottom right; what is missing below and to the right is zero."""
    merging = _module(lambda rngs: PatchMerging(1, dtype="float32", rngs=rngs), lambda _, shape: np.ones(shape))
    merging.norm = lambda x: x
    merging.reduction = lambda x: x
    x = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    expected = [[[1, 4, 2, 5], [3, 6, 0, 0]], [[7, 0, 8, 0], [9, 0, 0, 0]]]
    np.testing.assert_array_equal(np.asarray(merging(x, None))[0], expected)
    expected = [[[1, 4, 2, 5], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]]
    np.testing.assert_array_equal(np.asarray(merging(x, jnp.array([[2, 2]])))[0], expected)


def test_factors_scale_the_two_branches_of_each_image() -> None:
    block = _module(lambda rngs: Block(8, 2, 3, 0, dtype="float32", rngs=rngs), _by_rule("block."))
    x = _noise(2, 6, 6, 8)
    found = _run(block, x, None, None, np.array([[0, 1], [3, 0]], np.float32))
    mlp = _run(block.mlp, _run(block.norm2, x))
    np.testing.assert_allclose(found[0], x[0] + 3 * mlp[0], atol=1e-5)
    whole = _run(block, x, None, None, None)
    attended = found[1]
    np.testing.assert_allclose(attended + _run(block.mlp, _run(block.norm2, attended[None]))[0], whole[1], atol=1e-5)


def test_blocks_are_skipped_at_rates_that_grow_linearly() -> None:
    """4096 images and two branches: a share of 0.3 has a standard deviation of 0.005."""
    factors = np.asarray(branch_factors(jax.random.split(jax.random.key(0), 4096), 4, 0.3))
    rates = [0, 0.1, 0.2, 0.3]
    np.testing.assert_allclose((factors == 0).mean(axis=(1, 2)), rates, atol=0.02)
    for row, rate in zip(factors, rates, strict=True):
        np.testing.assert_allclose(row[row > 0], 1 / (1 - rate), rtol=1e-6)
    both = (factors[3] == 0).all(axis=0).mean()
    assert abs(both - 0.09) < 0.02  # the branches are drawn independently


def test_every_block_is_skipped_by_its_own_chance() -> None:
    """Three blocks at drop_path 1: the chances are 0, 1/2 and 1, so the last, alone in its stage, never acts."""
    config = BackboneConfig(kind="swin", depths=(2, 1), width=32, window=3, drop_path=1.0)
    images, keys, swin = _noise(2, 32, 32, 3), jax.random.split(jax.random.key(2)), _swin(config)
    found = _run(swin, images, None, keys)
    factors = branch_factors(keys, 3, 1.0)
    assert set(np.unique(factors[1])) == {0, 2}
    fine = _run(swin.layers[0], _run(swin.patch_embed, images), None, factors[:2])
    np.testing.assert_allclose(found["res2"], _run(swin.norm0, fine), atol=1e-5)
    coarse = _run(swin.layers[0].downsample, fine, None)
    np.testing.assert_allclose(found["res3"], _run(swin.norm1, coarse), atol=1e-5)


def test_only_training_draws() -> None:
    swin, images = _small(), _noise(2, 128, 160, 3)
    plain = _run(swin, images)["res4"]
    drawn, again, other = (
        _run(swin, images, None, jax.random.split(jax.random.key(seed)))["res4"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(drawn, again)
    assert np.abs(drawn - plain).max() > 1e-2
    assert np.abs(drawn - other).max() > 1e-2
    never = _swin(dataclasses.replace(_SMALL, drop_path=0.0))
    np.testing.assert_allclose(_run(never, images, None, jax.random.split(jax.random.key(0)))["res4"], plain, atol=1e-6)


def test_bfloat16_stays_close_to_float32() -> None:
    images = _noise(2, 128, 160, 3)
    single, half = _run(_small(), images), _run(_small("bfloat16"), images)
    for name, expected in single.items():
        assert half[name].dtype == jnp.bfloat16
        error = half[name].astype(np.float32) - expected
        assert 0 < np.sqrt(np.mean(error**2)) < 3e-2 * np.sqrt(np.mean(expected**2))

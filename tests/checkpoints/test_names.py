"""The table names every tensor of the official state dicts, and only those."""

import dataclasses
import functools
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskdino_jax.checkpoints import names
from maskdino_jax.config import ModelConfig, backbone

_SWIN = {"in_features": ("res2", "res3", "res4", "res5"), "num_levels": 5}
_SEMANTIC = {"order": "coarse_to_fine", "num_levels": 3, "ffn_dim": 1024}
# Recorded state dict -> backbone, encoder, queries (learned or not), classes, trained parameters of the official model.
MODELS: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "instance_r50": ("r50", {}, 0, 80, 52_058_004),
    "panoptic_r50": ("r50", {}, 0, 133, 52_085_193),
    "semantic_r50": ("r50", _SEMANTIC, 100, 150, 43_812_299),
    "panoptic_swint": ("swin_t", _SWIN, 0, 133, 52_983_139),
    "instance_swinl": ("swin_l", _SWIN, 0, 80, 222_799_144),
    "panoptic_swinl": ("swin_l", _SWIN, 0, 133, 222_826_333),
    "semantic_swinl900": ("swin_l", _SEMANTIC, 900, 150, 215_520_831),
}
CARRIED = ("instance_r50", "semantic_r50", "panoptic_swint")


def model(name: str) -> tuple[ModelConfig, int]:
    """Config and number of classes of a recorded model."""
    kind, encoder, learned, num_classes, _ = MODELS[name]
    config = ModelConfig(backbone=backbone(kind))
    config.encoder = dataclasses.replace(config.encoder, **encoder)
    if learned:
        config.class_scores = "softmax"
        config.decoder = dataclasses.replace(config.decoder, query_source="learned", num_queries=learned)
    return config, num_classes


table = functools.cache(lambda name: names.table(*model(name)))


@pytest.fixture(params=[name if name in CARRIED else pytest.param(name, marks=pytest.mark.shared) for name in MODELS])
def recorded(request: pytest.FixtureRequest, golden: Path) -> tuple[str, dict[str, Any]]:
    """Name of a recorded model and its official state dict: name -> shape, dtype, alias_of."""
    if request.param in CARRIED:
        text = gzip.decompress((golden / f"names/{request.param}.json.gz").read_bytes())
    else:
        text = (request.getfixturevalue("shared") / f"golden/state_dict_{request.param}.json").read_bytes()
    return request.param, json.loads(text)


def test_the_table_is_the_official_state_dict(recorded: tuple[str, dict[str, Any]]) -> None:
    """Names, shapes, buffers and which names share a tensor; and as many trained parameters."""
    name, official = recorded
    entries = table(name)
    constants = names.buffers(model(name)[0], entries)
    shapes = {known: entry.official_shape for entry in entries for known in (entry.name, *entry.aliases)}
    shapes |= {known: array.shape for known, array in constants.items()}
    assert shapes == {known: tuple(said["shape"]) for known, said in official["entries"].items()}

    first = lambda known: official["entries"][known].get("alias_of", known)
    for entry in entries:
        assert len({first(known) for known in (entry.name, *entry.aliases)}) == 1
    assert len({first(entry.name) for entry in entries}) == len({entry.name for entry in entries})
    for known, array in constants.items():
        assert array.dtype == official["entries"][known]["dtype"]

    trained = sum(math.prod(entry.shape) for entry in entries if entry.path.startswith("params/"))
    assert trained == MODELS[name][-1] == official["num_parameters"]


def test_each_parameter_of_ours_has_a_place_of_its_own() -> None:
    places = [(entry.name, entry.third) for entry in table("panoptic_swint")]
    assert len(set(places)) == len(places)
    packed = [entry.name for entry in table("panoptic_swint") if entry.third is not None]
    assert len(packed) == 9 * 2 * 3
    assert {packed.count(name) for name in packed} == {3}


def _entry(path: str, shape: tuple[int, ...], third: int | None = None) -> names.Entry:
    return names.Entry(path=path, name="", aliases=(), shape=shape, third=third)


def test_layouts() -> None:
    """Convolution HWIO and OIHW, linear (in, out) and (out, in), other arrays as they are."""
    rng = np.random.default_rng(0)
    conv = rng.standard_normal((3, 5, 2, 4))
    entry = _entry("params/a/kernel", conv.shape)
    official = entry.to_official(conv)
    assert official.shape == entry.official_shape == (4, 2, 3, 5)
    assert official[3, 1, 2, 4] == conv[2, 4, 1, 3]
    np.testing.assert_array_equal(entry.from_official(official), conv)

    linear = rng.standard_normal((2, 3))
    entry = _entry("params/a/kernel", linear.shape)
    np.testing.assert_array_equal(entry.to_official(linear), linear.T)
    np.testing.assert_array_equal(entry.from_official(linear.T), linear)

    table_of_rows = rng.standard_normal((2, 3))
    for path in ("params/label_enc/embedding", "params/pixel_decoder/level_embed", "params/learned_queries/anchors"):
        np.testing.assert_array_equal(_entry(path, (2, 3)).to_official(table_of_rows), table_of_rows)


def test_queries_keys_and_values_are_thirds_of_the_rows() -> None:
    official = np.arange(18.0).reshape(6, 3)
    entry = _entry("params/decoder/layers/0/self_attn/key/kernel", (3, 2), third=1)
    assert entry.official_shape == (6, 3)
    np.testing.assert_array_equal(entry.from_official(official), official[2:4].T)


@pytest.mark.parametrize(
    ("order", "official"), [("fine_to_coarse", [0, 1, 2, 3, 4]), ("coarse_to_fine", [2, 1, 0, 3, 4])]
)
def test_projections_follow_the_encoder_and_extra_levels_come_last(order: str, official: list[int]) -> None:
    """Ours run res3, res4, res5, then two extra levels; official coarse to fine: res5, res4, res3, extra, extra."""
    config = ModelConfig()
    config.encoder.order, config.encoder.num_levels = order, 5
    for ours, theirs in enumerate(official):
        for leaf, name in (("conv/kernel", "0.weight"), ("conv/bias", "0.bias"), ("norm/scale", "1.weight")):
            found = names.official_name(f"params/pixel_decoder/input_proj/{ours}/{leaf}", config)
            assert found == f"sem_seg_head.pixel_decoder.input_proj.{theirs}.{name}"


@pytest.mark.parametrize(
    ("ours", "official"),
    [
        ("decoder/layers/3/cross_norm/scale", "predictor.decoder.layers.3.norm1.weight"),
        ("decoder/layers/3/self_norm/bias", "predictor.decoder.layers.3.norm2.bias"),
        ("decoder/layers/3/ffn_norm/bias", "predictor.decoder.layers.3.norm3.bias"),
        ("decoder/layers/3/cross_attn/value_proj/bias", "predictor.decoder.layers.3.cross_attn.value_proj.bias"),
        ("decoder/layers/3/self_attn/out/kernel", "predictor.decoder.layers.3.self_attn.out_proj.weight"),
        ("heads/norm/scale", "predictor.decoder_norm.weight"),
        ("query_selection/enc_output_norm/scale", "predictor.enc_output_norm.weight"),
        ("pixel_decoder/layers/2/norm2/bias", "pixel_decoder.transformer.encoder.layers.2.norm2.bias"),
        ("pixel_decoder/lateral/norm/scale", "pixel_decoder.adapter_1.norm.weight"),
        ("pixel_decoder/smooth/norm/scale", "pixel_decoder.layer_1.norm.weight"),
    ],
)
def test_parameters_of_one_shape_keep_their_roles(ours: str, official: str) -> None:
    """Shapes cannot tell these apart: official norms of the decoder are cross-attention's, self-attention's, FFN's."""
    assert names.official_name(f"params/{ours}", ModelConfig()) == f"sem_seg_head.{official}"


def test_a_parameter_without_official_name_is_named() -> None:
    with pytest.raises(ValueError, match="params/novelty/kernel has no official name"):
        names.official_name("params/novelty/kernel", ModelConfig())


def test_trained_batch_norms_count_their_batches() -> None:
    """Cityscapes: 767 official tensors, 53 of them counters (table 7 of the recorded specification)."""
    config, _ = model("semantic_r50")
    config.backbone.norm = "batch_norm"
    entries = names.table(config, 19)
    constants = names.buffers(config, entries)
    assert sum(name.endswith("num_batches_tracked") for name in constants) == 53
    official = {known for entry in entries for known in (entry.name, *entry.aliases)} | set(constants)
    assert len(official) == 767
    assert sum(math.prod(entry.shape) for entry in entries if entry.path.startswith("params/")) == 43_798_216


@pytest.mark.parametrize(
    ("given", "official"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_mean", "stem.conv1.norm.running_mean"),
        ("layer1.0.conv1.weight", "res2.0.conv1.weight"),
        ("layer4.2.bn3.bias", "res5.2.conv3.norm.bias"),
        ("layer2.0.downsample.0.weight", "res3.0.shortcut.weight"),
        ("layer2.0.downsample.1.running_var", "res3.0.shortcut.norm.running_var"),
        ("stem.conv1.norm.weight", "stem.conv1.norm.weight"),
        ("res5.2.conv3.norm.bias", "res5.2.conv3.norm.bias"),
        ("backbone.res5.2.conv3.norm.bias", "res5.2.conv3.norm.bias"),
        ("layers.0.downsample.norm.weight", "layers.0.downsample.norm.weight"),
        ("layers.2.blocks.17.attn.relative_position_bias_table",) * 2,
        ("norm2.bias", "norm2.bias"),
    ],
)
def test_names_of_imagenet_backbones(given: str, official: str) -> None:
    assert names.backbone_names([given]) == {given: f"backbone.{official}"}


def test_classifiers_and_constants_of_imagenet_backbones_are_left_out() -> None:
    left_out = ["fc.weight", "stem.fc.bias", "head.weight", "norm.bias", "bn1.num_batches_tracked"]
    left_out += ["layers.0.blocks.1.attn_mask", "layers.0.blocks.1.attn.relative_position_index"]
    assert names.backbone_names(left_out) == {}


def test_hints_tell_the_variant_a_file_was_made_with() -> None:
    """A semantic checkpoint under the instance config: each option at odds, with its value in the file."""
    shapes = {known: entry.official_shape for entry in table("semantic_r50") for known in (entry.name, *entry.aliases)}
    state_dict = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    assert names.hints(state_dict, model("semantic_r50")[0]) == []
    said = {hint.removeprefix("config.model.") for hint in names.hints(state_dict, model("instance_r50")[0])}
    assert said == {
        "encoder.order = 'fine_to_coarse', but the file has 'coarse_to_fine'",
        "encoder.num_levels = 4, but the file has 3",
        "encoder.ffn_dim = 2048, but the file has 1024",
        "decoder.query_source = 'encoder', but the file has 'learned'",
        "decoder.num_queries = 300, but the file has 100",
        "class_scores = 'sigmoid', but the file has 'softmax'",
    }
    said = names.hints(state_dict, model("panoptic_swint")[0])
    assert "config.model.backbone.kind = 'swin', but the file has 'resnet'" in said

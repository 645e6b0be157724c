"""Recorded runs of the official implementation: its weights by name, and where they sit in our tree."""

import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from maskdino_jax.model import ModelSpec

# Our path -> official name. Leaves are renamed by `_LEAVES`; queries, keys and values are slices of one tensor.
_RULES = [
    (r"backbone/stem/(conv|norm)", lambda m: "backbone.stem.conv1" + (".norm" if m[1] == "norm" else "")),
    (
        r"backbone/(res\d)/(\d+)/(conv\d|shortcut)/(conv|norm)",
        lambda m: f"backbone.{m[1]}.{m[2]}.{m[3]}" + (".norm" if m[4] == "norm" else ""),
    ),
    (
        r"pixel_decoder/input_proj/(\d)/(conv|norm)",
        lambda m: f"sem_seg_head.pixel_decoder.input_proj.{m[1]}.{int(m[2] == 'norm')}",
    ),
    (r"pixel_decoder/level_embed", lambda m: "sem_seg_head.pixel_decoder.transformer.level_embed"),
    (
        r"pixel_decoder/layers/(\d)/(?:ffn/)?(.*)",
        lambda m: f"sem_seg_head.pixel_decoder.transformer.encoder.layers.{m[1]}.{m[2].replace('/', '.')}",
    ),
    (
        r"pixel_decoder/(lateral|smooth)/(conv|norm)",
        lambda m: (
            "sem_seg_head.pixel_decoder."
            + {"lateral": "adapter_1", "smooth": "layer_1"}[m[1]]
            + (".norm" if m[2] == "norm" else "")
        ),
    ),
    (r"pixel_decoder/mask_features", lambda m: "sem_seg_head.pixel_decoder.mask_features"),
    (r"query_selection/(.*)", lambda m: f"sem_seg_head.predictor.{m[1]}"),
    (r"decoder/ref_point_head/layers/(\d)", lambda m: f"sem_seg_head.predictor.decoder.ref_point_head.layers.{m[1]}"),
    (
        r"decoder/layers/(\d)/self_attn/out",
        lambda m: f"sem_seg_head.predictor.decoder.layers.{m[1]}.self_attn.out_proj",
    ),
    (
        r"decoder/layers/(\d)/(self|cross|ffn)_norm",
        lambda m: (
            f"sem_seg_head.predictor.decoder.layers.{m[1]}." + {"cross": "norm1", "self": "norm2", "ffn": "norm3"}[m[2]]
        ),
    ),
    (
        r"decoder/layers/(\d)/(?:ffn/)?(cross_attn/.*|linear\d)",
        lambda m: f"sem_seg_head.predictor.decoder.layers.{m[1]}.{m[2].replace('/', '.')}",
    ),
    (r"heads/norm", lambda m: "sem_seg_head.predictor.decoder_norm"),
    (r"heads/class_embed", lambda m: "sem_seg_head.predictor.class_embed"),
    (
        r"heads/(box|mask)_embed/layers/(\d)",
        lambda m: f"sem_seg_head.predictor.{'_bbox' if m[1] == 'box' else 'mask'}_embed.layers.{m[2]}",
    ),
    (r"label_enc", lambda m: "sem_seg_head.predictor.label_enc"),
]
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_GAINS = [
    ("attention_weights.weight", 1.0),
    ("class_embed.weight", 2.0),
    ("_bbox_embed.layers.2.weight", 0.5),
    ("self_attn.out_proj.weight", 0.5),
    ("output_proj.weight", 0.5),
    ("linear2.weight", 0.5),
    ("sampling_offsets.weight", 0.5),
    (".conv3.weight", 0.5),
    (".shortcut.weight", 1.4),
]
_BIASES = [("class_embed.bias", -7.5), ("mask_features.bias", 0.25), ("mask_embed.layers.2.bias", -0.06)]


def canonical(name: str) -> str:
    """One name for the box head, which the official state dict holds nineteen times."""
    return re.sub(r"predictor\.(decoder\.)?bbox_embed\.\d+\.", "predictor._bbox_embed.", name)


def recorded_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 weights the recordings were made with: a function of the official name and layout."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        weight = 1 + 0.1 * np.abs(z)
    elif name.endswith("running_mean"):
        weight = 0.02 * z
    elif len(shape) == 1 and name.endswith(".weight"):
        weight = 1 + 0.1 * z
    elif name.endswith(("label_enc.weight", "level_embed")):
        weight = z
    elif name.endswith("sampling_offsets.bias"):
        weight = 2.0 * z
    elif len(shape) == 1:
        weight = next((v for suffix, v in _BIASES if name.endswith(suffix)), 0.0) + 0.02 * z
    else:
        z = z - z.mean(axis=tuple(range(1, z.ndim)), keepdims=True)
        convolution = name.startswith("backbone.") and z.ndim == 4
        gain = next((v for suffix, v in _GAINS if name.endswith(suffix)), 1.4 if convolution else 1.0)
        weight = gain * z / np.sqrt(np.prod(shape[1:]))
    return weight.astype(np.float32)


def official_name(path: str) -> tuple[str, slice | None]:
    """Official name of one of our parameters, and the part of its first axis where it holds several of ours."""
    packed = re.fullmatch(r"decoder/layers/(\d)/self_attn/(query|key|value)/(kernel|bias)", path)
    if packed:
        third = ("query", "key", "value").index(packed[2])
        leaf = "in_proj_weight" if packed[3] == "kernel" else "in_proj_bias"
        name = f"sem_seg_head.predictor.decoder.layers.{packed[1]}.self_attn.{leaf}"
        return name, slice(256 * third, 256 * (third + 1))
    module, _, leaf = path.rpartition("/")
    if path == "pixel_decoder/level_embed":
        module, leaf = path, ""
    for pattern, rename in _RULES:
        found = re.fullmatch(pattern, module)
        if found:
            return rename(found) + (f".{_LEAVES[leaf]}" if leaf else ""), None
    raise KeyError(path)


def to_official(path: str, value: np.ndarray) -> np.ndarray:
    """Our array in the official layout: linear (out, in), convolution (out, in, height, width)."""
    if path.endswith("kernel"):
        return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return value


def _from_official(path: str, value: np.ndarray) -> np.ndarray:
    if path.endswith("kernel"):
        return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return value


def recorded_variables(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Our variables filled with the recorded weights; `shapes`: official name -> shape."""

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        ours = jax.tree_util.keystr(path[1:], simple=True, separator="/")
        name, part = official_name(ours)
        weight = recorded_weight(name, shapes[name])
        value = _from_official(ours, weight if part is None else weight[part])
        assert value.shape == leaf.shape, (ours, name, value.shape, leaf.shape)
        return np.ascontiguousarray(value)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(lambda: spec.init(0)))

"""Recorded runs of the official implementation: the models, and the weights they were recorded with."""

import dataclasses
import gzip
import importlib.util
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from maskdino_jax.checkpoints import torch_import
from maskdino_jax.config import Config

_ROOT = Path(__file__).parents[2]
# Recording -> config file and variant, file of names and shapes in tests/golden/names, number of classes.
_MODELS = {
    "instance_r50": ("coco_instance", "r50", "instance_r50", 80),
    "panoptic_r50": ("coco_panoptic", "r50", "instance_r50", 133),
    "semantic_r50": ("ade20k_semantic", "r50", "semantic_r50", 150),
    "instance_swint": ("coco_instance", "swin_t", "panoptic_swint", 80),
    "panoptic_swint": ("coco_panoptic", "swin_t", "panoptic_swint", 133),
    "panoptic_swinl": ("coco_panoptic", "swin_l", "panoptic_swinl", 133),
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
_STANDARD_NORMAL = ("label_enc.weight", "level_embed", "query_feat.weight", "query_embed.weight")
_CONSTANT = ("relative_position_index", "criterion.empty_weight")


def canonical(name: str) -> str:
    """One name for the box head and the last norm, which the official state dict holds nineteen times and twice."""
    name = re.sub(r"predictor\.(decoder\.)?bbox_embed\.\d+\.", "predictor._bbox_embed.", name)
    return name.replace("predictor.decoder.norm.", "predictor.decoder_norm.")


def recorded_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 weights the recordings were made with: a function of the official name and layout."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        weight = 1 + 0.1 * np.abs(z)
    elif name.endswith("running_mean"):
        weight = 0.02 * z
    elif len(shape) == 1 and name.endswith(".weight"):
        weight = 1 + 0.1 * z
    elif name.endswith(_STANDARD_NORMAL):
        weight = z
    elif name.endswith("relative_position_bias_table"):
        weight = 0.5 * z
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


def recorded_state_dict(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The official state dict of a recording, without the constants; `shapes`: official name -> shape."""
    found: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        first = canonical(name)
        if not name.endswith(_CONSTANT):
            found[name] = found[first] if first in found else recorded_weight(first, tuple(shape))
            found.setdefault(first, found[name])
    return found


@dataclasses.dataclass(frozen=True)
class Recording:
    """Two images of different sizes through one official model, all with the weights of `recorded_weight`."""

    name: str
    arrays: dict[str, np.ndarray]

    @classmethod
    def load(cls, name: str, files: list[Path]) -> Self:
        return cls(name, {key: array for file in files for key, array in np.load(file).items()})

    def config(self) -> Config:
        """The shipped config of the model."""
        file, variant, *_ = _MODELS[self.name]
        module_spec = importlib.util.spec_from_file_location(file, _ROOT / f"configs/{file}.py")
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
        return module.get_config(variant)

    @property
    def num_classes(self) -> int:
        return _MODELS[self.name][3]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Official name -> shape."""
        file = _MODELS[self.name][2]
        entries = json.loads(gzip.decompress((_ROOT / f"tests/golden/names/{file}.json.gz").read_bytes()))["entries"]
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        for name in shapes:  # one list of names serves several models
            if "predictor.label_enc" in name or ("predictor.class_embed" in name and file != "semantic_r50"):
                shapes[name] = (self.num_classes, *shapes[name][1:])
        return shapes

    def variables(self) -> tuple[dict[str, Any], int]:
        """Our variables with the recorded weights, by way of the converter, and the number of classes."""
        state_dict = recorded_state_dict(self.shapes())
        return torch_import.variables_from_state_dict(state_dict, self.config().model)

    def part(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin with `prefix`, which is cut off."""
        return {key.removeprefix(prefix): array for key, array in self.arrays.items() if key.startswith(prefix)}

    @property
    def images(self) -> list[np.ndarray]:
        return [self.arrays[f"input/image{i}"].transpose(1, 2, 0) for i in range(2)]

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of the images."""
        return np.array([image.shape[:2] for image in self.images], np.int32)

    def canvas(self, beyond: int = 77) -> np.ndarray:
        """The images on one canvas of multiples of 32; the value of the pixels `beyond` must not matter."""
        height, width = -(-self.sizes.max(axis=0) // 32) * 32
        canvas = np.full((2, height, width, 3), beyond, np.uint8)
        for row, image in zip(canvas, self.images, strict=True):
            row[: image.shape[0], : image.shape[1]] = image
        return canvas

"""Where each of our parameters lies in the official state dict, and in which layout.

The table is made for one model by renaming the paths of its parameters, so that it is total: a parameter without an
official name is an error, and whatever an official file holds beyond the table is unknown.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from maskdino_jax.config import BACKBONE_FEATURES, ModelConfig
from maskdino_jax.model import ModelSpec
from maskdino_jax.model.swin import relative_position_index

_PIXEL, _PREDICTOR = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"
LABELS = f"{_PREDICTOR}.label_enc.weight"  # one row for each class
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}
_DECODER_NORMS = {"cross": "norm1", "self": "norm2", "ffn": "norm3"}  # not in the order of their use
_PACKED = ("query", "key", "value")  # thirds of one official tensor

# Our path, its leaf renamed, -> official name with slashes; the first rule that fits the whole path.
_RULES = [
    (r"backbone/stem/conv/(.*)", r"backbone/stem/conv1/\1"),
    (r"backbone/stem/norm/(.*)", r"backbone/stem/conv1/norm/\1"),
    (r"backbone/(res\d)/(\d+)/(\w+)/conv/(.*)", r"backbone/\1/\2/\3/\4"),
    (r"backbone/((?:res\d|layers|patch_embed|norm\d)/.*)", r"backbone/\1"),
    (r"pixel_decoder/input_proj/(\d+)/conv/(.*)", rf"{_PIXEL}/input_proj/\1/0/\2"),
    (r"pixel_decoder/input_proj/(\d+)/norm/(.*)", rf"{_PIXEL}/input_proj/\1/1/\2"),
    (r"pixel_decoder/level_embed", rf"{_PIXEL}/transformer/level_embed"),
    (r"pixel_decoder/layers/(\d+)/(?:ffn/)?(.*)", rf"{_PIXEL}/transformer/encoder/layers/\1/\2"),
    (r"pixel_decoder/lateral/(?:conv/)?(.*)", rf"{_PIXEL}/adapter_1/\1"),
    (r"pixel_decoder/smooth/(?:conv/)?(.*)", rf"{_PIXEL}/layer_1/\1"),
    (r"pixel_decoder/mask_features/(.*)", rf"{_PIXEL}/mask_features/\1"),
    (r"query_selection/(.*)", rf"{_PREDICTOR}/\1"),
    (r"learned_queries/content", rf"{_PREDICTOR}/query_feat/weight"),
    (r"learned_queries/anchors", rf"{_PREDICTOR}/query_embed/weight"),
    (r"(decoder/layers/\d+/self_attn)/out/(.*)", rf"{_PREDICTOR}/\1/out_proj/\2"),
    (r"(decoder/layers/\d+/self_attn)/(?:query|key|value)/(.*)", rf"{_PREDICTOR}/\1/in_proj_\2"),
    *(
        (rf"(decoder/layers/\d+)/{ours}_norm/(.*)", rf"{_PREDICTOR}/\1/{theirs}/\2")
        for ours, theirs in _DECODER_NORMS.items()
    ),
    (r"(decoder/layers/\d+)/(?:ffn/)?(.*)", rf"{_PREDICTOR}/\1/\2"),
    (r"(decoder/ref_point_head/.*)", rf"{_PREDICTOR}/\1"),
    (r"heads/norm/(.*)", rf"{_PREDICTOR}/decoder_norm/\1"),
    (r"heads/box_embed/(.*)", rf"{_PREDICTOR}/_bbox_embed/\1"),
    (r"heads/((?:class|mask)_embed/.*)", rf"{_PREDICTOR}/\1"),
    (r"label_enc/(.*)", rf"{_PREDICTOR}/label_enc/\1"),
]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our parameters in the official state dict."""

    path: str  # of ours, as in params/heads/class_embed/kernel
    name: str  # official
    aliases: tuple[str, ...]  # other official names of the same tensor
    shape: tuple[int, ...]  # ours
    third: int | None  # of the first official axis, where one tensor holds three of ours

    @property
    def official_shape(self) -> tuple[int, ...]:
        """Shape of the official tensor, of all three parts where it is packed."""
        shape = tuple(self.shape[axis] for axis in self._axes)
        return shape if self.third is None else (3 * shape[0], *shape[1:])

    @property
    def _axes(self) -> tuple[int, ...]:
        """Our axes in the official order: linear (out, in), convolution (out, in, height, width)."""
        if not self.path.endswith("kernel"):
            return tuple(range(len(self.shape)))
        return (3, 2, 0, 1) if len(self.shape) == 4 else (1, 0)

    def to_official(self, ours: np.ndarray) -> np.ndarray:
        """Our values in the official layout; a third of the official tensor where it is packed."""
        return np.ascontiguousarray(ours.transpose(self._axes))

    def from_official(self, official: np.ndarray) -> np.ndarray:
        """The values of the official tensor, of `official_shape`, in our layout; the inverse of `to_official`."""
        if self.third is not None:
            official = np.split(official, 3)[self.third]
        return np.ascontiguousarray(official.transpose(np.argsort(self._axes)))


def official_name(path: str, config: ModelConfig) -> str:
    """Official name of one of our parameters.

    Raises:
        ValueError: it has none.
    """
    _, _, ours = path.partition("/")
    module, slash, leaf = ours.rpartition("/")
    renamed = f"{module}{slash}{_LEAVES.get(leaf, leaf)}"
    for pattern, template in _RULES:
        found = re.fullmatch(pattern, renamed)
        if found:
            name = found.expand(template).replace("/", ".")
            return re.sub(r"(?<=\.input_proj\.)\d+", lambda index: _input_proj(int(index[0]), config), name)
    raise ValueError(
        f"the parameter {path} has no official name. Of a part of your own, weights come from a workdir "
        f"(docs/swap_a_part.md); for one of ours, add a rule to {__name__}."
    )


def _input_proj(index: int, config: ModelConfig) -> str:
    """Ours run from fine to coarse; the official ones follow the order of the encoder, with the extra levels last."""
    features = len(config.encoder.in_features)
    reverse = config.encoder.order == "coarse_to_fine" and index < features
    return str(features - 1 - index if reverse else index)


def _aliases(name: str, config: ModelConfig) -> Iterator[str]:
    """The official model registers its one box head for each layer, twice, and the last norm twice."""
    head, _, rest = name.partition("._bbox_embed.")
    if rest:
        for layer in range(config.decoder.layers):
            yield f"{head}.bbox_embed.{layer}.{rest}"
            yield f"{head}.decoder.bbox_embed.{layer}.{rest}"
    head, _, rest = name.partition(".decoder_norm.")
    if rest:
        yield f"{head}.decoder.norm.{rest}"


def table(config: ModelConfig, num_classes: int) -> list[Entry]:
    """All parameters and frozen statistics of a model, in the order of `jax.tree.leaves` of its variables.

    Raises:
        ValueError: a parameter has no official name.
    """
    abstract = jax.eval_shape(functools.partial(ModelSpec(config, num_classes).init, 0))
    entries = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        name = official_name(path, config)
        packed = re.search(r"decoder/layers/\d+/self_attn/(query|key|value)/", path)
        third = _PACKED.index(packed[1]) if packed else None
        entries.append(Entry(path, name, tuple(_aliases(name, config)), tuple(leaf.shape), third))
    return entries


def buffers(config: ModelConfig, entries: list[Entry]) -> dict[str, np.ndarray]:
    """What the official model stores besides: constants that follow from the config, and counters nothing reads."""
    found: dict[str, np.ndarray] = {}
    if config.backbone.kind == "swin":
        index = relative_position_index(config.backbone.window).astype(np.int64)
        for entry in entries:
            if entry.name.endswith("_bias_table"):
                found[entry.name.replace("_bias_table", "_index")] = index
    elif config.backbone.norm == "batch_norm":
        for entry in entries:
            if entry.name.endswith(".running_mean"):
                found[entry.name.replace("running_mean", "num_batches_tracked")] = np.zeros((), np.int64)
    num_classes = next(entry.shape[0] for entry in entries if entry.name == LABELS)
    found["criterion.empty_weight"] = np.append(np.ones(num_classes, np.float32), np.float32(0.1))
    return found


def is_ignored(name: str) -> bool:
    """Whether an official name stands for something we compute, or for what only the training of theirs needs."""
    return name.startswith("criterion.") or name.endswith(
        (".relative_position_index", ".num_batches_tracked", ".attn_mask")
    )


def backbone_names(names: Collection[str]) -> dict[str, str]:
    """Name in a file of ImageNet weights -> name in the official state dict; classifiers and constants are left out.

    Knows torchvision (`layer1.0.conv1.weight`), detectron2 (`res2.0.conv1.weight`) and Microsoft's Swin Transformers
    (`layers.0.blocks.0.attn.qkv.weight`), each also behind `backbone.`, as in official checkpoints.
    """
    found = {}
    for name in names:
        bare = name.removeprefix("backbone.")
        if bare.startswith(("fc.", "stem.fc.", "head.", "norm.")) or is_ignored(bare):
            continue
        found[name] = f"backbone.{_torchvision(bare)}"
    return found


def _torchvision(name: str) -> str:
    """Name in detectron2 of a name in torchvision; others stay."""
    name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
    name = re.sub(r"^layer(\d)\.", lambda found: f"res{int(found[1]) + 1}.", name)
    name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
    name = re.sub(r"^(res\d\.\d+)\.downsample\.0\.", r"\1.shortcut.", name)  # those of Swin stay as they are
    return re.sub(r"^(res\d\.\d+)\.downsample\.1\.", r"\1.shortcut.norm.", name)


def hints(state_dict: Mapping[str, np.ndarray], config: ModelConfig) -> list[str]:
    """Options that an official state dict contradicts, each with the value that it has there."""
    found = []
    for path, value in _options(state_dict).items():
        present = functools.reduce(getattr, path.split("."), config)
        if value is not None and value != present:
            found.append(f"config.model.{path} = {present!r}, but the file has {value!r}")
    return found


def _options(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the names and shapes of a state dict say of the model; None where they say nothing."""
    shapes = {name: np.shape(array) for name, array in state_dict.items()}
    shape = lambda name: shapes.get(name, (None,) * 4)
    swin, stem = shape("backbone.patch_embed.proj.weight")[0], shape("backbone.stem.conv1.weight")[0]
    encoder, decoder = f"{_PIXEL}.transformer.encoder.layers", f"{_PREDICTOR}.decoder.layers"
    queries, labels = shape(f"{_PREDICTOR}.query_feat.weight")[0], shape(LABELS)[0]
    projections = [shape(f"{_PIXEL}.input_proj.{index}.0.weight") for index in range(9)]
    features = [channels for _, channels, side, _ in projections if side == 1]
    ascending = features == sorted(features)
    pairs = shape("backbone.layers.0.blocks.0.attn.relative_position_bias_table")[0]  # (2 window - 1) squared
    scores = shape(f"{_PREDICTOR}.class_embed.bias")[0]
    source = "learned" if queries else "encoder" if f"{_PREDICTOR}.enc_output.weight" in shapes else None
    return {
        "backbone.kind": "swin" if swin else "resnet" if stem else None,
        "backbone.width": swin or stem,
        "backbone.depths": _depths(shapes) if swin or stem else None,
        "backbone.window": pairs and (math.isqrt(pairs) + 1) // 2,
        "encoder.in_features": BACKBONE_FEATURES[-len(features) :] if features else None,
        "encoder.order": ("fine_to_coarse" if ascending else "coarse_to_fine") if features[1:] else None,
        "encoder.num_levels": shape(f"{_PIXEL}.transformer.level_embed")[0],
        "encoder.layers": _count(shapes, encoder) or None,
        "encoder.ffn_dim": shape(f"{encoder}.0.linear1.weight")[0],
        "decoder.layers": _count(shapes, decoder) or None,
        "decoder.ffn_dim": shape(f"{decoder}.0.linear1.weight")[0],
        "decoder.query_source": source,
        "decoder.num_queries": queries,
        "hidden_dim": shape(LABELS)[1],
        "class_scores": {labels: "sigmoid", (labels or 0) + 1: "softmax"}.get(scores) if scores else None,
    }


def _count(names: Collection[str], prefix: str) -> int:
    """How many numbers follow a prefix."""
    return len({name[len(prefix) :].split(".")[1] for name in names if name.startswith(f"{prefix}.")})


def _depths(names: Collection[str]) -> tuple[int, ...]:
    swin = tuple(_count(names, f"backbone.layers.{stage}.blocks") for stage in range(4))
    return swin if any(swin) else tuple(_count(names, f"backbone.res{stage}") for stage in range(2, 6))

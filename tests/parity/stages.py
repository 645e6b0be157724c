"""What the model computes on the way, under the names of the recordings of the official implementation."""

import contextlib
import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from maskdino_jax.model import MaskDINO, ModelSpec
from maskdino_jax.model.decoder import Decoder, DecoderLayer
from maskdino_jax.model.heads import mask_logits
from maskdino_jax.model.layers import ConvNorm
from maskdino_jax.model.maskdino import normalize
from maskdino_jax.model.pixel_decoder import EncoderLayer, PixelDecoder
from maskdino_jax.model.query_selection import QuerySelection, Selection, proposals
from maskdino_jax.model.resnet import ResNet
from maskdino_jax.model.swin import Swin
from maskdino_jax.structures import Outputs
from tests.parity.official import Recording

# Stage -> the recorded arrays that belong to it, in the order of the computation.
STAGES = {
    "input": r"input/tensor",
    "backbone": r"backbone/.*",
    "input projections": r"pixel/src.*",
    "encoder layers": r"pixel/enc_layer.*",
    "encoded levels": r"pixel/ms.*",
    "mask features": r"pixel/mask_features.*",
    "proposals": r"enc/output_.*",
    "selection scores": r"enc/score|enc/topk_values",
    "selected tokens": r"interm/.*",
    "decoder input": r"decoder/(tgt0|refpoints_unsigmoid)",
    "decoder layers": r"decoder/(layer|hs)\d",
    "reference boxes": r"decoder/ref[0-8]",
    "class logits": r"out/logits\d",
    "boxes": r"out/boxes\d",
    "mask logits": r"out/masks9.*",
}


@contextlib.contextmanager
def _watched(*classes: type) -> Iterator[Callable[[Any], list[tuple[tuple, Any]]]]:
    """Keeps arguments and results of all calls of modules of these classes; what is yielded tells them for a module."""
    calls = defaultdict(list)

    def watch(cls: type) -> Any:
        original = cls.__call__

        @functools.wraps(original)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            calls[id(self)].append((args, result))
            return result

        return mock.patch.object(cls, "__call__", call)

    with contextlib.ExitStack() as stack:
        for cls in classes:
            stack.enter_context(watch(cls))
        yield lambda module: calls[id(module)]


@contextlib.contextmanager
def _started_from(start: dict[str, jax.Array] | None) -> Iterator[None]:
    if start is None:
        yield
        return
    select = QuerySelection.__call__
    chosen = lambda scores, _: (jnp.take_along_axis(scores, start["enc/topk"], axis=1), start["enc/topk"])

    def call(self: QuerySelection, *args: Any) -> Selection:
        with mock.patch.object(jax.lax, "top_k", chosen):
            found = select(self, *args)
        return dataclasses.replace(found, content=start["decoder/tgt0"], anchors=start["decoder/refpoints_unsigmoid"])

    with mock.patch.object(QuerySelection, "__call__", call):
        yield


def compute(
    model: MaskDINO, images: jax.Array, sizes: jax.Array, start: dict[str, jax.Array] | None = None
) -> tuple[dict[str, jax.Array], Outputs]:
    """Every stage in the official layout and order, whole, and the predictions: what the model itself calls.

    `start`: the selected tokens and what the decoder starts from, of another run. Both are then the same, however
    close the scores at the cut are.
    """
    maps = lambda x: jnp.moveaxis(x, -1, 1)
    config, found = model.config, {}
    watched = (ResNet, Swin, ConvNorm, EncoderLayer, PixelDecoder, Decoder, DecoderLayer)
    with _watched(*watched) as calls, _started_from(start):
        outputs = model(normalize(images, sizes), every_head=True)

    [((x, *_), features)] = calls(model.backbone)
    found["input/tensor"] = maps(x)
    found |= {f"backbone/{name}": maps(value) for name, value in features.items()}
    [(_, (tokens, levels, mask_features))] = calls(model.pixel_decoder)
    projected = [calls(module)[0][1] for module in model.pixel_decoder.input_proj]
    for i, value in enumerate(reversed(projected) if config.encoder.order == "coarse_to_fine" else projected):
        found[f"pixel/src{i}"] = maps(value)
    found |= {f"pixel/enc_layer{i}": calls(layer)[0][1] for i, layer in enumerate(model.pixel_decoder.layers)}
    found |= {f"pixel/ms{i}": maps(value) for i, value in enumerate(levels.unflatten(tokens))}
    found["pixel/mask_features"] = maps(mask_features)

    [((content, anchors, memory, levels, *_), (queries, _))] = calls(model.decoder)
    found |= {"decoder/tgt0": content, "decoder/refpoints_unsigmoid": anchors, "decoder/hs8": queries[-1]}
    for i, layer in enumerate(model.decoder.layers):
        [((_, _, boxes, *_), result)] = calls(layer)
        found |= {f"decoder/layer{i}": result, f"decoder/ref{i}": boxes}
    if config.decoder.query_source == "encoder":
        boxes, valid = proposals(levels)
        selection = model.query_selection
        scored = selection.enc_output_norm(selection.enc_output(jnp.where(valid[..., None], memory, 0)))
        scored = scored.astype(jnp.float32)
        score = model.heads.class_embed(scored).max(axis=-1)
        top = jax.lax.top_k(score, content.shape[1])
        found |= {"enc/output_proposals": boxes, "enc/output_memory": scored, "enc/score": score}
        found |= {"enc/topk_values": top[0], "enc/topk": top[1]}
        chosen = outputs.proposals
        found |= {"interm/logits": chosen.logits, "interm/boxes": chosen.boxes}
        found["interm/masks"] = mask_logits(chosen.mask_embed, mask_features)
    for i in range(config.decoder.layers):
        found |= {f"out/logits{i}": outputs.heads.logits[i], f"out/boxes{i}": outputs.heads.boxes[i]}
    found |= {"out/logits9": outputs.logits, "out/boxes9": outputs.boxes, "out/masks9": outputs.masks}
    return found, outputs


def run(
    recording: Recording, dtype: str = "float32", start: dict[str, np.ndarray] | None = None
) -> tuple[dict[str, np.ndarray], Outputs]:
    """`compute` for a recording, in one compiled program."""
    variables, num_classes = recording.variables()
    config = recording.config().model
    config.dtype = dtype
    spec = ModelSpec(config, num_classes)
    program = jax.jit(lambda variables, *args: compute(spec.bind(variables), *args))
    with jax.default_matmul_precision("highest"):
        return jax.tree.map(np.asarray, program(variables, recording.canvas(), recording.sizes, start))


def errors(found: dict[str, np.ndarray], recorded: dict[str, np.ndarray], stage: str) -> dict[str, float]:
    """Largest difference of each recorded array of a stage, as a share of the array's largest value."""
    names = [name for name in recorded if re.fullmatch(STAGES[stage], name)]
    return {name: relative_error(_as_recorded(found, name, recorded[name].shape), recorded[name]) for name in names}


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference in units of the largest value; what is infinite must be so in both."""
    ours = np.asarray(ours, np.float64)
    finite = np.isfinite(theirs)
    assert ours.shape == theirs.shape
    assert np.array_equal(ours[~finite], theirs[~finite])
    ours, theirs = ours[finite], theirs[finite]
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _as_recorded(found: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Recordings keep every n-th entry of some axes, n the only whole number that gives their length, or statistics."""
    if name.endswith("_stats"):
        whole = found[name.removesuffix("_stats")].astype(np.float64)
        return np.stack([whole.mean(axis=(2, 3)), whole.std(axis=(2, 3))], axis=-1)
    whole = found[name.removesuffix("_coarse")]
    return whole[tuple(slice(None, None, -(-full // kept)) for full, kept in zip(whole.shape, shape, strict=True))]

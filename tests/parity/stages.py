"""What the model computes on the way, under the names of the recordings of the official implementation."""

import contextlib
import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
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


Start = Mapping[str, jax.Array]  # stages of another run, by name


@contextlib.contextmanager
def _started_from(start: Start | None) -> Iterator[None]:
    """Query selection takes the tokens of `start`, and the decoder begins with its queries; None: with their own."""
    if start is None:
        yield
        return
    select, topk = QuerySelection.__call__, start["enc/topk"]

    def call(self: QuerySelection, *args: Any) -> Selection:
        with mock.patch.object(jax.lax, "top_k", lambda scores, _: (jnp.take_along_axis(scores, topk, axis=1), topk)):
            found = select(self, *args)
        return dataclasses.replace(found, content=start["decoder/tgt0"], anchors=start["decoder/refpoints_unsigmoid"])

    with mock.patch.object(QuerySelection, "__call__", call):
        yield


def compute(
    model: MaskDINO, images: jax.Array, sizes: jax.Array, start: Start | None = None
) -> tuple[dict[str, jax.Array], Outputs]:
    """Every stage in the official layout and order, whole, and the predictions: what the model itself calls.

    `start`: the selected tokens and queries of another run, to compare both decoders on the same queries.
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


def run(recording: Recording) -> tuple[dict[str, np.ndarray], Outputs]:
    """`compute` for a recording, in one compiled program of float32."""
    variables, num_classes = recording.variables()
    spec = ModelSpec(recording.config().model, num_classes)
    program = jax.jit(lambda variables, *args: compute(spec.bind(variables), *args))
    with jax.default_matmul_precision("highest"):
        return jax.tree.map(np.asarray, program(variables, recording.canvas(), recording.sizes))


def run_bfloat16(
    recording: Recording, start: Start, change: Callable[[MaskDINO], None] = lambda model: None
) -> dict[str, np.ndarray]:
    """The stages in bfloat16 with the selected tokens and queries of `start`; `change` alters the model first.

    Every result is rounded to the type that the model gives it: compilers may otherwise keep more digits inside of
    what they fuse, and the errors would depend on that.
    """
    variables, num_classes = recording.variables()
    config = recording.config().model
    config.dtype = "bfloat16"
    spec = ModelSpec(config, num_classes)

    def forward(variables: dict[str, Any], *args: jax.Array) -> dict[str, jax.Array]:
        model = spec.bind(variables)
        change(model)
        return compute(model, *args)[0]

    start = {name: start[name] for name in ("enc/topk", "decoder/tgt0", "decoder/refpoints_unsigmoid")}
    program = jax.jit(forward, compiler_options={"xla_allow_excess_precision": False})
    with jax.default_matmul_precision("highest"):
        return jax.tree.map(np.asarray, program(variables, recording.canvas(), recording.sizes, start))


def errors(found: dict[str, np.ndarray], recorded: dict[str, np.ndarray], stage: str) -> dict[str, float]:
    """Largest difference of each recorded array of a stage, in units of the array's largest value."""
    pairs = _pairs(found, recorded, stage)
    return {name: float(np.abs(ours - theirs).max() / np.abs(theirs).max()) for name, ours, theirs in pairs}


def typical_errors(found: dict[str, np.ndarray], recorded: dict[str, np.ndarray], stage: str) -> dict[str, float]:
    """Root mean square of the differences in units of that of the values; the levels are one sequence of tokens."""
    squares = defaultdict(lambda: np.zeros(2))
    for name, ours, theirs in _pairs(found, recorded, stage):
        squares[re.sub(r"^(pixel/(?:src|ms))\d", r"\1", name)] += ((ours - theirs) ** 2).sum(), (theirs**2).sum()
    return {name: float(np.sqrt(difference / value)) for name, (difference, value) in squares.items()}


def score_error(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> float:
    """Largest difference of a final class probability."""
    probability = lambda logits: 1 / (1 + np.exp(-logits.astype(np.float64)))
    return float(np.abs(probability(found["out/logits9"]) - probability(reference["out/logits9"])).max())


def _pairs(
    found: dict[str, np.ndarray], recorded: dict[str, np.ndarray], stage: str
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, ours and theirs of the recorded arrays of a stage; what is infinite must be so in both, and is left out."""
    for name, theirs in recorded.items():
        if re.fullmatch(STAGES[stage], name):
            ours, finite = _as_recorded(found, name, theirs.shape), np.isfinite(theirs)
            assert ours.shape == theirs.shape
            assert np.array_equal(ours[~finite], theirs[~finite])
            yield name, ours[finite].astype(np.float64), theirs[finite].astype(np.float64)


def _as_recorded(found: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Recordings keep every n-th entry of some axes, n the only whole number that gives their length, or statistics."""
    if name.endswith("_stats"):
        whole = found[name.removesuffix("_stats")].astype(np.float64)
        return np.stack([whole.mean(axis=(2, 3)), whole.std(axis=(2, 3))], axis=-1)
    whole = found[name.removesuffix("_coarse")]
    return whole[tuple(slice(None, None, -(-full // kept)) for full, kept in zip(whole.shape, shape, strict=True))]

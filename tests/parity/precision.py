"""What each choice between bfloat16 and float32 costs in accuracy: the candidates, each one change of the model."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from maskdino_jax.model import MaskDINO
from maskdino_jax.model.layers import ConvNorm, DeformableAttention, FrozenBatchNorm

_TYPED = (nnx.Linear, nnx.Conv, nnx.LayerNorm, nnx.GroupNorm)

Change = Callable[[MaskDINO], None]


def _set(dtype: DTypeLike, find: Callable[[MaskDINO], Iterable[Any]]) -> Change:
    """Computes what `find` finds, and all within, in `dtype`."""

    def change(model: MaskDINO) -> None:
        for part in find(model):
            for _, module in nnx.iter_modules(part):
                if isinstance(module, _TYPED):
                    module.dtype = dtype

    return change


def _attentions(model: MaskDINO) -> list[DeformableAttention]:
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, DeformableAttention)]


class _Rounded(nnx.Module):
    """A norm whose result is rounded."""

    def __init__(self, norm: FrozenBatchNorm) -> None:
        self.norm = norm

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(x).astype(jnp.bfloat16)


def _round_backbone(model: MaskDINO) -> None:
    for _, module in list(nnx.iter_modules(model.backbone)):
        if isinstance(module, ConvNorm):
            module.norm = _Rounded(module.norm)


def _encoder_norms(model: MaskDINO) -> list[Any]:
    decoder = model.pixel_decoder
    return [proj.norm for proj in decoder.input_proj] + [x for y in decoder.layers for x in (y.norm1, y.norm2)]


def _decoder_norms(model: MaskDINO) -> list[Any]:
    return [x for y in model.decoder.layers for x in (y.self_norm, y.cross_norm, y.ffn_norm)]


BFLOAT16: dict[str, Change] = {
    "sampling offsets": _set(jnp.bfloat16, lambda m: [x.sampling_offsets for x in _attentions(m)]),
    "attention weights": _set(jnp.bfloat16, lambda m: [x.attention_weights for x in _attentions(m)]),
    "norms and shortcuts of ResNet": _round_backbone,
    "norms and shortcuts of the encoder": _set(jnp.bfloat16, _encoder_norms),
    "norms and shortcuts of the decoder": _set(jnp.bfloat16, _decoder_norms),
    "query positions": _set(jnp.bfloat16, lambda m: [m.decoder.ref_point_head]),
    "class head": _set(jnp.bfloat16, lambda m: [m.heads.class_embed]),
    "box head": _set(jnp.bfloat16, lambda m: [m.heads.box_embed]),
    "mask head": _set(jnp.bfloat16, lambda m: [m.heads.mask_embed]),
}
FLOAT32: dict[str, Change] = {
    "token embedding of the selection": _set(
        jnp.float32, lambda m: [m.query_selection.enc_output, m.query_selection.enc_output_norm]
    ),
    "mask features and their product": _set(jnp.float32, lambda m: [m.pixel_decoder.mask_features]),
    "all of the backbone": _set(jnp.float32, lambda m: [m.backbone]),
    "all of the pixel decoder": _set(jnp.float32, lambda m: [m.pixel_decoder]),
    "all of the decoder": _set(jnp.float32, lambda m: [m.decoder]),
}

"""What each choice between bfloat16 and float32 costs in accuracy: the candidates, each one change of the model."""

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from maskdino_jax.model import MaskDINO
from maskdino_jax.model.layers import DeformableAttention, FrozenBatchNorm

_TYPED = (nnx.Linear, nnx.Conv, nnx.LayerNorm, nnx.GroupNorm, FrozenBatchNorm)

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


def _backbone_norms(model: MaskDINO) -> list[FrozenBatchNorm]:
    return [module for _, module in nnx.iter_modules(model.backbone) if isinstance(module, FrozenBatchNorm)]


def _encoder_norms(model: MaskDINO) -> list[Any]:
    decoder = model.pixel_decoder
    return [proj.norm for proj in decoder.input_proj] + [x for y in decoder.layers for x in (y.norm1, y.norm2)]


def _decoder_stream(dtype: DTypeLike) -> Change:
    def change(model: MaskDINO) -> None:
        model.decoder.dtype = dtype
        _set(dtype, lambda m: [x for y in m.decoder.layers for x in (y.self_norm, y.cross_norm, y.ffn_norm)])(model)

    return change


BFLOAT16: dict[str, Change] = {
    "sampling offsets": _set(jnp.bfloat16, lambda m: [x.sampling_offsets for x in _attentions(m)]),
    "attention weights": _set(jnp.bfloat16, lambda m: [x.attention_weights for x in _attentions(m)]),
    "norms and shortcuts of ResNet": _set(jnp.bfloat16, _backbone_norms),
    "norms and shortcuts of the encoder": _set(jnp.bfloat16, _encoder_norms),
    "norms and shortcuts of the decoder": _decoder_stream(jnp.bfloat16),
    "query positions": _set(jnp.bfloat16, lambda m: [m.decoder.ref_point_head]),
    "class head": _set(jnp.bfloat16, lambda m: [m.heads.class_embed]),
    "box head": _set(jnp.bfloat16, lambda m: [m.heads.box_embed]),
    "mask head": _set(jnp.bfloat16, lambda m: [m.heads.mask_embed]),
}
FLOAT32: dict[str, Change] = {
    "norms and shortcuts of ResNet": _set(jnp.float32, _backbone_norms),
    "norms and shortcuts of the encoder": _set(jnp.float32, _encoder_norms),
    "norms and shortcuts of the decoder": _decoder_stream(jnp.float32),
    "token embedding of the selection": _set(
        jnp.float32, lambda m: [m.query_selection.enc_output, m.query_selection.enc_output_norm]
    ),
    "mask features and their product": _set(jnp.float32, lambda m: [m.pixel_decoder.mask_features]),
    "all of the backbone": _set(jnp.float32, lambda m: [m.backbone]),
    "all of the pixel decoder": _set(jnp.float32, lambda m: [m.pixel_decoder]),
    "all of the decoder": lambda m: (_set(jnp.float32, lambda m: [m.decoder])(m), _decoder_stream(jnp.float32)(m)),
}

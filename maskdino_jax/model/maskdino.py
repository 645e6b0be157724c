"""Mask DINO (Li et al., CVPR 2023): backbone, pixel decoder, query selection, decoder and heads as one module."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from maskdino_jax.config import ModelConfig
from maskdino_jax.model import denoising
from maskdino_jax.model.decoder import Decoder
from maskdino_jax.model.heads import PredictionHeads, mask_logits
from maskdino_jax.model.layers import Frozen
from maskdino_jax.model.pixel_decoder import LevelSizes, PixelDecoder, flatten_levels
from maskdino_jax.model.query_selection import QuerySelection
from maskdino_jax.model.resnet import ResNet
from maskdino_jax.ops.boxes import logit
from maskdino_jax.structures import DenoisingPlan, Detections, Outputs, Predictions, Targets

# Mean and standard deviation of ImageNet, RGB on the scale 0 to 255.
PIXEL_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
PIXEL_STD = np.array([58.395, 57.12, 57.375], np.float32)


class MaskDINO(nnx.Module):
    """Images in; `Outputs` to train on, or `Detections` to read segments from. Sides must be multiples of 32."""

    def __init__(self, config: ModelConfig, num_classes: int, *, rngs: nnx.Rngs) -> None:
        self.dtype = jnp.dtype(config.dtype)
        kwargs = {"dtype": self.dtype, "rngs": rngs}
        self.backbone = ResNet(config.backbone, **kwargs)
        self.pixel_decoder = PixelDecoder(config, self.backbone.channels, **kwargs)
        self.query_selection = QuerySelection(
            config.hidden_dim, config.decoder.num_queries, config.decoder.box_init, **kwargs
        )
        self.decoder = Decoder(config, **kwargs)
        self.heads = PredictionHeads(config.hidden_dim, num_classes, rngs=rngs)
        self.label_enc = nnx.Embed(
            num_classes, config.hidden_dim, embedding_init=nnx.initializers.normal(1.0), rngs=rngs
        )
        self.denoising = config.denoising
        self.num_classes = num_classes

    def outputs(self, images: UInt8[Array, "b h w 3"], targets: Targets, key: jax.Array) -> Outputs:
        """Everything the losses need. `key` draws the noise of the denoising queries."""
        mask_features, memory, sizes = self._encode(self._normalize(images))
        selection = self.query_selection(memory, sizes, mask_features, self.heads)
        content, anchors, plan, blocked = selection.content, selection.anchors, None, None
        slots = self.denoising.num_queries if self.denoising.mode != "none" else 0
        if slots:
            plan = denoising.plan(targets.valid, slots)
            noised, noise_anchors = self._denoising_queries(plan, targets, key)
            content = jnp.concatenate([noised, content], axis=1)
            anchors = jnp.concatenate([noise_anchors, anchors], axis=1)
            blocked = denoising.attention_mask(plan, selection.content.shape[1])
        sets = self.decoder(content, anchors, memory, sizes, blocked, self.heads)
        matching = jax.tree.map(lambda x: x[:, :, slots:], sets)
        matching = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), matching, selection.predictions)
        return Outputs(
            matching=matching,
            denoising=jax.tree.map(lambda x: x[:, :, :slots], sets) if slots else None,
            plan=plan,
            mask_features=mask_features,
        )

    def detect(self, images: UInt8[Array, "b h w 3"], sizes: Int[Array, "b 2"]) -> Detections:
        """The last layer's predictions. `sizes`: height and width of each image on its canvas; the rest is padding."""
        mask_features, memory, level_sizes = self._encode(self._normalize(images, sizes))
        selection = self.query_selection(memory, level_sizes, mask_features, self.heads)
        sets = self.decoder(selection.content, selection.anchors, memory, level_sizes, None, self.heads)
        final: Predictions = jax.tree.map(lambda x: x[-1], sets)
        return Detections(logits=final.logits, boxes=final.boxes, masks=mask_logits(final.mask_embed, mask_features))

    def _normalize(
        self, images: UInt8[Array, "b h w 3"], sizes: Int[Array, "b 2"] | None = None
    ) -> Float[Array, "b h w 3"]:
        x = (images.astype(jnp.float32) - PIXEL_MEAN) / PIXEL_STD
        if sizes is not None:
            rows = jnp.arange(images.shape[1])[:, None] < sizes[:, 0, None, None]
            columns = jnp.arange(images.shape[2]) < sizes[:, 1, None, None]
            x = jnp.where((rows & columns)[..., None], x, 0)
        return x.astype(self.dtype)

    def _encode(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b h4 w4 d"], Float[Array, "b t d"], LevelSizes]:
        if images.shape[1] % 32 or images.shape[2] % 32:
            raise ValueError(f"images of {images.shape[1:3]} pixels: pad height and width to multiples of 32")
        maps, mask_features = self.pixel_decoder(self.backbone(images))
        maps = maps[::-1]  # the decoder reads the levels in the reverse order of the encoder
        return mask_features, flatten_levels(maps), tuple(level.shape[1:3] for level in maps)

    def _denoising_queries(
        self, plan: DenoisingPlan, targets: Targets, key: jax.Array
    ) -> tuple[Float[Array, "b s d"], Float[Array, "b s 4"]]:
        """Content and anchors of the slots; slots without a target have content 0 and the box in the middle."""
        labels, boxes = denoising.noised_queries(plan, targets, key, self.denoising.noise_scale, self.num_classes)
        known = plan.known[..., None]
        return jnp.where(known, self.label_enc(labels), 0), jnp.where(known, logit(boxes), 0)


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A model without arrays: makes variables and puts them back, so that plain JAX transformations do the rest.

    Variables are `{"params": ..., "frozen": ...}`, nested dictionaries of arrays.
    """

    config: ModelConfig
    num_classes: int

    def init(self, seed: int) -> dict[str, Any]:
        """Fresh variables drawn from `seed`."""
        model = MaskDINO(self.config, self.num_classes, rngs=nnx.Rngs(params=seed))
        _, params, frozen = nnx.split(model, nnx.Param, Frozen)
        return {"params": nnx.to_pure_dict(params), "frozen": nnx.to_pure_dict(frozen)}

    @functools.cached_property
    def _graph(self) -> Any:
        abstract = nnx.eval_shape(lambda: MaskDINO(self.config, self.num_classes, rngs=nnx.Rngs(params=0)))
        return nnx.split(abstract, nnx.Param, Frozen)[0]

    def bind(self, variables: dict[str, Any]) -> MaskDINO:
        """The module with these arrays, to be used inside one trace."""
        states = [nnx.State(variables["params"]), nnx.State(variables["frozen"])]
        return nnx.merge(self._graph, *states, copy=True)

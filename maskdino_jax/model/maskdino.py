"""Mask DINO (Li et al., CVPR 2023): backbone, pixel decoder, query selection, decoder and heads as one module."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt8

from maskdino_jax.config import ModelConfig
from maskdino_jax.model import denoising
from maskdino_jax.model.decoder import Decoder
from maskdino_jax.model.heads import PredictionHeads, mask_logits
from maskdino_jax.model.keys import Keys
from maskdino_jax.model.layers import Frozen
from maskdino_jax.model.levels import Levels
from maskdino_jax.model.pixel_decoder import PixelDecoder
from maskdino_jax.model.query_selection import LearnedQueries, QuerySelection, Selection
from maskdino_jax.model.resnet import ResNet
from maskdino_jax.model.swin import Swin
from maskdino_jax.ops.boxes import logit
from maskdino_jax.ops.extents import keep_inside
from maskdino_jax.parts import find_part
from maskdino_jax.structures import DenoisingPlan, Outputs, Targets, TrainOutputs

# Mean and standard deviation of ImageNet, RGB on the scale 0 to 255.
PIXEL_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
PIXEL_STD = np.array([58.395, 57.12, 57.375], np.float32)

_BACKBONES = {"resnet": ResNet, "swin": Swin}
_PIXEL_DECODERS = {"deformable": PixelDecoder}
_DECODERS = {"deformable": Decoder}


def normalize(images: UInt8[Array, "b h w 3"], sizes: Int[Array, "b 2"] | None = None) -> Float[Array, "b h w 3"]:
    """Subtract the mean and divide by the deviation, then zero what lies beyond `sizes` (height, width)."""
    x = (images.astype(jnp.float32) - PIXEL_MEAN) / PIXEL_STD
    return x if sizes is None else keep_inside(x, sizes)


class MaskDINO(nnx.Module):
    """Images in; `Outputs` to read segments from, or `TrainOutputs` to learn from. Sides must be multiples of 32."""

    def __init__(self, config: ModelConfig, num_classes: int, *, rngs: Keys) -> None:
        self.dtype = jnp.dtype(config.dtype)
        dim, num_queries = config.hidden_dim, config.decoder.num_queries
        kwargs = {"dtype": self.dtype, "rngs": rngs}
        find = lambda part, ours: find_part(f"model.{part}.kind", getattr(config, part).kind, ours, nnx.Module)
        self.backbone = find("backbone", _BACKBONES)(config.backbone, **kwargs)
        self.pixel_decoder = find("encoder", _PIXEL_DECODERS)(config, self.backbone.channels, **kwargs)
        if config.decoder.query_source == "encoder":
            self.query_selection = QuerySelection(dim, num_queries, config.decoder.box_init, **kwargs)
        else:
            self.learned_queries = LearnedQueries(dim, num_queries, rngs=rngs)
        self.decoder = find("decoder", _DECODERS)(config, **kwargs)
        self.heads = PredictionHeads(dim, num_classes + (config.class_scores == "softmax"), rngs=rngs)
        self.label_enc = nnx.Embed(num_classes, dim, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)
        self.config = config
        self.num_classes = num_classes

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        extents: Int[Array, "b 2"] | None = None,
        *,
        every_head: bool = False,
    ) -> Outputs:
        """Predictions for normalised images, zero where they are padded.

        Args:
            images: (RGB - mean) / std, float32; see `normalize`.
            extents: (height, width) of the part of the canvas that counts, multiples of 32. Predictions are then those
                of the image on a canvas of just that size: boxes are shares of it, and masks beyond it mean nothing.
            every_head: also return the predictions of the decoder's input and of all its layers.
        """
        mask_features, memory, levels = self._encode(images, extents, None)
        selection = self._select(memory, levels, mask_features)
        queries, boxes = self.decoder(selection.content, selection.anchors, memory, levels, None, self.heads)
        final = self.heads(queries[-1], boxes[-1])
        return Outputs(
            logits=final.logits,
            boxes=final.boxes,
            masks=mask_logits(final.mask_embed, mask_features),
            mask_features=mask_features,
            proposals=selection.predictions,
            heads=self.heads(jnp.stack(queries), jnp.stack(boxes)) if every_head else None,
        )

    def detect(
        self, images: UInt8[Array, "b h w 3"], sizes: Int[Array, "b 2"], extents: Int[Array, "b 2"] | None = None
    ) -> Outputs:
        """Predictions for the bytes of images. `sizes`: height and width of each on its canvas; the rest is padding."""
        return self(normalize(images, sizes), extents)

    def outputs(
        self,
        images: UInt8[Array, "b h w 3"],
        targets: Targets,
        keys: Key[Array, "b"],
        most: Int[Array, ""],
        remat: str = "none",
    ) -> TrainOutputs:
        """Everything the losses need.

        Args:
            keys: one for each image; they draw the noise of the denoising queries and the dropped paths.
            most: largest number of objects in an image of the whole batch, of which the images may be a part.
            remat: whose layers the backward pass computes again, to save memory; see `config.train.remat`.
        """
        noise_keys, backbone_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        mask_features, memory, levels = self._encode(normalize(images), None, backbone_keys, remat)
        selection = self._select(memory, levels, mask_features)
        content, anchors, plan, blocked = selection.content, selection.anchors, None, None
        denoised = self.config.denoising
        slots = denoised.num_queries if denoised.mode != "none" else 0
        if slots:
            plan = denoising.plan(targets.valid, slots, most)
            noised, noise_anchors = self._denoising_queries(plan, targets, noise_keys)
            content = jnp.concatenate([noised, content], axis=1)
            anchors = jnp.concatenate([noise_anchors, anchors], axis=1)
            blocked = denoising.attention_mask(plan, selection.content.shape[1])
        queries, boxes = self.decoder(
            content, anchors, memory, levels, blocked, self.heads, remat=remat in ("transformer", "all")
        )
        sets = self.heads(jnp.stack(queries), jnp.stack(boxes))
        matching = jax.tree.map(lambda x: x[:, :, slots:], sets)
        if selection.predictions is not None:
            matching = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), matching, selection.predictions)
        return TrainOutputs(
            matching=matching,
            denoising=jax.tree.map(lambda x: x[:, :, :slots], sets) if slots else None,
            plan=plan,
            mask_features=mask_features,
        )

    def _encode(
        self,
        images: Float[Array, "b h w 3"],
        extents: Int[Array, "b 2"] | None,
        keys: Key[Array, "b"] | None,
        remat: str = "none",
    ) -> tuple[Float[Array, "b h4 w4 d"], Float[Array, "b t d"], Levels]:
        """Mask features, and the encoded tokens with their levels in the decoder's order."""
        if images.shape[1] % 32 or images.shape[2] % 32:
            raise ValueError(f"images of {images.shape[1:3]} pixels: pad height and width to multiples of 32")
        features = self.backbone(images.astype(self.dtype), extents, keys, remat=remat in ("backbone", "all"))
        tokens, levels, mask_features = self.pixel_decoder(features, extents, remat=remat in ("transformer", "all"))
        # The decoder reads the levels in the reverse order of the encoder.
        return mask_features, reversed(levels).flatten(levels.unflatten(tokens)[::-1]), reversed(levels)

    def _select(
        self, memory: Float[Array, "b t d"], levels: Levels, mask_features: Float[Array, "b h4 w4 d"]
    ) -> Selection:
        if self.config.decoder.query_source == "learned":
            return self.learned_queries(memory.shape[0])
        return self.query_selection(memory, levels, mask_features, self.heads)

    def _denoising_queries(
        self, plan: DenoisingPlan, targets: Targets, keys: Key[Array, "b"]
    ) -> tuple[Float[Array, "b s d"], Float[Array, "b s 4"]]:
        """Content and anchors of the slots; slots without a target have content 0 and the box in the middle."""
        labels, boxes = denoising.noised_queries(
            plan, targets, keys, self.config.denoising.noise_scale, self.num_classes
        )
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
        model = MaskDINO(self.config, self.num_classes, rngs=Keys(seed))
        _, params, frozen = nnx.split(model, nnx.Param, Frozen)
        return {"params": nnx.to_pure_dict(params), "frozen": nnx.to_pure_dict(frozen)}

    def frozen(self, model: MaskDINO) -> dict[str, Any]:
        """The variables that gradients do not change, as they are after a forward pass in training."""
        return nnx.to_pure_dict(nnx.state(model, Frozen))

    @functools.cached_property
    def _graph(self) -> Any:
        abstract = nnx.eval_shape(lambda: MaskDINO(self.config, self.num_classes, rngs=Keys(0)))
        return nnx.split(abstract, nnx.Param, Frozen)[0]

    def bind(self, variables: dict[str, Any]) -> MaskDINO:
        """The module with these arrays, to be used inside one trace."""
        states = [nnx.State(variables["params"]), nnx.State(variables["frozen"])]
        return nnx.merge(self._graph, *states, copy=True)

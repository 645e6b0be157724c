"""How the decoder arrives at its objects: boxes, masks and sampled points of some queries, layer by layer.

The inputs of each layer's deformable cross-attention are noted while the model runs, so that what is shown is what was
computed. Nothing of this is part of the model or of a prediction.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from maskdino_jax.config import Config
from maskdino_jax.data import Catalog, prepare_image
from maskdino_jax.inference.frame import Frame
from maskdino_jax.inference.postprocess import Postprocessor, frames_of
from maskdino_jax.inference.results import Instances
from maskdino_jax.model import ModelSpec
from maskdino_jax.model.heads import mask_logits
from maskdino_jax.model.layers import DeformableAttention
from maskdino_jax.model.levels import Levels
from maskdino_jax.model.maskdino import normalize
from maskdino_jax.structures import EvalBatch, Outputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """The best objects of an image, best first, and how they came about. Places are pixels of the original image.

    Stage 0 is the decoder's input, stage l what the heads read after layer l; the last one is the result. Layer l, the
    first one being 0, leads from stage l to stage l + 1.
    """

    catalog: Catalog
    objects: Instances  # n of them, each of another query
    boxes: Float[np.ndarray, "stages n 4"]  # xyxy, predicted
    scores: Float[np.ndarray, "stages n"]  # probability of the object's class
    masks: Bool[np.ndarray, "stages n h w"] | None  # None: the model has not learned masks
    references: Float[np.ndarray, "layers n 4"]  # xyxy, the box that guides the layer's cross-attention
    points: Float[np.ndarray, "layers n samples 2"]  # xy where it samples the feature maps, heads and levels together
    weights: Float[np.ndarray, "layers n samples"]  # share of each sample, heads counting alike: they add up to 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: for each object its class, query and score, and for each stage what is known of it."""
        objects = zip(self.objects.labels.tolist(), self.objects.scores, self.objects.queries.tolist(), strict=True)
        return {
            "objects": [
                {
                    "category_id": self.catalog.categories[label].id,
                    "name": self.catalog.categories[label].name,
                    "score": _rounded(score),
                    "query": query,
                    "stages": [self._stage(stage, row) for stage in range(len(self.boxes))],
                }
                for row, (label, score, query) in enumerate(objects)
            ]
        }

    def agreement(self, stage: int, row: int) -> float:
        """Overlap of the mask, or without masks of the box, with the final one: intersection over union."""
        if self.masks is None:
            return _box_iou(self.boxes[stage, row], self.boxes[-1, row])
        one, other = self.masks[stage, row], self.masks[-1, row]
        return float((one & other).sum() / max((one | other).sum(), 1))

    def _stage(self, stage: int, row: int) -> dict[str, Any]:
        content = {
            "box": _rounded(self.boxes[stage, row]),
            "score": _rounded(self.scores[stage, row]),
            "agreement": _rounded(self.agreement(stage, row)),
        }
        if self.masks is not None:
            content["mask_area"] = int(self.masks[stage, row].sum())
        if stage:
            samples = np.concatenate([self.points[stage - 1, row], self.weights[stage - 1, row, :, None]], axis=1)
            content["reference"] = _rounded(self.references[stage - 1, row])
            content["samples"] = _rounded(samples)  # x, y, weight
        return content


class Explainer:
    """Explains images one by one, on the default device."""

    def __init__(self, spec: ModelSpec, variables: dict[str, Any], catalog: Catalog, config: Config) -> None:
        """Arguments as those of `Predictor`.

        Raises:
            ValueError: the model makes semantic maps only. A call raises it if the decoder is another one, whose
                layers have no deformable cross-attention.
        """
        if config.model.class_scores == "softmax":
            raise ValueError(
                "config.model.class_scores = 'softmax': the model makes semantic maps only, there are no objects to "
                "explain. Give a checkpoint of a model for instances or panoptic segmentation."
            )
        task = "instance" if spec.config.masks else "detection"
        if task not in config.inference.tasks:
            inference = dataclasses.replace(config.inference, tasks=(*config.inference.tasks, task))
            config = dataclasses.replace(config, inference=inference)
        self._task, self._catalog, self._data = task, catalog, config.data
        self._threshold = config.inference.score_threshold
        self._variables = variables
        self._postprocessor = Postprocessor(catalog, config)
        self._run = jax.jit(functools.partial(_run, spec))

    def __call__(self, image: UInt8[np.ndarray, "h w 3"], count: int = 5) -> Explanation:
        """The best objects of an image from `inference.score_threshold` on, at most `count`; or else the best one."""
        batch = self._batch(image)
        outputs, watched = self._run(self._variables, batch.images, batch.sizes, batch.extents)
        pending = self._postprocessor.begin(outputs, batch, (self._task,))
        objects = _best(self._postprocessor.finish(pending[0]).instances, self._threshold, count)
        frame, chosen = frames_of(outputs, batch)[0], objects.queries
        references, points, weights = (np.stack([layer[part] for layer in watched]) for part in range(3))
        boxes = np.asarray(outputs.heads.boxes)[:, 0, chosen]
        scores = jax.nn.sigmoid(outputs.heads.logits[:, 0, chosen, objects.labels])
        share = _pixels_of_extent(frame)
        return Explanation(
            catalog=self._catalog,
            objects=objects,
            boxes=_corners(boxes) * np.tile(share, 2),
            scores=np.asarray(scores),
            masks=_masks(outputs, chosen, frame) if self._task == "instance" else None,
            references=_corners(references[:, 0, chosen]) * np.tile(share, 2),
            points=points[:, 0, chosen] * share,
            weights=weights[:, 0, chosen],
        )

    def _batch(self, image: UInt8[np.ndarray, "h w 3"]) -> EvalBatch:
        prepared = prepare_image(image, self._data)
        return EvalBatch(
            images=prepared.image[None],
            sizes=prepared.size[None],
            extents=None if prepared.extent is None else prepared.extent[None],
            original_sizes=np.array([image.shape[:2]], np.int32),
            records=np.zeros(1, np.int32),
            valid=np.ones(1, bool),
        )


def _run(
    spec: ModelSpec,
    variables: dict[str, Any],
    images: UInt8[Array, "b h w 3"],
    sizes: Int[Array, "b 2"],
    extents: Int[Array, "b 2"] | None,
) -> tuple[Outputs, list[tuple[Array, Array, Array]]]:
    """What `MaskDINO.detect` returns, with every head, and references, points and weights of each decoder layer."""
    model, watched = spec.bind(variables), []  # the model is a copy of this trace, free to be changed
    for layer in getattr(model.decoder, "layers", [None]):
        if not isinstance(getattr(layer, "cross_attn", None), DeformableAttention):
            raise ValueError(
                f"config.model.decoder.kind = {spec.config.decoder.kind!r}: its layers have no deformable attention "
                "called cross_attn, whose samples could be shown. Give a checkpoint with the decoder that comes along."
            )
        layer.cross_attn = _Watched(layer.cross_attn, watched.append)
    return model(normalize(images, sizes), extents, every_head=True), watched


class _Watched(nnx.Module):
    """Deformable attention that notes the references of its queries and where it looks."""

    def __init__(self, attention: DeformableAttention, note: Callable[[tuple[Array, Array, Array]], None]) -> None:
        self.attention, self.note = attention, note

    def __call__(
        self,
        queries: Float[Array, "b q d"],
        references: Float[Array, "b q 4"],
        memory: Float[Array, "b t d"],
        levels: Levels,
    ) -> Float[Array, "b q d"]:
        self.note((references, *_samples(self.attention, queries, references)))
        return self.attention(queries, references, memory, levels)


def _samples(
    attention: DeformableAttention, queries: Float[Array, "b q d"], references: Float[Array, "b q 4"]
) -> tuple[Float[Array, "b q samples 2"], Float[Array, "b q samples"]]:
    """Where each query samples the maps, in shares of the extent, and the weight of each sample.

    Samples are in the order head, level, point. Offsets are shares of the reference box, see `ops.deform_attn`.
    """
    heads, _, points = attention.shape
    rows = queries.shape[:2]
    offsets = attention.sampling_offsets(queries).reshape(*rows, -1, 2)
    weights = jax.nn.softmax(attention.attention_weights(queries).reshape(*rows, heads, -1)) / heads
    centre, side = references[:, :, None, :2], references[:, :, None, 2:]
    return centre + offsets * side * (0.5 / points), weights.reshape(*rows, -1)


def _best(instances: Instances, threshold: float, count: int) -> Instances:
    """At most `count` from the threshold on, but at least one; none of a query that a better one is of."""
    _, first = np.unique(instances.queries, return_index=True)
    first = np.sort(first)
    kept = first[: min(count, max(int((instances.scores[first] >= threshold).sum()), 1))]
    rows = {name: value[kept] for name, value in vars(instances).items() if isinstance(value, np.ndarray)}
    return dataclasses.replace(instances, **rows)


def _masks(outputs: Outputs, queries: Int[np.ndarray, "n"], frame: Frame) -> Bool[np.ndarray, "stages n h w"]:
    """The masks of all stages at the size of the file, one at a time, as results are made of them."""
    embed = outputs.heads.mask_embed[:, 0, queries]
    rows, columns = frame.to_original(frame.target)
    height, width = frame.original_size
    logits = mask_logits(embed, jnp.broadcast_to(outputs.mask_features, (len(embed), *outputs.mask_features.shape[1:])))
    enlarge = jax.jit(lambda mask: rows(columns(mask, axis=1), axis=0) > 0)
    found = [[np.asarray(enlarge(mask))[:height, :width] for mask in stage] for stage in logits]
    return np.array(found, bool).reshape(*embed.shape[:2], height, width)


def _pixels_of_extent(frame: Frame) -> Float[np.ndarray, "2"]:
    """Width and height of the extent in pixels of the file."""
    sides = zip(frame.extent, frame.size, frame.original_size, strict=True)
    return np.array([extent / used * original for extent, used, original in sides], np.float32)[::-1]


def _corners(boxes: Float[np.ndarray, "*b 4"]) -> Float[np.ndarray, "*b 4"]:
    """cxcywh -> xyxy."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=-1)


def _box_iou(one: Float[np.ndarray, "4"], other: Float[np.ndarray, "4"]) -> float:
    sides = np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0)
    shared = float(sides.prod())
    areas = sum(float((box[2:] - box[:2]).prod()) for box in (one, other))
    return shared / max(areas - shared, 1e-9)


def _rounded(values: Any) -> Any:
    """Without the digits that float32 does not have."""
    return np.round(np.asarray(values, float), 5).tolist()

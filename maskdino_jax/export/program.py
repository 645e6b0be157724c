"""What an exported model computes: bytes of images in, predictions out, weights inside.

It is made of `MaskDINO.detect` and of what would else be written anew wherever it is deployed: the extents, boxes as
corners in the image, and the choice of the best pairs of query and class.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float, Int, UInt8

from maskdino_jax.config import Config
from maskdino_jax.inference import segment
from maskdino_jax.model import ModelSpec

_STRIDE = 32  # extents are multiples of it
_ANY = "b"  # name of the size of the batch

MEANING = {
    "images": "RGB bytes: the resized image in the upper left corner of the canvas, zeros right of and below it",
    "sizes": "height and width in pixels of each resized image on its canvas",
    "logits": "class scores of each query before the sigmoid, columns in the order of `classes`",
    "boxes": "corners x0, y0, x1, y1 of each query's box as shares of the image: times its width and height in any "
    "resolution; not clipped",
    "masks": "mask of each query before the sigmoid (above 0: inside), one value for 4 x 4 pixels of the canvas; "
    "those right of and below the image mean nothing",
    "scores": "class probabilities of the best pairs of query and class, the best first",
    "labels": "the class of each of these pairs, a place in `classes`",
    "queries": "the query of each of these pairs, a place in `logits`, `boxes` and `masks`",
}
SOFTMAX_MEANING = "class scores of each query before the softmax, columns in the order of `classes`, then no object"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)  # one is equal to itself only: a function
class Program:
    """The function, for images on one canvas and batches of any size."""

    spec: ModelSpec
    variables: dict[str, Any]
    canvas: tuple[int, int]  # height, width in pixels
    extents: bool  # what lies beyond an image is masked, so that results do not depend on the canvas
    masks: bool
    top: int  # pairs of query and class

    @classmethod
    def of(cls, spec: ModelSpec, variables: dict[str, Any], canvas: tuple[int, int], config: Config) -> "Program":
        """The model of `spec`, run as evaluation with `config` does, in operations that every device has."""
        return cls(
            spec=dataclasses.replace(spec, config=dataclasses.replace(spec.config, deform_attn="xla")),
            variables=variables,
            canvas=canvas,
            extents=spec.config.encoder.aligned_positions,  # without, the model knows no extents
            masks="detection" not in config.inference.tasks,
            top=config.inference.detections_per_image,
        )

    def __call__(self, images: UInt8[Array, "b h w 3"], sizes: Int[Array, "b 2"]) -> dict[str, Array]:
        """The outputs that `MEANING` describes."""
        extents = self.extents_of(sizes)
        found = self.spec.bind(self.variables).detect(images, sizes, extents)
        used = jnp.array(self.canvas, jnp.int32) if extents is None else extents
        outputs = {"logits": found.logits, "boxes": _corners(found.boxes, used / sizes)}
        if self.masks:
            outputs["masks"] = found.masks
        if self.spec.config.class_scores == "sigmoid":
            every = jnp.ones(self.spec.num_classes, bool)
            best = jax.vmap(functools.partial(segment.detections, allowed=every, top=self.top))
            picks = best(found.logits, found.boxes)
            outputs |= {"scores": picks.scores, "labels": picks.labels, "queries": picks.queries}
        return outputs

    def extents_of(self, sizes: Any) -> Any:
        """`extents` of `MaskDINO.detect`."""
        return (sizes + _STRIDE - 1) // _STRIDE * _STRIDE if self.extents else None

    def arguments(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Images and sizes of a batch whose size is a symbol."""
        (batch,) = export.symbolic_shape(_ANY)
        images = jax.ShapeDtypeStruct((batch, *self.canvas, 3), np.uint8)
        return images, jax.ShapeDtypeStruct((batch, 2), np.int32)

    def describe(self) -> dict[str, list[dict[str, Any]]]:
        """Name, type, shape ("b": any) and meaning of every input and output."""
        arguments = self.arguments()
        meanings = MEANING | ({"logits": SOFTMAX_MEANING} if self.spec.config.class_scores == "softmax" else {})

        def entry(name: str, value: jax.ShapeDtypeStruct) -> dict[str, Any]:
            shape = [side if isinstance(side, int) else str(side) for side in value.shape]
            return {"name": name, "type": value.dtype.name, "shape": shape, "meaning": meanings[name]}

        outputs = jax.eval_shape(self, *arguments)
        return {
            "inputs": [entry(*pair) for pair in zip(("images", "sizes"), arguments, strict=True)],
            "outputs": [entry(name, outputs[name]) for name in sorted(outputs)],
        }


def _corners(boxes: Float[Array, "b q 4"], ratios: Float[Array, "#b 2"]) -> Float[Array, "b q 4"]:
    """cxcywh as shares of the extent -> xyxy as shares of the image; `ratios`: extent by image, height and width."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1) * jnp.tile(ratios[:, None, ::-1], 2)

"""What crosses a layer: frozen dataclasses of arrays, each a JAX pytree.

One letter for one axis, the same in annotations and in `einsum`:

    b  images of a batch              n  objects of an image, padded (`valid` tells which exist)
    q  queries                        s  denoising slots
    k  classes                        l  prediction sets (decoder layers) or feature levels
    h w  height and width             t  tokens of all levels, flattened
    p  points                         d  channels            m  attention heads

Boxes are (centre x, centre y, width, height) divided by the width and height of the padded image, unless a name says
`xyxy` (corners) or a comment says pixels.
"""

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int, UInt8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets:
    """Ground truth padded to `n` objects, existing ones first; rows where `valid` is False are filler (zeros)."""

    labels: Int[Array, "*b n"]  # contiguous class ids
    boxes: Float[Array, "*b n 4"]
    # 8 pixels of a row in a byte, first pixel in the highest bit (np.packbits); None: config.model.masks is False
    masks: UInt8[Array, "*b n h w8"] | None
    is_thing: Bool[Array, "*b n"]
    valid: Bool[Array, "*b n"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Training images of one size with their targets."""

    images: UInt8[Array, "b h w 3"]  # RGB
    targets: Targets
    records: Int[Array, "b"]  # index of the record in its data set
    dropped: Int[Array, "b"]  # objects beyond max_instances, left out
    skipped: Int[Array, "b"]  # records that could not be read, so that this one or nothing took their place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalBatch:
    """Resized images padded to one canvas; rows where `valid` is False fill up the last batch."""

    images: UInt8[Array, "b h w 3"]  # RGB; pixels beyond `sizes` are set to the mean by the model
    sizes: Int[Array, "b 2"]  # height, width of the image on the canvas
    extents: Int[Array, "b 2"] | None  # the part of the canvas that counts, multiples of 32; None: all of it
    original_sizes: Int[Array, "b 2"]  # height, width of the file
    records: Int[Array, "b"]
    valid: Bool[Array, "b"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """What the heads say of each query. A mask logit is the dot product of `mask_embed` with a pixel's mask feature."""

    logits: Float[Array, "*b q k"]
    boxes: Float[Array, "*b q 4"]
    mask_embed: Float[Array, "*b q d"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingPlan:
    """Which target each denoising slot reconstructs. Slot g * most + j holds target j of group g."""

    target: Int[Array, "s"]
    group: Int[Array, "s"]
    active: Bool[Array, "s"]  # slots of complete groups
    known: Bool[Array, "b s"]  # active, and the image has that target
    num_groups: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Outputs:
    """What the model says of a batch: the final predictions, and the earlier ones they came from."""

    logits: Float[Array, "b q k"]
    boxes: Float[Array, "b q 4"]
    masks: Float[Array, "b q h4 w4"] | None  # logits; None: a detector has no use for them
    mask_features: Float[Array, "b h4 w4 d"] | None
    proposals: Predictions | None  # of the encoder's selected tokens; None: the queries are learned
    heads: Predictions | None  # [l, b, q, ...] of the decoder's input and each of its layers, if asked for


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOutputs:
    """All supervised predictions of one forward pass, stacked on a leading axis.

    `matching` holds the decoder's prediction sets 0 (before the first layer) to L and, last, the encoder's own
    selected tokens if the queries come from them; `denoising` holds sets 0 to L of the denoising slots, or None.
    """

    matching: Predictions  # [l + 1, b, q, ...], with learned queries [l, b, q, ...]
    denoising: Predictions | None  # [l, b, s, ...]
    plan: DenoisingPlan | None
    mask_features: Float[Array, "b h4 w4 d"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Matches:
    """For each prediction set, image and target: the query assigned to it. `valid` is False where there is none."""

    query: Int[Array, "l b n"]
    valid: Bool[Array, "l b n"]

"""Every option of the system: type, default and unit. `validation.py` checks their values.

A config file (`configs/*.py`) builds a `Config` and sets only the values that differ from these defaults; the
command line overrides any leaf with `--config.<path>=<value>`. `slots=True` makes a misspelt field an error.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(slots=True, kw_only=True)
class BackboneConfig:
    """Residual network (He et al. 2016) or Swin Transformer (Liu et al. 2021), features at strides 4, 8, 16 and 32."""

    kind: str = "resnet"  # resnet: bottleneck blocks | swin: windowed attention | MODULE:CLASS, docs/swap_a_part.md
    depths: tuple[int, ...] = (3, 4, 6, 3)  # blocks in res2..res5; (3, 4, 6, 3) is ResNet-50
    width: int = 64  # resnet: channels of the stem, res2..res5 have 4, 8, 16, 32 times as many; swin: channels of res2
    norm: str = "frozen_bn"  # resnet: frozen_bn, as in ImageNet | batch_norm, trained | group_norm, from scratch
    window: int = 7  # swin: side of an attention window in tokens
    drop_path: float = 0.3  # swin: chance that training skips the last block; it grows linearly from 0 at the first


@dataclasses.dataclass(slots=True, kw_only=True)
class EncoderConfig:
    """Deformable transformer encoder inside the pixel decoder (spec of Mask DINO, section 3.3 of the paper)."""

    kind: str = "deformable"  # as in the paper | MODULE:CLASS of another pixel decoder, docs/swap_a_part.md
    layers: int = 6
    ffn_dim: int = 2048
    in_features: tuple[str, ...] = ("res3", "res4", "res5")  # backbone maps the encoder sees
    num_levels: int = 4  # in_features plus stride-2 convolutions of the coarsest
    order: str = "fine_to_coarse"  # token order of the levels; the decoder reads them in reverse
    aligned_positions: bool = True  # False: as in the official code with two extra levels (a bug of theirs)


@dataclasses.dataclass(slots=True, kw_only=True)
class DecoderConfig:
    """Transformer decoder with unified query selection."""

    kind: str = "deformable"  # as in the paper | MODULE:CLASS of another decoder, docs/swap_a_part.md
    layers: int = 9
    ffn_dim: int = 2048
    num_queries: int = 300
    query_source: str = "encoder"  # encoder: its best tokens (two-stage) | learned: vectors and boxes of their own
    box_init: str = "none"  # anchors from none: encoder boxes; bitmask | mask2box: boxes of the encoder's masks


@dataclasses.dataclass(slots=True, kw_only=True)
class DenoisingConfig:
    """Unified denoising training: noised ground truth as additional decoder queries."""

    mode: str = "masks"  # masks: classes, boxes and masks are denoised; boxes: classes and boxes; none: off
    num_queries: int = 100  # slots; groups = num_queries // most objects in the batch
    noise_scale: float = 0.4  # labels flip at half this rate, boxes move by up to this share of half a side


@dataclasses.dataclass(slots=True, kw_only=True)
class ModelConfig:
    """The network: its parts, and what they share."""

    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    denoising: DenoisingConfig = dataclasses.field(default_factory=DenoisingConfig)
    hidden_dim: int = 256  # channels of tokens, queries and mask features
    num_heads: int = 8
    class_scores: str = "sigmoid"  # sigmoid: classes are independent | softmax: one more column says "no object"
    masks: bool = True  # False: detection only, nothing reads or learns masks; they can be learned in a fine-tuning
    num_points: int = 4  # deformable sampling points of each head on each level
    deform_attn: str = "auto"  # auto: GPU kernel where it runs | xla | pallas | deterministic; see kernels/README.md
    dtype: str = "float32"  # compute type of convolutions and projections; parameters stay float32


@dataclasses.dataclass(slots=True, kw_only=True)
class TermsConfig:
    """One number for each of the five terms of the loss or of the matching cost."""

    classification: float = 4.0
    mask: float = 5.0
    dice: float = 5.0
    box: float = 5.0
    giou: float = 2.0


@dataclasses.dataclass(slots=True, kw_only=True)
class LossConfig:
    """Terms of the loss, matching, and the points at which masks are compared."""

    weights: TermsConfig = dataclasses.field(default_factory=TermsConfig)
    costs: TermsConfig = dataclasses.field(default_factory=TermsConfig)
    num_points: int = 12544  # points at which masks are compared, 112 x 112
    oversample_ratio: float = 3.0  # candidates for each uncertain point
    importance_ratio: float = 0.75  # share of the points that are chosen by uncertainty
    no_object_weight: float = 0.1  # of "no object" in the softmax class loss
    matcher: str = "scipy"  # scipy: on the host, one callback a step | device: no round trip | MODULE:FUNCTION
    box_loss_things_only: bool = False  # True: boxes of stuff are not trained (paper, section 3.6)
    match_box_things_mean: bool = False  # True: stuff is matched with the mean box cost of things


@dataclasses.dataclass(slots=True, kw_only=True)
class SplitConfig:
    """Where one split lies, relative to `data.root`. An empty path means: not there.

    A data set of TFDS needs `annotations` alone, such as "coco/2017_panoptic/1.1.0:train" or "...:train[:90%]".
    """

    images: str = ""  # folder of image files; of YOLO also a .txt that lists them
    annotations: str = ""  # COCO panoptic or instances JSON, the data.yaml of YOLO, or FOLDER:SPLIT (format tfds)
    panoptic: str = ""  # folder of panoptic PNG (format coco_panoptic)
    instances: str = ""  # COCO instances JSON for box and mask AP (format coco_panoptic); empty: from the panoptic PNG
    semantic: str = ""  # folder of label PNG (format semantic)
    part: str = "all"  # of the images: all | tenth, about every tenth, by a hash of its name | rest, all but the tenth


@dataclasses.dataclass(slots=True, kw_only=True)
class DataConfig:
    """Where the data lie, what training makes of an image, and the sizes of evaluation."""

    root: str = ""  # folder of the data set; empty: the nuclei images that come with the package
    format: str = "coco_panoptic"  # or coco_instances, yolo, semantic, tfds, or auto: whichever lies in `root`
    classes: str = ""  # coco_instances, coco_panoptic, ade20k, cityscapes, a file or pixel values; empty: from the data
    train: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    val: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    image_size: tuple[int, int] = (1024, 1024)  # height, width of a training crop in pixels, multiples of 32
    augmentation: str = "large_scale_jitter"  # or short_edge: resize by the shorter side, crop, for semantic data
    scale: tuple[float, float] = (0.1, 2.0)  # large_scale_jitter: size of the image relative to image_size
    short_sides: tuple[int, ...] = ()  # short_edge: pixels of the shorter side, one of them for each image ...
    long_side: int = 2048  # short_edge: pixels; ... unless the longer side would pass this
    color_jitter: bool = False  # short_edge: shift brightness, contrast, saturation and hue
    flip: float = 0.5  # probability of a horizontal flip
    max_instances: int = 100  # objects kept for each training image; the largest are kept
    keep_empty: bool = (
        False  # objects without a pixel in the crop stay targets, with a zero box; the official recipes do
    )
    copy_paste: float = 0.0  # chance that a training image gets objects of another one (Ghiasi et al. 2021)
    on_error: str = "stop"  # stop | skip: training leaves out faulty entries and takes another image for a broken one
    workers: int = 4  # loader processes; 0 decodes in threads of the main process
    cache_mb: int = 0  # MB of decoded training images that each loader process keeps; 0: none
    eval_short_side: int = 800  # pixels; evaluation resizes the shorter side to this ...
    eval_long_side: int = 1333  # pixels; ... unless the longer side would pass this
    eval_canvas: str = "bucketed"  # bucketed: few shapes, padding masked; exact: each image padded to 32 on its own


@dataclasses.dataclass(slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW in groups: backbone with a smaller rate, norms and embeddings without decay."""

    learning_rate: float = 1e-4
    backbone_multiplier: float = 0.1
    weight_decay: float = 0.05
    clip_norm: float = 0.01  # global L2 norm of the gradient
    milestones: tuple[int, ...] = ()  # steps at which the rate is multiplied by gamma
    gamma: float = 0.1
    warmup_steps: int = 0  # linear from zero; the official recipe has none


@dataclasses.dataclass(slots=True, kw_only=True)
class TrainConfig:
    """Length of a training, its batch, and how often it logs, evaluates and saves."""

    steps: int = 368_750
    batch_size: int = 16  # images of one optimizer step, over all devices and hosts
    accumulate: int = 1  # parts a batch is computed in, one after the other, to save memory
    remat: str = "none"  # whose layers are computed twice, to save memory: none | transformer | backbone | all
    seed: int = 0
    init_from: str = ""  # weights to start from: an ImageNet backbone, an official checkpoint, or a workdir of ours
    ema_decay: float = 0.0  # 0: no moving average; else evaluation and prediction use it
    log_every: int = 20  # steps
    eval_every: int = 5000  # steps; 0: only at the end
    checkpoint_every: int = 5000  # steps
    keep_checkpoints: int = 2  # latest ones; the best one is kept besides
    eval_at_start: bool = False  # evaluate the untrained model, to print before beside after
    log_images: int = 2  # predicted pictures written to the log at each evaluation
    profile_steps: str = ""  # such as 10:15: a trace of these steps, both included, in WORKDIR/profile; empty: none


@dataclasses.dataclass(slots=True, kw_only=True)
class MeshConfig:
    """How devices share a training: all of them divide the images."""

    fsdp: int = 1  # devices that divide parameters, optimizer state and moving average among them; 1: each has all


@dataclasses.dataclass(slots=True, kw_only=True)
class InferenceConfig:
    """From outputs to results: tasks and thresholds."""

    tasks: tuple[str, ...] = ("instance", "panoptic", "semantic")  # or detection alone: instances without masks
    detections_per_image: int = 100
    object_threshold: float = 0.25  # panoptic: queries with a lower best class score are dropped
    overlap_threshold: float = 0.8  # panoptic: segments that keep less of their mask are dropped
    temperature: float = 0.06  # sharpens class scores for panoptic and semantic results; 0: off
    score_threshold: float = 0.5  # instances below are neither returned, written nor drawn; evaluation keeps all
    batch_size: int = 1  # images that each device evaluates at a time
    # Predictor and predict: larger images are cut into tiles of this side in pixels, whose results are joined; 0: never
    slice_size: int = 0
    slice_overlap: float = 0.2  # share of a side that neighbouring tiles have in common at least; above 0, at most 0.5


@dataclasses.dataclass(slots=True, kw_only=True)
class EvaluationConfig:
    """How predictions are scored, and what is written of them."""

    engine: str = "fast"  # average precision: fast | pycocotools, the reference, slower; both give the same numbers
    boundary: bool = False  # average precision of the outlines of masks besides
    tta_short_sides: tuple[int, ...] = ()  # eval, semantic: score the mean over these sizes in pixels besides
    tta_long_side: int = 3584  # pixels; the longer side is no more than this
    tta_flip: bool = True  # each size also mirrored
    tta_instances: bool = False  # eval: score instances of the image and its mirror image, merged, besides
    submission: str = ""  # such as test-dev2017: write zip files for COCO's server under this name, score nothing


@dataclasses.dataclass(slots=True, kw_only=True)
class Config:
    """All options. `configs/*.py` make one; the command line sets any of them by its path."""

    name: str = ""  # of the config file and variant; says in a checkpoint where it comes from
    best_metric: str = "panoptic_seg/PQ"  # decides which checkpoint is the best
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    inference: InferenceConfig = dataclasses.field(default_factory=InferenceConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)


_BACKBONES = {
    "r50": {},
    "swin_t": {"kind": "swin", "depths": (2, 2, 6, 2), "width": 96, "window": 7},
    "swin_s": {"kind": "swin", "depths": (2, 2, 18, 2), "width": 96, "window": 7},
    "swin_b": {"kind": "swin", "depths": (2, 2, 18, 2), "width": 128, "window": 12},
    "swin_l": {"kind": "swin", "depths": (2, 2, 18, 2), "width": 192, "window": 12},
}


def backbone(name: str) -> BackboneConfig:
    """ResNet-50 (`r50`) or one of the Swin Transformers (`swin_t`, `swin_s`, `swin_b`, `swin_l`)."""
    return BackboneConfig(**_BACKBONES[name])


def tiny(config: Config) -> None:
    """Shrink a config to the same network with smaller numbers on small images: to try data and code on a CPU."""
    config.data.image_size = (128, 128)
    config.data.eval_short_side, config.data.eval_long_side = 128, 224
    config.data.workers = 0
    config.model.backbone.depths = (1, 1, 1, 1)
    config.model.backbone.width = 16
    config.model.hidden_dim = 32
    config.model.num_heads = 2
    config.model.encoder.layers = 1
    config.model.encoder.ffn_dim = 64
    config.model.decoder.layers = 2
    config.model.decoder.ffn_dim = 64
    config.model.decoder.num_queries = 40
    config.model.denoising.num_queries = 20
    config.loss.num_points = 256
    config.optimizer.milestones = (16,)
    config.train.steps = 20
    config.train.batch_size = 2
    config.train.log_every = 5
    config.train.eval_every = config.train.checkpoint_every = 10


class ConfigError(ValueError):
    """An option has a value that cannot work; the message names the option, the value and the remedy."""


BACKBONE_FEATURES = ("res2", "res3", "res4", "res5")
TASKS = ("instance", "panoptic", "semantic", "detection")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """`{"model.decoder.layers": 9, ...}` for a config or a part of one."""
    flat = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        path = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat


def from_dict(values: Mapping[str, Any], cls: type = Config, prefix: str = "") -> Any:
    """Rebuild a config from the nested dictionary that `dataclasses.asdict` made of it and JSON may have stored.

    Raises:
        ConfigError: a key is unknown or its value has another type; options absent from `values` take today's
            defaults.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"config.{prefix.rstrip('.')} is {str(values)[:40]!r}, not a group of options.")
    kinds = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        raise ConfigError(
            f"unknown option {prefix}{unknown[0]} = {values[unknown[0]]!r}: this version has "
            f"{', '.join(sorted(kinds))} there. Use the version that wrote this config, or remove the option."
        )
    parts = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(kinds[key]):
            parts[key] = from_dict(value, kinds[key], f"{prefix}{key}.")
        else:
            parts[key] = _typed(value, kinds[key], f"config.{prefix}{key}")
    return cls(**parts)


def _typed(value: Any, kind: Any, path: str) -> Any:
    """A value of an option as JSON stores it, as `kind`: lists become tuples."""
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(part, typing.get_args(kind)[0], path) for part in value)
    fits = type(value) is kind or (kind is float and type(value) is int)
    if fits and (not isinstance(value, float) or math.isfinite(value)):
        return value
    raise ConfigError(f"{path} = {str(value)[:40]!r}: give a {getattr(kind, '__name__', kind)}.")

"""Checks of options: one by one, against each other, and against those that a workdir was used with."""

import difflib
from typing import Any

from maskdino_jax.config import BACKBONE_FEATURES, TASKS, Config, ConfigError, DataConfig, ModelConfig, flatten

# Options that may change when a run continues: they alter neither the shapes of parameters nor the order of the data,
# and what a step computes only where trained batch norm sees smaller parts.
FREE_ON_RESUME = (
    "data.root",
    "data.workers",
    "data.cache_mb",
    "data.val",
    "data.eval_short_side",
    "data.eval_long_side",
    "data.eval_canvas",
    "data.on_error",
    "train.steps",
    "train.init_from",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.eval_at_start",
    "train.log_images",
    "train.profile_steps",
    "inference",
    "evaluation",
    "model.deform_attn",
    "train.remat",
    "train.accumulate",
    "mesh",
    "best_metric",
)

_CHOICES = {
    "data.format": ("coco_panoptic", "coco_instances", "yolo", "semantic", "tfds", "auto"),
    "data.train.part": ("all", "tenth", "rest"),
    "data.val.part": ("all", "tenth", "rest"),
    "data.eval_canvas": ("bucketed", "exact"),
    "data.on_error": ("stop", "skip"),
    "data.augmentation": ("large_scale_jitter", "short_edge"),
    "model.backbone.norm": ("frozen_bn", "batch_norm", "group_norm"),
    "model.class_scores": ("sigmoid", "softmax"),
    "model.decoder.query_source": ("encoder", "learned"),
    "model.encoder.order": ("fine_to_coarse", "coarse_to_fine"),
    "model.decoder.box_init": ("none", "bitmask", "mask2box"),
    "model.denoising.mode": ("masks", "boxes", "none"),
    "model.deform_attn": ("auto", "xla", "pallas", "deterministic"),
    "model.dtype": ("float32", "bfloat16"),
    "evaluation.engine": ("fast", "pycocotools"),
    "train.remat": ("none", "transformer", "backbone", "all"),
}

# Parts that come along; a user's own is MODULE:NAME.
_PARTS = {
    "model.backbone.kind": ("resnet", "swin"),
    "model.encoder.kind": ("deformable",),
    "model.decoder.kind": ("deformable",),
    "loss.matcher": ("scipy", "device"),
}

_AT_LEAST_ONE = (
    "model.backbone.width",
    "model.backbone.window",
    "model.encoder.layers",
    "model.decoder.layers",
    "model.decoder.num_queries",
    "model.num_points",
    "loss.num_points",
    "data.max_instances",
    "data.eval_short_side",
    "train.steps",
    "train.batch_size",
    "train.accumulate",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "inference.batch_size",
    "inference.detections_per_image",
    "evaluation.tta_long_side",
)

_SHARES = (
    "data.flip",
    "data.copy_paste",
    "model.backbone.drop_path",
    "loss.no_object_weight",
    "train.ema_decay",
    "model.denoising.noise_scale",
    "loss.importance_ratio",
    "inference.object_threshold",
    "inference.overlap_threshold",
    "inference.score_threshold",
)


def validate(config: Config) -> Config:
    """Check values one by one and against each other.

    Raises:
        ConfigError: names the option, its value and what would work.
    """
    flat = flatten(config)

    def require(condition: bool, path: str, remedy: str) -> None:
        if not condition:
            raise ConfigError(f"config.{path} = {flat[path]!r}: {remedy}")

    for path, choices in _CHOICES.items():
        require(flat[path] in choices, path, f"choose one of {', '.join(choices)}.")
    for path, ours in _PARTS.items():
        own = all(flat[path].partition(":"))
        require(flat[path] in ours or own, path, f"choose one of {', '.join(ours)}, or your own as MODULE:NAME.")
    for path in _AT_LEAST_ONE:
        require(flat[path] >= 1, path, "give a whole number of at least 1.")
    for path in _SHARES:
        require(0 <= flat[path] <= 1, path, "give a number from 0 to 1.")
    for path in (
        "train.seed",
        "data.workers",
        "data.cache_mb",
        "train.eval_every",
        "train.log_images",
        "model.denoising.num_queries",
    ):
        require(flat[path] >= 0, path, "give 0 or a positive whole number.")
    _validate_model(config.model, require)
    _validate_data(config.data, require)
    _validate_train(config, require)
    _validate_evaluation(config, require)
    return config


def _validate_model(model: ModelConfig, require: Any) -> None:
    require(len(model.backbone.depths) == 4, "model.backbone.depths", "give four block counts, for res2 to res5.")
    swin = model.backbone.kind == "swin"
    require(not swin or model.backbone.width % 32 == 0, "model.backbone.width", "give a multiple of 32, Swin's heads.")
    require(
        model.decoder.query_source == "encoder" or model.decoder.box_init == "none",
        "model.decoder.box_init",
        "learned queries come with boxes of their own: give none, or model.decoder.query_source=encoder.",
    )
    require(
        model.masks or model.decoder.box_init == "none",
        "model.decoder.box_init",
        "a model without masks (config.model.masks = False) has no boxes of masks: give none.",
    )
    require(
        model.masks or model.denoising.mode != "masks",
        "model.denoising.mode",
        "a model without masks (config.model.masks = False) cannot denoise them: give boxes or none.",
    )
    require(
        model.hidden_dim % model.num_heads == 0,
        "model.hidden_dim",
        f"give a multiple of model.num_heads = {model.num_heads}.",
    )
    require(model.hidden_dim % 32 == 0, "model.hidden_dim", "give a multiple of 32, the groups of its GroupNorms.")
    features = model.encoder.in_features
    known = bool(features) and features == BACKBONE_FEATURES[-len(features) :]
    require(known, "model.encoder.in_features", "give consecutive maps that end with res5, such as ('res4', 'res5').")
    require(
        model.encoder.num_levels >= len(features),
        "model.encoder.num_levels",
        f"give at least {len(features)}, the number of model.encoder.in_features.",
    )


def _validate_data(data: DataConfig, require: Any) -> None:
    sized = len(data.image_size) == 2 and all(side >= 32 and side % 32 == 0 for side in data.image_size)
    require(sized, "data.image_size", "give height and width in pixels, both multiples of 32.")
    scaled = len(data.scale) == 2 and 0 < data.scale[0] <= data.scale[1]
    require(scaled, "data.scale", "give the smallest and the largest factor, such as (0.1, 2.0).")
    if data.augmentation == "short_edge":
        sides = bool(data.short_sides) and min(data.short_sides) >= 1
        require(sides, "data.short_sides", "give the pixels of the shorter side, such as (256, 512, 1024).")
        longest = max(data.short_sides)
        require(data.long_side >= longest, "data.long_side", f"give at least {longest}, the largest short side.")
    if data.format == "semantic":
        require(
            data.classes not in ("", "coco_instances", "coco_panoptic"),
            "data.classes",
            "label images name no classes: give ade20k or cityscapes, a file of names, or config.data.format=auto.",
        )
    pasted = data.copy_paste == 0 or data.format != "semantic"
    require(pasted, "data.copy_paste", "label images have no objects to paste: give 0.")
    require(
        data.eval_long_side >= data.eval_short_side,
        "data.eval_long_side",
        f"give at least data.eval_short_side = {data.eval_short_side}.",
    )


def _validate_train(config: Config, require: Any) -> None:
    train = config.train
    require(
        train.batch_size % train.accumulate == 0,
        "train.accumulate",
        f"give a divisor of train.batch_size = {train.batch_size}.",
    )
    require(train.ema_decay < 1, "train.ema_decay", "give a number below 1, such as 0.9999, or 0 for none.")
    tasks = config.inference.tasks
    require(bool(tasks) and set(tasks) <= set(TASKS), "inference.tasks", f"give at least one of {', '.join(TASKS)}.")
    size, overlap = config.inference.slice_size, config.inference.slice_overlap
    require(size == 0 or size > 1, "inference.slice_size", "give the side of a tile in pixels, or 0 for whole images.")
    require(0 < overlap <= 0.5, "inference.slice_overlap", "give a share above 0 and up to 0.5.")
    if config.data.format == "semantic" or config.model.class_scores == "softmax":
        require(tasks == ("semantic",), "inference.tasks", "semantic models and data sets: give ('semantic',).")
    if not config.model.masks:
        require(config.data.copy_paste == 0, "data.copy_paste", "pasting needs masks (config.model.masks): give 0.")
        require(
            tasks == ("detection",),
            "inference.tasks",
            "a model without masks (config.model.masks = False) finds boxes: give ('detection',).",
        )
        boxes = config.data.format in ("coco_instances", "yolo", "tfds", "auto")
        require(boxes, "data.format", "without masks (config.model.masks = False), give coco_instances, yolo or tfds.")
    require(
        "detection" not in tasks or len(tasks) == 1,
        "inference.tasks",
        "detection leaves the masks out, which the other tasks need: give it alone, or leave it out.",
    )
    if config.data.format in ("coco_instances", "yolo"):
        alone = tasks in (("instance",), ("detection",))
        require(alone, "inference.tasks", "COCO instances have no stuff: give ('instance',) or ('detection',).")
    scored = {
        "instance": ("bbox", "segm"),
        "detection": ("bbox",),
        "panoptic": ("panoptic_seg",),
        "semantic": ("sem_seg",),
    }
    require(
        any(config.best_metric.partition("/")[0] in scored[task] for task in tasks),
        "best_metric",
        "give a metric of one of config.inference.tasks, such as panoptic_seg/PQ, segm/AP, bbox/AP or sem_seg/mIoU.",
    )
    first, _, last = train.profile_steps.partition(":")
    recorded = first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)
    require(
        not train.profile_steps or recorded,
        "train.profile_steps",
        "give the first and the last step of a trace, such as 10:15, or leave it empty.",
    )
    milestones = config.optimizer.milestones
    require(list(milestones) == sorted(milestones), "optimizer.milestones", "give the steps in ascending order.")


def _validate_evaluation(config: Config, require: Any) -> None:
    evaluation, tasks = config.evaluation, config.inference.tasks
    require(
        not evaluation.boundary or (evaluation.engine == "fast" and "instance" in tasks),
        "evaluation.boundary",
        "outlines need evaluation.engine=fast and 'instance' in inference.tasks: give False.",
    )
    require(
        not evaluation.tta_instances or bool({"instance", "detection"} & set(tasks)),
        "evaluation.tta_instances",
        "have 'instance' or 'detection' in config.inference.tasks.",
    )
    sides = evaluation.tta_short_sides
    require(
        not sides or ("semantic" in tasks and min(sides) >= 1 and max(sides) <= evaluation.tta_long_side),
        "evaluation.tta_short_sides",
        f"give pixels from 1 to evaluation.tta_long_side = {evaluation.tta_long_side}, and have 'semantic' in "
        "inference.tasks; or leave it empty.",
    )
    require(
        not evaluation.submission or bool({"instance", "detection", "panoptic"} & set(tasks)),
        "evaluation.submission",
        "COCO's server takes instances and panoptic maps: have them in inference.tasks, or leave it empty.",
    )


def differences(old: Config, new: Config) -> list[str]:
    """Options that differ between the config of a workdir and the present one and may not change on resumption."""

    def fixed(flat: dict[str, Any]) -> dict[str, Any]:
        free = lambda path: any(path == name or path.startswith(name + ".") for name in FREE_ON_RESUME)
        return {path: value for path, value in flat.items() if not free(path)}

    before, now = fixed(flatten(old)), fixed(flatten(new))
    return [f"config.{path}: {before[path]!r} there, {now[path]!r} here" for path in now if before[path] != now[path]]


def explain_unknown_option(arguments: list[str], error: Exception) -> str:
    """Message for a command line with an option that no config has, naming the nearest one that exists."""
    known = list(flatten(Config()))
    for argument in arguments:
        path = argument.lstrip("-").partition("=")[0]
        if path.startswith("config.") and path.removeprefix("config.") not in known:
            near = difflib.get_close_matches(path.removeprefix("config."), known, n=1, cutoff=0.0)
            return f"unknown option {argument!r}. The nearest option is --config.{near[0]}; see maskdino_jax/config.py."
    return f"the config file cannot be used: {error}. Options and their types are in maskdino_jax/config.py."

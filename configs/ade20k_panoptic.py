"""ADE20K panoptic segmentation: 100 things, 50 stuff classes.

    python main.py --mode=prepare --config=configs/ade20k_panoptic.py
    python main.py --config=configs/ade20k_panoptic.py --workdir=runs/ade20k_panoptic

The first command makes `ade20k_panoptic_{train,val}` of `annotations` and `annotations_instance` (docs/data.md).
Neither the paper nor the official repository has this data set, so that there is nothing to compare with: `r50` is the
network of configs/coco_panoptic.py with the images, crops and steps of configs/ade20k_semantic.py. mIoU is measured on
the panoptic PNG, where a thing that has no object of its own is unlabelled. `tiny` is the same network with smaller
numbers, to try data and code on a CPU.
"""

from maskdino_jax.config import Config, SplitConfig, tiny

VARIANTS = ("r50", "tiny")


def get_config(variant: str = "r50") -> Config:
    if variant not in VARIANTS:
        raise ValueError(f"ade20k_panoptic.py has no variant {variant!r}: choose {', '.join(VARIANTS)}.")
    config = Config(name=f"ade20k_panoptic_{variant}")
    config.data.root = "datasets/ADEChallengeData2016"
    config.data.train = SplitConfig(
        images="images/training", annotations="ade20k_panoptic_train.json", panoptic="ade20k_panoptic_train"
    )
    config.data.val = SplitConfig(
        images="images/validation",
        annotations="ade20k_panoptic_val.json",
        panoptic="ade20k_panoptic_val",
        instances="ade20k_instance_val.json",
    )
    config.data.augmentation = "short_edge"
    config.data.short_sides = tuple(512 * tenths // 10 for tenths in range(5, 21))
    config.data.long_side = 2048
    config.data.image_size = (512, 512)
    config.data.color_jitter = True
    config.data.eval_short_side, config.data.eval_long_side = 512, 2048
    config.optimizer.milestones = (135_000, 150_000)
    config.train.steps = 160_000
    if variant == "tiny":
        tiny(config)
        config.data.short_sides = (96, 128, 192)
    return config

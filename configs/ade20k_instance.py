"""ADE20K instance segmentation and detection: 100 classes.

    python main.py --mode=prepare --config=configs/ade20k_instance.py
    python main.py --config=configs/ade20k_instance.py --workdir=runs/ade20k_instance

The first command makes `ade20k_instance_{train,val}.json` of `annotations_instance` (docs/data.md). Neither the paper
nor the official repository has this data set, so that there is nothing to compare with: `r50` is the network of
configs/coco_instance.py with the images, crops and steps of configs/ade20k_semantic.py. `tiny` is the same network with
smaller numbers, to try data and code on a CPU.
"""

from maskdino_jax.config import Config, SplitConfig, tiny

VARIANTS = ("r50", "tiny")


def get_config(variant: str = "r50") -> Config:
    if variant not in VARIANTS:
        raise ValueError(f"ade20k_instance.py has no variant {variant!r}: choose {', '.join(VARIANTS)}.")
    config = Config(name=f"ade20k_instance_{variant}", best_metric="segm/AP")
    config.data.root = "datasets/ADEChallengeData2016"
    config.data.format = "coco_instances"
    config.data.train = SplitConfig(images="images/training", annotations="ade20k_instance_train.json")
    config.data.val = SplitConfig(images="images/validation", annotations="ade20k_instance_val.json")
    config.data.augmentation = "short_edge"
    config.data.short_sides = tuple(512 * tenths // 10 for tenths in range(5, 21))
    config.data.long_side = 2048
    config.data.image_size = (512, 512)
    config.data.color_jitter = True
    config.data.eval_short_side, config.data.eval_long_side = 512, 2048
    config.model.decoder.box_init = "mask2box"
    config.optimizer.milestones = (135_000, 150_000)
    config.train.steps = 160_000
    config.inference.tasks = ("instance",)
    if variant == "tiny":
        tiny(config)
        config.data.short_sides = (96, 128, 192)
    return config

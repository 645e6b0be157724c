"""Cityscapes semantic segmentation: 19 classes, fine annotations.

    python main.py --config=configs/cityscapes_semantic.py --workdir=runs/cityscapes

The labels are `*_gtFine_labelTrainIds.png`, which cityscapesScripts makes (`csCreateTrainIdLabelImgs`). 90,000 steps
of batch 16; the backbone starts from ImageNet (`config.train.init_from`), with batch norm that is trained. Published
mIoU of `r50` on val, one scale (paper, table 6, and the released checkpoint): 79.8, the mean of three runs; the best is
80.0. `tiny` is the same network with smaller numbers, to try data and code on a CPU.
"""

from maskdino_jax.config import Config, SplitConfig, tiny

VARIANTS = ("r50", "tiny")


def get_config(variant: str = "r50") -> Config:
    if variant not in VARIANTS:
        raise ValueError(f"cityscapes_semantic.py has no variant {variant!r}: choose {', '.join(VARIANTS)}.")
    config = Config(name=f"cityscapes_semantic_{variant}", best_metric="sem_seg/mIoU")
    config.data.root = "datasets/cityscapes"
    config.data.format, config.data.classes = "semantic", "cityscapes"
    config.data.train = SplitConfig(images="leftImg8bit/train", semantic="gtFine/train")
    config.data.val = SplitConfig(images="leftImg8bit/val", semantic="gtFine/val")
    config.data.augmentation = "short_edge"
    config.data.short_sides = tuple(1024 * tenths // 10 for tenths in range(5, 21))
    config.data.long_side = 4096
    config.data.image_size = (512, 1024)
    config.data.color_jitter = True
    config.data.eval_short_side, config.data.eval_long_side = 1024, 2048
    config.model.backbone.norm = "batch_norm"
    config.model.encoder.num_levels = 3
    config.model.encoder.order = "coarse_to_fine"
    config.model.encoder.ffn_dim = 1024
    config.model.decoder.query_source = "learned"
    config.model.decoder.num_queries = 100
    config.model.class_scores = "softmax"
    config.optimizer.milestones = (80_000, 87_000)
    config.train.steps = 90_000
    config.inference.tasks = ("semantic",)
    config.inference.object_threshold = 0.8
    if variant == "tiny":
        tiny(config)
        config.data.short_sides = (96, 128, 192)
    return config

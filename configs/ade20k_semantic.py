"""ADE20K semantic segmentation: 150 classes, in the layout of ADEChallengeData2016.

    python main.py --config=configs/ade20k_semantic.py --workdir=runs/ade20k
    python main.py --config=configs/ade20k_semantic.py:swin_l_900q --workdir=runs/ade20k_swin_l

160,000 steps of batch 16; backbones start from ImageNet (`config.train.init_from`). Published mIoU on validation, one
scale (paper, tables 5 and 7, and the released checkpoint):

    variant        mIoU
    r50            48.7   best of three runs, their mean is 47.7; runs differ by one and more
    swin_l_900q    59.5   after detection on Objects365, with a moving average of the weights

`swin_l_900q` starts from what configs/objects365_detection.py trained, `--config.train.init_from=WORKDIR`, and so has
its levels and widths; the paper says no more than what is in this line. Its Swin-L without Objects365 reaches 56.6.
`tiny` is the network of `r50` with smaller numbers, to try data and code on a CPU.
"""

from maskdino_jax.config import Config, SplitConfig, backbone, tiny

VARIANTS = ("r50", "swin_l_900q", "tiny")


def get_config(variant: str = "r50") -> Config:
    if variant not in VARIANTS:
        raise ValueError(f"ade20k_semantic.py has no variant {variant!r}: choose {', '.join(VARIANTS)}.")
    config = Config(name=f"ade20k_semantic_{variant}", best_metric="sem_seg/mIoU")
    config.data.root = "datasets/ADEChallengeData2016"
    config.data.format, config.data.classes = "semantic", "ade20k"
    config.data.train = SplitConfig(images="images/training", semantic="annotations/training")
    config.data.val = SplitConfig(images="images/validation", semantic="annotations/validation")
    config.data.augmentation = "short_edge"
    config.data.short_sides = tuple(512 * tenths // 10 for tenths in range(5, 21))
    config.data.long_side = 2048
    config.data.image_size = (512, 512)
    config.data.color_jitter = True
    config.data.eval_short_side, config.data.eval_long_side = 512, 2048
    config.model.encoder.num_levels = 3
    config.model.encoder.order = "coarse_to_fine"
    config.model.encoder.ffn_dim = 1024
    config.model.decoder.query_source = "learned"
    config.model.decoder.num_queries = 100
    config.model.class_scores = "softmax"
    config.optimizer.milestones = (135_000, 150_000)
    config.train.steps = 160_000
    config.inference.tasks = ("semantic",)
    config.inference.object_threshold = 0.8
    if variant == "swin_l_900q":
        config.model.backbone = backbone("swin_l")
        config.model.encoder.in_features = ("res2", "res3", "res4", "res5")
        config.model.encoder.num_levels = 5
        config.model.encoder.order = "fine_to_coarse"
        config.model.encoder.ffn_dim = 2048
        config.model.decoder.num_queries = 900
        config.train.ema_decay = 0.9999  # the paper does not say which
    if variant == "tiny":
        tiny(config)
        config.data.short_sides = (96, 128, 192)
    return config

"""COCO 2017 panoptic segmentation with boxes and masks: 80 things, 53 stuff classes.

    python main.py --config=configs/coco_panoptic.py --workdir=runs/coco_panoptic --config.data.root=datasets/coco

Paper (table 4) for `r50`: PQ 53.0, PQ things 59.1, PQ stuff 43.9, box AP 48.8, mask AP 44.3, mIoU 60.6 after 50 epochs
of batch 16, with the backbone pre-trained on ImageNet; about 3 days on 8 A100. Ours has not been trained to the end.
`tiny` is the same network with smaller numbers, to try data and code on a CPU.
"""

from maskdino_jax.config import Config, SplitConfig, tiny


def get_config(variant: str = "r50") -> Config:
    config = Config(name=f"coco_panoptic_{variant}")
    config.data.root = "datasets/coco"
    config.data.train = SplitConfig(
        images="train2017", annotations="annotations/panoptic_train2017.json", panoptic="panoptic_train2017"
    )
    config.data.val = SplitConfig(
        images="val2017",
        annotations="annotations/panoptic_val2017.json",
        panoptic="panoptic_val2017",
        instances="annotations/instances_val2017.json",
    )
    config.data.keep_empty = True
    config.optimizer.milestones = (327_778, 355_092)
    if variant == "tiny":
        tiny(config)
    elif variant != "r50":
        raise ValueError(f"coco_panoptic.py has no variant {variant!r}: choose r50 or tiny.")
    return config

"""COCO 2017 instance segmentation and detection: 80 classes.

    python main.py --config=configs/coco_instance.py --workdir=runs/coco_instance --config.data.root=datasets/coco

Paper (table 3) for `r50` with mask-enhanced boxes: mask AP 46.3, box AP 51.7 after 50 epochs of batch 16, with the
backbone pre-trained on ImageNet; about 3 days on 8 A100. Ours has not been trained to the end yet.
`tiny` is the same network with smaller numbers, to try data and code on a CPU.
"""

from maskdino_jax.config import Config, SplitConfig, tiny


def get_config(variant: str = "r50") -> Config:
    config = Config(name=f"coco_instance_{variant}", best_metric="segm/AP")
    config.data.root = "datasets/coco"
    config.data.format = "coco_instances"
    config.data.train = SplitConfig(images="train2017", annotations="annotations/instances_train2017.json")
    config.data.val = SplitConfig(images="val2017", annotations="annotations/instances_val2017.json")
    config.model.decoder.box_init = "mask2box"
    config.inference.tasks = ("instance",)
    config.data.keep_empty = True
    config.optimizer.milestones = (327_778, 355_092)
    if variant == "tiny":
        tiny(config)
    elif variant != "r50":
        raise ValueError(f"coco_instance.py has no variant {variant!r}: choose r50 or tiny.")
    return config

"""Objects365 v2: detection of 365 classes without masks, from which a model with masks is fine-tuned.

    python main.py --config=configs/objects365_detection.py --workdir=runs/o365
    python main.py --config=configs/coco_instance.py:swin_l_1280 --workdir=runs/coco --config.train.init_from=runs/o365

The same for `configs/coco_panoptic.py:swin_l_1280` and `configs/ade20k_semantic.py:swin_l_900q`, and for the `r50` of
the COCO files after the `r50` of this one. A fine-tuning keeps fresh what knows the number of classes, and the mask
branch: it has parameters here too, but nothing trains them, and weight decay shrinks them.

Mask DINO's largest results come after such a training, for which the paper takes that of DINO (Zhang et al. 2022,
appendix D.2): 26 epochs with 64 images a step, on 64 A100, and 900 queries. DINO also trained on the validation images
but for the first 5,000; to do so, merge the two files of annotations and give 738,274 steps. What its paper does not
say is as in the fine-tuning: large-scale jittering, the learning rate, and its drops after 90% and 95% of the steps.
No box AP on Objects365 is published.

    datasets/objects365/
      annotations/zhiyuan_objv2_train.json, zhiyuan_objv2_val.json    as published, without masks
      train/, val/                    the images, under these folders where "file_name" in the JSON says

The JSON lists a few images that are in none of the archives; take them out of it. The backbone starts from ImageNet
(`config.train.init_from`). `tiny` is the network of `r50` with smaller numbers, to try data and code on a CPU.
"""

from maskdino_jax.config import Config, SplitConfig, backbone, tiny

VARIANTS = ("swin_l", "r50", "tiny")

_STEPS_OF_AN_EPOCH = 1_742_289 / 64  # images of the training split, and of a step


def get_config(variant: str = "swin_l") -> Config:
    if variant not in VARIANTS:
        raise ValueError(f"objects365_detection.py has no variant {variant!r}: choose {', '.join(VARIANTS)}.")
    config = Config(name=f"objects365_detection_{variant}", best_metric="bbox/AP")
    config.data.root = "datasets/objects365"
    config.data.format = "coco_instances"
    config.data.train = SplitConfig(images="train", annotations="annotations/zhiyuan_objv2_train.json")
    config.data.val = SplitConfig(images="val", annotations="annotations/zhiyuan_objv2_val.json")
    config.model.masks = False
    config.model.denoising.mode = "boxes"
    config.model.decoder.num_queries = 900
    if variant == "swin_l":
        config.model.backbone = backbone("swin_l")
        config.model.encoder.in_features = ("res2", "res3", "res4", "res5")
        config.model.encoder.num_levels = 5
    config.train.batch_size = 64
    config.train.steps = round(26 * _STEPS_OF_AN_EPOCH)
    config.train.eval_every = round(_STEPS_OF_AN_EPOCH)
    config.optimizer.milestones = (round(0.9 * config.train.steps), round(0.95 * config.train.steps))
    config.inference.tasks = ("detection",)
    if variant == "tiny":
        tiny(config)
    return config

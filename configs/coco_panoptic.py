"""COCO 2017 panoptic segmentation with boxes and masks: 80 things, 53 stuff classes.

    python main.py --config=configs/coco_panoptic.py --workdir=runs/coco_panoptic
    python main.py --config=configs/coco_panoptic.py:swin_l --workdir=runs/coco_panoptic_swin_l

Each model takes `_12ep` or `_24ep` for a shorter schedule than 50 epochs of batch 16. Backbones start from ImageNet
(`config.train.init_from`). The paper's `r50` took about 3 days on 8 A100 and 15 GB of each, Swin-L 60 GB of each.
Published on val2017 (paper, table 4, and the released checkpoints), box and mask AP of things:

    variant                   epochs    PQ  PQ things  PQ stuff   box  mask  mIoU
    r50_12ep                      12  47.9       54.0      38.8  42.8  39.6     -
    r50                           50  52.7       58.8      43.5  48.7  44.1     -
    r50_decoupled_12ep            12  49.0       54.8      40.2  43.2  40.4     -   no boxes of stuff
    r50_decoupled_24ep            24  51.5       57.3      42.6  46.4  42.8     -
    r50_decoupled                 50  53.0       59.1      43.9  48.8  44.3  60.6
    swin_l                        50  58.3       65.1      48.0  56.2  50.6  67.5
    swin_l_mask_enhanced          50     -          -         -     -     -     -   boxes from masks
    swin_t, swin_s, swin_b        50     -          -         -     -     -     -   the recipe of swin_l
    swin_l_1280                   24  59.4          -         -  57.7  53.0  67.3   larger, after Objects365

`r50_decoupled` neither trains nor matches the boxes of stuff (paper, section 3.6 and table 14); the official configs
do both, as `r50` does. Once trained, they are one network: the released checkpoint of PQ 53.0 is read with either.
`swin_l_1280` starts from what configs/objects365_detection.py trained: `--config.train.init_from=WORKDIR`. Its crops
have 1280 x 1280 pixels, and it is evaluated on images 1.2 times as large as those of the others.
`tiny` is the network of `r50` with smaller numbers, to try data and code on a CPU.
"""

from maskdino_jax.config import Config, SplitConfig, backbone, tiny

MODELS = {  # backbone, boxes that the queries start from
    "r50": ("r50", "none"),
    "r50_decoupled": ("r50", "none"),
    "swin_t": ("swin_t", "none"),
    "swin_s": ("swin_s", "none"),
    "swin_b": ("swin_b", "none"),
    "swin_l": ("swin_l", "none"),
    "swin_l_mask_enhanced": ("swin_l", "bitmask"),
}

SCHEDULES = {  # steps, milestones; 7375 steps are an epoch
    "": (368_750, (327_778, 355_092)),
    "_12ep": (88_500, (81_125,)),
    "_24ep": (177_000, (147_500,)),
}

VARIANTS = {model + epochs: (model, epochs) for model in MODELS for epochs in SCHEDULES}
VARIANTS |= {"swin_l_1280": ("swin_l", "_24ep"), "tiny": ("r50", "")}


def get_config(variant: str = "r50") -> Config:
    if variant not in VARIANTS:
        raise ValueError(f"coco_panoptic.py has no variant {variant!r}: choose {', '.join(VARIANTS)}.")
    config = Config(name=f"coco_panoptic_{variant}")
    config.data.root = "datasets/coco"
    config.data.classes = "coco_panoptic"
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
    model, epochs = VARIANTS[variant]
    net, config.model.decoder.box_init = MODELS[model]
    config.model.backbone = backbone(net)
    if config.model.backbone.kind == "swin":
        config.model.encoder.in_features = ("res2", "res3", "res4", "res5")
        config.model.encoder.num_levels = 5
    config.train.steps, config.optimizer.milestones = SCHEDULES[epochs]
    config.loss.box_loss_things_only = config.loss.match_box_things_mean = model == "r50_decoupled"
    if variant == "swin_l_1280":
        config.data.image_size = (1280, 1280)
        config.data.eval_short_side, config.data.eval_long_side = 960, 1600
    if variant == "tiny":
        tiny(config)
    return config

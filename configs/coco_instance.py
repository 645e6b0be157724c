"""COCO 2017 instance segmentation and detection: 80 classes.

    python main.py --config=configs/coco_instance.py --workdir=runs/coco_instance
    python main.py --config=configs/coco_instance.py:swin_l --workdir=runs/coco_instance_swin_l

Each model takes `_12ep` or `_24ep` for a shorter schedule than 50 epochs of batch 16. Backbones start from ImageNet
(`config.train.init_from`). The paper's `r50` took about 3 days on 8 A100 and 15 GB of each, Swin-L 60 GB of each.
Published mask AP and box AP on val2017 (paper, table 3, and the released checkpoints):

    variant                     epochs  mask   box
    r50_12ep                        12  41.4  45.7
    r50_24ep                        24  44.2  48.4
    r50                             50  46.3  51.7   boxes from masks (mask-enhanced)
    r50_no_mask_enhance             50  46.0  50.5   boxes of the encoder
    r50_100q                        50  45.4  49.8   100 queries, boxes of the encoder
    r50_hid1024                     50  46.1  51.5   3 feature levels, narrower encoder
    r50_bitmask                     50     -     -   another way from masks to boxes
    r50_5scale                      50     -     -   5 feature levels, narrower encoder
    r50_res2                        50     -     -   4 feature levels, of which res2 is the finest
    swin_l                          50  52.3  59.0
    swin_l_no_mask_enhance          50  52.1  58.3
    swin_l_hid1024                  50     -     -   narrower encoder
    swin_t, swin_s, swin_b          50     -     -   the recipe of swin_l with smaller backbones
    swin_l_1280                     24  54.5     -   larger images, after detection on Objects365

`swin_l_1280` starts from what configs/objects365_detection.py trained: `--config.train.init_from=WORKDIR`. Its crops
have 1280 x 1280 pixels, and it is evaluated on images 1.2 times as large as those of the others.
`tiny` is the network of `r50` with smaller numbers, to try data and code on a CPU.
"""

from maskdino_jax.config import Config, SplitConfig, backbone, tiny

_SWIN = {"res2": True, "levels": 5, "box_init": "bitmask"}

MODELS = {
    "r50": {},
    "r50_no_mask_enhance": {"box_init": "none"},
    "r50_100q": {"box_init": "none", "queries": 100},
    "r50_bitmask": {"box_init": "bitmask"},
    "r50_hid1024": {"levels": 3, "order": "coarse_to_fine", "ffn": 1024, "box_init": "bitmask"},
    "r50_5scale": {"levels": 5, "order": "coarse_to_fine", "ffn": 1024, "box_init": "none"},
    "r50_res2": {"res2": True, "box_init": "none"},
    "swin_t": {**_SWIN, "net": "swin_t"},
    "swin_s": {**_SWIN, "net": "swin_s"},
    "swin_b": {**_SWIN, "net": "swin_b"},
    "swin_l": {**_SWIN, "net": "swin_l"},
    "swin_l_no_mask_enhance": {**_SWIN, "net": "swin_l", "box_init": "none"},
    "swin_l_hid1024": {**_SWIN, "net": "swin_l", "ffn": 1024},
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
        raise ValueError(f"coco_instance.py has no variant {variant!r}: choose {', '.join(VARIANTS)}.")
    config = Config(name=f"coco_instance_{variant}", best_metric="segm/AP")
    config.data.root = "datasets/coco"
    config.data.format = config.data.classes = "coco_instances"
    config.data.train = SplitConfig(images="train2017", annotations="annotations/instances_train2017.json")
    config.data.val = SplitConfig(images="val2017", annotations="annotations/instances_val2017.json")
    config.data.keep_empty = True
    config.inference.tasks = ("instance",)
    model, epochs = VARIANTS[variant]
    _model(config, **MODELS[model])
    config.train.steps, config.optimizer.milestones = SCHEDULES[epochs]
    if variant == "swin_l_1280":
        config.data.image_size = (1280, 1280)
        config.data.eval_short_side, config.data.eval_long_side = 960, 1600
    if variant == "tiny":
        tiny(config)
    return config


def _model(
    config: Config,
    net: str = "r50",
    res2: bool = False,
    levels: int = 4,
    order: str = "fine_to_coarse",
    ffn: int = 2048,
    box_init: str = "mask2box",
    queries: int = 300,
) -> None:
    """`res2`: the encoder also sees the finest map of the backbone; `ffn`: of the encoder."""
    config.model.backbone = backbone(net)
    config.model.encoder.in_features = ("res2", "res3", "res4", "res5") if res2 else ("res3", "res4", "res5")
    config.model.encoder.num_levels = levels
    config.model.encoder.order = order
    config.model.encoder.ffn_dim = ffn
    config.model.decoder.box_init = box_init
    config.model.decoder.num_queries = queries

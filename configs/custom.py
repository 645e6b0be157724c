"""Your own data: fine-tune ResNet-50 on what lies in a folder or a zip archive.

    python main.py --config=configs/custom.py:instance --config.data.root=DIR --config.train.init_from=maskdino_r50.pth

DIR holds COCO JSON, a Roboflow export, YOLO segmentation, or images beside label PNG: what is there is recognised, and
the log says what was taken (docs/data.md lists the layouts). Classes come from the data. Take the variant that fits
the annotations, and the weights of the same network:

    variant     learns                          from                                 network as in
    instance    boxes and masks of objects      COCO JSON, Roboflow, YOLO polygons   configs/coco_instance.py:r50
    detection   boxes of objects                the same, also without masks         configs/coco_instance.py:r50
    panoptic    objects and stuff               COCO panoptic JSON and PNG           configs/coco_panoptic.py:r50
    semantic    a class for each pixel          label PNG                            configs/ade20k_semantic.py:r50
    r50         the same as `instance`
    tiny        `instance` with smaller numbers, to try data and code on a CPU

`config.train.init_from` takes an official checkpoint, a workdir, or ImageNet weights of the backbone; with the last
ones, or none, a few hundred images do not suffice. Everything but the layers that know the classes is taken over.

The schedule is for some hundred to some thousand images on one GPU: 4 images a step, some 30 GB going by the paper's 15
for two (`config.train.accumulate=2` halves it); half of the paper's learning rate for a quarter of its batch, rising
from zero because the class layers are new; 5,000 steps, with drops after 80% and 95%. For more data give more steps:
`config.train.steps` and `config.optimizer.milestones`. Images are scaled by 0.5 to 1.5 and not by 0.1 to 2, for so
short a training has no time for very small objects.
"""

from maskdino_jax.config import Config, tiny

VARIANTS = ("r50", "instance", "detection", "panoptic", "semantic", "tiny")

_TASKS = {  # of a variant, and what decides which checkpoint is the best
    "detection": (("detection",), "bbox/AP"),
    "panoptic": (("instance", "panoptic", "semantic"), "panoptic_seg/PQ"),
    "semantic": (("semantic",), "sem_seg/mIoU"),
}


def get_config(variant: str = "r50") -> Config:
    if variant not in VARIANTS:
        raise ValueError(f"custom.py has no variant {variant!r}: choose {', '.join(VARIANTS)}.")
    config = Config(name=f"custom_{variant}")
    config.inference.tasks, config.best_metric = _TASKS.get(variant, (("instance",), "segm/AP"))
    config.data.root = "datasets/custom"
    config.data.format = "auto"
    config.data.scale = (0.5, 1.5)
    config.train.steps = 5_000
    config.train.batch_size = 4
    config.train.eval_every = config.train.checkpoint_every = 500
    config.optimizer.learning_rate = 5e-5
    config.optimizer.warmup_steps = 100
    config.optimizer.milestones = (4_000, 4_750)
    if variant == "detection":
        config.model.masks = False
        config.model.denoising.mode = "boxes"
    elif variant == "semantic":
        _semantic(config)
    elif variant != "panoptic":
        config.model.decoder.box_init = "mask2box"
    if variant == "tiny":
        tiny(config)
    return config


def _semantic(config: Config) -> None:
    """The recipe and the network of configs/ade20k_semantic.py:r50."""
    config.data.augmentation = "short_edge"
    config.data.short_sides = tuple(512 * tenths // 10 for tenths in range(5, 21))
    config.data.image_size = (512, 512)
    config.data.color_jitter = True
    config.data.eval_short_side, config.data.eval_long_side = 512, 2048
    config.model.encoder.num_levels = 3
    config.model.encoder.order = "coarse_to_fine"
    config.model.encoder.ffn_dim = 1024
    config.model.decoder.query_source = "learned"
    config.model.decoder.num_queries = 100
    config.model.class_scores = "softmax"
    config.inference.object_threshold = 0.8

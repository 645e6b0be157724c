"""Nuclei in fluorescence images: panoptic segmentation of the data set that comes with the package.

    python main.py --config=configs/nuclei_panoptic.py:pieces  # first a small network on pieces of the images, ...
    python main.py --config=configs/nuclei_panoptic.py --config.train.init_from=runs/nuclei_panoptic_pieces
                                                               # ... then `small`, the default: on whole ones
    python main.py --config=configs/nuclei_panoptic.py:quick   # a smaller one on pieces, minutes on two CPU cores
    python main.py --config=configs/nuclei_panoptic.py:r50     # the network of the paper, for a GPU

100 training and 25 validation images of 256 x 256 pixels (BBBC038, CC0), one thing (nucleus) and one stuff class.
Trained from scratch, hence group norm in the backbone. Results: docs/results.md.
"""

from maskdino_jax.config import Config, SplitConfig

VARIANTS = ("small", "pieces", "quick", "r50")

_TILES = SplitConfig(
    images="val_tiles", annotations="annotations/panoptic_val_tiles.json", panoptic="panoptic_val_tiles"
)


def get_config(variant: str = "small") -> Config:
    if variant not in VARIANTS:
        raise ValueError(f"nuclei_panoptic.py has no variant {variant!r}: choose {', '.join(VARIANTS)}.")
    config = Config(name=f"nuclei_panoptic_{variant}")
    config.data.train = SplitConfig(
        images="train", annotations="annotations/panoptic_train.json", panoptic="panoptic_train"
    )
    config.data.val = SplitConfig(
        images="val",
        annotations="annotations/panoptic_val.json",
        panoptic="panoptic_val",
        instances="annotations/instances_val.json",
    )
    config.data.image_size = (256, 256)
    config.data.scale = (0.5, 2.0)
    config.data.max_instances = 128
    config.data.eval_short_side = config.data.eval_long_side = 256
    config.data.eval_canvas = "exact"  # images are of one size
    config.data.workers = 0
    config.model.backbone.norm = "group_norm"
    config.optimizer.backbone_multiplier = 1.0
    config.optimizer.warmup_steps = 50
    config.train.steps = 5_000
    config.optimizer.milestones = (4_000, 4_700)
    config.train.eval_every = config.train.checkpoint_every = 500
    config.train.eval_at_start = True
    config.inference.batch_size = 5
    if variant == "quick":
        _quick(config)
    elif variant != "r50":
        _small(config)
    if variant == "pieces":
        _pieces(config)
    return config


def _small(config: Config) -> None:
    """A network of 1.2 million parameters on images enlarged by half: the median nucleus is 12 pixels wide."""
    config.data.image_size = (384, 384)
    config.data.scale = (0.9, 1.5)
    config.data.max_instances = 80
    config.data.eval_short_side = config.data.eval_long_side = 384
    config.model.backbone.depths = (1, 1, 1, 1)
    config.model.backbone.width = 16
    config.model.hidden_dim = 96
    config.model.num_heads = 4
    config.model.encoder.layers = 2
    config.model.encoder.ffn_dim = 192
    config.model.encoder.num_levels = 3
    config.model.encoder.order = "coarse_to_fine"  # the finest level gets the smallest proposals, 5 % of the image
    config.model.decoder.layers = 3
    config.model.decoder.ffn_dim = 192
    config.model.decoder.num_queries = 120
    config.model.denoising.num_queries = 60
    config.loss.num_points = 1600  # a sixth of the pixels of a mask: fewer hardly meet a small nucleus
    config.loss.oversample_ratio = 2.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.milestones = (2_400, 3_300)
    config.train.steps = 3_600
    config.train.batch_size = 1
    config.train.ema_decay = 0.99
    config.train.log_every = 25
    config.train.eval_every = config.train.checkpoint_every = 250
    config.inference.overlap_threshold = 0.5  # one class: a nucleus that keeps half of its mask is still that nucleus


def _pieces(config: Config) -> None:
    """What `small` starts from: it learns to tell nuclei apart within minutes if it sees some seven at a time.

    The same enlargement; on whole images alone, where dozens look alike, it takes many times as long.
    """
    config.data.val = _TILES
    config.data.image_size = (192, 192)
    config.data.scale = (1.5, 2.6)
    config.data.max_instances = 40
    config.data.eval_short_side = config.data.eval_long_side = 192
    config.model.decoder.num_queries = 60
    config.model.denoising.num_queries = 30
    config.loss.num_points = 576
    config.optimizer.warmup_steps = 100
    config.optimizer.milestones = ()
    config.train.steps = 1_200
    config.train.batch_size = 2
    config.train.ema_decay = 0.995
    config.train.log_every = 50
    config.train.eval_every = 0
    config.train.checkpoint_every = 300
    config.inference.batch_size = 20


def _quick(config: Config) -> None:
    """The same network with smaller numbers, on pieces of 128 x 128 pixels: few nuclei at a time are learned sooner."""
    config.data.val = _TILES
    config.data.image_size = (128, 128)
    config.data.scale = (1.6, 2.5)
    config.data.max_instances = 24
    config.data.eval_short_side = config.data.eval_long_side = 128
    config.model.backbone.depths = (1, 1, 1, 1)
    config.model.backbone.width = 16
    config.model.hidden_dim = 64
    config.model.num_heads = 4
    config.model.encoder.layers = 2
    config.model.encoder.ffn_dim = 128
    config.model.encoder.num_levels = 3
    config.model.decoder.layers = 2
    config.model.decoder.ffn_dim = 128
    config.model.decoder.num_queries = 100
    config.model.denoising.num_queries = 24
    config.loss.num_points = 196
    config.optimizer.learning_rate = 2e-3
    config.optimizer.milestones = (1_500, 1_700)
    config.train.steps = 1_800
    config.train.batch_size = 2
    config.train.log_every = 100
    config.train.eval_every = 0
    config.train.checkpoint_every = 600
    config.inference.batch_size = 20

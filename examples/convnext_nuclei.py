"""Nuclei with a backbone of one's own, as small as `configs/nuclei_panoptic.py:quick` (docs/swap_a_part.md).

    python main.py --config=examples/convnext_nuclei.py --workdir=runs/convnext

The part is imported here, so that this file, given with --config, is all that a checkpoint of it needs.
"""

from maskdino_configs import nuclei_panoptic

from examples.convnext import ConvNeXt
from maskdino_jax.config import Config
from maskdino_jax.parts import name_of


def get_config() -> Config:
    config = nuclei_panoptic.get_config("quick")
    config.name = "convnext_nuclei"
    config.model.backbone.kind = name_of(ConvNeXt)
    config.model.backbone.depths, config.model.backbone.width = (1, 1, 3, 1), 32
    config.model.backbone.drop_path = 0.0
    return config

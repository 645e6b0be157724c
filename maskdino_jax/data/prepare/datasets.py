"""Recognise a published data set by its folders and make the generated files that are missing."""

import logging
from pathlib import Path

from maskdino_jax.config import ConfigError
from maskdino_jax.data.files import find
from maskdino_jax.data.prepare import ade20k, cityscapes, coco
from maskdino_jax.data.prepare.writing import Made

_DATA_SETS = {  # what makes their files, and paths of which one is enough
    "COCO": (coco.prepare, tuple(f"annotations/panoptic_{year}.json" for year in coco.YEARS)),
    "ADE20K": (ade20k.prepare, tuple(f"images/{folder}" for folder in ade20k.SPLITS.values())),
    "Cityscapes": (cityscapes.prepare, tuple(f"gtFine/{split}" for split in cityscapes.SPLITS)),
}

logger = logging.getLogger(__name__)


def prepare(root: str | Path) -> tuple[Made, ...]:
    """Make what is missing of the generated files of COCO, ADE20K or Cityscapes in the folder of the data set.

    What is there stays. Published files may be in zip archives in that folder.

    Raises:
        ConfigError: there is no such folder, or none of these data sets in it.
        ValueError: a file is damaged or contradicts another.
    """
    folder = Path(root).expanduser()
    if not root or not folder.is_dir():
        raise ConfigError(f"config.data.root = {str(root)!r}: give the folder of COCO, ADE20K or Cityscapes.")
    for name, (make, paths) in _DATA_SETS.items():
        if any(find(folder, path) for path in paths):
            logger.info("%s: %s", folder, name)
            done = []
            for made in make(folder):
                logger.info("%s", made)
                done.append(made)
            return tuple(done)
    looked_for = "; ".join(f"{name}: {' or '.join(paths)}" for name, (_, paths) in _DATA_SETS.items())
    raise ConfigError(f"config.data.root = {str(root)!r} is none of the data sets that need preparing. {looked_for}.")

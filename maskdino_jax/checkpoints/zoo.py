"""The official checkpoints by name: where their authors publish them, what they are of, and what they should reach.

Nothing is downloaded: who has a file puts it into the zoo's folder, or says where it is.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path

from maskdino_jax.config import Config

FOLDER = Path("~/.cache/maskdino_jax/zoo")
LICENCE = "Apache-2.0"  # of the official repository, which publishes the files
_RELEASE = "https://github.com/IDEA-Research/detrex-storage/releases/download/maskdino-v0.1.0"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One published file."""

    file: str
    config: str  # name:variant, as in --config
    metrics: Mapping[str, float]  # published, in percent, under the names of our results
    sha256: str | None = None  # None: unknown, for the authors publish none and the file has not been at hand
    size: int | None = None  # bytes; None: unknown

    @property
    def address(self) -> str:
        return f"{_RELEASE}/{self.file}"


ENTRIES = {
    "r50_coco_instance": Entry(
        "maskdino_r50_50ep_300q_hid2048_3sd1_instance_maskenhanced_mask46.3ap_box51.7ap.pth",
        "coco_instance:r50",
        {"segm/AP": 46.3, "bbox/AP": 51.7},
    ),
    "r50_hid1024_coco_instance": Entry(
        "maskdino_r50_50ep_300q_hid1024_3sd1_instance_maskenhanced_mask46.1ap_box51.5ap.pth",
        "coco_instance:r50_hid1024",
        {"segm/AP": 46.1, "bbox/AP": 51.5},
    ),
    "swin_l_coco_instance": Entry(
        "maskdino_swinl_50ep_300q_hid2048_3sd1_instance_maskenhanced_mask52.3ap_box59.0ap.pth",
        "coco_instance:swin_l",
        {"segm/AP": 52.3, "bbox/AP": 59.0},
    ),
    "swin_l_no_mask_enhance_coco_instance": Entry(
        "maskdino_swinl_50ep_300q_hid2048_3sd1_instance_mask52.1ap_box58.3ap.pth",
        "coco_instance:swin_l_no_mask_enhance",
        {"segm/AP": 52.1, "bbox/AP": 58.3},
    ),
    "r50_coco_panoptic": Entry(
        "maskdino_r50_50ep_300q_hid2048_3sd1_panoptic_pq53.0.pth",
        "coco_panoptic:r50",
        {"panoptic_seg/PQ": 53.0},
    ),
    "swin_l_coco_panoptic": Entry(
        "maskdino_swinl_50ep_300q_hid2048_3sd1_panoptic_58.3pq.pth",
        "coco_panoptic:swin_l",
        {"panoptic_seg/PQ": 58.3},
    ),
    "r50_ade20k_semantic": Entry(
        "maskdino_r50_50ep_100q_celoss_hid1024_3s_semantic_ade20k_48.7miou.pth",
        "ade20k_semantic:r50",
        {"sem_seg/mIoU": 48.7},
    ),
    "r50_cityscapes_semantic": Entry(
        "maskdino_r50_50ep_100q_celoss_hid1024_3s_semantic_cityscapes_79.8miou.pth",
        "cityscapes_semantic:r50",
        {"sem_seg/mIoU": 79.8},
    ),
}


def entry(name: str) -> Entry:
    """Of this name; ValueError with the nearest ones if there is none."""
    if name not in ENTRIES:
        near = difflib.get_close_matches(name, ENTRIES, n=3, cutoff=0.4) or list(ENTRIES)
        raise ValueError(f"there is no model {name!r} in the zoo. The nearest names are {', '.join(near)}.")
    return ENTRIES[name]


def config_of(name: str) -> Config:
    """The config that the weights belong to, with the list of their classes.

    Raises:
        ValueError: there is no such name.
    """
    module, _, variant = entry(name).config.partition(":")
    return importlib.import_module(f"maskdino_configs.{module}").get_config(variant)


def find(name: str, place: str | Path | None = None) -> Path:
    """The file of a name.

    Args:
        place: the file, or the folder that it lies in; None: `FOLDER`.

    Raises:
        ValueError: there is no such name.
        FileNotFoundError: the file is not there; the message says where it is published and where to put it.
    """
    wanted = entry(name)
    path = Path(FOLDER if place is None else place).expanduser()
    path = path / wanted.file if path.is_dir() or place is None else path
    if not path.is_file():
        size = "size unknown" if wanted.size is None else f"{wanted.size / 1e6:.0f} MB"
        raise FileNotFoundError(
            f"{path}: there is no such file. {name} is published at {wanted.address} ({size}, licence {LICENCE}, "
            f"checksum {wanted.sha256 or 'unknown'}); nothing is downloaded unasked. Put it there, or say where it is."
        )
    return path

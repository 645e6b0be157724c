"""What `--help` says, and the nearest name to one that does not exist."""

import difflib
import textwrap
from collections.abc import Iterable
from importlib import resources

MODES = {
    "train": ("train, continuing what is in the workdir", "--config=coco_panoptic:r50 --workdir=runs/panoptic"),
    "eval": ("measure a checkpoint", "--checkpoint=runs/panoptic --workdir=runs/evaluation"),
    "predict": ("draw and write what it finds in images", "--checkpoint=runs/panoptic --images=photos"),
    "serve": ("a page to try it in the browser", "--checkpoint=runs/panoptic"),
    "explain": ("how the decoder arrives at its objects", "--checkpoint=runs/panoptic --images=photos"),
    "report": ("a page of what is wrong, and what to do", "--checkpoint=runs/panoptic --workdir=runs/evaluation"),
    "export": ("a file that runs without this package", "--checkpoint=runs/panoptic --workdir=runs/export"),
    "check-data": ("before training: are the data sound?", "--config=coco_panoptic"),
    "prepare": ("files made of the published ones", "--config.data.root=datasets/coco"),
    "doctor": ("before training: is this machine ready?", "--config=coco_panoptic"),
}

_HELP = """\
Mask DINO: detection, instance, panoptic and semantic segmentation.

usage: {program} [--mode=MODE] [--config=FILE[:VARIANT]] [--workdir=DIR] [--config.OPTION=VALUE ...]

Without arguments it trains on the images that come along.

modes, each with an example
{modes}

flags
  --config=FILE[:VARIANT]   what to train, by default nuclei_panoptic. A file, or one that comes along:
                            {configs}
  --workdir=DIR             checkpoints, logs and results; by default runs/NAME of the config
  --checkpoint=WHICH        a workdir, one checkpoint, a .pth of the official code with its --config,
                            or zoo:NAME, such as zoo:r50_coco_panoptic; by default the workdir
  --images=WHICH            a file, a folder, a video or an http(s) address
  --style=STYLE             predict: one of instance, panoptic, semantic, detection
  --format=, --canvas=      export: stablehlo or onnx; HEIGHTxWIDTH in pixels
  --host=, --port=          serve: where to listen, by default on 127.0.0.1:8000
  --max_upload_mb=          serve: the largest file, by default 20

Any option of the config is set by its path: --config.train.batch_size=8, --config.data.root=DIR. All of them, with
default and meaning, are in maskdino_jax/config.py; docs/README.md leads to the guides. --helpfull lists every flag.
"""
_WIDTH = 100  # characters of a line


def help_text(program: str) -> str:
    """For a program that is called so."""
    configs = _wrapped(", ".join(shipped_configs()), 28)
    lines = (f"  {name:<11} {what}\n              {_example(program, name)}" for name, (what, _) in MODES.items())
    return _HELP.format(program=program, modes="\n".join(lines), configs=configs)


def shipped_configs() -> list[str]:
    """Names of the config files that come along."""
    names = (file.name for file in resources.files("maskdino_configs").iterdir())
    return sorted(name.removesuffix(".py") for name in names if name.endswith(".py") and name != "__init__.py")


def nearest(name: str, known: Iterable[str]) -> str:
    """Of the known names the most similar one."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def _example(program: str, mode: str) -> str:
    return f"{program} --mode={mode} {MODES[mode][1]}"


def _wrapped(text: str, indent: int) -> str:
    return f"\n{' ' * indent}".join(textwrap.wrap(text, _WIDTH - indent))

"""Train, evaluate or apply Mask DINO.

    python main.py                                                            # nuclei, the images that come along
    python main.py --config=configs/coco_panoptic.py --workdir=runs/panoptic
    python main.py --mode=eval --checkpoint=runs/panoptic --workdir=runs/evaluation
    python main.py --mode=predict --checkpoint=runs/panoptic --images=photos --workdir=runs/predictions

Any option of the config is overridden by its path: --config.train.batch_size=8
"""

import os

# Before jax is imported: with the default two threads jax 0.10 can deadlock in the matcher's host callback.
os.environ.setdefault("NPROC", "16")

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from maskdino_jax.config import Config, explain_unknown_option

_CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/nuclei_panoptic.py", "Config file, with a variant after a colon."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, logs and results (default: runs/NAME).")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "predict"], "What to do.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "eval, predict: workdir of a run, or one checkpoint of it.")
_IMAGES = flags.DEFINE_string("images", None, "predict: an image file or a folder of them.")


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise app.UsageError(f"unknown argument {arguments[1]!r}: options are given as --name=value.")
    from maskdino_jax import runner

    config: Config = _CONFIG.value
    workdir = Path(_WORKDIR.value or f"runs/{config.name}")
    chosen = flags.FLAGS["config"].using_default_value
    try:
        if _MODE.value == "train":
            runner.train(config, workdir)
        elif _MODE.value == "eval":
            runner.evaluate(Path(_CHECKPOINT.value or workdir), workdir, None if chosen else config)
        else:
            if _IMAGES.value is None:
                raise app.UsageError("--mode=predict needs --images=FILE_OR_DIR.")
            runner.predict(
                Path(_CHECKPOINT.value or workdir), Path(_IMAGES.value), workdir, None if chosen else config
            )
    except (ValueError, FileNotFoundError) as error:
        # The message already says what to do; the traceback is for -v=1.
        logging.debug("traceback", exc_info=True)
        sys.exit(f"{type(error).__name__}: {error}")


def parse(arguments: list[str]) -> list[str]:
    """Parse flags; a misspelt option of the config becomes a message with the nearest real one."""
    try:
        return app.parse_flags_with_usage(arguments)
    except (KeyError, AttributeError) as error:
        sys.exit(explain_unknown_option(arguments, error))


if __name__ == "__main__":
    app.run(main, flags_parser=parse)

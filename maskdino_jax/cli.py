"""The command line: flags -> config -> runner. `python main.py` and the installed command `maskdino` are the same.

    python main.py                                                            # nuclei, the images that come along
    python main.py --config=configs/coco_panoptic.py --workdir=runs/panoptic
    python main.py --mode=eval --checkpoint=runs/panoptic --workdir=runs/evaluation
    python main.py --mode=predict --checkpoint=runs/panoptic --images=photos --workdir=runs/predictions
    python main.py --mode=explain --checkpoint=runs/panoptic --images=photos --workdir=runs/why
    python main.py --mode=report --checkpoint=runs/panoptic --workdir=runs/evaluation        # what is wrong, as a page
    python main.py --mode=check-data --config=configs/coco_panoptic.py        # before training: are the data sound?
    python main.py --mode=prepare --config.data.root=datasets/coco            # files made of the published ones
    python main.py --mode=doctor --config=configs/coco_panoptic.py            # before training: is this machine ready?

Any option of the config is overridden by its path: --config.train.batch_size=8
"""

import functools
import logging
import os
import sys
from importlib import resources
from pathlib import Path

# Before jax is imported: with the default two threads jax 0.10 can deadlock in the matcher's host callback; and what
# is compiled once, such as the model for each shape of image, is found on disk the next time.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache/maskdino_jax"))

from absl import app, flags
from ml_collections import config_flags

from maskdino_jax.config import TASKS, Config
from maskdino_jax.validation import explain_unknown_option

DEFAULT_CONFIG = "configs/nuclei_panoptic.py"
_OF_A_CHECKPOINT = ("eval", "predict", "explain", "export", "report")  # modes whose config comes with the weights

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with a variant after a colon (default: configs/nuclei_panoptic.py)."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, logs and results (default: runs/NAME).")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval", "predict", "explain", "report", "check-data", "prepare", "doctor"], "What to do."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "eval, predict, explain, report: workdir of a run, one checkpoint of it, or with --config a file of the official code.",
)
_IMAGES = flags.DEFINE_string("images", None, "predict, explain: an image, a folder, a URL or a video.")
_STYLE = flags.DEFINE_enum("style", None, TASKS, "predict: what the pictures show (default: all in one picture).")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "Several processes: HOST:PORT of the first one.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Several processes: their number.")
_PROCESS = flags.DEFINE_integer("process", None, "Several processes: the index of this one, from 0.")


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise app.UsageError(f"unknown argument {arguments[1]!r}: options are given as --name=value.")
    from maskdino_jax import cluster, doctor, runner
    from maskdino_jax.data.prepare import prepare
    from maskdino_jax.train.loop import NonFiniteError

    for library in ("absl", "jax"):  # Orbax, Grain and JAX tell a lot that is of use to their developers only
        logging.getLogger(library).setLevel(logging.WARNING)
    # Its failures come with pages of tracebacks; the error that ends a run says what matters of them.
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    config: Config = _CONFIG.value
    workdir = Path(_WORKDIR.value or f"runs/{config.name}")
    found = None
    try:
        found = cluster.membership(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, os.environ)
        if found is not None:
            cluster.join(found)
        given = _given(config, workdir)
        if _MODE.value == "train":
            doctor.require_accelerator()
            runner.train(config, workdir)
        elif _MODE.value == "eval":
            runner.evaluate(Path(_CHECKPOINT.value or workdir), workdir, given)
        elif _MODE.value == "report":
            runner.report(Path(_CHECKPOINT.value) if _CHECKPOINT.value else None, workdir, given)
        elif _MODE.value == "check-data":
            if not runner.check_data(config, workdir):
                sys.exit(1)
        elif _MODE.value == "prepare":
            prepare(config.data.root)
        elif _MODE.value == "doctor":
            if not doctor.diagnose(config, workdir):
                sys.exit(1)
        else:
            if _IMAGES.value is None:
                raise app.UsageError(f"--mode={_MODE.value} needs --images=FILE_OR_DIR.")
            checkpoint = Path(_CHECKPOINT.value or workdir)
            if _MODE.value == "explain":
                runner.explain(checkpoint, _IMAGES.value, workdir, given)
            else:
                runner.predict(checkpoint, _IMAGES.value, workdir, given, style=_STYLE.value)
    except Exception as error:
        explained = isinstance(error, ValueError | OSError | NonFiniteError | ModuleNotFoundError)
        if not explained and found is None:
            raise
        # These messages already say what to do; the traceback is for -v=1.
        logging.log(logging.DEBUG if explained else logging.ERROR, "traceback", exc_info=True)
        message = f"{type(error).__name__}: {error}"
        if found is not None:
            cluster.abandon(message)
        sys.exit(message)


def _given(config: Config, workdir: Path) -> Config | None:
    """What is to be used in place of a checkpoint's config: the one that --config names, or else the checkpoint's own
    with the options of this command line. None: there are no options."""
    if _names_a_config(sys.argv):
        return config
    from maskdino_jax.checkpoints.weights import open_weights

    options = config_flags.get_override_values(flags.FLAGS["config"])
    unnamed = _MODE.value == "report" and _CHECKPOINT.value is None  # it may be of predictions without a checkpoint
    if not options or unnamed or _MODE.value not in _OF_A_CHECKPOINT:
        return None
    own = open_weights(Path(_CHECKPOINT.value or workdir), None).config
    for path, value in options.items():
        *parents, name = path.split(".")
        setattr(functools.reduce(getattr, parents, own), name, value)
    return own


def _names_a_config(arguments: list[str]) -> bool:
    return any(argument.lstrip("-").partition("=")[0] == "config" for argument in arguments[1:])


def _found(argument: str) -> str:
    """`--config=configs/NAME.py` or `--config=NAME` with the path of the config that comes along, if here is no such
    file."""
    flag, _, value = argument.partition("=")
    path, colon, variant = value.partition(":")
    if flag.lstrip("-") != "config" or Path(path).exists():
        return argument
    shipped = resources.files("maskdino_configs") / f"{Path(path).stem}.py"
    if Path(path).parent not in (Path("configs"), Path()) or not shipped.is_file():
        return argument
    return f"{flag}={shipped}{colon}{variant}"


def parse(arguments: list[str]) -> list[str]:
    """Parse flags; a misspelt option of the config becomes a message with the nearest real one."""
    if not _names_a_config(arguments):  # not the flag's default: that would be parsed before errors can be explained
        arguments = [arguments[0], f"--config={DEFAULT_CONFIG}", *arguments[1:]]
    arguments = [_found(argument) for argument in arguments]
    try:
        return app.parse_flags_with_usage(arguments)
    except (KeyError, AttributeError) as error:
        sys.exit(explain_unknown_option(arguments, error))


def run() -> None:
    app.run(main, flags_parser=parse)

"""The command line: flags -> config -> runner. `python main.py` and the installed command `maskdino` are the same.

What it offers, with examples, is in `usage.py`, which `--help` shows.
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
from maskdino_jax.usage import MODES, help_text, nearest, shipped_configs
from maskdino_jax.validation import explain_unknown_option

DEFAULT_CONFIG = "configs/nuclei_panoptic.py"
_OF_A_CHECKPOINT = (
    "eval",
    "predict",
    "explain",
    "export",
    "report",
    "serve",
)  # modes whose config comes with the weights

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with a variant after a colon (default: configs/nuclei_panoptic.py)."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, logs and results (default: runs/NAME).")
_MODE = flags.DEFINE_enum("mode", "train", list(MODES), "What to do.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "eval, predict, serve, explain, export, report: workdir of a run, one checkpoint of it, with --config a file of "
    "the official code, or zoo:NAME for one of the official files.",
)
_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "predict, explain: an image file, a folder of them, an http(s) address or a video; export: a file to compare on.",
)
_STYLE = flags.DEFINE_enum("style", None, TASKS, "predict: what the pictures show (default: all in one picture).")
_FORMAT = flags.DEFINE_enum("format", "stablehlo", ["stablehlo", "onnx"], "export: what to write.")
_CANVAS = flags.DEFINE_string("canvas", None, "export: HEIGHTxWIDTH of the images in pixels, multiples of 32.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "serve: address to listen on; others than this one are open to all.")
_PORT = flags.DEFINE_integer("port", 8000, "serve: port to listen on; 0 takes a free one.", 0, 65535)
_MAX_UPLOAD_MB = flags.DEFINE_float("max_upload_mb", 20, "serve: the largest file that is taken, in megabytes.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "Several processes: HOST:PORT of the first one.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Several processes: their number.")
_PROCESS = flags.DEFINE_integer("process", None, "Several processes: the index of this one, from 0.")


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        _exit_for_argument(arguments[1])
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
            runner.evaluate(_checkpoint(workdir), workdir, given)
        elif _MODE.value == "report":
            runner.report(_checkpoint(workdir) if _CHECKPOINT.value else None, workdir, given)
        elif _MODE.value == "export":
            runner.export(
                _checkpoint(workdir),
                workdir,
                given,
                form=_FORMAT.value,
                canvas=_CANVAS.value,
                image=Path(_IMAGES.value) if _IMAGES.value else None,
            )
        elif _MODE.value == "serve":
            options = {"host": _HOST.value, "port": _PORT.value, "max_upload_mb": _MAX_UPLOAD_MB.value}
            runner.serve(_checkpoint(workdir), given, **options)
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
                sys.exit(f"--mode={_MODE.value} needs --images=FILE_OR_DIR.")
            checkpoint = _checkpoint(workdir)
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
    if _names_a_config(sys.argv) or _zoo_name(_CHECKPOINT.value):
        return config
    from maskdino_jax.checkpoints.weights import open_weights

    options = config_flags.get_override_values(flags.FLAGS["config"])
    unnamed = _MODE.value == "report" and _CHECKPOINT.value is None  # it may be of predictions without a checkpoint
    if not options or unnamed or _MODE.value not in _OF_A_CHECKPOINT:
        return None
    own = open_weights(_checkpoint(workdir), None).config
    for path, value in options.items():
        *parents, name = path.split(".")
        setattr(functools.reduce(getattr, parents, own), name, value)
    return own


def _checkpoint(workdir: Path) -> Path:
    """What --checkpoint means; without it, the workdir."""
    name = _zoo_name(_CHECKPOINT.value)
    if name is None:
        return Path(_CHECKPOINT.value or workdir)
    from maskdino_jax.checkpoints import zoo

    return zoo.find(name)


def _zoo_name(checkpoint: str | None) -> str | None:
    """NAME of zoo:NAME."""
    return checkpoint.removeprefix("zoo:") if checkpoint and checkpoint.startswith("zoo:") else None


def _default_config(arguments: list[str]) -> str:
    """Where the command line names none: that of a checkpoint of the zoo, or the nuclei."""
    for argument in arguments[1:]:
        flag, _, value = argument.partition("=")
        if flag.lstrip("-") == "checkpoint" and _zoo_name(value):
            from maskdino_jax.checkpoints import zoo

            return zoo.entry(_zoo_name(value)).config
    return DEFAULT_CONFIG


def _names_a_config(arguments: list[str]) -> bool:
    return any(argument.lstrip("-").partition("=")[0] == "config" for argument in arguments[1:])


def _found(argument: str) -> str:
    """`--config=configs/NAME.py` or `--config=NAME` with the path of the config that comes along, if here is no such
    file.

    Raises:
        FileNotFoundError: no such config comes along either.
    """
    flag, _, value = argument.partition("=")
    path, colon, variant = value.partition(":")
    if flag.lstrip("-") != "config" or Path(path).exists():
        return argument
    shipped = resources.files("maskdino_configs") / f"{Path(path).stem}.py"
    if Path(path).parent not in (Path("configs"), Path()) or not shipped.is_file():
        raise FileNotFoundError(f"{argument}: there is no such file. These come along: {', '.join(shipped_configs())}.")
    return f"{flag}={shipped}{colon}{variant}"


def parse(arguments: list[str]) -> list[str]:
    """Parse flags; what is misspelt becomes a message with the nearest name that exists."""
    if {"--help", "-help", "-h"} & set(arguments[1:]):
        sys.stdout.write(help_text(_program(arguments[0])))
        sys.exit(0)
    try:
        # Not the flag's default: that would be parsed before errors can be explained.
        if not _names_a_config(arguments):
            arguments = [arguments[0], f"--config={_default_config(arguments)}", *arguments[1:]]
        arguments = [arguments[0], *map(_found, arguments[1:])]
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    try:
        return flags.FLAGS(arguments)
    except flags.UnrecognizedFlagError as error:
        name = nearest(error.flagname, (name for name in flags.FLAGS if not name.startswith("config.")))
        sys.exit(f"unknown flag --{error.flagname}. The nearest one is --{name}; see --help.")
    except flags.Error as error:
        sys.exit(_explained(arguments, error))
    except (KeyError, AttributeError) as error:
        sys.exit(explain_unknown_option(arguments, error))


def _explained(arguments: list[str], error: flags.Error) -> str:
    """A flag with a value that it cannot have; of a mode the nearest one."""
    for argument in arguments[1:]:
        flag, _, value = argument.partition("=")
        if flag.lstrip("-") == "mode" and value not in MODES:
            return f"there is no --mode={value}. The nearest one is --mode={nearest(value, MODES)}; see --help."
    first: BaseException = error
    while first.__context__ is not None:
        first = first.__context__
    if isinstance(first, ValueError) and "parsing config file" in str(error):  # the file's own words, without the rest
        return str(first)
    return f"{error}. See --help."


def _exit_for_argument(argument: str) -> None:
    """A word that is no flag."""
    mode = f"did you mean --mode={argument}? " if argument in MODES else ""
    sys.exit(f"unknown argument {argument!r}: {mode}Options are given as --name=value; see --help.")


def _program(path: str) -> str:
    """What the user has called."""
    return "python main.py" if Path(path).name == "main.py" else Path(path).name


def run() -> None:
    app.run(main, flags_parser=parse)

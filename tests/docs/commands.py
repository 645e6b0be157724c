"""How each command of the pages is tested: what stands for what is too large, and what cannot run here.

The first rule whose pattern fits the beginning of a command is the one; a command without a rule fails its test.
"""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

from absl import flags
from absl.testing import flagsaver

from maskdino_jax import cli
from maskdino_jax.evaluation import score
from maskdino_jax.validation import validate
from tests.docs.blocks import ROOT

# Arguments of `main.py`, and what stands for them.
SUBSTITUTIONS = [
    (r"--config=configs/(\w+)\.py(:\w+)?", r"--config=configs/\1.py:tiny"),
    (r"--config=configs/nuclei_panoptic\.py:tiny", r"--config=configs/nuclei_panoptic.py:quick"),
    (r"--config=configs/objects365_detection\.py:tiny", r"--config=configs/coco_instance.py:tiny"),
]
# What is added to every command that trains.
SHORT = (
    "--config.train.steps=1",
    "--config.train.batch_size=4",  # the tests have four devices
    "--config.train.eval_every=0",
    "--config.train.eval_at_start=False",
    "--config.optimizer.milestones=()",
    "--config.optimizer.warmup_steps=0",
    "--config.data.val.part=tenth",
    "--config.data.workers=0",
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """`check` says that a command is right without running it; `run` runs it in the present folder."""

    pattern: str
    check: Callable[[Sequence[str]], None]
    run: Callable[[Sequence[str]], None] | None
    reason: str = ""  # why it is not run, or what else shows it


def main_arguments(words: Sequence[str]) -> list[str]:
    """The arguments of `python main.py` or `maskdino`."""
    return list(words[2:] if words[0].startswith("python") else words[1:])


def check_main(words: Sequence[str]) -> None:
    """Every flag and option exists and has a valid value; those of `main.py` may stand behind a launcher."""
    words = words[words.index("python") :] if "python" in words else words
    with _command_line(main_arguments(words)) as arguments:
        cli.parse(arguments)
        validate(flags.FLAGS.config)


def run_main(words: Sequence[str]) -> None:
    """The command itself, smaller."""
    arguments = []
    for argument in main_arguments(words):
        for pattern, replacement in SUBSTITUTIONS:
            argument = re.sub(f"^{pattern}$", replacement, argument)
        arguments.append(argument)
    if not any(argument.startswith("--mode=") for argument in arguments):
        arguments += SHORT
    with _command_line(arguments) as line:
        cli.main(cli.parse(line)[:1])


@contextlib.contextmanager
def _command_line(arguments: Sequence[str]) -> Iterator[list[str]]:
    """`sys.argv` of `main.py` with these arguments. Flags are restored, so that options of one config end with it."""
    line = ["main.py", *arguments]
    with mock.patch.object(sys, "argv", line), flagsaver.flagsaver():
        yield line


def check_make(words: Sequence[str]) -> None:
    targets = [word for word in words[1:] if "=" not in word]
    subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True, capture_output=True)


def check_pip(words: Sequence[str]) -> None:
    """It installs this package, with extras that exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [re.fullmatch(r"(\.|maskdino-jax)(?:\[([\w,]+)\])?", word) for word in words]
    (found,) = [match for match in wanted if match]
    assert set((found[2] or "").split(",")) - {""} <= set(project["optional-dependencies"])


def check_module(words: Sequence[str]) -> None:
    """The program exists, and so do its options, by name."""
    words = words[words.index("python") :]
    path = words[1] if words[1].endswith(".py") else f"{words[2].replace('.', '/')}.py"
    text = (ROOT / path).read_text()
    for word in words:
        if word.startswith("--"):
            name = word.removeprefix("--").partition("=")[0]
            assert re.search(rf"[\"'](--)?{name}[\"']", text), f"{path} has no option {name}"


def check_pytest(words: Sequence[str]) -> None:
    """The files of tests exist."""
    for word in words[words.index("pytest") + 1 :]:
        assert not word.startswith("tests") or (ROOT / word.partition("::")[0]).exists()


def run_module(words: Sequence[str]) -> None:
    """A program in a process of its own, for it defines flags of its own."""
    words = [re.sub(r"^(--config=configs/\w+\.py)(:\w+)?$", r"\1:tiny", word) for word in words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    subprocess.run([sys.executable, *words[1:]], env=environment, check=True, timeout=600)


def run_score(words: Sequence[str]) -> None:
    score.main(words[3:])


RULES = (
    Rule(r"(python main\.py|maskdino) .*--mode=serve", check_main, None, "serves until it is stopped: tests/serve"),
    Rule(
        r"python main\.py .*--config\.data\.format=tfds",
        check_main,
        None,
        "COCO in TFDS: tests/data_layer/test_tfds.py",
    ),
    Rule(r"(python main\.py|maskdino)( |$)", check_main, run_main),
    Rule(r"srun python main\.py", check_main, None, "needs SLURM"),
    Rule(r"make ", check_make, None, "makes an environment, or runs these tests"),
    Rule(r"pip install ", check_pip, None, "changes the environment"),
    Rule(r"python -m maskdino_jax\.checkpoints\.torch_import ", check_module, run_module),
    Rule(r"python -m maskdino_jax\.evaluation\.score ", check_module, run_score),
    Rule(r"python -m maskdino_jax\.data\.benchmark ", check_module, run_module),
    Rule(r"python examples/run_\w+\.py ", check_module, None, "runs on an exported model: tests/export"),
    Rule(r"python docs/pictures\.py ", check_module, None, "needs COCO's val2017"),
    Rule(r"python -m pytest ", check_pytest, None, "runs these tests"),
    Rule(r"python -m tests\.parity\.report", check_module, None, "minutes: the tests of parity are the same numbers"),
    Rule(r"python docs/pictures\.py ", check_module, None, "tests/docs/test_pictures.py"),
    Rule(
        r"(taskset -c 1 )?python benchmarks/|python -m benchmarks\.",
        check_module,
        None,
        "minutes, or a GPU",
    ),
)


def rule_of(words: Sequence[str]) -> Rule:
    """The rule of a command.

    Raises:
        LookupError: there is none.
    """
    line = " ".join(words)
    found = next((rule for rule in RULES if re.match(rule.pattern, line)), None)
    if found is None:
        raise LookupError(f"no rule of tests/docs/commands.py says how to test: {line}")
    return found

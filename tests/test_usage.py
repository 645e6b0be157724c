"""`--help`, and names that do not exist; `maskdino` and `python main.py` from any folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from maskdino_jax import cli
from maskdino_jax.checkpoints import zoo
from maskdino_jax.usage import MODES, help_text, nearest, shipped_configs

ROOT = Path(__file__).parent.parent
INSTALLED = Path(sys.executable).with_name("maskdino")


def _ended(*command: str | Path, folder: Path) -> tuple[int, str, str]:
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return ended.returncode, ended.stdout, ended.stderr


def _parse(*arguments: str) -> str:
    """The message that a command line ends with."""
    with pytest.raises(SystemExit) as caught:
        cli.parse(["main.py", *arguments])
    return caught.value.code


def test_help_fits_a_terminal_and_has_every_mode_and_config() -> None:
    text = help_text("maskdino")
    assert max(map(len, text.splitlines())) <= 120
    assert len(text.splitlines()) < 60
    for mode in MODES:
        assert f"\n  {mode} " in text
        assert f"maskdino --mode={mode} " in text
    for name in shipped_configs():
        assert name in text


@pytest.mark.parametrize("mode", MODES)
def test_the_example_of_each_mode_is_right(mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.docs.commands import check_main

    monkeypatch.chdir(tmp_path)
    check_main(["maskdino", f"--mode={mode}", *MODES[mode][1].split()])


def test_both_commands_are_the_same_in_any_folder(tmp_path: Path) -> None:
    if not INSTALLED.exists():
        pytest.skip("the command maskdino is not installed beside this Python")
    for arguments in (("--help",), ("--mode=evla",), ("--config=coco_panoptic:huge",)):
        one = _ended(INSTALLED, *arguments, folder=tmp_path)
        other = _ended(sys.executable, ROOT / "main.py", *arguments, folder=tmp_path)
        assert one[0] == other[0] == (0 if arguments == ("--help",) else 1)
        assert one[1] == other[1].replace("python main.py", "maskdino")
        assert one[2] == other[2]
        assert "Traceback" not in one[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mod=eval"], "unknown flag --mod. The nearest one is --mode; see --help."),
        (["--checkpiont=runs"], "unknown flag --checkpiont. The nearest one is --checkpoint; see --help."),
        (["--mode=evla"], "there is no --mode=evla. The nearest one is --mode=eval; see --help."),
        (["--mode=checkdata"], "there is no --mode=checkdata. The nearest one is --mode=check-data; see --help."),
        (["--port=-1"], "flag --port=-1: "),
        (["--config=nowhere/coco.py"], "--config=nowhere/coco.py: there is no such file. These come along: ade20k_"),
        (["--config=coco"], "cityscapes_semantic, coco_instance, coco_panoptic, custom, nuclei_panoptic"),
        (["--checkpoint=zoo:r50"], "there is no model 'r50' in the zoo. The nearest names are r50_"),
    ],
)
def test_what_does_not_exist_is_answered_in_one_line(arguments: list[str], message: str) -> None:
    said = _parse(*arguments)
    assert message in said
    assert "\n" not in said.strip()


def test_a_mode_without_its_flag_is_understood() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["main.py", "predict"])
    assert "unknown argument 'predict': did you mean --mode=predict?" in caught.value.code


def test_nearest_is_by_similarity() -> None:
    assert nearest("predikt", MODES) == "predict"


def test_a_name_of_the_zoo_brings_its_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from absl import flags

    from tests.docs.commands import _command_line

    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    (tmp_path / zoo.ENTRIES["r50_ade20k_semantic"].file).touch()
    arguments = ["--mode=eval", "--checkpoint=zoo:r50_ade20k_semantic", "--config.data.workers=3"]
    with _command_line(arguments) as line:
        cli.parse(line)
        config = flags.FLAGS.config
        assert config.data.classes == "ade20k"
        assert cli._given(config, tmp_path) is config
        assert config.data.workers == 3
        assert cli._checkpoint(tmp_path) == tmp_path / zoo.ENTRIES["r50_ade20k_semantic"].file

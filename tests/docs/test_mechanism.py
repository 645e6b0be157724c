"""What is wrong on a page is found: commands without a rule, options that do not exist, values that cannot work."""

import json
import subprocess
from pathlib import Path

import pytest

from maskdino_jax.config import ConfigError
from tests.docs import place
from tests.docs.blocks import ROOT, Block, Command, blocks, commands
from tests.docs.commands import rule_of, run_score


def _words(line: str) -> tuple[str, ...]:
    (command,) = commands(Block("page.md", 1, "bash", f"{line}\n"))
    return command.words


def test_a_block_knows_its_line_and_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.docs.blocks.ROOT", tmp_path)
    (tmp_path / "page.md").write_text("# Title\n\n```bash\nmake a\n```\n\n```python\nx = 1\n```\n")
    found = blocks(tmp_path / "page.md")
    assert [(block.place, block.language, block.text) for block in found] == [
        ("page.md:3", "bash", "make a\n"),
        ("page.md:7", "python", "x = 1\n"),
    ]


def test_continued_lines_are_one_command_without_comment_and_variables() -> None:
    text = "# a comment\nXLA_FLAGS=x python main.py \\\n  --mode=eval  # why\nmake b\n"
    found = commands(Block("page.md", 3, "bash", text))
    words = [("python", "main.py", "--mode=eval"), ("make", "b")]
    assert found == [Command("page.md:3", each) for each in words]


def test_a_command_without_a_rule_is_an_error() -> None:
    with pytest.raises(LookupError, match="says how to test: rm -r runs"):
        rule_of(_words("rm -r runs"))


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("python main.py --config.train.bach_size=3", SystemExit),
        ("python main.py --config.train.batch_size=0", ConfigError),
        ("python main.py --config=configs/coco_panoptic.py:huge", SystemExit),
        ("python main.py --mode=evaluate", SystemExit),
        ("srun python main.py --config.train.bach_size=3", SystemExit),
        ("make cake", subprocess.CalledProcessError),
        ('pip install ".[cuda99]"', AssertionError),
        ("python -m maskdino_jax.evaluation.score --instanzen=a.json", AssertionError),
        ("python -m maskdino_jax.no_such_program", LookupError),
    ],
)
def test_a_wrong_command_is_an_error(line: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = _words(line)
    with pytest.raises(error):
        rule_of(words).check(words)


def test_the_predictions_of_the_place_are_the_truth(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that the command of docs/evaluation.md must find them perfect."""
    monkeypatch.chdir(place.copy(template, tmp_path / "place"))
    kinds = {"instances": "instances_val2017", "panoptic": "panoptic_val2017"}
    given = [f"--{kind}=annotations/{name}.json" for kind, name in kinds.items()]
    predicted = [f"--{kind}-predictions={kind}_predictions.json" for kind in kinds]
    run_score(("python", "-m", "maskdino_jax.evaluation.score", *given, *predicted))
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert metrics["panoptic_seg/PQ"] == metrics["segm/AP"] == pytest.approx(1.0)

"""The zoo: official files by name, found where the user says, never downloaded."""

import re
import socket
from pathlib import Path

import pytest

import maskdino_jax
from maskdino_jax.checkpoints import zoo
from maskdino_jax.inference import pretrained
from maskdino_jax.validation import validate

ROOT = Path(__file__).parent.parent.parent
NAMES = list(zoo.ENTRIES)


def test_there_are_eight_different_files() -> None:
    assert len({entry.file for entry in zoo.ENTRIES.values()}) == len(NAMES) == 8


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_config_with_its_classes(name: str) -> None:
    config = validate(zoo.config_of(name))
    assert config.data.classes == {"coco_instance": "coco_instances"}.get(
        zoo.ENTRIES[name].config.partition(":")[0], zoo.ENTRIES[name].config.partition(":")[0].removesuffix("_semantic")
    )
    assert ("swin" in name) == (config.model.backbone.kind == "swin")
    assert config.model.encoder.ffn_dim == (1024 if "hid1024" in zoo.ENTRIES[name].file else 2048)
    assert config.model.decoder.num_queries == int(re.search(r"_(\d+)q_", zoo.ENTRIES[name].file)[1])
    assert (config.model.class_scores == "softmax") == ("celoss" in zoo.ENTRIES[name].file)


@pytest.mark.parametrize("name", NAMES)
def test_the_metrics_are_those_in_the_name_of_the_file(name: str) -> None:
    numbers = [float(number) for number in re.findall(r"\d+\.\d+", zoo.ENTRIES[name].file)]
    assert list(zoo.ENTRIES[name].metrics.values()) == numbers


def test_the_readme_lists_the_same_files() -> None:
    rows = re.findall(r"^\| `(\S+ \.\.\. .+?)` \| `configs/(\w+)\.py:(\w+)` \|", (ROOT / "README.md").read_text(), re.M)
    assert len(rows) == 8
    for words, config, variant in rows:
        (entry,) = [one for one in zoo.ENTRIES.values() if one.config == f"{config}:{variant}"]
        assert re.fullmatch(f"maskdino_{'.*'.join(map(re.escape, words.split(' ... ')))}.*", entry.file)


def test_a_missing_file_says_where_it_is_published_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("nothing is to be downloaded")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = zoo.ENTRIES["r50_coco_panoptic"].file
    with pytest.raises(FileNotFoundError) as caught:
        maskdino_jax.load("r50_coco_panoptic")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/.cache/maskdino_jax/zoo/{file}: there is no such file")
    assert f"https://github.com/IDEA-Research/detrex-storage/releases/download/maskdino-v0.1.0/{file}" in message
    assert "size unknown, licence Apache-2.0, checksum unknown" in message
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path}/{file}: there is no such file")):
        maskdino_jax.load("r50_coco_panoptic", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"elsewhere\.pth: there is no such file"):
        maskdino_jax.load("r50_coco_panoptic", tmp_path / "elsewhere.pth")


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"no model 'r50_coco_pan' in the zoo\. The nearest names are r50_coco_panoptic,"
    ):
        maskdino_jax.load("r50_coco_pan")


def test_it_loads_the_file_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(
        pretrained.Predictor, "from_torch", lambda path, config: loaded.append((path, config.name)) or "predictor"
    )
    file = tmp_path / zoo.ENTRIES["r50_coco_instance"].file
    file.touch()
    other = tmp_path / "renamed.pth"
    other.touch()
    assert maskdino_jax.load("r50_coco_instance", tmp_path) == "predictor"
    maskdino_jax.load("r50_coco_instance", str(other))
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    maskdino_jax.load("r50_coco_instance")
    assert [path for path, _ in loaded] == [file, other, file]
    assert {name for _, name in loaded} == {zoo.config_of("r50_coco_instance").name}

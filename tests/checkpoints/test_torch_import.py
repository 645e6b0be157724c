"""Official weights become ours and ours become official ones, completely or not at all."""

import dataclasses
import gzip
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from maskdino_jax.checkpoints import Reader, names, torch_files, torch_import
from maskdino_jax.config import BackboneConfig, Config, tiny
from maskdino_jax.model import ModelSpec
from tests.weights import random_variables

ROOT = Path(__file__).parent.parent.parent
LEVELS = "sem_seg_head.pixel_decoder.transformer.level_embed"


def small(**backbone: Any) -> Config:
    """The tiny network with two levels, one decoder layer and a list of 19 classes."""
    config = Config(name="small")
    tiny(config)
    config.data.classes = "cityscapes"
    config.model.backbone = dataclasses.replace(config.model.backbone, **backbone)
    config.model.encoder.in_features, config.model.encoder.num_levels = ("res4", "res5"), 2
    config.model.decoder.layers = 1
    config.model.decoder.num_queries = 8
    return config


def semantic() -> Config:
    config = small(norm="batch_norm")
    config.model.decoder.query_source, config.model.class_scores = "learned", "softmax"
    config.model.encoder.order, config.model.encoder.num_levels = "coarse_to_fine", 3
    config.data.format, config.inference.tasks, config.best_metric = "semantic", ("semantic",), "sem_seg/mIoU"
    return config


def swin() -> Config:
    config = small()
    config.model.backbone = BackboneConfig(kind="swin", depths=(1, 2, 1, 1), width=32, window=3)
    return config


_made: dict[tuple[str, int, int], dict[str, Any]] = {}


def variables_of(config: Config, num_classes: int = 19, seed: int = 0) -> dict[str, Any]:
    """Random variables, made once for all tests; the dictionaries are the caller's own."""
    key = repr(config.model), num_classes, seed
    if key not in _made:
        _made[key] = random_variables(ModelSpec(config.model, num_classes), seed)
    return jax.tree.map(lambda leaf: leaf, _made[key])


def state_dict_of(config: Config, num_classes: int = 19) -> dict[str, np.ndarray]:
    return torch_import.to_state_dict(variables_of(config, num_classes), config.model, num_classes)


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("make", [small, semantic, swin])
def test_there_and_back_again_is_exact(tmp_path: Path, make: Any) -> None:
    config = make()
    variables = variables_of(config)
    torch_files.write_pth(tmp_path / "x.pth", torch_import.to_state_dict(variables, config.model, 19))
    found, num_classes = torch_import.variables_from_state_dict(torch_files.read(tmp_path / "x.pth"), config.model)
    assert num_classes == 19
    assert_same(found, variables)


def test_values_lie_where_the_official_model_has_them() -> None:
    """Six places by hand: a convolution, a third of a packed projection, statistics, levels, classes, a shared head."""
    config = semantic()
    variables = variables_of(config)
    state_dict = torch_import.to_state_dict(variables, config.model, 19)
    params, frozen, head = variables["params"], variables["frozen"], "sem_seg_head.predictor"
    kernel = params["backbone"]["res3"][0]["conv2"]["conv"]["kernel"]
    np.testing.assert_array_equal(state_dict["backbone.res3.0.conv2.weight"][5, 7], kernel[:, :, 7, 5])
    value = params["decoder"]["layers"][0]["self_attn"]["value"]["kernel"]
    np.testing.assert_array_equal(state_dict[f"{head}.decoder.layers.0.self_attn.in_proj_weight"][64:], value.T)
    mean = frozen["backbone"]["stem"]["norm"]["mean"]
    np.testing.assert_array_equal(state_dict["backbone.stem.conv1.norm.running_mean"], mean)
    res5 = params["pixel_decoder"]["input_proj"][1]["conv"]["bias"]  # official coarse to fine: 0 is res5
    np.testing.assert_array_equal(state_dict["sem_seg_head.pixel_decoder.input_proj.0.0.bias"], res5)
    np.testing.assert_array_equal(state_dict[LEVELS], params["pixel_decoder"]["level_embed"])
    assert state_dict[f"{head}.class_embed.weight"].shape == (20, 32)
    assert state_dict[f"{head}.label_enc.weight"].shape == (19, 32)
    np.testing.assert_array_equal(state_dict["criterion.empty_weight"], np.float32([1] * 19 + [0.1]))
    box = params["heads"]["box_embed"]["layers"][2]["bias"]
    for alias in ("_bbox_embed", "bbox_embed.0", "decoder.bbox_embed.0"):
        np.testing.assert_array_equal(state_dict[f"{head}.{alias}.layers.2.bias"], box)
    np.testing.assert_array_equal(state_dict[f"{head}.query_embed.weight"], params["learned_queries"]["anchors"])


def test_exported_names_shapes_and_types_are_the_official_ones(golden: Path) -> None:
    official = json.loads(gzip.decompress((golden / "names/instance_r50.json.gz").read_bytes()))["entries"]
    config = Config().model
    abstract = jax.eval_shape(lambda: ModelSpec(config, 80).init(0))
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract)
    state_dict = torch_import.to_state_dict(zeros, config, 80)
    assert {name: (list(array.shape), array.dtype.name) for name, array in state_dict.items()} == {
        name: (said["shape"], said["dtype"]) for name, said in official.items()
    }


def test_the_model_is_bound_and_can_be_called() -> None:
    config = small()
    variables = variables_of(config)
    model = torch_import.from_state_dict(state_dict_of(config), config)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert_same(params, variables["params"])
    outputs = jax.eval_shape(model, jax.ShapeDtypeStruct((1, 64, 96, 3), np.float32))
    assert outputs.logits.shape == (1, 8, 19)
    assert outputs.masks.shape == (1, 8, 16, 24)


def test_old_checkpoints_lack_aliases_and_constants() -> None:
    config = swin()
    state_dict = state_dict_of(config)
    entries = names.table(config.model, 19)
    bare = {entry.name: state_dict[entry.name] for entry in entries}
    found, _ = torch_import.variables_from_state_dict(bare, config.model)
    assert_same(found, variables_of(config))
    only_alias = dict(bare)
    for layer in range(3):
        for leaf in ("weight", "bias"):
            head = "sem_seg_head.predictor"
            array = only_alias.pop(f"{head}._bbox_embed.layers.{layer}.{leaf}")
            only_alias[f"{head}.bbox_embed.0.layers.{layer}.{leaf}"] = array
    found, _ = torch_import.variables_from_state_dict(only_alias, config.model)
    assert_same(found, variables_of(config))


def test_half_precision_becomes_float32() -> None:
    config = small()
    state_dict = {name: array.astype(np.float16) for name, array in state_dict_of(config).items()}
    found, _ = torch_import.variables_from_state_dict(state_dict, config.model)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
    expected = jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), variables_of(config))
    assert_same(found, expected)


def test_one_error_lists_everything_that_is_wrong() -> None:
    config = small()
    state_dict = state_dict_of(config)
    head = "sem_seg_head.predictor"
    del state_dict["backbone.stem.conv1.weight"]
    state_dict["sem_seg_head.novelty"] = np.zeros(1)
    state_dict[LEVELS] = np.zeros((3, 32), np.float32)
    state_dict[f"{head}.mask_embed.layers.0.bias"] = np.full(32, np.nan, np.float32)
    state_dict[f"{head}.decoder.norm.bias"] = state_dict[f"{head}.decoder.norm.bias"] + 1
    with pytest.raises(ValueError, match="do not fit") as caught:
        torch_import.variables_from_state_dict(state_dict, config.model)
    lines = str(caught.value).splitlines()
    assert "Options at odds: config.model.encoder.num_levels = 2, but the file has 3" in lines[0]
    assert set(lines[1:]) == {
        "1 missing: backbone.stem.conv1.weight",
        "1 unknown: sem_seg_head.novelty",
        f"1 of another shape: {LEVELS} (3, 32) instead of (2, 32)",
        f"1 not finite: {head}.mask_embed.layers.0.bias",
        "1 different, although one tensor in the official model: "
        f"{head}.decoder_norm.bias and {head}.decoder.norm.bias",
    }


def test_long_lists_are_cut() -> None:
    config = small()
    state_dict = {f"novelty.{index}": np.zeros(1) for index in range(30)} | state_dict_of(config)
    with pytest.raises(ValueError, match=r"30 unknown: novelty\.0, .*novelty\.19 and 10 more"):
        torch_import.variables_from_state_dict(state_dict, config.model)


def test_a_file_without_classes_is_no_checkpoint_of_mask_dino() -> None:
    with pytest.raises(ValueError, match=r"label_enc\.weight.*config\.train\.init_from"):
        torch_import.variables_from_state_dict({"backbone.stem.conv1.weight": np.zeros(1)}, Config().model)


def _torchvision(name: str) -> str:
    """The name in torchvision of an official name of ResNet."""
    stage, *rest = name.removeprefix("backbone.").removeprefix("stem.").split(".")
    if stage.startswith("res"):
        stage = f"layer{int(stage[3]) - 1}"
    bare = ".".join([stage, *rest])
    bare = bare.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
    for index in "123":
        bare = bare.replace(f"conv{index}.norm", f"bn{index}")
    return bare


@pytest.mark.parametrize("source", ["torchvision", "detectron2", "official"])
def test_imagenet_resnets(source: str) -> None:
    config = small()
    rename = {"torchvision": _torchvision, "detectron2": lambda name: name.removeprefix("backbone.")}.get(source, str)
    state_dict = state_dict_of(config)
    weights = {rename(name): array for name, array in state_dict.items() if name.startswith("backbone.")}
    if source == "torchvision":
        assert {"conv1.weight", "bn1.bias", "layer1.0.bn2.running_var", "layer4.0.downsample.1.weight"} <= set(weights)
    classifier = {"torchvision": "fc.weight", "detectron2": "stem.fc.weight"}.get(source, "criterion.x")
    weights |= {classifier: np.zeros((10, 4)), "bn1.num_batches_tracked": np.array(1)}
    found = torch_import.backbone_from_state_dict(weights, config.model)
    assert_same(found, {kind: tree["backbone"] for kind, tree in variables_of(config).items()})

    del weights[rename("backbone.res4.0.shortcut.norm.running_var")]
    with pytest.raises(ValueError, match=r"1 missing: backbone\.res4\.0\.shortcut\.norm\.running_var"):
        torch_import.backbone_from_state_dict(weights, config.model)


def test_imagenet_swins_lack_the_norms_of_the_maps() -> None:
    config = swin()
    state_dict = {
        name.removeprefix("backbone."): array
        for name, array in state_dict_of(config).items()
        if name.startswith("backbone.") and not name.startswith("backbone.norm")
    }
    state_dict |= {"norm.weight": np.zeros(256), "head.bias": np.zeros(10), "layers.1.blocks.1.attn_mask": np.zeros(4)}
    found = torch_import.backbone_from_state_dict(state_dict, config.model)
    expected = {kind: tree.get("backbone", {}) for kind, tree in variables_of(config).items()}
    expected["params"] = {name: tree for name, tree in expected["params"].items() if not name.startswith("norm")}
    assert_same(found["params"], expected["params"])

    state_dict["norm2.weight"] = np.zeros(128)  # some but not all of them
    with pytest.raises(ValueError, match=r"7 missing: backbone\.norm0\.bias"):
        torch_import.backbone_from_state_dict(state_dict, config.model)


def test_training_starts_from_an_official_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = small()
    torch_files.write_pth(tmp_path / "x.pth", state_dict_of(config))
    fresh = variables_of(config, seed=1)
    assert_same(torch_import.load_into(fresh, tmp_path / "x.pth", config), variables_of(config))

    fresh = variables_of(config, num_classes=5, seed=1)
    with caplog.at_level(logging.INFO):
        found = torch_import.load_into(fresh, tmp_path / "x.pth", config)
    assert "19 classes: class head and label embeddings stay fresh" in caplog.text
    expected = variables_of(config)
    expected["params"]["heads"]["class_embed"] = fresh["params"]["heads"]["class_embed"]
    expected["params"]["label_enc"] = fresh["params"]["label_enc"]
    assert_same(found, expected)


@pytest.mark.parametrize("make", [small, swin])
def test_training_starts_from_a_backbone(tmp_path: Path, make: Any) -> None:
    config = make()
    loaded, fresh = variables_of(config), variables_of(config, seed=1)
    state_dict = {
        name.removeprefix("backbone."): array
        for name, array in state_dict_of(config).items()
        if name.startswith("backbone.") and not name.startswith("backbone.norm")
    }
    torch_files.write_pth(tmp_path / "x.pth", state_dict)
    found = torch_import.load_into(fresh, tmp_path / "x.pth", config)
    for kind, tree in fresh.items():
        if "backbone" in tree:
            norms = {name: value for name, value in tree["backbone"].items() if name.startswith("norm")}
            tree["backbone"] = loaded[kind]["backbone"] | norms
    assert_same(found, fresh)

    torch_files.write_pth(tmp_path / "x.pth", {name: array for name, array in state_dict.items() if "bias" not in name})
    with pytest.raises(ValueError, match=r"x\.pth: the weights do not fit"):
        torch_import.load_into(fresh, tmp_path / "x.pth", config)


@pytest.mark.parametrize("make", [small, semantic])
def test_a_converted_checkpoint_restores_as_ours(tmp_path: Path, make: Any) -> None:
    config = make()
    torch_files.write_pth(tmp_path / "x.pth", state_dict_of(config))
    torch_import.convert(tmp_path / "x.pth", config, tmp_path / "run")
    reader = Reader(tmp_path / "run")
    assert reader.step == 0
    assert reader.config == config
    assert [category["name"] for category in reader.catalog["categories"]][:2] == ["road", "sidewalk"]
    variables = variables_of(config)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    assert_same(jax.block_until_ready(reader.variables(abstract)), variables)

    with pytest.raises(ValueError, match=r"--output=.*run exists already"):
        torch_import.convert(tmp_path / "x.pth", config, tmp_path / "run")


def test_a_converted_checkpoint_needs_its_classes(tmp_path: Path) -> None:
    config = small()
    torch_files.write_pth(tmp_path / "x.pth", state_dict_of(config))
    config.data.classes = ""
    with pytest.raises(ValueError, match=r"config\.data\.classes = '': .*coco_instances"):
        torch_import.convert(tmp_path / "x.pth", config, tmp_path / "run")
    config.data.classes = "ade20k"
    with pytest.raises(ValueError, match=r"has 19 classes, config\.data\.classes = 'ade20k' has 150"):
        torch_import.convert(tmp_path / "x.pth", config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_converts(tmp_path: Path) -> None:
    config = small()
    torch_files.write_pth(tmp_path / "x.pth", state_dict_of(config))
    source = "from tests.checkpoints.test_torch_import import small\n\n\ndef get_config():\n    return small()\n"
    (tmp_path / "config.py").write_text(source)
    command = [sys.executable, "-m", "maskdino_jax.checkpoints.torch_import", f"--config={tmp_path / 'config.py'}"]
    command += [f"--checkpoint={tmp_path / 'x.pth'}", f"--output={tmp_path / 'run'}"]
    run = lambda *more: subprocess.run(
        [*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    ended = run("--config.model.encoder.layers=2")
    assert ended.returncode == 1
    assert "config.model.encoder.layers = 2, but the file has 1" in ended.stderr
    assert "Traceback" not in ended.stderr
    ended = run()
    assert ended.returncode == 0, ended.stderr
    assert f"is now the checkpoint {tmp_path / 'run'}" in ended.stderr
    assert Reader(tmp_path / "run").config == config

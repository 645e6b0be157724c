"""A user's own parts: the backbone of examples/, other parts by name, and what a checkpoint says of them."""

import functools
import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.convnext import ConvNeXt
from maskdino_jax import Predictor, runner
from maskdino_jax.checkpoints import names
from maskdino_jax.config import BackboneConfig, Config, ConfigError
from maskdino_jax.model.keys import Keys
from maskdino_jax.model.resnet import ResNet
from maskdino_jax.parts import find_part, name_of
from maskdino_jax.validation import validate
from tests.docs.test_python import run as run_page
from tests.e2e.conftest import COCO, smallest

TINY = BackboneConfig(depths=(1, 2, 1, 1), width=16, drop_path=0.5)


def _convnext(config: BackboneConfig = TINY) -> ConvNeXt:
    """With random numbers for all parameters, also the layer scale, which starts close to zero."""
    graph, shapes = nnx.split(_shapes(config))
    rng = np.random.default_rng(0)
    fill = lambda leaf: (rng.standard_normal(leaf.shape) / math.sqrt(leaf.size)).astype(np.float32)
    return nnx.merge(graph, jax.tree.map(fill, shapes))


def _shapes(config: BackboneConfig) -> ConvNeXt:
    return nnx.eval_shape(lambda: ConvNeXt(config, dtype=jnp.float32, rngs=Keys(0)))


def config_of(**train: object) -> Config:
    config = smallest(**train)
    config.model.backbone = BackboneConfig(kind=name_of(ConvNeXt), depths=(1, 1, 1, 1), width=16)
    return config


def test_it_has_as_many_parameters_as_the_published_network() -> None:
    """28 589 128 of ConvNeXt-T without the classifier and the norm before it, with a norm for each feature map."""
    model = _shapes(BackboneConfig(depths=(3, 3, 9, 3), width=96))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model)))
    assert count == 28_589_128 - (768 * 1000 + 1000) - 2 * 768 + 2 * (96 + 192 + 384 + 768)


def test_the_example_is_short() -> None:
    lines = Path(sys.modules[ConvNeXt.__module__].__file__).read_text().splitlines()
    assert len(lines) < 100


@pytest.fixture(scope="module")
def maps() -> tuple[dict, dict]:
    """Features of an image alone, and at the corner of a larger canvas that is noise beyond its extent."""
    model = _convnext()
    rng = np.random.default_rng(0)
    canvas = rng.standard_normal((1, 96, 128, 3)).astype(np.float32)
    run = lambda images, extents: jax.jit(lambda x: model(x, extents))(images)
    return run(canvas[:, :64, :96], None), run(canvas, jnp.array([[64, 96]]))


@pytest.mark.parametrize(("name", "stride"), [("res2", 4), ("res3", 8), ("res4", 16), ("res5", 32)])
def test_what_lies_beyond_the_extent_does_not_matter(maps: tuple[dict, dict], name: str, stride: int) -> None:
    alone, corner = (np.asarray(found[name]) for found in maps)
    assert alone.shape == (1, 64 // stride, 96 // stride, 16 * stride // 4)
    np.testing.assert_allclose(corner[:, : 64 // stride, : 96 // stride], alone, atol=1e-5)
    assert np.ptp(alone) > 0.01


def test_training_skips_branches_by_the_keys_of_the_images() -> None:
    model = _convnext()
    images = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    run = jax.jit(lambda keys: model(images, None, keys)["res3"])
    draws = {np.asarray(run(jax.random.split(jax.random.key(seed), 1))).tobytes() for seed in range(8)}
    assert 1 < len(draws) <= 4  # two blocks of this stage, each there or not


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("convnext")
    runner.train(config_of(steps=3), workdir)
    return workdir


@pytest.mark.slow
def test_a_few_steps_train_it_and_its_checkpoint_predicts(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    found = Predictor.from_checkpoint(run)(min((COCO / "val2017").glob("*.jpg")))
    assert found.semantic is not None


@pytest.mark.slow
def test_a_checkpoint_says_which_part_it_needs_and_imports_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "examples.convnext")
    with pytest.raises(ConfigError, match=r"backbone\.kind = 'examples\.convnext:ConvNeXt': .*Import it first"):
        Predictor.from_checkpoint(run)
    assert "examples.convnext" not in sys.modules


@pytest.mark.slow
def test_the_parts_of_the_page_train_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = run_page("docs/swap_a_part.md", monkeypatch)
    config = smallest(steps=2)
    config.model.encoder.kind, config.model.decoder.kind = (
        name_of(page[part]) for part in ("FeaturePyramid", "RecurrentDecoder")
    )
    config.model.decoder.layers = 2
    config.loss.matcher = name_of(page["greedy"])
    config.data.eval_canvas = "exact"
    runner.train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.isfinite(losses).all()
    assert len(losses) == 2


@pytest.mark.parametrize("path", ["model.backbone", "model.encoder", "model.decoder"])
def test_a_part_that_is_none_of_ours_and_no_path_is_refused(path: str) -> None:
    config = Config()
    functools.reduce(getattr, path.split("."), config).kind = "vit"
    with pytest.raises(ConfigError, match=rf"config\.{path}\.kind = 'vit': choose one of .*MODULE:NAME"):
        validate(config)


def test_only_a_module_of_flax_is_a_part_of_the_network() -> None:
    find = functools.partial(find_part, "model.backbone.kind", ours={}, base=nnx.Module)
    assert find(name="maskdino_jax.model.resnet:ResNet") is ResNet
    with pytest.raises(ConfigError, match="os has no Module class of the name 'system'"):
        find(name="os:system")
    with pytest.raises(ConfigError, match="os has no Module class of the name 'nothing'"):
        find(name="os:nothing")
    with pytest.raises(ConfigError, match="choose one of"):
        find(name="os")


def test_official_files_know_no_parts_of_ones_own() -> None:
    with pytest.raises(ValueError, match=r"backbone/.* has no official name.*from a workdir \(docs/swap_a_part\.md\)"):
        names.table(config_of().model, 2)


def test_the_name_of_a_part_is_its_path() -> None:
    assert name_of(ConvNeXt) == "examples.convnext:ConvNeXt"
    assert find_part("model.backbone.kind", name_of(ConvNeXt), {}, nnx.Module) is ConvNeXt

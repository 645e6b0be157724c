"""Computing layers again in the backward pass changes what is kept, and nothing else."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskdino_jax.config import BACKBONE_FEATURES, Config, ModelConfig, tiny
from maskdino_jax.model import ModelSpec
from maskdino_jax.model.keys import Keys
from maskdino_jax.model.layers import Frozen, apply
from maskdino_jax.model.pixel_decoder import PixelDecoder
from maskdino_jax.model.resnet import Bottleneck, ResNet
from maskdino_jax.structures import Targets
from tests.weights import random_variables

# On CPUs the compiler would find out that something is computed twice, see train/memory.py.
OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def _config(kind: str = "resnet", norm: str = "frozen_bn") -> ModelConfig:
    config = Config()
    tiny(config)
    config.model.backbone.kind, config.model.backbone.norm = kind, norm
    config.model.backbone.width = {"resnet": 8, "swin": 32}[kind]
    config.model.encoder.in_features, config.model.encoder.num_levels = ("res4", "res5"), 2
    config.model.decoder.layers = 1
    config.model.decoder.num_queries = config.model.denoising.num_queries = 8
    return config.model


def _assert_same(found: Any, expected: Any) -> None:
    """Gradients that differ by a millionth of the length of all of them."""
    length = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(expected)))
    assert length > 1e-2
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6 * length), found, expected)


def _squares(tree: Any) -> jax.Array:
    return sum(jnp.mean(jnp.square(x)) for x in jax.tree.leaves(tree))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "policies"), [("resnet", ("none", "transformer", "backbone")), ("swin", ("none", "all"))]
)
def test_loss_and_gradients_do_not_depend_on_what_is_kept(kind: str, policies: tuple[str, ...]) -> None:
    spec, rng = ModelSpec(_config(kind), 5), np.random.default_rng(0)
    images, keys = rng.integers(0, 256, (2, 64, 64, 3), np.uint8), jax.random.split(jax.random.key(0), 2)
    targets = Targets(
        labels=jnp.array([[1, 2], [3, 0]]),
        boxes=jnp.asarray(rng.uniform(0.3, 0.6, (2, 2, 4)), jnp.float32),
        masks=jnp.asarray(rng.integers(0, 256, (2, 2, 64, 8)), jnp.uint8),
        is_thing=jnp.ones((2, 2), bool),
        valid=jnp.array([[True, True], [True, False]]),
    )

    def loss(params: dict, frozen: dict, images: jax.Array, remat: str) -> jax.Array:
        model = spec.bind({"params": params, "frozen": frozen})
        outputs = model.outputs(images, targets, keys, jnp.int32(2), remat)
        return _squares((outputs.matching, outputs.denoising, outputs.mask_features))

    variables = random_variables(spec)
    step = jax.jit(jax.value_and_grad(loss), static_argnums=3, compiler_options=OPTIONS)
    found = [jax.device_get(step(variables["params"], variables["frozen"], images, remat)) for remat in policies]
    for value, gradients in found[1:]:
        assert float(value) == pytest.approx(float(found[0][0]), rel=1e-6)
        _assert_same(gradients, found[0][1])


def test_statistics_of_trained_norms_leave_the_blocks_that_are_computed_again() -> None:
    options = {"stride": 1, "project": True, "norm": "batch_norm", "dtype": jnp.float32}
    graph, params, frozen = nnx.split(Bottleneck(4, 4, **options, rngs=Keys(0)), nnx.Param, Frozen)
    maps = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))

    def loss(params: Any, remat: bool) -> tuple[jax.Array, Any]:
        block = nnx.merge(graph, params, frozen, copy=True)
        result = apply(block, lambda block, x: block(x, None, True), maps, remat=remat)
        return _squares(result), nnx.to_pure_dict(nnx.state(block, Frozen))

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1, compiler_options=OPTIONS)
    ((_, kept), expected), ((_, again), found) = (jax.device_get(step(params, remat)) for remat in (False, True))
    _assert_same(found, expected)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), again, kept)
    assert np.abs(again["conv1"]["norm"]["mean"]).max() > 1e-3  # it was zero


@pytest.mark.parametrize("part", ["backbone", "encoder"])
def test_layers_that_are_computed_again_need_not_be_kept(part: str) -> None:
    """Three stages that keep much and four layers; in the encoder's, the hidden vectors dwarf all else."""
    config = _config()
    config.backbone.depths, config.encoder.layers, config.encoder.ffn_dim = (2, 4, 8, 1), 4, 4096
    if part == "backbone":
        module = ResNet(config.backbone, dtype=jnp.float32, rngs=Keys(0))
        features = jnp.zeros((1, 128, 128, 3))
    else:
        channels = dict(zip(BACKBONE_FEATURES, (8, 16, 32, 64), strict=True))
        module = PixelDecoder(config, channels, dtype=jnp.float32, rngs=Keys(0))
        features = {name: jnp.zeros((1, 64 // 2**i, 64 // 2**i, c)) for i, (name, c) in enumerate(channels.items())}
    graph, variables = nnx.split(module)

    def loss(variables: Any, remat: bool) -> jax.Array:
        found = nnx.merge(graph, variables, copy=True)(features, None, remat=remat)
        return _squares([x for x in jax.tree.leaves(found) if isinstance(x, jax.Array)])

    def temporary(remat: bool) -> int:
        step = jax.jit(jax.grad(loss), static_argnums=1).lower(variables, remat).compile(compiler_options=OPTIONS)
        return step.memory_analysis().temp_size_in_bytes

    assert temporary(True) < 0.8 * temporary(False)

"""XLA's compiler for NVIDIA GPUs takes the training step, kernels included, where JAX's CUDA plugin is installed."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from benchmarks.absent_gpu import absent_gpus
from maskdino_jax.config import BackboneConfig
from maskdino_jax.meshes import replicated
from maskdino_jax.model import ModelSpec, resnet
from maskdino_jax.model.keys import Keys
from maskdino_jax.train.memory import bytes_needed, compile_step, trace_step
from tests.e2e.conftest import smallest

PLUGIN = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
needs_plugin = pytest.mark.skipif(not PLUGIN, reason="JAX's CUDA plugin is not installed (jax[cuda12])")


@pytest.mark.skipif(PLUGIN, reason="JAX's CUDA plugin is installed")
def test_without_the_plugin_the_error_says_how_to_get_it():
    with pytest.raises(RuntimeError, match=r"pip install \"jax\[cuda12\]\""), absent_gpus():
        pass


@needs_plugin
@pytest.mark.parametrize("devices", [1, 2])
def test_step_compiles_for_gpus_and_only_sums_cross_between_them(devices):
    config = smallest()
    config.model.dtype = "bfloat16"
    config.loss.matcher = "device"  # JAX lowers no callback for a device that is not there
    with absent_gpus(devices) as mesh:
        step = compile_step(trace_step(ModelSpec(config.model, 133), config, mesh), config, mesh)
    text = step.as_text()
    attentions = config.model.encoder.layers + config.model.decoder.layers
    assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == 2 * attentions
    exchanges = set(re.findall(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)", text))
    assert exchanges == ({"all-reduce"} if devices > 1 else set())
    assert bytes_needed(step) > 0


@needs_plugin
def test_outputs_of_convolutions_before_a_frozen_norm_need_not_be_kept(monkeypatch):
    backbone = resnet.ResNet(BackboneConfig(depths=(3, 1, 1, 1)), dtype=jnp.bfloat16, rngs=Keys(0))
    graph, variables = nnx.split(backbone)

    def temporary() -> int:
        def loss(variables, images):
            return sum(jnp.mean(x) for x in nnx.merge(graph, variables, copy=True)(images).values())

        with absent_gpus() as mesh:
            place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh))
            inputs = jax.tree.map(place, (variables, jax.ShapeDtypeStruct((4, 512, 512, 3), jnp.bfloat16)))
            return jax.jit(jax.grad(loss)).lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    ours = temporary()
    monkeypatch.setattr(resnet, "relu", lambda x, dtype: jax.nn.relu(x))
    assert ours < 0.85 * temporary()

"""XLA's compiler for NVIDIA GPUs takes the training step, kernels included, where JAX's CUDA plugin is installed."""

import re

import pytest

from benchmarks.absent_gpu import absent_gpus
from maskdino_jax.model import ModelSpec
from maskdino_jax.train.memory import bytes_needed, compile_step, trace_step
from tests.e2e.conftest import smallest


@pytest.mark.parametrize("devices", [1, 2])
def test_step_compiles_for_gpus_and_only_sums_cross_between_them(devices):
    pytest.importorskip("jax_cuda12_plugin", reason='JAX\'s CUDA plugin is not installed: pip install "jax[cuda12]"')
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

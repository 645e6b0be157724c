"""The model, its training step and its checkpoints on a real GPU, beside the CPU and beside the definition."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskdino_jax.checkpoints import Checkpoints
from maskdino_jax.config import Config
from maskdino_jax.meshes import make_mesh, state_sharding
from maskdino_jax.model import ModelSpec
from maskdino_jax.structures import Batch
from maskdino_jax.train.loop import place
from maskdino_jax.train.memory import abstract_batch, abstract_state
from maskdino_jax.train.step import build_train_step, init_state
from tests.e2e.conftest import smallest
from tests.train.steps import sixteen_crops

pytestmark = pytest.mark.gpu

CONFIGS = Path(__file__).parents[2] / "configs"


def take_step(config: Config, device: jax.Device, batch: Batch, classes: int) -> tuple[dict, dict]:
    """State on `device`, and metrics, after one step from the weights of the seed."""
    mesh, spec = make_mesh(1, [device]), ModelSpec(config.model, classes)
    with jax.default_device(jax.devices("cpu")[0]):  # the same weights on every device
        state = jax.jit(functools.partial(init_state, spec, config))()
    state = jax.device_put(jax.device_get(state), state_sharding(abstract_state(spec, config), mesh))
    state, metrics = build_train_step(spec, config, mesh)(state, place(batch, mesh))
    return state, {name: float(value) for name, value in jax.device_get(metrics).items()}


def length(tree) -> float:
    return float(optax.tree.norm(jax.tree.map(lambda x: np.asarray(x, np.float64), tree)))


def first_moments(state: dict) -> dict:
    """A tenth of the gradients after one step."""
    return jax.device_get(optax.tree.get(state["opt"], "mu"))


def some_objects(config: Config) -> Batch:
    """Random images, each with five rectangles."""
    rng, shapes = np.random.default_rng(0), abstract_batch(config)
    batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    n = 5
    for i in range(config.train.batch_size):
        batch.images[i] = rng.integers(0, 256, batch.images[i].shape)
        extent = rng.uniform(0.1, 0.4, (n, 2))
        centre = rng.uniform(0.25, 0.75, (n, 2))
        h, w = config.data.image_size
        for j, (x, y, bw, bh) in enumerate(np.concatenate([centre, extent], axis=1)):
            mask = np.zeros((h, w), np.uint8)
            mask[int((y - bh / 2) * h) : int((y + bh / 2) * h), int((x - bw / 2) * w) : int((x + bw / 2) * w)] = 1
            batch.targets.masks[i, j] = np.packbits(mask, axis=1)
        batch.targets.boxes[i, :n] = np.concatenate([centre, extent], axis=1)
        batch.targets.labels[i, :n] = rng.integers(0, 80, n)
        batch.targets.is_thing[i, :n] = batch.targets.valid[i, :n] = True
    return batch


def test_step_equals_that_of_the_cpu():
    batch = sixteen_crops()
    with jax.default_matmul_precision("highest"):
        (state, metrics), (wanted, numbers) = (
            take_step(smallest(), device, batch, 133) for device in (jax.devices()[0], jax.devices("cpu")[0])
        )
    for name, value in numbers.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    mine, theirs = first_moments(state), first_moments(wanted)
    assert length(jax.tree.map(np.subtract, mine, theirs)) <= 1e-3 * length(theirs)


def test_step_in_bfloat16_is_near_that_in_float32():
    batch, narrow = sixteen_crops(), smallest()
    narrow.model = dataclasses.replace(narrow.model, dtype="bfloat16")
    (_, metrics), (_, numbers) = (take_step(c, jax.devices()[0], batch, 133) for c in (narrow, smallest()))
    assert metrics["loss"] == pytest.approx(numbers["loss"], rel=0.05)


@pytest.mark.parametrize("images", [2, 16])
def test_r50_trains_at_full_size_with_the_kernel_as_with_the_definition(images):
    spec = importlib.util.spec_from_file_location("coco_instance", CONFIGS / "coco_instance.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    found = {}
    for impl in ("pallas", "xla"):
        config = recipe.get_config("r50")
        config.model.deform_attn, config.model.dtype = impl, "bfloat16"
        config.data.image_size, config.train.batch_size = (1024, 1024), images
        _, found[impl] = take_step(config, jax.devices()[0], some_objects(config), 80)
    for name in ("loss", "grad_norm"):
        assert found["pallas"][name] == pytest.approx(found["xla"][name], rel=0.02), name


def test_checkpoint_of_a_gpu_comes_back_bit_for_bit(tmp_path):
    config = smallest()
    state, _ = take_step(config, jax.devices()[0], sixteen_crops(), 133)
    categories = [{"id": 1, "name": "cell", "is_thing": True, "color": [1, 2, 3]}]
    checkpoints = Checkpoints(tmp_path, config, {"categories": categories})
    checkpoints.save(state)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    back = checkpoints.restore_latest(abstract)
    checkpoints.close()
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        assert jnp.asarray(a).devices() == jnp.asarray(b).devices()
        np.testing.assert_array_equal(a, b)

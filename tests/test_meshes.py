"""Which part of the training state each device keeps."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from configs.coco_panoptic import get_config
from maskdino_jax.meshes import images_spec, make_mesh, state_sharding
from maskdino_jax.model import ModelSpec
from maskdino_jax.train.step import init_state


def spec(*shape: int, fsdp: int = 4) -> P:
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    return state_sharding(leaf, make_mesh(fsdp, jax.devices()[:4])).spec


def test_large_arrays_are_divided_along_their_longest_axis_that_can_be():
    assert spec(256, 2048) == P(None, "fsdp")
    assert spec(2048, 256) == P("fsdp")
    assert spec(256, 2049) == P("fsdp")
    assert spec(255, 2049) == P()
    assert spec(255) == spec(64, 64) == P()
    assert spec(256, 2048, fsdp=1) == P()


def test_all_devices_divide_the_images():
    mesh = make_mesh(2, jax.devices()[:4])
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2}
    assert images_spec(mesh, 1) == P(None, ("data", "fsdp"))


def test_a_number_that_does_not_divide_the_devices_is_refused():
    with pytest.raises(ValueError, match=r"config\.mesh\.fsdp = 3: it does not divide the 4 devices"):
        make_mesh(3, jax.devices()[:4])


@pytest.mark.parametrize("fsdp", [2, 4])
def test_each_device_keeps_its_share_of_the_state(fsdp):
    config = get_config()
    config.train.ema_decay = 0.9999
    state = jax.eval_shape(functools.partial(init_state, ModelSpec(config.model, 133), config))
    placed = state_sharding(state, make_mesh(fsdp, jax.devices()[:4]))
    leaves = list(zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True))
    kept = sum(math.prod(sharding.shard_shape(leaf.shape)) for leaf, sharding in leaves)
    assert kept / sum(leaf.size for leaf, _ in leaves) == pytest.approx(1 / fsdp, rel=0.02)

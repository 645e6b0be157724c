"""Several processes evaluate together: each has whole weights and its own images, and all learn what was found."""

import dataclasses
import functools
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from maskdino_jax.config import Config
from maskdino_jax.inference.detector import Detector
from maskdino_jax.meshes import make_mesh, replicated
from maskdino_jax.model import ModelSpec
from maskdino_jax.structures import EvalBatch, Outputs

T = TypeVar("T")
Predict = Callable[[EvalBatch], Outputs]


def gathered(value: T) -> list[T]:
    """The values of all processes, in their order. Every process has to call it; values of any size, but for 2 GiB.

    They travel as bytes that are padded to the longest.
    """
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(pickle.dumps(value), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(content)], np.int32))[:, 0]
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(content)] = content
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def own_mesh(mesh: Mesh) -> Mesh:
    """The devices of this process alone; `mesh`, which has all devices, if there is no other process."""
    return mesh if jax.process_count() == 1 else make_mesh(devices=jax.local_devices())


def own_copy(variables: Any, mesh: Mesh, own: Mesh) -> Any:
    """Arrays on `mesh` as whole arrays on the devices of this process. Every process has to call it."""
    if mesh is own:
        return variables
    whole = jax.jit(lambda x: x, out_shardings=replicated(mesh))(variables)
    place = lambda x: jax.make_array_from_single_device_arrays(
        x.shape, replicated(own), [shard.data for shard in x.addressable_shards]
    )
    return jax.tree.map(place, whole)


def on_own_devices(spec: ModelSpec, mesh: Mesh, config: Config) -> tuple[Callable[[Any], Predict], Config]:
    """The model on the devices of this process: what makes `Predict` of weights on `mesh`, a call of all processes, and
    the config with a batch for these devices."""
    own = own_mesh(mesh)
    detector = Detector(spec, own, masks="detection" not in config.inference.tasks)
    inference = dataclasses.replace(config.inference, batch_size=config.inference.batch_size * own.size)
    predict = lambda variables: functools.partial(detector, own_copy(variables, mesh, own))
    return predict, dataclasses.replace(config, inference=inference)

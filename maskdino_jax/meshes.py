"""How devices share the work: all of them divide the images, and groups of them divide the training state.

A mesh has the axes `data` and `fsdp`. Every device works on images of its own. Along `fsdp` each device also keeps only
its part of the large arrays of parameters, optimizer state and moving average, which are put together for the time of
a step (Rajbhandari et al. 2020, "ZeRO").
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

_DATA, _FSDP = "data", "fsdp"
_SMALL = 2**14  # elements; dividing fewer saves nothing and costs a message


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Of all devices, or of those given; `fsdp` neighbours divide the state.

    Raises:
        ValueError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(
            f"config.mesh.fsdp = {fsdp}: it does not divide the {len(devices)} devices. Give a divisor of their number."
        )
    shape = len(devices) // fsdp, fsdp
    return jax.make_mesh(shape, (_DATA, _FSDP), axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def images_spec(mesh: Mesh, axis: int = 0) -> P:
    """The axis of the images divided among all devices."""
    return P(*[None] * axis, mesh.axis_names)


def images_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """`images_spec` on this mesh."""
    return NamedSharding(mesh, images_spec(mesh, axis))


def state_sharding(shapes: Any, mesh: Mesh) -> Any:
    """The placement of each array of a training state, or of a part of one: a tree of the same structure.

    A large array is divided along the longest axis that the size of `fsdp` divides; small ones are on every device.
    """
    parts = mesh.shape.get(_FSDP, 1)

    def rule(leaf: Any) -> NamedSharding:
        divisible = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or math.prod(leaf.shape) < _SMALL or not divisible:
            return replicated(mesh)
        longest = max(divisible, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, P(*[None] * longest, _FSDP))

    return jax.tree.map(rule, shapes)

"""Optimal assignment of queries to targets, on the host or on the device.

SciPy solves an image of 300 queries and 50 objects in a tenth of a millisecond; on an accelerator the algorithm is a
chain of small steps that wait for each other, but nothing waits for the host. One callback a step handles every
prediction set of the device's own images: the criterion has it inside `shard_map`, else XLA would gather the costs of
all devices on the first one.
"""

import os
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from scipy.optimize import linear_sum_assignment

from maskdino_jax.losses.assignment import assign
from maskdino_jax.parts import find_part
from maskdino_jax.structures import Matches

LARGE = 1e9  # stands for a cost that is not finite, far beyond any real one


def match(cost: Float[Array, "l b q n"], counts: Int[Array, "b"], impl: str = "scipy") -> Matches:
    """The assignment of least total cost for each prediction set and image; the first `counts` targets are real.

    With fewer queries than targets, `q` targets are served. Gradients stop here. Costs that are not finite count as
    very large: the loss will be non-finite as well, and reporting that is the business of the training loop.

    Args:
        impl: `scipy` calls the host once; `device` is `assignment.assign`, which may choose otherwise among equals;
            `MODULE:FUNCTION` takes `cost` and `counts` and returns the query of each target, [l, b, n], or -1.
    """
    cost = jax.lax.stop_gradient(cost)
    ours = {"scipy": _on_host, "device": jax.vmap(jax.vmap(assign), in_axes=(0, None))}
    query = find_part("loss.matcher", impl, ours)(cost, counts)
    return Matches(query=jnp.maximum(query, 0), valid=query >= 0)


def _on_host(cost: Float[Array, "l b q n"], counts: Int[Array, "b"]) -> Int[Array, "l b n"]:
    sets, images, _, targets = cost.shape
    return jax.pure_callback(_assign, jax.ShapeDtypeStruct((sets, images, targets), jnp.int32), cost, counts)


_lock = threading.Lock()  # callbacks of several devices come in several threads
_seconds = 0.0


def seconds_on_host() -> float:
    """What the solver has taken in this process since its start, added up over its devices."""
    return _seconds


def _assign(cost: Array, counts: Array) -> np.ndarray:
    """`_solve`, and the time that it takes."""
    global _seconds
    start = time.monotonic()
    query = _solve(cost, counts)
    with _lock:
        _seconds += time.monotonic() - start
    return query


def _solve(cost: Array, counts: Array) -> np.ndarray:
    """Query of each target, -1 where there is none."""
    cost, counts = np.asarray(cost, np.float64), np.asarray(counts)
    cost = np.nan_to_num(cost, nan=LARGE, posinf=LARGE, neginf=-LARGE)
    sets, images, _, targets = cost.shape
    query = np.full((sets, images, targets), -1, np.int32)
    for index in np.ndindex(sets, images):
        rows, columns = linear_sum_assignment(cost[index][:, : counts[index[1]]])
        query[(*index, columns)] = rows
    return query


def check_callback_threads(mesh: Mesh) -> None:
    """Refuse a combination in which the callback is known to wait for ever.

    Before jax 0.11 a callback on one of several CPU devices may need a thread that the others occupy.

    Raises:
        ValueError: several CPU devices, jax below 0.11, and the size of the thread pool is left to the number of cores.
    """
    devices = mesh.local_devices
    several = len(devices) > 1 and devices[0].platform == "cpu"
    if several and jax.__version_info__ < (0, 11) and not {"NPROC", "PJRT_NPROC"} & set(os.environ):
        raise ValueError(
            f"mesh of {len(devices)} CPU devices with jax {jax.__version__}: the matching would deadlock. Set the "
            "environment variable NPROC=16 before jax is imported, or use one device, or jax 0.11 or later."
        )

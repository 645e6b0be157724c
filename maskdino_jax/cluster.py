"""Join the processes of a training on several hosts: from flags, or from what the launcher put into the environment."""

import dataclasses
import logging
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

import jax

_TIMEOUT = 300  # seconds until all processes must have come
_HEARTBEAT = 60  # seconds without a sign of life after which a process counts as lost, and the others stop

# Launchers whose variables JAX reads itself: the variable that says how many processes there are.
_LAUNCHERS = {"SLURM": "SLURM_NTASKS", "Open MPI": "OMPI_COMM_WORLD_SIZE"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Membership:
    """This process among all. None: JAX finds out from the launcher's environment."""

    coordinator: str | None = None  # HOST:PORT of process 0
    count: int | None = None
    index: int | None = None


def membership(
    coordinator: str | None, count: int | None, index: int | None, environment: Mapping[str, str]
) -> Membership | None:
    """Where this process belongs; None if it is alone.

    What is not given is taken from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, the index also
    from the `JOB_COMPLETION_INDEX` of an indexed Kubernetes job; else from SLURM or Open MPI.

    Raises:
        ValueError: a part is missing, or no number, or the index is none of the processes.
    """
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None:
        if count is not None or index is not None:
            raise ValueError("--processes and --process need --coordinator=HOST:PORT, the address of process 0.")
        started = any(_number(environment, name, 1) > 1 for name in _LAUNCHERS.values())
        return Membership() if started else None
    if count is None:
        count = _number(environment, "JAX_NUM_PROCESSES", 0)
    if index is None:
        index = _number(environment, "JAX_PROCESS_ID", _number(environment, "JOB_COMPLETION_INDEX", -1))
    if ":" not in coordinator:
        raise ValueError(f"--coordinator={coordinator}: give HOST:PORT, the address of process 0.")
    if count < 1 or not 0 <= index < count:
        raise ValueError(
            f"--coordinator={coordinator} with --processes={count} and --process={index}: give the number of processes "
            "and the index of this one, from 0 (or JAX_NUM_PROCESSES and JAX_PROCESS_ID)."
        )
    return Membership(coordinator=coordinator, count=count, index=index)


def join(found: Membership) -> None:
    """Wait for the other processes. From then on `jax.devices()` are those of all.

    If one of them is lost, the others end with an error within about a minute instead of waiting for it.
    """
    jax.distributed.initialize(
        found.coordinator,
        found.count,
        found.index,
        initialization_timeout=_TIMEOUT,
        heartbeat_timeout_seconds=_HEARTBEAT,
    )
    logging.info("process %d of %d, %d devices", jax.process_index(), jax.process_count(), jax.device_count())


def abandon(message: str) -> NoReturn:
    """End this process at once with the status 1: an orderly end would wait for the others, and they for this one."""
    sys.stderr.write(f"{message}\n")
    logging.shutdown()
    sys.stderr.flush()
    os._exit(1)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name, "")
    if not value:
        return default
    if not value.isdigit():
        raise ValueError(f"{name}={value!r} in the environment: give a whole number.")
    return int(value)

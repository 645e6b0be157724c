"""A program as StableHLO for CPU, CUDA and TPU in one artifact, through `jax.export`."""

from collections.abc import Callable
from importlib import metadata, util
from typing import Any

import jax
import numpy as np
from jax import export

from maskdino_jax.export.program import Program

PLATFORMS = ("cpu", "cuda", "tpu")


def prepared(program: Program) -> Program:
    """As it is: the types are those of the model."""
    return program


def make(program: Program) -> tuple[bytes, dict[str, Any]]:
    """The artifact, and what is to be said of it.

    Raises:
        ValueError: the library that writes it is missing.
    """
    if util.find_spec("flatbuffers") is None:
        raise ValueError('--format=stablehlo needs flatbuffers: pip install ".[export]", which has it.')
    exported = export.export(jax.jit(program), platforms=PLATFORMS)(*program.arguments())
    made_with = {"jax": metadata.version("jax"), "calling_convention": exported.calling_convention_version}
    return bytes(exported.serialize()), {"platforms": list(exported.platforms), "made_with": made_with}


def load(artifact: bytes) -> Callable[..., dict[str, np.ndarray]]:
    """What the artifact computes, on JAX's default device."""
    call = export.deserialize(bytearray(artifact)).call
    return lambda *arguments: jax.tree.map(np.asarray, dict(call(*arguments)))

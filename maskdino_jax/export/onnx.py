"""A program as ONNX, through jax2onnx, which lives in an environment of its own: `make export-onnx`."""

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator
from importlib import metadata, util
from typing import Any
from unittest import mock

import jax
import numpy as np

from maskdino_jax.export.primitives import in_few_primitives
from maskdino_jax.export.program import Program

OPSET = 23

_LIBRARIES = ("jax2onnx", "onnxruntime")


def prepared(program: Program) -> Program:
    """In float32: runtimes know little of bfloat16, and the weights are float32 anyway."""
    model = dataclasses.replace(program.spec.config, dtype="float32")
    return dataclasses.replace(program, spec=dataclasses.replace(program.spec, config=model))


def make(program: Program) -> tuple[bytes, dict[str, Any]]:
    """The artifact, and what is to be said of it.

    Raises:
        ValueError: a library is missing.
    """
    missing = [name for name in _LIBRARIES if util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"--format=onnx needs {' and '.join(missing)}, which want other versions of JAX and Orbax than training "
            "does: use `make export-onnx`, or an environment with the extra `onnx` and constraints-onnx.txt."
        )
    import jax2onnx

    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of types that are inferred later
    arguments = program.arguments()
    names = sorted(jax.eval_shape(program, *arguments))
    in_order = lambda *batch: [program(*batch)[name] for name in names]
    with _in_linear_time():
        model = jax2onnx.to_onnx(
            in_few_primitives(in_order, *arguments),
            arguments,
            model_name="maskdino",
            opset=OPSET,
            input_names=["images", "sizes"],
            output_names=names,
        )
    versions = {name: metadata.version(name) for name in ("jax", "jax2onnx", "onnx")}
    return model.SerializeToString(), {"opset": OPSET, "made_with": versions}


@contextlib.contextmanager
def _in_linear_time() -> Iterator[None]:
    """Two parts of jax2onnx 0.17 take quadratic time, many minutes for thousands of nodes. It asks for each new value
    whether a node has it as its output, from the first node to the last one: here it begins with the last ones, where
    the value is. And it joins neighbouring nodes, as runtimes do when they load a model: here only what it must do."""
    from jax2onnx.converter import conversion_api, output_binding
    from onnx_ir.passes import Sequential, common

    tidy = Sequential(
        common.NameFixPass(), common.LiftConstantsToInitializersPass(size_limit=0), common.RemoveUnusedNodesPass()
    )
    search = output_binding._value_is_graph_connected

    def connected(context: Any, value: Any) -> bool:
        latest = itertools.islice(reversed(context.builder.nodes), 100)
        return any(output is value for node in latest for output in node.outputs) or search(context, value)

    with (
        mock.patch.object(output_binding, "_value_is_graph_connected", connected),
        mock.patch.object(conversion_api, "optimize_graph", tidy),
    ):
        yield


def load(artifact: bytes) -> Callable[..., dict[str, np.ndarray]]:
    """What the artifact computes, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every constant that it has no use for
    session = onnxruntime.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images, sizes: dict(zip(names, session.run(names, {"images": images, "sizes": sizes}), strict=True))

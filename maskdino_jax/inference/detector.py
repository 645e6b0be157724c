"""The compiled forward pass that evaluation and prediction share."""

import dataclasses
import logging
from typing import Any

import jax
from jax.sharding import Mesh

from maskdino_jax.meshes import images_sharding, replicated
from maskdino_jax.model import ModelSpec
from maskdino_jax.structures import EvalBatch, Outputs


class Detector:
    """The compiled forward pass: one compilation for each shape of canvas, batches split over the mesh.

    Without `masks` they are left out of the outputs, and so the compiler leaves out all that is for them alone.
    """

    def __init__(self, spec: ModelSpec, mesh: Mesh, *, masks: bool = True) -> None:
        self.mesh = mesh
        self._split = images_sharding(mesh)
        self._seen: set[tuple[int, ...]] = set()

        def detect(variables: dict[str, Any], *batch: jax.Array | None) -> Outputs:
            whole = jax.lax.with_sharding_constraint(variables, replicated(mesh))
            outputs = spec.bind(whole).detect(*batch)
            return outputs if masks else dataclasses.replace(outputs, masks=None, mask_features=None, proposals=None)

        self._detect = jax.jit(detect, out_shardings=self._split)

    def __call__(self, variables: dict[str, Any], batch: EvalBatch) -> Outputs:
        """Outputs for a batch whose images divide among the devices; returns before they are computed."""
        if batch.images.shape not in self._seen:
            self._seen.add(batch.images.shape)
            logging.info("compiling the model for images of %s", " x ".join(map(str, batch.images.shape)))
        images, sizes, extents = jax.device_put((batch.images, batch.sizes, batch.extents), self._split)
        return self._detect(variables, images, sizes, extents)

"""The object a notebook uses: an image in, segments out."""

import functools
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import UInt8

from maskdino_jax.checkpoints import Reader
from maskdino_jax.config import Config
from maskdino_jax.data import Catalog, load_image, prepare_image
from maskdino_jax.inference.postprocess import Segments, postprocess
from maskdino_jax.inference.visualize import draw
from maskdino_jax.model import ModelSpec
from maskdino_jax.structures import Detections, EvalBatch


class Detector:
    """The compiled forward pass: one compilation for each shape of canvas, batches split over the mesh."""

    def __init__(self, spec: ModelSpec, mesh: Mesh) -> None:
        self.mesh = mesh
        self._split = NamedSharding(mesh, P("data"))
        self._seen: set[tuple[int, ...]] = set()
        detect = lambda variables, images, sizes: spec.bind(variables).detect(images, sizes)
        self._detect = jax.jit(detect, out_shardings=self._split)

    def __call__(self, variables: dict[str, Any], batch: EvalBatch) -> Detections:
        if batch.images.shape not in self._seen:
            self._seen.add(batch.images.shape)
            logging.info("compiling the model for images of %s", " x ".join(map(str, batch.images.shape)))
        images, sizes = jax.device_put((batch.images, batch.sizes), self._split)
        return self._detect(variables, images, sizes)


class Predictor:
    """Restores a checkpoint once and answers for one image at a time.

    Example: `segments = Predictor("runs/nuclei_panoptic")("image.png")`, then `segments.instances.masks`.
    """

    def __init__(self, checkpoint: str | Path, *, config: Config | None = None) -> None:
        """`checkpoint`: the workdir of a run (its best checkpoint) or a checkpoint; `config`: sizes and thresholds
        other than those of training."""
        reader = Reader(Path(checkpoint))
        self.config = config or reader.config
        self.catalog = Catalog.from_dict(reader.catalog)
        self.step = reader.step
        spec = ModelSpec(reader.config.model, self.catalog.num_classes)
        mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
        whole = NamedSharding(mesh, P())
        abstract = jax.eval_shape(functools.partial(spec.init, 0))
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), abstract)
        self._variables = reader.variables(abstract)
        self._detector = Detector(spec, mesh)

    def __call__(self, image: str | Path | UInt8[np.ndarray, "h w 3"]) -> Segments:
        """Segments of a file or of an RGB array, in the pixels of the original image."""
        pixels = load_image(Path(image)) if isinstance(image, str | Path) else image
        canvas, size = prepare_image(pixels, self.config.data)
        batch = EvalBatch(
            images=canvas[None],
            sizes=np.array([size], np.int32),
            original_sizes=np.array([pixels.shape[:2]], np.int32),
            records=np.zeros(1, np.int32),
            valid=np.ones(1, bool),
        )
        row = jax.tree.map(lambda x: np.asarray(x)[0], self._detector(self._variables, batch))
        return postprocess(
            row, tuple(size), pixels.shape[:2], canvas.shape[:2], self.catalog.is_thing, self.config.inference
        )

    def draw(self, image: str | Path | UInt8[np.ndarray, "h w 3"], segments: Segments) -> UInt8[np.ndarray, "h w 3"]:
        """Picture of `segments` over their image."""
        pixels = load_image(Path(image)) if isinstance(image, str | Path) else image
        return draw(pixels, segments, self.catalog, score_threshold=self.config.inference.score_threshold)

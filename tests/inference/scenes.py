"""Outputs of a model, made by hand or at random, and their way through post-processing."""

from typing import Any

import jax
import numpy as np

from maskdino_jax.config import Config, InferenceConfig
from maskdino_jax.data.catalog import Catalog, Category
from maskdino_jax.inference.frame import Frame
from maskdino_jax.inference.postprocess import Pending, Postprocessor
from maskdino_jax.inference.results import Segments
from maskdino_jax.structures import Outputs

SURE, NEVER = 20.0, -20.0  # logits whose float32 probability is 1, and nearly 0


def catalog_of(*is_thing: bool) -> Catalog:
    return Catalog(
        tuple(
            Category(id=10 * n + 7, name=f"class {n}", is_thing=bool(thing), color=(n, 0, 0))
            for n, thing in enumerate(is_thing)
        )
    )


def same_size(height: int, width: int) -> Frame:
    """A frame in which nothing is resized."""
    return Frame((height, width), (height, width), (height, width), stride=1)


def outputs_of(logits: Any, boxes: Any, masks: Any) -> Outputs:
    """The outputs of a batch with what post-processing does not read left out."""
    arrays = {"logits": logits, "boxes": boxes, "masks": masks}
    arrays = {name: None if value is None else jax.numpy.asarray(value, np.float32) for name, value in arrays.items()}
    return Outputs(**arrays, mask_features=None, proposals=None, heads=None)


def segments_of(
    logits: Any,
    masks: Any,
    frame: Frame,
    is_thing: Any,
    *,
    boxes: Any = None,
    class_scores: str = "sigmoid",
    **inference: Any,
) -> Segments:
    """Results of one image; `inference` are options of that name."""
    config = Config(inference=InferenceConfig(**inference))
    config.model.class_scores = class_scores
    processor = Postprocessor(catalog_of(*is_thing), config)
    boxes = np.zeros((len(logits), 4)) if boxes is None else boxes
    masks = None if masks is None else np.asarray(masks)[None]
    outputs = outputs_of(np.asarray(logits)[None], np.asarray(boxes)[None], masks)
    return processor.finish(Pending(record=0, frame=frame, row=0, found=processor.start(outputs, [frame])))


def random_outputs(
    seed: int, queries: int, classes: int, shape: tuple[int, int], offset: float = -2.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, boxes and smooth masks, as those of a model: half of the logits below `offset`."""
    rng = np.random.default_rng(seed)
    coarse = 5 * rng.standard_normal((queries, 4, 5)).astype(np.float32)
    masks = np.asarray(jax.image.resize(coarse, (queries, *shape), "bilinear"))
    logits = (2 * rng.standard_normal((queries, classes)) + offset).astype(np.float32)
    return logits, rng.random((queries, 4)).astype(np.float32), masks

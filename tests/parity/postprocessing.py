"""Results of the shipped post-processing against those of the official one."""

import dataclasses

import numpy as np

from maskdino_jax.config import Config
from maskdino_jax.data.catalog import Catalog
from maskdino_jax.inference.frame import Frame
from maskdino_jax.inference.postprocess import Pending, Postprocessor
from maskdino_jax.inference.results import Segments
from maskdino_jax.structures import Outputs
from tests.parity.official import Recording


def results(recording: Recording, outputs: Outputs, config: Config) -> list[Segments]:
    """Results of both images at the sizes that were asked for."""
    height, width = recording.canvas().shape[1:3]
    postprocessor = Postprocessor(Catalog.named(config.data.classes), config)
    frames = [
        Frame(size=tuple(size), original_size=tuple(original), extent=(height, width))
        for size, original in zip(recording.sizes.tolist(), recording.arrays["input/out_size"].tolist(), strict=True)
    ]
    found = postprocessor.start(outputs, frames)
    return [
        postprocessor.finish(Pending(record=row, frame=frame, row=row, found=found)) for row, frame in enumerate(frames)
    ]


@dataclasses.dataclass(frozen=True)
class InstanceErrors:
    """How far our instances of one image are from the recorded ones, pairs of query and class being equal."""

    scores: float
    boxes: float  # pixels
    flipped: int  # mask pixels, over all instances


def instance_errors(found: Segments, recorded: dict[str, np.ndarray]) -> InstanceErrors:
    """`recorded`: of the image, by the names without `post#/instances/`.

    The order of the official results is arbitrary, so rows are compared that have the same query and class.
    """
    pairs = zip(found.instances.queries.tolist(), found.instances.labels.tolist(), strict=True)
    ours = {pair: row for row, pair in enumerate(pairs)}
    theirs = list(zip(recorded["query"].tolist(), recorded["classes"].tolist(), strict=True))
    assert sorted(ours) == sorted(theirs)
    rows = np.array([ours[pair] for pair in theirs])
    masks = np.unpackbits(recorded["masks"], axis=-1, count=found.instances.width).view(bool)
    return InstanceErrors(
        scores=float(np.abs(found.instances.scores[rows] - recorded["scores"]).max()),
        boxes=float(np.abs(found.instances.boxes[rows] - recorded["boxes"]).max()),
        flipped=int((found.instances.masks[rows] != masks).sum()),
    )

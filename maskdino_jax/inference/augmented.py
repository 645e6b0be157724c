"""Test-time augmentation of semantic maps: the sum over several sizes of an image and their mirror images."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from maskdino_jax.config import Config, DataConfig
from maskdino_jax.data import prepare_image
from maskdino_jax.inference import segment
from maskdino_jax.inference.postprocess import Pending, Postprocessor, frames_of, pending_of
from maskdino_jax.inference.results import Segments
from maskdino_jax.structures import EvalBatch, Outputs

_add = jax.jit(jnp.add, donate_argnums=0)
_best = jax.jit(segment.best_class)


class Augmented:
    """In place of a `Postprocessor` for semantic maps: `begin` asks the device, `finish` does the host's part.

    As in the official code, the input of each size is the image that was resized for plain evaluation already. What is
    summed are the class maps at the size of the file, a float for each class and pixel.
    """

    def __init__(self, predict: Callable[[EvalBatch], Outputs], postprocessor: Postprocessor, config: Config) -> None:
        self._predict, self._postprocessor = predict, postprocessor
        options = config.evaluation
        self._sizes = [
            dataclasses.replace(config.data, eval_short_side=side, eval_long_side=options.tta_long_side)
            for side in options.tta_short_sides
        ]
        self._mirrors = (False, True) if options.tta_flip else (False,)

    def begin(self, batch: EvalBatch) -> list[Pending]:
        """Start on the valid images of a batch, in its order."""
        total, frames = None, []
        for mirrored, variant in self._variants(batch):
            outputs = self._predict(variant)
            frames = frames_of(outputs, variant)
            sums = self._postprocessor.classes(outputs, frames, mirrored=mirrored, sums=True)
            total = sums if total is None else _add(total, sums)
        classes = _best(total)
        classes.copy_to_host_async()
        return pending_of(batch, frames, {"semantic": classes})

    def finish(self, pending: Pending) -> Segments:
        """Wait for the device and make the result."""
        return self._postprocessor.finish(pending)

    def _variants(self, batch: EvalBatch) -> Iterator[tuple[bool, EvalBatch]]:
        """The batch in each size, as it is and mirrored."""
        images = [image[:height, :width] for image, (height, width) in zip(batch.images, batch.sizes, strict=True)]
        for data in self._sizes:
            for mirrored in self._mirrors:
                yield mirrored, _batch([image[:, ::-1] if mirrored else image for image in images], data, batch)


def _batch(images: list[np.ndarray], data: DataConfig, like: EvalBatch) -> EvalBatch:
    """The images resized, on one canvas that all of them fit on."""
    prepared = [prepare_image(image, data) for image in images]
    canvas = np.max([one.image.shape for one in prepared], axis=0)
    pixels = np.zeros((len(prepared), *canvas), np.uint8)
    for row, one in zip(pixels, prepared, strict=True):
        row[: one.image.shape[0], : one.image.shape[1]] = one.image
    alone = lambda one: np.array(one.image.shape[:2], np.int32) if one.extent is None else one.extent
    return dataclasses.replace(
        like,
        images=pixels,
        sizes=np.stack([one.size for one in prepared]),
        extents=np.stack([alone(one) for one in prepared]),
    )

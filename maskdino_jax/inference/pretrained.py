"""Predictors of published weights by name."""

from pathlib import Path

from maskdino_jax.checkpoints import zoo
from maskdino_jax.inference.predictor import Predictor


def load(name: str, place: str | Path | None = None) -> Predictor:
    """A predictor with the weights of an official checkpoint, such as `load("r50_coco_panoptic")`.

    Args:
        name: one of `maskdino_jax.checkpoints.zoo.ENTRIES`.
        place: the file, or the folder that it lies in; None: ~/.cache/maskdino_jax/zoo. Nothing is downloaded.

    Raises:
        FileNotFoundError: the file is not there; the message says where it is published and where to put it.
        ValueError: there is no such name, and which are near; or the file is damaged or of another model.
    """
    return Predictor.from_torch(zoo.find(name, place), zoo.config_of(name))

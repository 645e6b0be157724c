"""Mask DINO in JAX: object detection, instance, panoptic and semantic segmentation with one transformer."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskdino_jax.config import Config
    from maskdino_jax.inference.predictor import Predictor
    from maskdino_jax.inference.pretrained import load
    from maskdino_jax.model import MaskDINO

__all__ = ["Config", "MaskDINO", "Predictor", "load"]

_HOMES = {
    "Config": "maskdino_jax.config",
    "MaskDINO": "maskdino_jax.model",
    "Predictor": "maskdino_jax.inference.predictor",
    "load": "maskdino_jax.inference.pretrained",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that a config file or a kernel check needs neither the data libraries nor the network.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

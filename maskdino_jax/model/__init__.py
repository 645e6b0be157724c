"""The network in Flax NNX: the only place where parameters live."""

from maskdino_jax.model.maskdino import MaskDINO, ModelSpec

__all__ = ["MaskDINO", "ModelSpec"]

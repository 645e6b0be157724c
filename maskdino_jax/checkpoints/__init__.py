"""Parameters on disk: our own checkpoints through Orbax, and those of PyTorch."""

from maskdino_jax.checkpoints.initial import start_from
from maskdino_jax.checkpoints.manager import Checkpoints, Reader

__all__ = ["Checkpoints", "Reader", "start_from"]

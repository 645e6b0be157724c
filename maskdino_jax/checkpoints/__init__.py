"""Parameters on disk: our own checkpoints through Orbax."""

from maskdino_jax.checkpoints.manager import Checkpoints, Reader

__all__ = ["Checkpoints", "Reader"]

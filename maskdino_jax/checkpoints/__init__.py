"""Parameters on disk: our own checkpoints through Orbax; `torch_import` reads and writes those of PyTorch."""

from maskdino_jax.checkpoints.manager import Checkpoints, Reader

__all__ = ["Checkpoints", "Reader"]

"""Trained models as files that run without this package."""

from maskdino_jax.export.artifact import FORMATS, canvas_of, write_artifact

__all__ = ["FORMATS", "canvas_of", "write_artifact"]

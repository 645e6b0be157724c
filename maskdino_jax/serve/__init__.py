"""A page to try a model in the browser: `--mode=serve`."""

from maskdino_jax.serve.gallery import Gallery
from maskdino_jax.serve.server import serve

__all__ = ["Gallery", "serve"]

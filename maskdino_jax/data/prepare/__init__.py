"""Generate the files that the published data sets are used with but not published with."""

from maskdino_jax.data.prepare.datasets import prepare
from maskdino_jax.data.prepare.writing import Made

__all__ = ["Made", "prepare"]

"""Random weights without compiling the initialisers, for tests of laws that hold for any weights."""

import math
from typing import Any

import jax
import numpy as np

from maskdino_jax.model import ModelSpec


def random_variables(spec: ModelSpec, seed: int = 0) -> dict[str, Any]:
    """Scales near 1, variances positive, the rest centred with unit gain; the last box layer is not zero."""
    rng = np.random.default_rng(seed)

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name in ("scale", "var"):
            value = 1 + 0.1 * np.abs(rng.standard_normal(leaf.shape))
        elif len(leaf.shape) == 1:
            value = 0.1 * rng.standard_normal(leaf.shape)
        else:
            value = rng.standard_normal(leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1]))
        return value.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(lambda: spec.init(0)))

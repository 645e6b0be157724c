"""Change a training example at random, as `config.data.augmentation` says."""

import numpy as np

from maskdino_jax.config import DataConfig
from maskdino_jax.data.short_edge import draw_short_edge, short_edge
from maskdino_jax.data.transforms import Example, draw, jitter


def augment(example: Example, rng: np.random.Generator, data: DataConfig) -> Example:
    """An image of `data.image_size` with its objects."""
    if data.augmentation == "short_edge":
        return short_edge(example, draw_short_edge(rng, data), data.image_size, data.long_side)
    return jitter(example, draw(rng, data), data.image_size)

"""Feature maps of several scales as one sequence of tokens."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from maskdino_jax.ops.extents import inside

LevelSizes = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Levels:
    """Where the tokens of a sequence lie: level after level, row after row.

    `image` is the part (height, width) of the canvas in pixels that each image occupies, `extents` the same part of
    each map; None: all of it, for every image.
    """

    sizes: LevelSizes
    extents: Int[Array, "b l 2"] | None = None
    image: Int[Array, "b 2"] | None = None

    def __reversed__(self) -> "Levels":
        extents = None if self.extents is None else self.extents[:, ::-1]
        return dataclasses.replace(self, sizes=self.sizes[::-1], extents=extents)

    def used(self) -> Bool[Array, "b t"] | None:
        """Which tokens belong to an image; None: all."""
        if self.extents is None:
            return None
        maps = [inside(size, self.extents[:, level]) for level, size in enumerate(self.sizes)]
        return jnp.concatenate([used.reshape(used.shape[0], -1) for used in maps], axis=1)

    def centres(self) -> Float[Array, "#b t 2"] | Float[np.ndarray, "#b t 2"]:
        """Normalised (x, y) of the centre of every token, relative to the extent: above 1 beyond it."""
        pixels = []
        for height, width in self.sizes:
            y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
            pixels.append(np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32))
        counts = [height * width for height, width in self.sizes]
        if self.extents is None:  # host constants: XLA would turn the division into a product, which rounds otherwise
            sizes = np.repeat(np.array(self.sizes, np.float32), counts, axis=0)
            return (np.concatenate(pixels) / sizes[:, ::-1])[None]
        extents = jnp.repeat(self.extents, np.array(counts), axis=1, total_repeat_length=sum(counts))
        return jnp.concatenate(pixels) / extents[..., ::-1].astype(jnp.float32)

    def flatten(self, maps: list[Float[Array, "b _ _ d"]]) -> Float[Array, "b t d"]:
        """The maps as one sequence."""
        return jnp.concatenate([level.reshape(level.shape[0], -1, level.shape[-1]) for level in maps], axis=1)

    def unflatten(self, tokens: Float[Array, "b t d"]) -> list[Float[Array, "b _ _ d"]]:
        """The inverse of `flatten`."""
        ends = np.cumsum([height * width for height, width in self.sizes])[:-1]
        parts = jnp.split(tokens, ends, axis=1)
        return [part.reshape(tokens.shape[0], *size, -1) for part, size in zip(parts, self.sizes, strict=True)]

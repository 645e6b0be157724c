"""Random keys for initialisers."""

import jax
from jaxtyping import PRNGKeyArray


class Keys:
    """A new key at each call of `params`, the same as `nnx.Rngs(params=seed)` gives.

    Modules take it where Flax has `nnx.Rngs`, whose counter is an array: tracing a whole model takes seconds with it.
    """

    def __init__(self, seed: int) -> None:
        self._key = jax.random.key(seed)
        self._count = 0

    def params(self) -> PRNGKeyArray:
        """The next key."""
        self._count += 1
        return jax.random.fold_in(self._key, self._count - 1)

"""Random targets and outputs of a small detector, for the tests of this folder."""

import jax.numpy as jnp
import numpy as np

from maskdino_jax.structures import DenoisingPlan, Predictions, Targets, TrainOutputs

CLASSES, CHANNELS, HEIGHT, WIDTH = 6, 4, 16, 24  # masks; features have a quarter of each side


def make_targets(counts: list[int], n: int, seed: int = 0) -> Targets:
    """Targets whose first `counts[b]` rows exist; the others are zero."""
    rng, b = np.random.default_rng(seed), len(counts)
    valid = np.arange(n) < np.array(counts)[:, None]
    centre, size = rng.uniform(0.3, 0.7, (b, n, 2)), rng.uniform(0.1, 0.5, (b, n, 2))
    masks = np.zeros((b, n, HEIGHT, WIDTH), bool)
    for i in range(b):
        for j in range(n):
            x, y = int(rng.integers(0, WIDTH - 6)), int(rng.integers(0, HEIGHT - 6))
            masks[i, j, y : y + 6, x : x + 6] = True
    return Targets(
        labels=jnp.asarray(np.where(valid, rng.integers(0, CLASSES, (b, n)), 0)),
        boxes=jnp.asarray(np.where(valid[..., None], np.concatenate([centre, size], -1), 0), jnp.float32),
        masks=jnp.asarray(np.packbits(masks & valid[..., None, None], axis=-1)),
        is_thing=jnp.asarray(valid),
        valid=jnp.asarray(valid),
    )


def make_predictions(sets: int, b: int, q: int, seed: int) -> Predictions:
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.uniform(0.2, 0.8, (sets, b, q, 2)), rng.uniform(0.1, 0.5, (sets, b, q, 2))], -1)
    return Predictions(
        logits=jnp.asarray(2 * rng.standard_normal((sets, b, q, CLASSES)), jnp.float32),
        boxes=jnp.asarray(boxes, jnp.float32),
        mask_embed=jnp.asarray(rng.standard_normal((sets, b, q, CHANNELS)), jnp.float32),
    )


def make_outputs(
    b: int = 2, q: int = 7, layers: int = 1, plan: DenoisingPlan | None = None, seed: int = 1
) -> TrainOutputs:
    features = np.random.default_rng(seed).standard_normal((b, HEIGHT // 4, WIDTH // 4, CHANNELS))
    slots = 0 if plan is None else plan.target.shape[0]
    return TrainOutputs(
        matching=make_predictions(layers + 2, b, q, seed + 1),
        denoising=None if plan is None else make_predictions(layers + 1, b, slots, seed + 2),
        plan=plan,
        mask_features=jnp.asarray(features, jnp.float32),
    )

"""Trained batch norm: statistics of the batch in training, running ones otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.config import Config, tiny
from maskdino_jax.model import ModelSpec
from maskdino_jax.model.layers import BatchNorm
from tests.weights import random_variables


def test_training_uses_the_batch_and_remembers_a_tenth_of_it() -> None:
    norm = BatchNorm(2)
    x = jnp.array([[1.0, 10.0], [3.0, 10.0], [5.0, 10.0], [7.0, 10.0]]).reshape(2, 2, 1, 2)
    y = np.asarray(norm(x, training=True)).reshape(4, 2)
    np.testing.assert_allclose(y[:, 0], np.array([-3, -1, 1, 3]) / np.sqrt(5 + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(y[:, 1], 0, atol=1e-6)
    np.testing.assert_allclose(norm.mean[...], [0.4, 1.0], rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], [0.9 + 0.1 * 20 / 3, 0.9], rtol=1e-6)  # without bias: over 3, not 4


def test_inference_uses_the_running_statistics() -> None:
    norm = BatchNorm(1)
    norm.mean[...], norm.var[...] = jnp.array([2.0]), jnp.array([4.0])
    y = norm(jnp.full((1, 1, 1, 1), 6.0), training=False)
    assert float(y[0, 0, 0, 0]) == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize(("norm", "changes"), [("batch_norm", True), ("frozen_bn", False)])
def test_a_forward_pass_in_training_changes_the_statistics_of_trained_norms_only(norm: str, changes: bool) -> None:
    config = Config()
    tiny(config)
    config.model.backbone.norm = norm
    spec = ModelSpec(config.model, 3)
    variables = random_variables(spec)

    @jax.jit
    def statistics(variables: dict, images: jax.Array) -> dict:
        model = spec.bind(variables)
        model.backbone(images, None, jax.random.split(jax.random.key(0), 1))
        return spec.frozen(model)

    after = statistics(variables, jnp.ones((1, 64, 64, 3)))
    pairs = list(zip(jax.tree.leaves(variables["frozen"]), jax.tree.leaves(after), strict=True))
    assert jax.tree.structure(after) == jax.tree.structure(variables["frozen"])
    assert all(np.array_equal(old, new) != changes for old, new in pairs)

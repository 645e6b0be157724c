"""Schedule, groups and clipping, worked by hand and against PyTorch's formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskdino_jax.config import Config, OptimizerConfig, tiny
from maskdino_jax.model import ModelSpec
from maskdino_jax.train.optimizer import (
    build_optimizer,
    clip_by_norm,
    decays,
    is_backbone,
    learning_rate,
    path_name,
)


def test_the_rate_drops_at_each_milestone() -> None:
    config = OptimizerConfig(learning_rate=1.0, milestones=(3, 5))
    rates = [float(learning_rate(config, step)) for step in range(7)]
    np.testing.assert_allclose(rates, [1, 1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def test_warm_up_reaches_the_base_rate_at_its_last_step() -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=4)
    rates = [float(learning_rate(config, step)) for step in range(5)]
    np.testing.assert_allclose(rates, [0.5, 1.0, 1.5, 2.0, 2.0], rtol=1e-6)


def test_a_long_gradient_is_scaled_to_the_limit_and_a_short_one_is_left() -> None:
    clip = clip_by_norm(1.0)
    scaled, _ = clip.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, optax.EmptyState())
    np.testing.assert_allclose([scaled["a"][0], scaled["b"][0]], [0.6, 0.8], rtol=1e-5)
    kept, _ = clip.update({"a": jnp.array([0.3])}, optax.EmptyState())
    assert float(kept["a"][0]) == pytest.approx(0.3)


def test_two_steps_equal_adamw_written_out() -> None:
    config = OptimizerConfig(learning_rate=0.1, backbone_multiplier=0.5, weight_decay=0.2, clip_norm=1e9)
    params = {
        "backbone": {"kernel": jnp.array([1.0, -2.0])},
        "heads": {"kernel": jnp.array([0.5]), "norm": {"scale": jnp.array([1.5])}},
    }
    optimizer = build_optimizer(config)
    state = optimizer.init(params)
    rates = {"backbone/kernel": (0.05, 0.2), "heads/kernel": (0.1, 0.2), "heads/norm/scale": (0.1, 0.0)}
    expected = {path_name(p): np.asarray(x, np.float64) for p, x in jax.tree_util.tree_leaves_with_path(params)}
    moments = dict.fromkeys(expected, (0.0, 0.0))
    for step in (1, 2):
        gradients = jax.tree.map(lambda p, step=step: p * step + 0.1, params)
        flat = {path_name(p): np.asarray(x, np.float64) for p, x in jax.tree_util.tree_leaves_with_path(gradients)}
        for name, (rate, decay) in rates.items():
            first = 0.9 * moments[name][0] + 0.1 * flat[name]
            second = 0.999 * moments[name][1] + 0.001 * flat[name] ** 2
            moments[name] = first, second
            adam = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
            expected[name] = expected[name] * (1 - rate * decay) - rate * adam
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        np.testing.assert_allclose(value, expected[path_name(path)], rtol=1e-5)


def test_groups_of_the_real_model() -> None:
    """Every norm and the label embedding go without decay, every other bias with it (spec of the official groups)."""
    config = Config()
    tiny(config)
    config.model.backbone.norm = "group_norm"
    abstract = jax.eval_shape(lambda: ModelSpec(config.model, 3).init(0))["params"]
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(abstract)]
    plain = [name for name in names if not decays(name)]
    assert all("norm" in name or name == "label_enc/embedding" for name in plain)
    assert {name for name in names if "norm" in name.split("/")[-2]} <= set(plain)
    assert decays("pixel_decoder/level_embed")
    assert decays("heads/class_embed/bias")
    assert {name.split("/")[0] for name in names if is_backbone(name)} == {"backbone"}

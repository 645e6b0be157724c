"""AdamW with a smaller rate for the backbone, no decay for norms and embeddings, a step schedule and clipping."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from maskdino_jax.config import OptimizerConfig

_PLAIN = re.compile(
    r"(^|/)\w*norm\d?/(scale|bias)$|(^|/)label_enc/embedding$|^learned_queries/|relative_position_bias_table$"
)


def path_name(path: tuple[Any, ...]) -> str:
    """`backbone/res2/0/conv1/conv/kernel` for a path of a tree of parameters."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_backbone(path: str) -> bool:
    """Whether the learning rate of this parameter is multiplied by `backbone_multiplier`."""
    return path.startswith("backbone/")


def decays(path: str) -> bool:
    """Whether weight decay shrinks this parameter: all but norms, embeddings and position bias tables."""
    return _PLAIN.search(path) is None


def _select(rule: Callable[[str], bool]) -> Callable[[Any], Any]:
    return lambda params: jax.tree_util.tree_map_with_path(lambda path, _: rule(path_name(path)), params)


def learning_rate(config: OptimizerConfig, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """Base rate at a zero-based step: warm-up if any, then times gamma at each milestone reached."""
    drops = jnp.sum(jnp.asarray(config.milestones, jnp.int32) <= step)
    rate = config.learning_rate * config.gamma**drops
    if config.warmup_steps:
        rate = rate * jnp.minimum(1.0, (step + 1) / config.warmup_steps)
    return jnp.asarray(rate, jnp.float32)


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Scale the whole gradient to an L2 norm of at most `limit`; the official epsilon keeps it a touch below."""

    def clip(gradients: Any, params: Any) -> Any:
        del params
        factor = jnp.minimum(1.0, limit / (optax.tree.norm(gradients) + 1e-6))
        return jax.tree.map(lambda g: g * factor, gradients)

    return optax.stateless(clip)


def build_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clip, then AdamW as PyTorch has it: the decay is scaled by the rate and not by the moments."""
    return optax.chain(
        clip_by_norm(config.clip_norm),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.add_decayed_weights(config.weight_decay, mask=_select(decays)),
        optax.scale_by_schedule(lambda step: -learning_rate(config, step)),
        optax.masked(optax.scale(config.backbone_multiplier), _select(is_backbone)),
    )

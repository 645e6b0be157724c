"""One optimizer step as a pure, sharded function of the training state and a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maskdino_jax.config import Config
from maskdino_jax.losses.criterion import criterion
from maskdino_jax.model import ModelSpec
from maskdino_jax.structures import Batch
from maskdino_jax.train.optimizer import build_optimizer, learning_rate

State = dict[str, Any]  # step, params, frozen, opt, and ema where config.train.ema_decay > 0
Metrics = dict[str, jax.Array]


def init_state(spec: ModelSpec, config: Config) -> State:
    """State before the first step, drawn from `config.train.seed`."""
    variables = spec.init(config.train.seed)
    params = variables["params"]
    state = {"step": jnp.int32(0), **variables, "opt": build_optimizer(config.optimizer).init(params)}
    if config.train.ema_decay:
        state["ema"] = jax.tree.map(jnp.copy, params)
    return state


def _parts(batch: Batch, count: int, mesh: Mesh) -> Batch:
    """Split a batch into `count` equal parts on a leading axis; each device keeps the images it has."""
    if count == 1:
        return jax.tree.map(lambda x: x[None], batch)
    sharding = NamedSharding(mesh, P(None, "data"))

    def split(x: jax.Array) -> jax.Array:
        parts = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(parts, sharding)

    return jax.tree.map(split, batch)


def build_train_step(spec: ModelSpec, config: Config, mesh: Mesh) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """The jitted step. The state is replicated and donated, the batch is split over the mesh axis `data`.

    Randomness is a function of (seed, step) alone. The parts of an accumulated batch share the normaliser of the whole
    batch, so that their gradients add up to the gradient of the whole. A step whose loss or gradient is not finite
    leaves the state as it was, so that the loop can stop and nothing is lost.
    """
    optimizer = build_optimizer(config.optimizer)
    train = config.train

    def loss(
        params: Any, frozen: Any, batch: Batch, key: jax.Array, num_objects: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Any]]:
        noise_key, points_key = jax.random.split(key)
        model = spec.bind({"params": params, "frozen": frozen})
        outputs = model.outputs(batch.images, batch.targets, noise_key)
        sizes = {"num_objects": num_objects, "num_parts": train.accumulate}
        total, terms = criterion(outputs, batch.targets, points_key, config.loss, config.model, **sizes, mesh=mesh)
        return total, (terms, spec.frozen(model))

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(train.seed), state["step"])
        num_objects = jnp.maximum(batch.targets.valid.sum(), 1).astype(jnp.float32)
        grad = jax.value_and_grad(loss, has_aux=True)

        def part(index: jax.Array, images: Batch) -> Any:
            return grad(state["params"], state["frozen"], images, jax.random.fold_in(key, index), num_objects)

        if train.accumulate == 1:
            (total, (terms, frozen)), gradients = part(jnp.int32(0), batch)
        else:
            parts = _parts(batch, train.accumulate, mesh)
            first = jax.eval_shape(part, jnp.int32(0), jax.tree.map(lambda x: x[0], parts))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
            add = lambda sums, item: (jax.tree.map(jnp.add, sums, part(*item)), None)
            sums, _ = jax.lax.scan(add, zeros, (jnp.arange(train.accumulate), parts))
            (total, (terms, frozen)), gradients = sums
            frozen = jax.tree.map(lambda x: x / train.accumulate, frozen)  # every part started from the same

        norm = optax.tree.norm(gradients)
        updates, opt = optimizer.update(gradients, state["opt"], state["params"])
        new = {**state, "params": optax.apply_updates(state["params"], updates), "opt": opt}
        if config.model.backbone.norm == "batch_norm":
            new["frozen"] = frozen
        if train.ema_decay:
            decay = train.ema_decay
            new["ema"] = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state["ema"], new["params"])
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        new["step"] = state["step"] + 1
        metrics = {
            "loss": total,
            **terms,
            "grad_norm": norm,
            "learning_rate": learning_rate(config.optimizer, state["step"]),
            "objects": batch.targets.valid.sum(),
            "objects_dropped": batch.dropped.sum(),
        }
        return new, metrics

    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    return jax.jit(step, donate_argnums=0, in_shardings=(whole, split), out_shardings=(whole, whole))

"""One optimizer step as a pure, sharded function of the training state and a batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from maskdino_jax.config import Config
from maskdino_jax.losses.criterion import criterion
from maskdino_jax.meshes import images_sharding, replicated, state_sharding
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


def image_keys(seed: int, step: jax.Array, count: int) -> jax.Array:
    """A key for each of the `count` images of a batch, its own at every step."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda image: jax.random.fold_in(key, image))(jnp.arange(count))


def _parts(batch: Any, count: int, mesh: Mesh) -> Any:
    """Split arrays of a batch into `count` equal parts on a leading axis; each device keeps the images it has."""
    sharding = images_sharding(mesh, axis=1)

    def split(x: jax.Array) -> jax.Array:
        parts = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(parts, sharding)

    return jax.tree.map(split, batch)


def build_train_step(spec: ModelSpec, config: Config, mesh: Mesh) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """The jitted step. The state, placed as `meshes.state_sharding` says, is donated; all devices divide the images.

    Randomness is a function of (seed, step, place in the batch) alone, and all divisors are those of the whole batch:
    neither the number of devices nor that of accumulated parts changes loss or gradient (but for trained batch norm,
    which sees a part at a time). A step whose loss or gradient is not finite
    leaves the state as it was, so that the loop can stop and nothing is lost.
    """
    optimizer = build_optimizer(config.optimizer)
    train = config.train
    placed = state_sharding(jax.eval_shape(functools.partial(init_state, spec, config)), mesh)

    def loss(
        params: Any, frozen: Any, batch: Batch, keys: jax.Array, counts: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Any]]:
        noise_keys, points_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        model = spec.bind({"params": params, "frozen": frozen})
        outputs = model.outputs(batch.images, batch.targets, noise_keys, counts.max(), train.remat)
        total, terms = criterion(
            outputs, batch.targets, points_keys, config.loss, config.model, counts=counts, mesh=mesh
        )
        return total, (terms, spec.frozen(model))

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        keys = image_keys(train.seed, state["step"], len(batch.images))
        counts = batch.targets.valid.sum(axis=1)
        grad = jax.value_and_grad(loss, has_aux=True)
        params = jax.lax.with_sharding_constraint(state["params"], replicated(mesh))
        part = lambda images, keys: grad(params, state["frozen"], images, keys, counts)
        if train.accumulate == 1:
            (total, (terms, frozen)), gradients = part(batch, keys)
        else:
            parts = _parts((batch, keys), train.accumulate, mesh)
            first = jax.eval_shape(part, *jax.tree.map(lambda x: x[0], parts))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
            add = lambda sums, item: (jax.tree.map(jnp.add, sums, part(*item)), None)
            ((total, (terms, frozen)), gradients), _ = jax.lax.scan(add, zeros, parts)
            frozen = jax.tree.map(lambda x: x / train.accumulate, frozen)  # every part started from the same

        gradients = jax.lax.with_sharding_constraint(gradients, placed["params"])
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
            "records_skipped": batch.skipped.sum(),
        }
        return new, metrics

    shardings = {"in_shardings": (placed, images_sharding(mesh)), "out_shardings": (placed, replicated(mesh))}
    return jax.jit(step, donate_argnums=0, **shardings)

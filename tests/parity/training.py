"""A recorded training step of the official implementation, and what our model makes of the same inputs and draws.

The recordings do not hold their random numbers: each draw is a function of its name (`RecordedStep.draw`).
"""

import dataclasses
import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.checkpoints import names
from maskdino_jax.checkpoints.torch_import import to_state_dict
from maskdino_jax.config import Config
from maskdino_jax.losses.criterion import criterion_at, match_all
from maskdino_jax.model import ModelSpec, denoising
from maskdino_jax.structures import Matches, Targets
from maskdino_jax.train.optimizer import build_optimizer, path_name
from tests.parity.official import Recording

_POINTS_AND_SLOTS = {"small": (64, 12), "full": (12544, 100)}
_KINDS = {"candidates": "over", "uniform": "rand"}


class RecordedStep(Recording):
    """Two images of one size with their objects, for a model and a mode: `small`, or `full` size as in the recipe."""

    @property
    def mode(self) -> str:
        return self.arrays["draws/keys"][0].split("/")[2]

    def config(self) -> Config:
        config = super().config()
        config.loss.num_points, config.model.denoising.num_queries = _POINTS_AND_SLOTS[self.mode]
        return config

    @property
    def counts(self) -> list[int]:
        return [len(self.arrays[f"target/labels{i}"]) for i in range(2)]

    @property
    def groups(self) -> int:
        return _POINTS_AND_SLOTS[self.mode][1] // max(self.counts)

    @functools.cached_property
    def sets(self) -> list[str]:
        """Names of the matched prediction sets in our order; with learned queries there is no `interm`."""
        interm = ["interm"] if "match/interm/img0/src" in self.arrays else []
        return [*(f"aux{i}" for i in range(9)), "final", *interm]

    @functools.cached_property
    def denoising_sets(self) -> list[str]:
        """Names of the denoising sets that have a loss; with learned queries the first has none."""
        first = 0 if "interm" in self.sets else 1
        return [*(f"aux{i}_dn" for i in range(first, 9)), "final_dn"]

    def draw(self, name: str) -> np.ndarray:
        """The random numbers that the recorded run used under this name."""
        key = f"draw/{self.name}/{self.mode}/{name}"
        shapes = dict(zip(self.arrays["draws/keys"].tolist(), self.arrays["draws/shapes"].tolist(), strict=True))
        shape = tuple(int(side) for side in shapes[key].strip("(,)").split(","))
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        if name == "dn/new_label":
            return rng.integers(0, self.num_classes, shape)
        return rng.random(shape, dtype=np.float32)

    def targets(self) -> Targets:
        most = max(self.counts)

        def padded(name: str, dtype: Any) -> jax.Array:
            rows = [self.arrays[f"target/{name}{i}"].astype(dtype) for i in range(2)]
            return jnp.stack([jnp.pad(x, [(0, most - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in rows])

        valid = jnp.arange(most) < jnp.array(self.counts)[:, None]
        return Targets(
            labels=padded("labels", np.int32),
            boxes=padded("boxes_cxcywh", np.float32),
            masks=padded("masks", np.uint8),
            is_thing=valid,
            valid=valid,
        )

    def slots(self) -> tuple[np.ndarray, np.ndarray]:
        """Image and denoising slot of each noised object in the official order: groups, images, objects."""
        most = max(self.counts)
        each = [
            (i, group * most + j) for group in range(self.groups) for i, n in enumerate(self.counts) for j in range(n)
        ]
        return tuple(np.array(each).T)

    def noise(self) -> denoising.Noise:
        shape = 2, _POINTS_AND_SLOTS[self.mode][1]
        flip, label = np.ones(shape, np.float32), np.zeros(shape, np.int32)
        box = np.full((*shape, 4), 0.5, np.float32)
        for array, name in ((flip, "label_p"), (label, "new_label"), (box, "bbox")):
            array[self.slots()] = self.draw(f"dn/{name}")
        return denoising.Noise(flip=jnp.asarray(flip), label=jnp.asarray(label), box=jnp.asarray(box))

    def points(self) -> dict[str, np.ndarray]:
        """Points of every image, use and row, as `criterion_at` asks for them."""
        count, slots = _POINTS_AND_SLOTS[self.mode]
        most, first = max(self.counts), len(self.sets) * max(self.counts)
        rows = first + len(self.denoising_sets) * slots
        points = {
            "matching": np.zeros((2, len(self.sets), count, 2), np.float32),
            "candidates": np.zeros((2, rows, 3 * count, 2), np.float32),
            "uniform": np.zeros((2, rows, count - 3 * count // 4, 2), np.float32),
        }
        for index, name in enumerate(self.sets):
            for image in range(2):
                points["matching"][image, index] = self.draw(f"match/{name}/img{image}")[0]
            # One row for each pair of an image, in the order of the matched queries.
            objects = [self.arrays[f"match/{name}/img{image}/tgt"] for image in range(2)]
            where = np.repeat([0, 1], self.counts), index * most + np.concatenate(objects)
            for use, kind in _KINDS.items():
                points[use][where] = self.draw(f"points/{name}/{kind}")
        image, slot = self.slots()
        order = np.argsort(image, kind="stable")  # here the official code goes through images, groups, objects
        for index, name in enumerate(self.denoising_sets):
            where = image[order], first + index * slots + slot[order]
            for use, kind in _KINDS.items():
                points[use][where] = self.draw(f"points/{name}/{kind}")
        return points


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """What came out; gradients and changes in the official names and layout."""

    matches: Matches
    total: float
    terms: dict[str, float]
    gradients: dict[str, np.ndarray]
    changes: dict[str, np.ndarray]  # of the recorded parameters in one optimizer step, else 0


def run(recording: RecordedStep, patch: pytest.MonkeyPatch) -> Step:
    """Forward, backward and one optimizer step in float32."""
    config, targets, noise = recording.config(), recording.targets(), recording.noise()
    variables, num_classes = recording.variables()
    spec, frozen = ModelSpec(config.model, num_classes), variables["frozen"]
    scale = config.model.denoising.noise_scale
    patch.setattr(denoising, "noised_queries", lambda plan, t, *_: denoising.apply_noise(plan, t, noise, scale))
    draw = lambda use, source, index, count: source[use][index]
    counts = jnp.array(recording.counts)

    def loss(params: dict, images: jax.Array, points: dict[str, jax.Array]) -> tuple[jax.Array, tuple]:
        model = spec.bind({"params": params, "frozen": frozen})
        outputs = model.outputs(images, targets, jax.random.split(jax.random.key(0)), counts.max())
        total, terms = criterion_at(outputs, targets, points, draw, config.loss, config.model, counts=counts)
        matches = match_all(outputs.matching, targets, outputs.mask_features, points, draw, config.loss)
        return total, (terms, matches)

    inputs = variables["params"], jnp.asarray(recording.canvas()), jax.tree.map(jnp.asarray, recording.points())
    with jax.default_matmul_precision("highest"):
        program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*inputs)
    # It runs once: what matters is how long it takes to compile.
    step = program.compile(compiler_options={"xla_backend_optimization_level": 0})
    (total, (terms, matches)), gradients = step(*inputs)
    official = lambda tree: to_state_dict({"params": tree, "frozen": frozen}, config.model, num_classes)
    return Step(
        matches=jax.tree.map(np.asarray, matches),
        total=float(total),
        terms={name: float(value) for name, value in terms.items()},
        gradients=official(gradients),
        changes=official(_changes(recording, config, variables["params"], gradients)),
    )


def _changes(recording: RecordedStep, config: Config, params: dict, gradients: dict) -> dict:
    """Change of each recorded parameter in the first optimizer step, 0 for the others.

    The optimizer gets these parameters alone, and for the norm to be clipped one number as large as all others.
    """
    entries = names.table(config.model, recording.num_classes)
    wanted = recording.part("optim/delta/")
    recorded = {entry.path.removeprefix("params/") for entry in entries if wanted.keys() & {entry.name, *entry.aliases}}
    only = lambda tree: jax.tree_util.tree_map_with_path(lambda k, x: x if path_name(k) in recorded else None, tree)
    norms = jax.tree.map(lambda x: np.linalg.norm(np.asarray(x, np.float64)), gradients)
    others = np.sqrt(sum(x**2 for x in jax.tree.leaves(norms)) - sum(x**2 for x in jax.tree.leaves(only(norms))))
    few, slopes = {**only(params), "others": jnp.zeros(1)}, {**only(gradients), "others": jnp.full(1, others)}
    optimizer = build_optimizer(config.optimizer)
    updates, _ = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p))(slopes, few)
    changes = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(updates)}
    return jax.tree_util.tree_map_with_path(lambda k, x: changes.get(path_name(k), np.zeros_like(x)), params)

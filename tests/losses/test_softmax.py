"""The class loss of models with learned queries, whose last column says "no object"."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.config import DecoderConfig, DenoisingConfig, LossConfig, ModelConfig
from maskdino_jax.losses.criterion import criterion_at, match_all
from maskdino_jax.structures import DenoisingPlan, TrainOutputs
from tests.losses.scenes import CLASSES, make_outputs, make_targets

LOSS = LossConfig(num_points=16)
MODEL = ModelConfig(
    class_scores="softmax", decoder=DecoderConfig(query_source="learned"), denoising=DenoisingConfig(mode="masks")
)
PLAN = DenoisingPlan(
    target=jnp.array([0, 1, 0]),
    group=jnp.array([0, 0, 1]),
    active=jnp.array([True, True, False]),
    known=jnp.array([[True, True, False], [True, False, False]]),
    num_groups=jnp.int32(1),
)


def points(use: str, image: jax.Array, index: jax.Array, count: int) -> jax.Array:
    return jax.random.uniform(jax.random.fold_in(jax.random.key(len(use)), index), (count, 2))


@pytest.fixture(scope="module")
def scene() -> tuple:
    outputs, targets = make_outputs(plan=PLAN), make_targets([2, 1], n=2)
    decoder_sets = jax.tree.map(lambda x: x[:-1], outputs.matching)  # the last one would be the encoder's
    return (
        dataclasses.replace(outputs, matching=decoder_sets),
        dataclasses.replace(targets, labels=targets.labels % (CLASSES - 1)),
    )


def _terms(outputs: TrainOutputs, targets, counts: tuple[int, ...] = (2, 1)) -> dict[str, float]:
    run = jax.jit(lambda x, y: criterion_at(x, y, jnp.arange(2), points, LOSS, MODEL, counts=jnp.array(counts))[1])
    return {name: float(value) for name, value in run(outputs, targets).items()}


@pytest.fixture(scope="module")
def terms(scene) -> dict[str, float]:
    return _terms(*scene)


def _by_hand(logits: np.ndarray, labels: np.ndarray, counted: np.ndarray) -> float:
    """Four times the mean of -ln p, in which "no object" counts a tenth."""
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    weights = np.where(labels == CLASSES - 1, 0.1, 1.0) * counted
    entropy = -np.log(np.take_along_axis(p, labels[..., None], axis=-1)[..., 0])
    return 4 * (weights * entropy).sum() / weights.sum()


def test_class_term_is_a_weighted_mean_over_queries(scene, terms) -> None:
    outputs, targets = scene
    matches = match_all(outputs.matching, targets, outputs.mask_features, jnp.arange(2), points, LOSS)
    labels = np.full(outputs.matching.logits.shape[1:3], CLASSES - 1)
    for b, query, valid in zip(range(2), np.asarray(matches.query[-1]), np.asarray(matches.valid[-1]), strict=True):
        labels[b, query[valid]] = np.asarray(targets.labels)[b, valid]
    expected = _by_hand(np.asarray(outputs.matching.logits[-1], np.float64), labels, np.ones_like(labels))
    assert terms["loss_ce"] == pytest.approx(expected, rel=1e-5)


def test_denoising_slots_without_a_target_answer_no_object_and_inactive_ones_nothing(scene, terms) -> None:
    outputs, targets = scene
    own = np.asarray(targets.labels)
    labels = np.array([[own[0, 0], own[0, 1], 0], [own[1, 0], CLASSES - 1, 0]])
    counted = np.array([[1, 1, 0], [1, 1, 0]])
    expected = _by_hand(np.asarray(outputs.denoising.logits[-1], np.float64), labels, counted)
    assert terms["loss_ce_dn"] == pytest.approx(expected, rel=1e-5)


def test_learned_queries_have_no_encoder_set_and_no_loss_for_slots_that_met_no_layer(terms) -> None:
    suffixes = {name.removeprefix("loss_ce") for name in terms if name.startswith("loss_ce")}
    assert suffixes == {"", "_0", "_dn"}


def test_parts_of_a_batch_share_the_mean(scene, terms) -> None:
    """Twice as many queries, answers and objects in the whole batch: this half contributes half of its own mean."""
    halves = _terms(*scene, counts=(2, 1, 2, 1))
    for name, value in terms.items():
        assert halves[name] == pytest.approx(value / 2), name

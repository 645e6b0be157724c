"""Matching and loss terms against a recorded training step of the official code."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.config import DenoisingConfig, LossConfig, ModelConfig, TermsConfig
from maskdino_jax.losses.criterion import criterion
from maskdino_jax.losses.matcher import match
from maskdino_jax.model import denoising
from maskdino_jax.structures import Predictions, Targets, TrainOutputs

pytestmark = pytest.mark.shared

STEPS = ["instance_r50", "panoptic_r50"]
SETS = [*(f"aux{i}" for i in range(9)), "final", "interm"]
SLOTS = 12
CLASSES_ONLY = TermsConfig(classification=1.0, mask=0.0, dice=0.0, box=0.0, giou=0.0)


@pytest.fixture(scope="module", params=STEPS)
def step(request, shared):
    return dict(np.load(shared / "golden" / request.param / "train_small.npz"))


@pytest.fixture(scope="module")
def targets(step):
    counts = [len(step["target/labels0"]), len(step["target/labels1"])]
    n = max(counts) + 1

    def padded(name):
        rows = [step[f"target/{name}{b}"] for b in range(2)]
        return jnp.stack([jnp.pad(x, [(0, n - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in rows])

    valid = jnp.arange(n) < jnp.array(counts)[:, None]
    return Targets(
        labels=padded("labels"), boxes=padded("boxes_cxcywh"), masks=padded("masks"), is_thing=valid, valid=valid
    )


def test_recorded_costs_give_the_recorded_assignments(step, targets):
    n = targets.valid.shape[1]
    cost = np.zeros((len(SETS), 2, 300, n), np.float32)
    for i, name in enumerate(SETS):
        for b in range(2):
            recorded = step[f"match/{name}/img{b}/cost"]
            cost[i, b, :, : recorded.shape[1]] = recorded
    matches = jax.tree.map(np.asarray, match(jnp.asarray(cost), targets.valid.sum(1)))
    for i, name in enumerate(SETS):
        for b in range(2):
            source, goal = step[f"match/{name}/img{b}/src"], step[f"match/{name}/img{b}/tgt"]
            np.testing.assert_array_equal(matches.query[i, b][goal], source, err_msg=f"{name} image {b}")
            assert matches.valid[i, b].sum() == len(goal)


def _matching(step) -> Predictions:
    """Recorded boxes with class logits that are sure of the recorded assignment (the recorded logits are a sample)."""
    classes = step["out_dn/final/logits"].shape[-1]
    logits = np.full((len(SETS), 2, 300, classes), -10, np.float32)
    for i, name in enumerate(SETS):
        for b in range(2):
            source, goal = step[f"match/{name}/img{b}/src"], step[f"match/{name}/img{b}/tgt"]
            logits[i, b, source, step[f"target/labels{b}"][goal]] = 10
    return Predictions(
        logits=jnp.asarray(logits),
        boxes=jnp.stack([step[f"out/{name}/boxes"] for name in SETS]),
        mask_embed=jnp.zeros((len(SETS), 2, 300, 2)),
    )


def _denoising(step) -> Predictions:
    """Recorded slots, then inactive ones with numbers that would be noticed."""
    stack = lambda kind: np.stack([step[f"out_dn/{name}/{kind}"] for name in SETS[:-1]])
    pad = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, SLOTS - x.shape[2]), (0, 0)), constant_values=3)
    boxes = pad(stack("boxes"))
    return Predictions(logits=pad(stack("logits")), boxes=boxes, mask_embed=jnp.zeros((*boxes.shape[:-1], 2)))


def test_box_terms_of_all_sets_and_class_terms_of_denoising_match_the_record(step, targets):
    for b in range(2):
        assert len(set(step[f"target/labels{b}"])) == len(step[f"target/labels{b}"])  # else the logits are ambiguous
    plan = denoising.plan(targets.valid, SLOTS, targets.valid.sum(axis=1).max())
    assert int(plan.num_groups) == step["dn/scalar"]
    outputs = TrainOutputs(
        matching=_matching(step), denoising=_denoising(step), plan=plan, mask_features=jnp.zeros((2, 4, 4, 2))
    )
    loss = dataclasses.replace(LossConfig(), num_points=8, costs=CLASSES_ONLY)
    model = ModelConfig(denoising=DenoisingConfig(mode="boxes"))
    keys = jax.random.split(jax.random.key(0))
    run = jax.jit(lambda x, y: criterion(x, y, keys, loss, model, counts=y.valid.sum(axis=1))[1])
    terms = run(outputs, targets)
    official = dict(zip(step["loss/names"].tolist(), step["loss/weighted"].tolist(), strict=True))
    compared = [name for name in terms if name.startswith(("loss_bbox", "loss_giou", "loss_ce_dn"))]
    assert len(compared) == 21 + 21 + 10
    for name in compared:
        np.testing.assert_allclose(terms[name], official[name], rtol=1e-5, err_msg=name)


def test_denoising_slots_of_the_recorded_step_match(step, targets):
    plan = denoising.plan(targets.valid, SLOTS, targets.valid.sum(axis=1).max())
    flip, label = np.zeros((2, SLOTS), np.float32), np.zeros((2, SLOTS), np.int32)
    box = np.zeros((2, SLOTS, 4), np.float32)
    images = np.tile(step["dn/batch_idx"], int(step["dn/scalar"]))
    where = images, step["dn/map_known_indice"]
    flip[where], label[where], box[where] = (step[f"draw/dn/{name}"] for name in ("label_p", "new_label", "bbox"))
    noise = denoising.Noise(flip=jnp.asarray(flip), label=jnp.asarray(label), box=jnp.asarray(box))
    labels, boxes = denoising.apply_noise(plan, targets, noise, 0.4)
    assert np.array_equal(np.argwhere(plan.known), np.unique(np.stack(where, 1), axis=0))
    pad = int(step["dn/pad_size"])
    anchors = np.where(np.asarray(plan.known)[..., None], np.log(boxes / (1 - boxes)), 0)[:, :pad]
    np.testing.assert_allclose(anchors, step["dn/query_bbox"], atol=2e-6)
    blocked = np.asarray(denoising.attention_mask(plan, 300))
    used = np.r_[:pad, SLOTS : SLOTS + 300]
    np.testing.assert_array_equal(blocked[np.ix_(used, used)], step["dn/attn_mask"])
    assert int(labels.max()) < step["out_dn/final/logits"].shape[-1]

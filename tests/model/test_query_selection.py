"""Query selection: proposals, ties, and mask-enhanced anchors."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.model.heads import PredictionHeads, mask_logits
from maskdino_jax.model.keys import Keys
from maskdino_jax.model.levels import Levels
from maskdino_jax.model.query_selection import QuerySelection, proposals
from maskdino_jax.ops.boxes import logit, masks_to_boxes


@pytest.mark.parametrize("case", ["low2high", "5l"])
def test_proposals_equal_the_recording(golden: Path, case: str) -> None:
    recorded = np.load(golden / "unit/position.npz")
    sizes = tuple(tuple(row) for row in recorded[f"proposals_{case}/shapes"].tolist())
    before, valid = (values[0] for values in proposals(Levels(sizes)))
    expected = recorded[f"proposals_{case}/output_proposals"][0]
    np.testing.assert_array_equal(np.isinf(before), np.isinf(expected))
    inside = ~np.isinf(expected)
    np.testing.assert_allclose(before[inside], expected[inside], atol=2e-6)
    np.testing.assert_array_equal(valid, inside.all(axis=-1))


def _select(box_init: str, num_queries: int = 4):
    levels = Levels(((2, 2), (4, 4)))
    selection = QuerySelection(32, num_queries, box_init, dtype=jnp.float32, rngs=Keys(0))
    heads = PredictionHeads(32, 3, rngs=Keys(1))
    memory = jax.random.normal(jax.random.key(0), (2, 20, 32))
    features = jax.random.normal(jax.random.key(1), (2, 8, 8, 32))
    return selection(memory, levels, features, heads), features


def test_queries_come_best_first() -> None:
    selection, _ = _select("none")
    heads = PredictionHeads(32, 3, rngs=Keys(1))
    scores = np.asarray(heads.class_embed(selection.content)).max(axis=-1)
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("kind", ["bitmask", "mask2box"])
def test_mask_enhanced_anchors_are_the_boxes_of_the_predicted_masks(kind: str) -> None:
    selection, features = _select(kind)
    masks = mask_logits(selection.predictions.mask_embed, features) > 0
    expected = logit(masks_to_boxes(masks, kind))
    np.testing.assert_allclose(np.asarray(selection.anchors), np.asarray(expected), atol=1e-5)
    plain, _ = _select("none")
    np.testing.assert_allclose(np.asarray(selection.predictions.boxes), np.asarray(plain.predictions.boxes))


def test_more_queries_than_tokens_is_an_error_that_names_both() -> None:
    with pytest.raises(ValueError, match=r"num_queries = 21.*only\s+20 tokens"):
        _select("none", num_queries=21)

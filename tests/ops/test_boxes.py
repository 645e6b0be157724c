"""Box arithmetic against recorded tensors, hand-worked values and laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.ops import boxes as ops


@pytest.fixture(scope="module")
def recorded(golden):
    return dict(np.load(golden / "unit" / "boxes.npz"))


def test_box_formats_and_giou_match_the_official_code(recorded):
    first, second = jnp.asarray(recorded["iou/cxcywh1"]), jnp.asarray(recorded["iou/cxcywh2"])
    corners = ops.cxcywh_to_xyxy(first)
    np.testing.assert_allclose(corners, recorded["iou/xyxy1"], atol=1e-7)
    np.testing.assert_allclose(ops.xyxy_to_cxcywh(corners), recorded["iou/back"], atol=1e-7)
    overlap = ops.pairwise_giou(corners, ops.cxcywh_to_xyxy(second))
    np.testing.assert_allclose(overlap, recorded["iou/giou"], atol=1e-6)


def test_gradient_of_giou_matches_the_official_code(recorded):
    second = jnp.asarray(recorded["iou/xyxy2"])
    scalar = lambda x: jnp.sum(ops.pairwise_giou(x, second) * recorded["iou/cotangent"])
    gradient = jax.grad(scalar)(jnp.asarray(recorded["iou/xyxy1"]))
    np.testing.assert_allclose(gradient, recorded["iou/grad_xyxy1"], atol=1e-5)


def test_giou_of_two_unit_squares_with_a_gap_of_one_is_minus_a_third():
    a, b = jnp.array([0.0, 0, 1, 1]), jnp.array([2.0, 0, 3, 1])
    assert float(ops.giou(a, b)) == pytest.approx(-1 / 3, abs=1e-5)  # no overlap, union 2, hull 3


def test_giou_and_its_gradient_are_zero_sized_safe():
    empty = jnp.zeros(4)
    value, gradient = jax.value_and_grad(lambda x: ops.giou(x, empty))(empty)
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, 0)


def test_pairwise_giou_is_the_broadcast_of_elementwise_giou():
    draw = np.random.default_rng(0).random((5, 4), np.float32)
    draw[:, 2:] += draw[:, :2]
    draw = jnp.asarray(draw)
    pairs = ops.pairwise_giou(draw[:3], draw[3:])
    for i in range(3):
        for j in range(2):
            np.testing.assert_allclose(pairs[i, j], ops.giou(draw[i], draw[3 + j]), rtol=1e-6)


def test_logit_inverts_the_sigmoid_and_is_bounded_beyond_the_image():
    x = jnp.linspace(-5, 5, 11)
    np.testing.assert_allclose(ops.logit(jax.nn.sigmoid(x)), x, atol=1e-4)
    bound = np.log(1e5)
    np.testing.assert_allclose(ops.logit(jnp.array([-3.0, 0, 1, 7])), [-bound, -bound, bound, bound], rtol=1e-5)


@pytest.mark.parametrize(("kind", "corners"), [("bitmask", "bitmask_xyxy"), ("mask2box", "xyxy")])
def test_boxes_around_masks_match_the_official_code(recorded, kind, corners):
    masks = jnp.asarray(recorded["masks_to_boxes/masks"])
    height, width = masks.shape[-2:]
    boxes = ops.masks_to_boxes(masks, kind)
    expected = recorded[f"masks_to_boxes/{corners}"]
    pixels = ops.cxcywh_to_xyxy(boxes) * np.array([width, height, width, height])
    np.testing.assert_allclose(pixels, expected, rtol=1e-6, atol=1e-5)
    anchors = recorded[f"masks_to_boxes/{kind}_refpoint_unsigmoid"]
    np.testing.assert_allclose(ops.logit(boxes), anchors, atol=1e-5)


def test_boxes_around_a_batch_of_masks_are_those_of_each_mask(recorded):
    masks = jnp.asarray(recorded["masks_to_boxes/masks"])
    together = ops.masks_to_boxes(masks.reshape(2, 3, *masks.shape[1:]), "bitmask")
    np.testing.assert_array_equal(together.reshape(6, 4), ops.masks_to_boxes(masks, "bitmask"))


def test_a_single_pixel_has_size_one_as_bitmask_and_none_as_mask2box():
    masks = jnp.zeros((1, 4, 8), bool).at[0, 2, 5].set(True)
    np.testing.assert_allclose(ops.masks_to_boxes(masks, "bitmask")[0], [5.5 / 8, 2.5 / 4, 1 / 8, 1 / 4])
    np.testing.assert_allclose(ops.masks_to_boxes(masks, "mask2box")[0], [5 / 8, 2 / 4, 0, 0])


def test_an_unknown_kind_of_box_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="bitmask or mask2box"):
        ops.masks_to_boxes(jnp.zeros((1, 2, 2), bool), "tight")

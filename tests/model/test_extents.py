"""An image on a larger canvas, whose rest is masked, is predicted as on a canvas of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.config import Config, backbone, tiny
from maskdino_jax.model import ModelSpec
from maskdino_jax.model.keys import Keys
from maskdino_jax.model.layers import by_blocks
from maskdino_jax.model.levels import Levels
from maskdino_jax.model.pixel_decoder import PixelDecoder
from maskdino_jax.ops.extents import repeat_border
from maskdino_jax.ops.positions import map_sine_embedding
from maskdino_jax.ops.resize import resize_bilinear
from tests.weights import random_variables

SIZES = np.array([[100, 150], [140, 96]], np.int32)
EXTENTS = np.array([[128, 160], [160, 96]], np.int32)


def _spec(*, swin: bool, order: str, box_init: str) -> ModelSpec:
    config = Config()
    tiny(config)
    if swin:
        config.model.backbone = backbone("swin_t")
        config.model.backbone.depths, config.model.backbone.width = (2, 1, 1, 1), 32
    config.model.decoder.layers = 1
    config.model.encoder.order, config.model.decoder.box_init = order, box_init
    config.model.encoder.num_levels = 5  # two are rounded up where the extent is no multiple of 64 or 128
    return ModelSpec(config.model, num_classes=7)


@pytest.mark.parametrize(
    ("swin", "order", "box_init"),
    [(False, "fine_to_coarse", "bitmask"), (False, "coarse_to_fine", "mask2box"), (True, "fine_to_coarse", "none")],
)
def test_predictions_do_not_depend_on_the_canvas(swin: bool, order: str, box_init: str) -> None:
    spec = _spec(swin=swin, order=order, box_init=box_init)
    variables = random_variables(spec)
    images = np.random.default_rng(0).integers(0, 256, (2, 160, 224, 3), dtype=np.uint8)
    shared = jax.jit(lambda v, x, s, e: spec.bind(v).detect(x, s, e))(variables, images, SIZES, EXTENTS)
    alone = jax.jit(lambda v, x, s: spec.bind(v).detect(x, s))
    for i in range(1 if swin else 2):
        height, width = EXTENTS[i]
        own = alone(variables, images[i : i + 1, :height, :width], SIZES[i : i + 1])
        np.testing.assert_allclose(shared.logits[i], own.logits[0], atol=2e-4)
        np.testing.assert_allclose(shared.boxes[i], own.boxes[0], atol=2e-5)
        masks = np.asarray(shared.masks)[i, :, : height // 4, : width // 4]
        np.testing.assert_allclose(masks, own.masks[0], atol=1e-3)


def test_positions_of_an_extent_are_those_of_a_map_of_that_size() -> None:
    found = map_sine_embedding(6, 9, 16, jnp.array([[4, 5], [6, 9]]))
    np.testing.assert_allclose(found[0, :4, :5], map_sine_embedding(4, 5, 16)[0], atol=2e-6)
    np.testing.assert_allclose(found[1], map_sine_embedding(6, 9, 16)[0], atol=2e-6)


def test_centres_of_an_extent_are_shares_of_it() -> None:
    levels = Levels(((2, 4),), jnp.array([[[2, 2]]]))
    np.testing.assert_allclose(levels.centres()[0, :2], [[0.25, 0.25], [0.75, 0.25]])
    np.testing.assert_array_equal(levels.used()[0], [True, True, False, False] * 2)


def test_resizing_a_map_with_repeated_border_is_resizing_its_extent() -> None:
    maps = jax.random.normal(jax.random.key(0), (1, 5, 6, 2))
    whole = resize_bilinear(repeat_border(maps, jnp.array([[3, 4]])), (10, 12))
    np.testing.assert_allclose(whole[:, :6, :8], resize_bilinear(maps[:, :3, :4], (6, 8)), atol=1e-6)


def test_blocks_change_nothing() -> None:
    tokens = jax.random.normal(jax.random.key(0), (2, 1500, 3))  # one full block and a part
    found = jax.jit(lambda x: by_blocks(lambda y: y * 2 + y.sum(-1, keepdims=True), x))(tokens)
    np.testing.assert_allclose(found, tokens * 2 + tokens.sum(-1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_misplaced_positions_swap_the_maps_of_the_two_added_levels_but_not_their_embeddings() -> None:
    config = _spec(swin=False, order="coarse_to_fine", box_init="none").config
    config.encoder.aligned_positions = False
    channels = {f"res{level}": 8 for level in range(2, 6)}
    decoder = PixelDecoder(config, channels, dtype=jnp.float32, rngs=Keys(0))
    sizes = ((1, 2), (2, 3), (4, 6), (8, 12), (16, 24))
    sine = lambda size: map_sine_embedding(*size, config.hidden_dim)[0].reshape(-1, config.hidden_dim)
    placed = [sizes[1], sizes[0], *sizes[2:]]
    expected = [sine(size) + decoder.level_embed[level] for level, size in enumerate(placed)]
    found = decoder._positions(Levels(sizes), config.hidden_dim)[0]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-6)


def test_misplaced_positions_refuse_a_shared_canvas() -> None:
    spec = _spec(swin=False, order="coarse_to_fine", box_init="none")
    spec.config.encoder.aligned_positions = False
    images = np.zeros((2, 160, 224, 3), np.uint8)
    detect = lambda v, x, s, e: spec.bind(v).detect(x, s, e)
    with pytest.raises(ValueError, match="eval_canvas=exact"):
        jax.eval_shape(detect, random_variables(spec), images, SIZES, EXTENTS)

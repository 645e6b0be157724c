"""Test-time augmentation against sums made in NumPy, with a model that reads its masks off the pixels."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

from maskdino_jax.config import Config
from maskdino_jax.data import prepare_image
from maskdino_jax.inference.augmented import Augmented
from maskdino_jax.inference.frame import Frame
from maskdino_jax.inference.postprocess import Postprocessor
from maskdino_jax.structures import EvalBatch, Outputs
from tests.inference import reference_postprocess as reference
from tests.inference.scenes import catalog_of

FILE = (90, 133)  # height, width
LOGITS = np.array([[2, -1, -3], [-2, 1, 0], [-1, -1, 1.5]], np.float32)  # three queries, one for each colour


def config_of(class_scores: str, *sizes: int, flip: bool) -> Config:
    config = Config()
    config.inference.tasks = ("semantic",)
    config.model.class_scores = class_scores
    config.data.eval_short_side, config.data.eval_long_side = 64, 128
    config.evaluation.tta_short_sides, config.evaluation.tta_flip = sizes, flip
    config.evaluation.tta_long_side = 128
    return config


def model(images: Float[np.ndarray, "b h w 3"], extra: int = 0) -> dict[str, Any]:
    """A query for each colour, more certain to the left: a mirror image is not what it was."""
    left = 2 - 0.08 * np.arange(images.shape[2] // 4)
    masks = images[:, ::4, ::4].transpose(0, 3, 1, 2) / 16.0 - 8 + left
    logits = np.pad(LOGITS, [(0, 0), (0, extra)], constant_values=-0.5)
    return {"logits": np.stack([logits] * len(images)), "boxes": np.zeros((len(images), 3, 4)), "masks": masks}


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(*FILE, 3))
    smooth = ndimage.gaussian_filter(noise, (6, 6, 0))
    return np.uint8(np.clip(128 + 128 * smooth / smooth.std() / 2, 0, 255))


def batch_of(picture: np.ndarray, config: Config) -> EvalBatch:
    prepared = prepare_image(picture, config.data)
    filler = np.zeros_like(prepared.image)
    whole = np.array(filler.shape[:2])
    return EvalBatch(
        images=np.stack([filler, prepared.image]),
        sizes=np.stack([whole, prepared.size]),
        extents=None if prepared.extent is None else np.stack([whole, prepared.extent]),
        original_sizes=np.array([whole, FILE]),
        records=np.array([0, 5]),
        valid=np.array([False, True]),
    )


def augmented(picture: np.ndarray, config: Config) -> np.ndarray:
    extra = config.model.class_scores == "softmax"

    def predict(batch: EvalBatch) -> Outputs:
        arrays = {name: jnp.asarray(value, jnp.float32) for name, value in model(batch.images, extra).items()}
        return Outputs(**arrays, mask_features=None, proposals=None, heads=None)

    averaged = Augmented(predict, Postprocessor(catalog_of(0, 0, 0), config), config)
    [pending] = averaged.begin(batch_of(picture, config))
    assert pending.record == 5
    return averaged.finish(pending).semantic


def by_hand(picture: np.ndarray, config: Config) -> np.ndarray:
    """The official order of work: resize for the test, resize again, mirror, predict, mirror back, add up."""
    first = Image.fromarray(picture).resize((95, 64), Image.Resampling.BILINEAR)
    total = 0
    for side in config.evaluation.tta_short_sides:
        width = int(95 * side / 64 + 0.5)
        again = np.asarray(first.resize((width, side), Image.Resampling.BILINEAR))
        for mirrored in (False, True) if config.evaluation.tta_flip else (False,):
            canvas = np.zeros((-(-side // 32) * 32, -(-width // 32) * 32, 3), np.uint8)
            canvas[:side, :width] = again[:, ::-1] if mirrored else again
            masks = model(canvas[None])["masks"][0].astype(np.float32)
            scores = class_map(masks, Frame((side, width), FILE, canvas.shape[:2]), config)
            total = total + (scores[..., ::-1] if mirrored else scores)
    return total.argmax(axis=0)


def class_map(masks: np.ndarray, frame: Frame, config: Config) -> np.ndarray:
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    weights = np.exp(sigmoid(LOGITS) / config.inference.temperature)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.tensordot(weights.T, sigmoid(reference.enlarge(masks, frame)), axes=1)


@pytest.mark.parametrize("canvas", ["exact", "bucketed"])
@pytest.mark.parametrize(("sizes", "flip"), [((64,), True), ((48, 80), False), ((33, 64, 85), True)])
def test_the_sum_over_sizes_and_mirror_images(picture, sizes, flip, canvas):
    config = config_of("sigmoid", *sizes, flip=flip)
    config.data.eval_canvas = canvas
    found, expected = augmented(picture, config), by_hand(picture, config)
    assert np.unique(expected).tolist() == [0, 1, 2]
    assert (found != expected).mean() < 1e-3, "rounding may decide between two classes"


def test_mirror_images_make_a_difference(picture):
    """So that the test before this one is worth something."""
    once, both = (config_of("sigmoid", 64, flip=flip) for flip in (False, True))
    assert (by_hand(picture, once) != by_hand(picture, both)).mean() > 0.02


@pytest.mark.parametrize("class_scores", ["sigmoid", "softmax"])
def test_the_size_of_the_test_alone_is_no_augmentation(picture, class_scores):
    config = config_of(class_scores, 64, flip=False)
    processor = Postprocessor(catalog_of(0, 0, 0), config)
    batch = batch_of(picture, config)
    arrays = model(batch.images, class_scores == "softmax")
    outputs = Outputs(
        **{name: jnp.asarray(value, jnp.float32) for name, value in arrays.items()},
        mask_features=None,
        proposals=None,
        heads=None,
    )
    [pending] = processor.begin(outputs, batch)
    np.testing.assert_array_equal(augmented(picture, config), processor.finish(pending).semantic)


def test_a_symmetric_model_finds_the_mirror_image_of_a_mirror_image(picture):
    for class_scores in ("sigmoid", "softmax"):
        config = config_of(class_scores, 64, 80, flip=True)
        mirrored = augmented(np.ascontiguousarray(picture[:, ::-1]), config)[:, ::-1]
        assert (augmented(picture, config) != mirrored).mean() < 2e-3

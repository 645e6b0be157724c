"""A predictor that finds something in every image, quickly."""

import numpy as np
import pytest

from maskdino_jax.config import Config
from maskdino_jax.inference.results import Instances, Panoptic, PanopticSegment, Segments
from maskdino_jax.serve import Gallery
from tests.inference.scenes import catalog_of

CATALOG = catalog_of(True, True, False)


class TwoHalves:
    """The left half of every image is an object with score 0.9, the right half one with score 0.4."""

    def __init__(self) -> None:
        self.config = Config()
        self.catalog = CATALOG
        self.calls = 0
        self.masks = True

    def __call__(self, pixels: np.ndarray, *, score_threshold: float) -> Segments:
        assert score_threshold == 0  # everything, so that the threshold can move without the model
        self.calls += 1
        height, width = pixels.shape[:2]
        left = np.zeros((height, width), bool)
        left[:, : width // 2] = True
        fields = {
            "scores": np.array([0.9, 0.4], np.float32),
            "labels": np.array([0, 1], np.int32),
            "boxes": np.array([[0, 0, width // 2, height], [width // 2, 0, width, height]], np.float32),
            "queries": np.array([0, 1], np.int32),
        }
        if not self.masks:
            return Segments(catalog=CATALOG, instances=Instances(bits=None, width=width, **fields))
        regions = [
            PanopticSegment(id=number + 1, label=number, is_thing=True, score=score, area=int(mask.sum()))
            for number, (score, mask) in enumerate([(0.9, left), (0.4, ~left)])
        ]
        return Segments(
            catalog=CATALOG,
            instances=Instances.from_masks(np.stack([left, ~left]), **fields),
            panoptic=Panoptic(np.where(left, 1, 2).astype(np.int32), tuple(regions)),
            semantic=np.where(left, 0, 2).astype(np.int32),
        )


@pytest.fixture
def predictor() -> TwoHalves:
    return TwoHalves()


@pytest.fixture
def gallery(predictor: TwoHalves) -> Gallery:
    return Gallery(predictor)

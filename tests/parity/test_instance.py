"""The ResNet-50 model of instances against recordings of the official implementation, in float32 and in bfloat16."""

import functools
from pathlib import Path

import numpy as np
import pytest

from tests.parity import stages
from tests.parity.cases import StageTests, recorded_run


class TestInstance(StageTests):
    name = "instance_r50"


@functools.cache
def _bfloat16_run(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    recording, float32, _ = recorded_run("instance_r50", folder)
    return float32, stages.run_bfloat16(recording, float32)


class TestBfloat16:
    """Rounding to 8 bits must not add up: the model in bfloat16 beside the float32 one, which equals the recordings.

    Errors are root mean squares: single values near a kink (a ReLU, the border of a map) move more. The decoder begins
    with the queries of the float32 run, because it is no error of a stage which of two nearly equal scores is larger.
    """

    @pytest.fixture
    def case(self, golden: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        return _bfloat16_run(golden)

    @pytest.mark.parametrize("stage", stages.STAGES)
    def test_stage_is_near_float32(self, case: tuple, stage: str) -> None:
        float32, found = case
        errors = stages.typical_errors(found, float32, stage)
        assert errors
        assert all(error < 3e-2 for error in errors.values()), errors

    def test_the_maps_are_rounded(self, case: tuple) -> None:
        float32, found = case
        assert stages.typical_errors(found, float32, "backbone")["backbone/res2"] > 2e-3

    def test_boxes_and_scores_are_usable(self, case: tuple) -> None:
        float32, found = case
        moved = np.abs(found["out/boxes9"] - float32["out/boxes9"])
        assert moved.max() < 0.03  # of a side of the image
        assert stages.score_error(found, float32) < 0.06

    def test_nearly_the_same_tokens_have_the_best_scores(self, case: tuple) -> None:
        float32, found = case
        best = np.argsort(-found["enc/score"], axis=1)[:, :300]
        for ours, theirs in zip(best, float32["enc/topk"], strict=True):
            assert len(np.intersect1d(ours, theirs)) >= 285

"""The model in bfloat16 beside the float32 recordings: rounding to 8 bits must not add up.

Errors are root mean squares relative to that of the values: single values near a kink (a ReLU, a border of a map, a
pixel that enters a mask) move more. The selected tokens and first boxes are the recorded ones, since which of two
nearly equal scores is the larger is no error of a stage; another test bounds how many selections differ.
"""

import functools
from pathlib import Path

import numpy as np
import pytest

from tests.parity import stages
from tests.parity.official import Recording

TOLERANCE = 3e-2


@functools.cache
def bfloat16_run(folder: Path) -> tuple[Recording, dict[str, np.ndarray]]:
    recording = Recording.load("instance_r50", sorted(folder.glob("instance_r50/eval_*.npz")))
    found, _ = stages.run_bfloat16(recording)
    return recording, found


@pytest.fixture
def case(golden: Path) -> tuple[Recording, dict[str, np.ndarray]]:
    return bfloat16_run(golden)


@pytest.mark.parametrize("stage", stages.STAGES)
def test_stage_agrees_with_the_recording(case: tuple, stage: str) -> None:
    recording, found = case
    errors = stages.errors(found, recording.arrays, stage, stages.typical_error)
    assert errors
    assert all(error < TOLERANCE for error in errors.values()), errors
    if stage not in ("input", "decoder input"):
        assert max(errors.values()) > 1e-4  # it is bfloat16


def test_boxes_and_scores_are_usable(case: tuple) -> None:
    recording, found = case
    assert np.abs(found["out/boxes9"] - recording.arrays["out/boxes9"]).max() < 0.03  # of the side of the image
    assert stages.score_error(found, recording) < 0.06


def test_nearly_the_same_tokens_are_selected(case: tuple) -> None:
    recording, found = case
    for ours, theirs in zip(
        np.argsort(-found["enc/score"], axis=1)[:, :300], recording.arrays["enc/topk"], strict=True
    ):
        assert len(np.intersect1d(ours, theirs)) >= 285

"""Swin Transformer models against recordings of the official implementation."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from maskdino_jax.structures import Outputs
from tests.parity.cases import StageTests, recorded_run
from tests.parity.official import Recording, recorded_state_dict


class TestPanopticSwinT(StageTests):
    name = "panoptic_swint"


class _Shared(StageTests):
    @pytest.fixture
    def case(self, shared: Path) -> tuple[Recording, dict[str, np.ndarray], Outputs]:
        return recorded_run(self.name, shared / "golden/swin")


@pytest.mark.slow
@pytest.mark.shared
class TestInstanceSwinT(_Shared):
    name = "instance_swint"


@pytest.mark.slow
@pytest.mark.shared
class TestPanopticSwinL(_Shared):
    name = "panoptic_swinl"

    def test_the_weights_are_the_recorded_ones(self, case: tuple, shared: Path) -> None:
        recording, *_ = case
        checks = json.loads((shared / "golden/weights_check.json").read_text())["panoptic_swinl"]
        names = [
            name for name in recording.shapes() if name.startswith(("backbone.layers.2.blocks.17", "sem_seg_head"))
        ]
        weights = recorded_state_dict({name: recording.shapes()[name] for name in names})
        assert weights
        for name, expected in checks["crc32_of_float32_bytes"].items():
            if name in weights:
                assert zlib.crc32(weights[name].tobytes()) == expected, name

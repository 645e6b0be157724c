"""Swin Transformer models against recordings of the official implementation."""

from pathlib import Path

import numpy as np
import pytest

from maskdino_jax.structures import Outputs
from tests.parity.cases import StageTests, recorded_run
from tests.parity.official import Recording


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

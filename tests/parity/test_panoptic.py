"""The ResNet-50 model of things and stuff against recordings of the official implementation."""

from tests.parity.cases import StageTests


class TestPanoptic(StageTests):
    name = "panoptic_r50"

"""ResNet-50 models of things, and of things and stuff, against recordings of the official implementation."""

from tests.parity.cases import StageTests


class TestInstance(StageTests):
    name = "instance_r50"


class TestPanoptic(StageTests):
    name = "panoptic_r50"

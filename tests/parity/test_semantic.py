"""The ResNet-50 model of semantic segmentation against recordings of the official implementation."""

from tests.parity.cases import StageTests


class TestSemantic(StageTests):
    name = "semantic_r50"

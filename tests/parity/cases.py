"""The tests that every recorded model passes; `test_*.py` beside this file name the models."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest

from maskdino_jax.structures import Outputs
from tests.parity import stages
from tests.parity.official import Recording
from tests.parity.postprocessing import instance_errors, results

TOLERANCE = 1e-4  # of the largest value of each array; the official float32 and float64 runs differ by up to 1e-5
# Two float32 programs may round a mask logit of nearly zero to different sides; the official float32 and float64 runs
# differ in up to 6 of the millions of pixels of an image's masks, and in one pixel of a panoptic map.
FLIPPED_IN_MASKS, FLIPPED_IN_MAP = 12, 3
_TWO_STAGE = ("proposals", "selection scores", "selected tokens")  # learned queries have none of them


@functools.cache
def recorded_run(name: str, folder: Path) -> tuple[Recording, dict[str, np.ndarray], Outputs]:
    """A recording and what our model makes of it, computed once for all tests of a file."""
    recording = Recording.load(name, sorted(folder.glob(f"{name}/eval_*.npz")) or sorted(folder.glob(f"{name}_eval_*")))
    return recording, *stages.run(recording)


class StageTests:
    """Each stage of one model in float32 against the recording of the official implementation."""

    name: str

    @pytest.fixture
    def case(self, golden: Path) -> tuple[Recording, dict[str, np.ndarray], Outputs]:
        return recorded_run(self.name, golden)

    @pytest.mark.parametrize("stage", stages.STAGES)
    def test_stage_agrees_with_the_recording(self, case: tuple, stage: str) -> None:
        recording, found, _ = case
        errors = stages.errors(found, recording.arrays, stage)
        learned = recording.config().model.decoder.query_source == "learned"
        assert bool(errors) == (stage not in _TWO_STAGE or not learned)
        assert all(error < TOLERANCE for error in errors.values()), errors

    def test_every_recorded_array_belongs_to_a_stage(self, case: tuple) -> None:
        recording, *_ = case
        unused = r"pixel/pos\d|decoder/spatial_shapes|decoder/ref9"  # of other tests, or of no use to the model
        others = re.compile(
            rf"input/image\d|input/out_size|enc/topk|post\d/.*|{unused}|" + "|".join(stages.STAGES.values())
        )
        assert [name for name in recording.arrays if not others.fullmatch(name)] == []

    def test_the_decoder_starts_from_the_recorded_tokens_in_their_order(self, case: tuple) -> None:
        recording, found, _ = case
        if "enc/topk" in recording.arrays:
            rows = recording.arrays["enc/topk"][..., None]
            np.testing.assert_array_equal(
                found["decoder/tgt0"], np.take_along_axis(found["enc/output_memory"], rows, axis=1)
            )
        else:
            np.testing.assert_array_equal(found["decoder/tgt0"][0], found["decoder/tgt0"][1])

    def test_instances_of_both_images(self, case: tuple) -> None:
        recording, _, outputs = case
        config = recording.config()
        if "instance" in config.inference.tasks:
            for i, found in enumerate(results(recording, outputs, config)):
                errors = instance_errors(found, recording.part(f"post{i}/instances/"))
                assert errors.scores < TOLERANCE
                assert errors.boxes < 1e-2
                assert errors.flipped <= FLIPPED_IN_MASKS

    @pytest.mark.parametrize(("name", "thresholds"), [("panoptic", (0.25, 0.8)), ("panoptic_relaxed", (0.1, 0.3))])
    def test_panoptic_maps_of_both_images(self, case: tuple, name: str, thresholds: tuple[float, float]) -> None:
        recording, _, outputs = case
        config = recording.config()
        if "panoptic" in config.inference.tasks:
            official = config.inference.object_threshold, config.inference.overlap_threshold
            assert name != "panoptic" or official == thresholds
            config.inference.object_threshold, config.inference.overlap_threshold = thresholds
            for i, found in enumerate(results(recording, outputs, config)):
                segments = [[segment.id, segment.label, segment.is_thing] for segment in found.panoptic.segments]
                assert segments == recording.arrays[f"post{i}/{name}/info"].tolist()
                assert (found.panoptic.ids != recording.arrays[f"post{i}/{name}/seg"]).sum() <= FLIPPED_IN_MAP

    def test_semantic_maps_of_both_images(self, case: tuple) -> None:
        recording, _, outputs = case
        config = recording.config()
        if "semantic" in config.inference.tasks:
            for i, found in enumerate(results(recording, outputs, config)):
                assert (found.semantic != recording.arrays[f"post{i}/sem_seg_argmax"]).sum() <= FLIPPED_IN_MAP

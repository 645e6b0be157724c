"""What post-processing of an image needs on the device, as the compiler has it."""

import functools

import jax
import numpy as np
import pytest
from jax import ShapeDtypeStruct

from maskdino_jax.inference import segment
from maskdino_jax.inference.frame import Frame

SIDE, CLASSES = 256, 20
PIXELS = 4 * SIDE**2  # bytes of float32
PROGRAMS = {
    "instance": functools.partial(segment.instances, top=100),
    "panoptic": functools.partial(segment.contest, threshold=0.25, temperature=0.06),
    "semantic": functools.partial(segment.classes_before, temperature=0.06),
}


def temporary(task: str, queries: int) -> int:
    """Bytes besides arguments and results."""
    shapes = {"logits": (queries, CLASSES), "masks": (queries, SIDE // 4, SIDE // 4)}
    if task == "instance":
        shapes["boxes"] = (queries, 4)
    arrays = {name: ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    if task == "instance":
        arrays["allowed"] = np.ones(CLASSES, bool)
    sides = (SIDE, SIDE)
    taps = Frame(sides, sides, sides).to_original(sides)
    program = jax.jit(PROGRAMS[task]).lower(**arrays, to_original=taps).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_memory_does_not_depend_on_the_number_of_queries(task):
    few, many = temporary(task, 100), temporary(task, 900)
    assert many < 1.02 * few
    assert few < 50 * PIXELS, "masks of 100 queries at the size of the image would be 100 of these"


def test_semantic_maps_need_one_or_two_copies_of_the_mask_logits_and_nothing_larger():
    """Two with jax 0.12. The logits have a sixteenth of the pixels: masks at the size of the image would be 16."""
    few, many = temporary("semantic", 100), temporary("semantic", 900)
    assert many - few < 2.1 * 800 * PIXELS / 16

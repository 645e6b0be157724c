"""The audit of a training step: its counters on programs worked by hand, then the step itself."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import audit, cost_model
from benchmarks.train_step import TYPICAL_ROWS, flops, one_device, report, trace
from configs.coco_instance import get_config
from maskdino_jax.config import Config, tiny
from maskdino_jax.train.memory import compile_step


def _flops(function: Any, *shapes: tuple[int, ...], turns: int = 1) -> int:
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return audit.flops(jax.make_jaxpr(function)(*arrays).jaxpr, turns)


def _both(function: Any, *arrays: Any) -> tuple[Any, Any]:
    """The compiled program and the jaxpr."""
    traced = jax.jit(function).trace(*arrays)
    return traced.lower().compile(), traced.jaxpr.jaxpr


def test_a_product_counts_two_for_each_multiplication() -> None:
    assert _flops(jnp.matmul, (5, 2, 3), (5, 3, 7)) == 2 * 5 * 2 * 3 * 7


def test_loops_count_each_turn_and_choices_their_costlier_branch() -> None:
    square = lambda x: x @ x
    once = 2 * 4**3
    assert _flops(lambda x: jax.lax.fori_loop(0, 6, lambda _, x: square(x), x), (4, 4)) == 6 * once
    until = lambda x: jax.lax.fori_loop(0, jnp.int32(x[0, 0]), lambda _, x: square(x), x)
    assert _flops(until, (4, 4), turns=9) == 9 * once
    choose = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: square(square(x)), square, x)
    assert _flops(choose, (4, 4)) == 2 * once
    assert _flops(jax.checkpoint(jax.jit(square)), (4, 4)) == once


def test_a_strided_convolution_and_its_gradients_multiply_the_same_pairs() -> None:
    """3 x 3 with stride 2 and padding 1 on 8 x 8: 4 x 4 results; the first row and column lack one tap of three."""
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(2, 2),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    shapes = ((2, 8, 8, 5), (3, 3, 5, 7))
    forward = 2 * (4 * 3 - 1) ** 2 * 2 * 5 * 7
    assert _flops(convolve, *shapes) == forward
    step = jax.grad(lambda x, w: jnp.sum(convolve(x, w) ** 2), argnums=(0, 1))
    assert _flops(step, *shapes) == 3 * forward


def test_the_largest_gather_sort_and_choice_are_found() -> None:
    rows, index = jnp.zeros((50, 8)), jnp.array([3, 1, 4, 1, 5])
    for program in _both(lambda rows, i: (rows[i], rows[0][i % 8], jnp.sort(rows[:, 0]), jnp.sort(i)), rows, index):
        assert audit.largest_gather(program).size == 5 * 8 * 4
        assert audit.largest_sort(program).size == 50
    _, jaxpr = _both(lambda rows: jax.lax.top_k(rows.reshape(-1), 3), rows)
    assert audit.largest_sort(jaxpr).size == 400
    assert "test_audit.py" in audit.largest_sort(jaxpr).where
    for program in _both(jnp.sin, rows):
        assert audit.largest_gather(program).size == audit.largest_sort(program).size == 0


@pytest.mark.parametrize("count", [0, 2])
def test_host_callbacks_are_counted(count: int) -> None:
    def call(x: jax.Array) -> jax.Array:
        for number in range(count):
            x = jax.pure_callback(lambda x, number=number: np.asarray(x) + number, x, x)
        return x

    for program in _both(call, jnp.zeros(3)):
        assert audit.host_callbacks(program) == count


def test_the_model_of_the_cost_is_the_sum_worked_by_hand() -> None:
    """ResNet-50 at 1024 x 1024 in GFLOP: 21,760 tokens of 256 channels, 65,536 mask pixels."""
    stages = {name: stage.flops / 1e9 for name, stage in cost_model.train_step(get_config("r50"), 400).items()}
    assert stages["backbone"] == pytest.approx(2 * 4.09 * (1024 / 224) ** 2, rel=0.01)  # 4.09 G products at 224 x 224
    assert stages["encoder, feed-forward"] == pytest.approx(6 * 4 * 21760 * 256 * 2048 / 1e9)
    assert stages["masks of rows"] == pytest.approx(400 * 2 * 65536 * 256 / 1e9)
    assert stages["matching, mask logits"] == pytest.approx(11 * 2 * 300 * 12544 * 256 / 1e9)
    assert sum(stages.values()) == pytest.approx(718, abs=1)


def _assert_within_bounds(program: Any) -> None:
    """Nothing that does not fit, no sort of all points, and the host is asked once."""
    gather, sort = audit.largest_gather(program), audit.largest_sort(program)
    assert 0 < gather.size <= 64 * 2**20, gather.where
    assert sort.size <= 1_000_000, sort.where
    assert audit.host_callbacks(program) == 1


@pytest.fixture(scope="module")
def resnet_50() -> tuple[Config, Any]:
    config = get_config("r50")
    config.train.batch_size = 1
    return config, trace(config, one_device())


def test_the_step_of_resnet_50_on_1024_pixels_costs_what_the_model_says(resnet_50: tuple[Config, Any]) -> None:
    config, traced = resnet_50
    stages = cost_model.train_step(config, TYPICAL_ROWS).values()
    should = sum(stage.flops * stage.times for stage in stages)
    assert should <= flops(traced, config, TYPICAL_ROWS, one_device()) * 1.05
    assert flops(traced, config, TYPICAL_ROWS, one_device()) <= 1.1 * should


def test_the_step_of_resnet_50_has_no_large_gather_or_sort_and_asks_the_host_once(
    resnet_50: tuple[Config, Any],
) -> None:
    _assert_within_bounds(resnet_50[1].jaxpr.jaxpr)


@pytest.mark.slow
def test_so_does_its_compiled_program(resnet_50: tuple[Config, Any]) -> None:
    config, traced = resnet_50
    _assert_within_bounds(compile_step(traced, config, one_device()))


def test_the_report_has_a_line_for_each_finding() -> None:
    config = get_config("r50")
    tiny(config)
    config.data.image_size, config.train.batch_size = (64, 64), 1
    lines = report(config, 20, one_device())
    for finding in ("operations of an image: ", "largest gather: ", "largest sort: ", "host callbacks: 1", "GiB"):
        assert finding in lines

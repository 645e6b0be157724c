"""The benchmark script runs on tiny shapes, refuses to time a CPU and refuses to time a wrong kernel."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "deform_attn.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_deform_attn", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def test_smoke_run_writes_every_measurement(benchmark, tmp_path):
    path = benchmark.main(["--smoke", f"--output={tmp_path}"])
    report = json.loads(path.read_text())
    assert report["command"] == f"python benchmarks/deform_attn.py --smoke --output={tmp_path}"
    assert {"date", "device", "driver", "versions", "warmups", "repetitions", "input_sets"} < report.keys()
    measured = {(row["name"], row["dtype"], row["pass"], row["implementation"]) for row in report["results"]}
    both = ("forward", "forward+backward")
    assert measured == {
        (case.name, case.dtype, pass_, name)
        for case in benchmark.SMOKE_CASES
        for pass_ in both
        for name in ("pallas", "xla", "plain gather")
        if (pass_, name) != ("forward+backward", "pallas")  # the interpreted kernel has no gradient
    }
    assert all(row["median_ms"] > 0 and row["iqr_ms"] >= 0 for row in report["results"])


def test_no_gpu_no_benchmark(benchmark, tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([f"--output={tmp_path}"])
    assert "JAX sees no GPU, only 'cpu'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_wrong_implementation_is_not_timed(benchmark):
    def doubled(*args):
        return 2 * benchmark.plain_gather(*args)

    with pytest.raises(RuntimeError, match="broken is wrong"):
        benchmark.check({"broken": doubled}, benchmark.SMOKE_CASES[0], backward=False)


@pytest.mark.parametrize(("queries", "expected"), [(0, 80), (50, 50)], ids=["encoder", "decoder"])
def test_no_sample_lies_where_the_gradient_jumps(benchmark, queries, expected):
    case = benchmark.Case(name="", batch=1, queries=queries, dtype="float32", levels=((8, 8), (4, 4)))
    _, offsets, _, references, _ = (np.asarray(a, np.float64) for a in benchmark.make_inputs(case, seed=0))
    assert offsets.shape[1] == references.shape[1] == expected
    for level, (size, _) in enumerate(case.levels):
        move = offsets[:, :, :, level]
        if queries:
            move = move * references[:, :, None, None, 2:] / 8 * size
        pixels = references[:, :, None, None, :2] * size - 0.5 + move
        assert np.abs(pixels - np.round(pixels)).min() >= 1e-4

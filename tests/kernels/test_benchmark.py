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
    sys.path.insert(0, str(SCRIPT.parent))  # as it is when the script runs
    try:
        spec = importlib.util.spec_from_file_location("benchmark_deform_attn", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up there
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def test_smoke_run_writes_every_measurement_and_a_table(benchmark, tmp_path):
    path = benchmark.main(["--smoke", f"--output={tmp_path}"])
    report = json.loads(path.read_text())
    assert report["command"] == f"python benchmarks/deform_attn.py --smoke --output={tmp_path}"
    assert {"date", "device", "driver", "versions", "unit", "input_sets"} < report.keys()
    measured = {(row["name"], row["dtype"], row["pass"], row["implementation"]) for row in report["results"]}
    assert measured == {
        (case.name, case.dtype, pass_, name)
        for case in benchmark.SMOKE_CASES
        for pass_ in ("forward", "forward+backward")
        for name in ("xla", "grid sample", "one gather")
    }
    assert all(row["median_ms"] > 0 and row["iqr_ms"] >= 0 and row["ratio"] > 0 for row in report["results"])
    table = path.with_suffix(".md").read_text()
    assert table.count("| decoder | 1 | bfloat16 |") == len(report["results"])
    assert report["command"] in table


@pytest.mark.parametrize("mode", [[], ["--sweep"]])
def test_no_gpu_no_benchmark(benchmark, tmp_path, capsys, mode):
    with pytest.raises(SystemExit):
        benchmark.main([*mode, f"--output={tmp_path}"])
    assert "JAX sees no GPU, only 'cpu'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_wrong_implementation_is_not_timed(benchmark):
    def doubled(*args):
        return 2 * benchmark.plain_gather(*args)

    with pytest.raises(RuntimeError, match="broken is wrong"):
        benchmark.check({"broken": doubled}, benchmark.SMOKE_CASES[0], backward=False)


def test_floor_of_the_encoder_is_that_of_its_cache_lines_and_additions(benchmark):
    encoder = benchmark.Case(name="", batch=16, queries=0, dtype="bfloat16")
    rows = 16 * 21760 * 8 * 16 * 4  # images, queries, heads, samples, corners
    lookups, additions = rows * 6.5 / 8 / (132 * 1.98e9), rows * 4 / (96 * 1.7e9)
    assert benchmark.floor_ms(encoder, backward=False) == pytest.approx(1000 * lookups)
    assert benchmark.floor_ms(encoder, backward=True) == pytest.approx(1000 * (lookups + additions))


def test_sweep_writes_the_fastest_tile_of_each_workload(benchmark, tmp_path, monkeypatch):
    times = iter([3.0, 1.0, 2.0, 5.0])
    monkeypatch.setattr(benchmark, "SWEEP", [(16, 1), (32, 8)])
    monkeypatch.setattr(benchmark, "check", lambda *args: None)
    monkeypatch.setattr(benchmark, "measure", lambda *args: {"pallas": {"median_ms": next(times)}})
    path = tmp_path / "tiles.json"
    benchmark.sweep(path, benchmark.SMOKE_CASES, repetitions=1)
    table = json.loads(path.read_text())
    assert table["cpu"] == table["default"] | {
        "forward, few queries": {"block": 32, "warps": 8},
        "backward, few queries": {"block": 16, "warps": 1},
    }


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

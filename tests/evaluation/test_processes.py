"""Several processes evaluate as one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from maskdino_jax.data import eval_batches, open_dataset
from tests.e2e.conftest import smallest
from tests.evaluation.shares import run


def _together(processes: int, folder: Path) -> list[dict[str, float]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder.mkdir()
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command = [sys.executable, "-m", "tests.evaluation.shares", address, str(processes)]
    running = [
        subprocess.Popen([*command, str(index), str(folder)], env=environment, cwd=Path(__file__).parents[2])
        for index in range(processes)
    ]
    assert [process.wait(timeout=300) for process in running] == [0] * processes
    return [json.loads((folder / f"metrics{index}.json").read_text()) for index in range(processes)]


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the processes would share the devices of this machine")
def test_two_processes_have_the_metrics_and_the_files_of_one(tmp_path: Path) -> None:
    whole = run(tmp_path / "one")
    assert all(0.1 < whole[name] < 0.95 for name in ("bbox/AP", "segm/AP", "panoptic_seg/PQ", "sem_seg/mIoU"))
    assert _together(2, tmp_path / "two") == [whole, whole], "all of them know everything, to the last bit"
    files = lambda name: {
        path.relative_to(tmp_path / name).as_posix(): path.read_bytes()
        for path in (tmp_path / name).rglob("*")
        if path.is_file() and not path.name.startswith("metrics")
    }
    assert len(files("one")) == 2 + 4, "two JSON and a PNG for each image"
    assert files("two") == files("one")


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_each_image_belongs_to_one_process(processes: int) -> None:
    config = smallest()
    dataset = open_dataset(config.data, "val")
    found = []
    for index in range(processes):
        with eval_batches(dataset, config, 2, process_index=index, process_count=processes) as batches:
            found += [int(record) for batch in batches for record in batch.records[batch.valid]]
    assert sorted(found) == list(range(len(dataset)))

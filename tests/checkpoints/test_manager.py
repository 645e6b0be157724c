"""A checkpoint that is damaged or cannot be written costs no more than itself."""

import json
import logging
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdino_jax.checkpoints import Checkpoints, Reader
from maskdino_jax.config import Config

CATALOG = {"categories": [{"id": 1, "name": "cell", "is_thing": True, "color": [1, 2, 3]}]}


def _state(step: int, size: int = 1000) -> dict[str, Any]:
    values = jnp.asarray(np.random.default_rng(step).normal(size=size), jnp.float32)
    return {"step": jnp.int32(step), "params": {"a": {"kernel": values}}, "opt": {"m": values + 1}}


def _abstract() -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), _state(0))


def _open(workdir: Path) -> Checkpoints:
    return Checkpoints(workdir, Config(), CATALOG)


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """With checkpoints of the steps 2 and 4."""
    checkpoints = _open(tmp_path)
    for step in (2, 4):
        checkpoints.save(_state(step), {"panoptic_seg/PQ": 0.1 * step})
    checkpoints.close()
    return tmp_path


def _cut(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        content = np.frombuffer(path.read_bytes(), np.uint8).copy()
        content[10::50] ^= 0x55
        path.write_bytes(content.tobytes())


DAMAGES: dict[str, Callable[[Path], None]] = {
    "emptied": lambda folder: [shutil.rmtree(path) for path in folder.iterdir() if path.is_dir()],
    "without parameters": lambda folder: shutil.rmtree(folder / "params"),
    "without optimizer": lambda folder: shutil.rmtree(folder / "opt"),
    "all files cut": lambda folder: _cut(folder, "**/*"),
    "parameters cut": lambda folder: _cut(folder, "params/**/*"),
    "arrays cut": lambda folder: _cut(folder, "params/**/d/*"),
    "arrays changed": lambda folder: _flip(folder, "params/**/d/*"),
    "a file gone": lambda folder: (folder / "params/manifest.ocdbt").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    workdir: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](workdir / "checkpoints/4")
    with caplog.at_level(logging.WARNING):
        checkpoints = _open(workdir)
        restored = checkpoints.restore_latest(_abstract())
    assert f"{workdir}/checkpoints/4 is damaged" in caplog.text
    assert int(restored["step"]) == 2
    np.testing.assert_array_equal(restored["params"]["a"]["kernel"], _state(2)["params"]["a"]["kernel"])
    assert (workdir / "checkpoints/4.damaged").is_dir()
    checkpoints.save(_state(4))  # the step that is done again
    checkpoints.close()
    checkpoints = _open(workdir)
    assert int(checkpoints.restore_latest(_abstract())["step"]) == 4
    checkpoints.close()


def test_if_none_can_be_read_the_newest_is_named_and_nothing_is_moved(workdir: Path) -> None:
    for step in (2, 4):
        shutil.rmtree(workdir / f"checkpoints/{step}/opt")
    checkpoints = _open(workdir)
    with pytest.raises(ValueError, match=r"checkpoints/4 cannot be read .*delete it to continue from an older one"):
        checkpoints.restore_latest(_abstract())
    checkpoints.close()
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4"]


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_an_error_and_older_ones_are_sound(workdir: Path) -> None:
    """A limit on the size of files stands in for a full disk: what writes fails in the same place."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = _open(workdir)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        checkpoints.save(_state(6, 100_000))  # written in a thread: the error comes later
        with pytest.raises(OSError, match=r"could not be written .*make room.*the same command continues"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    checkpoints = _open(workdir)
    assert int(checkpoints.restore_latest(_abstract())["step"]) == 4
    checkpoints.save(_state(6))
    checkpoints.close()
    assert _open(workdir).latest_step == 6


def test_the_best_checkpoint_outlives_restarts(tmp_path: Path) -> None:
    """Two latest ones are kept, and the best one, which an earlier process has found."""
    for step, score in ((1, 0.2), (2, 0.9), (3, 0.4), (4, 0.5), (5, 0.6), (6, 0.3)):
        checkpoints = _open(tmp_path)
        checkpoints.save(_state(step), {"panoptic_seg/PQ": score})
        checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "5", "6"]
    assert Reader(tmp_path).step == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 100_000, b"[]", b"{}", json.dumps({"config": 1, "catalog": {}, "metrics": 5}).encode()],
)
def test_a_damaged_explanation_of_the_weights_is_named(workdir: Path, content: bytes) -> None:
    (workdir / "checkpoints/4/meta/metadata").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoints/4/meta is damaged"):
        Reader(workdir)

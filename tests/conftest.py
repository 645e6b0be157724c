"""Set up JAX before anything imports it, and give every test the paths of the recorded data."""

import os

# The callback of the matcher deadlocks on jax 0.10 when there are several CPU devices and few threads.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ["JAX_PLATFORMS"] = os.environ.get("MASKDINO_TEST_PLATFORM", "cpu")

import logging
import tempfile
from pathlib import Path

import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What one test compiled, others find, also those in other processes of the same run.
    _programs = tempfile.TemporaryDirectory(prefix="maskdino-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

TESTS = Path(__file__).parent
SHARED = TESTS.parent.parent / "shared"


@pytest.fixture(autouse=True)
def absl_has_no_level() -> None:
    """What `caplog` sees must not depend on the level that an earlier test or a library gave to absl's logger."""
    logging.getLogger("absl").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of recorded tensors and samples too large for the repository."""
    if not (SHARED / "golden").is_dir():
        pytest.skip(f"no recorded tensors at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def golden() -> Path:
    """Tensors recorded from the official implementation that travel with the repository."""
    return TESTS / "golden"

"""The folder that the pages are tried in."""

from pathlib import Path

import pytest

from tests.docs import place


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `place.make` makes; to be copied, not changed."""
    return place.make(tmp_path_factory.mktemp("pages") / "place")

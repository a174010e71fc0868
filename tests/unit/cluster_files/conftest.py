"""Where the files for a cluster are, and Ray's own."""

from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def root() -> Path:
    """The clone."""
    return Path(__file__).parents[3]


@pytest.fixture(scope="session")
def cluster_files(root: Path) -> Path:
    """jobs/cluster."""
    return root / "jobs" / "cluster"


@pytest.fixture(scope="session")
def ray_files() -> Path:
    """The installed Ray, without importing it."""
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent

"""Fixtures for all tests: real files beside the repository, and a user without rights."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real images and weights; tests that need it skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("GRAFTLINE_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real images are not here ({folder}); set GRAFTLINE_SHARED_DATA")
    return folder


@pytest.fixture
def stranger() -> Iterator[Callable[[], None]]:
    """Turns this process into a user without rights, until the test ends."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    yield lambda: os.seteuid(65534)
    os.seteuid(0)

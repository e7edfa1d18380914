"""Fixtures for all tests: real files beside the repository, small disks, a user without rights."""

import os
import shutil
import subprocess
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
    folder = Path(os.environ.get("GRAFTLINE_SHARED_DATA") or default)
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


class Disks:
    """Real file systems, each as small as a test wants it."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._mounted: list[Path] = []

    def mount(self, size: str) -> Path:
        """A new file system of a size such as `256k`."""
        disk = self._folder / f"disk-{size}"
        disk.mkdir()
        _run_as_root("mount", "-t", "tmpfs", "-o", f"size={size}", "graftline-test", str(disk))
        self._mounted.append(disk)
        return disk

    def make_read_only(self, disk: Path) -> None:
        """Lets nothing be written to it any more."""
        _run_as_root("mount", "-o", "remount,ro", str(disk))

    def unmount_all(self) -> None:
        """Takes them away, also those in which a library keeps a file open."""
        for disk in self._mounted:
            _run_as_root("umount", "--lazy", str(disk))


def _run_as_root(*command: str) -> None:
    if os.geteuid() != 0 or shutil.which(command[0]) is None:
        pytest.skip("mounting a file system needs root")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    """Mounts small file systems until the test ends."""
    made = Disks(tmp_path)
    yield made
    made.unmount_all()

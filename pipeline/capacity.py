"""Whether this machine has what stages want of it, and what to do where it has not.

Memory is that of the machine, or of the container that this runs in; disk is that of every disk on
which the project has a folder.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from graftline.pipeline.past_runs import TRAINER

# Of the machine, in KiB in the first line; of the container that this runs in, in bytes.
_MEMORY, _CONTAINERS_MEMORY = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
_LESS_MEMORY = {
    "drop": "lower drop.max_pixels",
    TRAINER: "lower trainer.batch_size, image.size or trainer.workers",
}
_CLUSTER = "lower beam.parallelism, or let a cluster run the Beam stages (beam.runner)"
_LESS_DISK = {
    "drop": "put paths.spans on another disk",
    "ImportExampleGen": "set window.last",
    TRAINER: "lower trainer.feature_store_gb",
    "Pusher": "put paths.serving on another disk",
}


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage wants.

    Attributes:
        stage: its name.
        peak_mb: memory; 0: never measured.
        disk: bytes that stay, by the folder that they are written to.
    """

    stage: str
    peak_mb: float
    disk: Mapping[Path, float]

    @property
    def disk_bytes(self) -> float:
        """On all disks together."""
        return sum(self.disk.values())


def advice(needs: Sequence[Need]) -> Iterator[str]:
    """What to do about what does not fit, in sentences."""
    yield from _of_disk(needs)
    yield from _of_memory(needs)


def _of_disk(needs: Sequence[Need]) -> Iterator[str]:
    """Disk by disk: the project's folders may lie on several."""
    wanted: dict[int, list[tuple[float, str, Path]]] = {}
    for need in needs:
        for folder, size in need.disk.items():
            there = _existing(folder)
            wanted.setdefault(there.stat().st_dev, []).append((size, need.stage, there))
    for of_disk in wanted.values():
        total = sum(size for size, _, _ in of_disk)
        _, largest, folder = max(of_disk)
        free = shutil.disk_usage(folder).free
        if total > free:
            yield (
                f"The disk of {folder} does not do: {total / 1e9:.1f} GB are wanted, "
                f"{free / 1e9:.1f} are free. Most goes to {largest}: {_LESS_DISK[largest]}; and "
                "free what nothing needs with `graftline gc`."
            )


def _of_memory(needs: Sequence[Need]) -> Iterator[str]:
    memory = _memory_mb()
    for need in needs:
        if memory and need.peak_mb > memory:
            knob = _LESS_MEMORY.get(need.stage, _CLUSTER)
            yield (
                f"Memory does not do for {need.stage}: {need.peak_mb:,.0f} MB are wanted, the "
                f"machine has {memory:,.0f}: {knob}."
            )


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _memory_mb() -> float:
    """All memory of this machine, or of this container; 0 where the system does not tell."""
    try:
        lines = _MEMORY.read_text("ascii").splitlines()
    except OSError:
        return 0.0
    found = int(lines[0].split()[1]) / 1024
    with contextlib.suppress(OSError, ValueError):  # `max` where nothing limits it
        found = min(found, int(_CONTAINERS_MEMORY.read_text("ascii")) / 1e6)
    return found

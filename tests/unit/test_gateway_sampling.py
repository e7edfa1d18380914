"""Samples: whole records, and what happens when the disk does not take them."""

from __future__ import annotations

import struct
from pathlib import Path

import google_crc32c
import pytest

from graftline.serving.errors import UserError
from graftline.serving.gateway.config import SampleConfig
from graftline.serving.gateway.metrics import Metrics
from graftline.serving.gateway.model_server import Classification
from graftline.serving.gateway.sampling import Sampler

ANSWER = Classification(3, ["red", "blue"], [0.75, 0.25])


def outcomes(metrics: Metrics) -> dict[str, float]:
    return {
        sample.labels["outcome"]: sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "graftline_gateway_samples_total"
    }


def records(file: Path) -> list[bytes]:
    """Reads a TFRecord file after its specification, checksums included."""
    data = file.read_bytes()
    found = []
    while data:
        (length,) = struct.unpack_from("<Q", data)
        for part, at in ((data[:8], 8), (data[12 : 12 + length], 12 + length)):
            crc = google_crc32c.value(part)
            masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
            assert struct.unpack_from("<I", data, at) == (masked,)
        found.append(data[12 : 12 + length])
        data = data[16 + length :]
    return found


def test_what_is_waiting_is_written_before_the_end(tmp_path: Path):
    metrics = Metrics()
    sampler = Sampler(SampleConfig(percent=100, folder=str(tmp_path / "a" / "b")), metrics)
    for number in range(5):
        sampler.offer(b"image %d" % number, ANSWER, "stable")
    sampler.close()
    (file,) = (tmp_path / "a" / "b").iterdir()
    written = records(file)
    assert len(written) == 5
    assert all(b"image %d" % number in record for number, record in enumerate(written))
    assert outcomes(metrics) == {"written": 5}


def test_without_a_share_nothing_is_made(tmp_path: Path):
    sampler = Sampler(SampleConfig(folder=str(tmp_path / "kept")), Metrics())
    sampler.offer(b"image", ANSWER, "stable")
    sampler.close()
    assert not (tmp_path / "kept").exists()


def test_a_folder_that_goes_away_fails_nobody_and_is_counted(tmp_path: Path):
    metrics = Metrics()
    sampler = Sampler(SampleConfig(percent=100, folder=str(tmp_path / "kept")), metrics)
    (tmp_path / "kept").rmdir()
    sampler.offer(b"image", ANSWER, "stable")
    sampler.close()
    assert outcomes(metrics) == {"failed": 1}


def test_a_full_disk_leaves_whole_records(disks):
    metrics = Metrics()
    folder = disks.mount("16k")
    sampler = Sampler(SampleConfig(percent=100, folder=str(folder)), metrics)
    for _ in range(5):
        sampler.offer(b"x" * 5000, ANSWER, "stable")
    sampler.close()
    counted = outcomes(metrics)
    assert counted["failed"] >= 1
    assert counted["written"] + counted["failed"] == 5
    assert sum(len(records(file)) for file in folder.iterdir()) == counted["written"]


def test_more_than_the_disk_takes_at_once_is_dropped(tmp_path: Path):
    metrics = Metrics()
    sampler = Sampler(SampleConfig(percent=100, folder=str(tmp_path)), metrics)
    for _ in range(2000):
        sampler.offer(b"x" * 100_000, ANSWER, "stable")
    sampler.close()
    counted = outcomes(metrics)
    assert counted["dropped"] > 0
    assert counted["written"] + counted["dropped"] == 2000


def test_a_folder_that_cannot_be_made_is_refused_at_the_start(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        Sampler(SampleConfig(percent=1, folder=str(tmp_path / "file" / "kept")), Metrics())

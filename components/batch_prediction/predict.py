"""Predicts a whole source with one version: lists it, then predicts its parts with RunInference.

A second run with the same source and folder goes on with the parts that are missing. See
docs/batch_prediction.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from apache_beam.ml.inference.base import RunInference

from graftline.components.batch_prediction import output
from graftline.components.batch_prediction.handler import PartHandler, Settings
from graftline.components.batch_prediction.listing import write_listing
from graftline.components.batch_prediction.output import Output, Plan, Summary
from graftline.components.ingest import stages
from graftline.components.ingest.sources import detect_unlabelled
from graftline.components.progress import report
from graftline.serving.image_check import Limits


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked.

    Attributes:
        source: folder, manifest or TFRecords.
        version: number of the version.
        model: its folder.
        format: a key of `tables.SUFFIXES`.
        feature: with the encoded image, where the source is TFRecords; else empty.
        limits: what an image may be.
        part_size: images per file of the tables.
        batch_size: images that are predicted at once; None: what suits the device.
        devices: numbers of the GPUs to use; None: all, empty: the CPU.
    """

    source: Path
    version: int
    model: Path
    format: str
    feature: str
    limits: Limits
    part_size: int
    batch_size: int | None = None
    devices: tuple[int, ...] | None = None


def predict(request: Request, held: Output, options: Sequence[str]) -> Summary:
    """Predicts what is not predicted yet.

    Args:
        request: what is asked.
        held: the output folder.
        options: of the Beam runner.

    Raises:
        UserError: the source cannot be listed, or is gone; a disk is full; memory does not do.
    """
    with output.explained(held.folder):
        plan = held.plan() or _begin(request, held)
        missing = held.missing(plan)
        if len(missing) < plan.parts:
            report(f"{plan.parts - len(missing)} of {plan.parts} parts are there already")
        settings = Settings(
            folder=str(held.folder),
            plan=plan,
            batch_size=request.batch_size,
            devices=request.devices,
        )
        if missing:
            handler = PartHandler(msgspec.json.encode(settings))
            stages.run_stage(missing, RunInference(handler), options)
        return held.conclude(plan)


def _begin(request: Request, held: Output) -> Plan:
    source = detect_unlabelled(request.source)
    held.begin(request.model)
    parts, images = write_listing(source, held.listing, request.part_size)
    plan = Plan(
        source=str(request.source),
        kind=source.kind,
        version=request.version,
        format=request.format,
        feature=request.feature,
        limits=request.limits,
        images=images,
        parts=parts,
        begun=output.now(),
    )
    held.keep(plan)
    return plan

"""Starts the server, asks it, and says what was found: the checks of the probe's verdict."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from graftline.components.progress import report
from graftline.components.serving_probe.config import ProbeConfig
from graftline.components.serving_probe.server_process import VERSION, ServerProcess
from graftline.components.verdict import OVERALL, Check
from graftline.serving.client.client import Client, Prediction, ServerError
from graftline.serving.server.status import Code

# For each image of each request, the probability of every class.
Answers = list[list[dict[str, float]]]

_UNANSWERED = "answers"
_FIRST_BATCH = 16
_POLL = 0.1  # seconds
_LAST_BREATH = 2.0
_WHILE_STARTING = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.NOT_FOUND)
_LONGEST_CALL = 2.0  # while it starts


def probe(
    saved_model: Path,
    images: Sequence[bytes],
    reference: Callable[[Sequence[Sequence[bytes]]], Answers],
    config: ProbeConfig,
    scratch: Path,
    log: Path,
) -> list[Check]:
    """Tries a candidate on a server of its own, which has ended when this returns.

    Args:
        saved_model: its folder.
        images: encoded images to ask with.
        reference: what the model says to batches of images without a server.
        config: bounds, and which server.
        scratch: a folder for the server's base path.
        log: the file that receives the server's output.

    Returns:
        One check of the start and, where it started, two for each protocol: of the answers and of
        the latency; one for a protocol over which a request was not answered, which is the last.
    """
    if not images:
        note = "the training window holds no image to ask the server with"
        return [Check(metric=_UNANSWERED, slice=OVERALL, passed=False, note=note)]
    began = time.monotonic()
    end = began + config.timeout_seconds
    report("starting a model server with the candidate")
    with ServerProcess(saved_model, config.command, scratch, log) as server:
        # Several at once, which warms the server up, then one by one; the reference is computed in
        # the same batches while the server starts.
        requests = [list(images[:_FIRST_BATCH]), *([image] for image in images)]
        with ThreadPoolExecutor(1) as meanwhile:
            expecting = meanwhile.submit(reference, requests)
            started = _wait_until_served(server, began, config)
        if not started.passed:
            return [started]
        checks, expected = [started], expecting.result()
        for protocol in server.addresses:
            report(f"asking the server over {protocol}")
            found = _ask(server, protocol, requests, expected, config, end)
            checks += found
            if found[0].metric == _UNANSWERED:
                break
        return checks


def _wait_until_served(server: ServerProcess, began: float, config: ProbeConfig) -> Check:
    def check(passed: bool, note: str) -> Check:
        return Check(
            metric="start (s)",
            slice=OVERALL,
            candidate=time.monotonic() - began,
            threshold=config.timeout_seconds,
            passed=passed,
            note=note,
        )

    end = began + config.timeout_seconds
    for address in server.addresses.values():
        while True:
            said = ""
            seconds = min(max(end - time.monotonic(), _POLL), _LONGEST_CALL)
            with _client(server, address, seconds) as client:
                try:
                    client.describe()
                    break
                except ServerError as error:
                    said = str(error)
                    if error.code not in _WHILE_STARTING:
                        return check(False, f"the candidate is not served: {error}")
            if ended := server.how_it_ended():
                return check(False, f"the candidate is not served: {ended}")
            if time.monotonic() > end:
                waited = f"within {config.timeout_seconds:g} s (probe.timeout_seconds)"
                return check(False, f"the candidate is not served {waited}: {said}")
            time.sleep(_POLL)
    return check(True, "the candidate is loaded and served")


def _client(server: ServerProcess, address: str, seconds: float) -> Client:
    return Client(address, server.model, version=VERSION, seconds=seconds, retry=False)


def _ask(
    server: ServerProcess,
    protocol: str,
    requests: Sequence[Sequence[bytes]],
    expected: Answers,
    config: ProbeConfig,
    end: float,
) -> list[Check]:
    found: list[list[Prediction]] = []
    seconds: list[float] = []
    remaining = max(end - time.monotonic(), _POLL)
    with _client(server, server.addresses[protocol], remaining) as client:
        for images in requests:
            began = time.monotonic()
            try:
                found.append(client.predict(images))
            except ServerError as error:
                note = f"over {protocol}: {server.how_it_ended(_LAST_BREATH) or error}"
                return [Check(metric=_UNANSWERED, slice=protocol, passed=False, note=note)]
            seconds.append(time.monotonic() - began)
            if time.monotonic() > end:
                note = (
                    f"over {protocol} only {len(found)} of {len(requests)} requests were answered "
                    f"within {config.timeout_seconds:g} s (probe.timeout_seconds)"
                )
                return [Check(metric=_UNANSWERED, slice=protocol, passed=False, note=note)]
    return [
        _compared(protocol, found, expected, config.max_difference),
        _timed(protocol, seconds[1:], config.max_latency_ms),
    ]


def _compared(
    protocol: str, found: list[list[Prediction]], expected: Answers, bound: float
) -> Check:
    differences = [
        _difference(prediction, scores)
        for predictions, rows in zip(found, expected, strict=True)
        for prediction, scores in zip(predictions, rows, strict=True)
    ]
    largest = max(differences)
    differing = sum(not difference <= bound for difference in differences)
    of_all = f"{differing} of {len(differences)} answers over {protocol}"
    errors = sorted({one.error for predictions in found for one in predictions if one.error})
    if errors:
        note = f"{of_all} are not those of the same model without a server: an image {errors[0]}"
    elif differing:
        note = (
            f"{of_all} are not those of the same model without a server: other classes, or a "
            f"probability that differs by up to {largest:.2g} (at most {bound:g} allowed: "
            "probe.max_difference)"
        )
    else:
        note = f"the answers over {protocol} are those of the same model without a server"
    return Check(
        metric="difference",
        slice=protocol,
        candidate=largest,
        threshold=bound,
        passed=not differing,
        note=note,
    )


def _difference(prediction: Prediction, scores: dict[str, float]) -> float:
    """The largest one of a probability; 1 where the classes are others or there is no answer."""
    given = dict(prediction.classes)
    if given.keys() != scores.keys():
        return 1.0
    # What is no number differs from everything, and `max` would pass over it.
    return max(
        gap if (gap := abs(given[name] - score)) == gap else 1.0 for name, score in scores.items()
    )


def _timed(protocol: str, seconds: Sequence[float], bound: float) -> Check:
    median = statistics.median(seconds) * 1e3
    passed = median <= bound
    allowed = "" if passed else f" (at most {bound:g} allowed: probe.max_latency_ms)"
    return Check(
        metric="latency (ms)",
        slice=protocol,
        candidate=median,
        threshold=bound,
        passed=passed,
        note=f"over {protocol} one image took {median:.3g} ms at the median{allowed}",
    )

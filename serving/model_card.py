"""The model card: what a version is, what it was measured to do, and what it must not be used for.

Markdown that is readable as plain text, in the sections of Mitchell et al., "Model Cards for Model
Reporting" (2019), as far as a pipeline can fill them in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from graftline.serving.manifest import Manifest, Measure

FILE_NAME = "model_card.md"
_BAR = 20


def render(manifest: Manifest) -> str:
    """Writes the card of a version from its manifest."""
    sections = [
        f"# {manifest.model}, version {manifest.version}",
        _summary(manifest),
        "## Classes",
        _classes(manifest),
        "## How well it does",
        _measures(manifest),
        "## Data",
        _data(manifest),
        "## Limits",
        _limits(manifest),
        "## Where it comes from",
        _table(("", ""), _origin(manifest)),
        "## Configuration",
        _table(("key", "value"), _flat(manifest.configuration)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _summary(manifest: Manifest) -> str:
    accuracy = manifest.accuracy
    found = (
        f" It names {accuracy:.1%} of the test images correctly." if accuracy is not None else ""
    )
    return (
        f"An image classifier for {len(manifest.classes)} classes, published on "
        f"{manifest.created:%d %B %Y, %H:%M} UTC.{found} It takes encoded images (JPEG, PNG, GIF, "
        "BMP) and returns the probability of every class."
    )


def _classes(manifest: Manifest) -> str:
    return ", ".join(f"`{name}`" for name in manifest.classes)


def _measures(manifest: Manifest) -> str:
    if not manifest.measures:
        return "No gate measured this version."
    verdict = (
        f"**Let through against the gate by a person:** {manifest.overridden}"
        if manifest.overridden
        else "Measured on the test split, which neither training nor early stopping saw."
    )
    header = ("metric", "of", "this version", "version before", "bound", "verdict", "")
    table = _table(header, (_measure(m) for m in manifest.measures))
    # What passed in a class needs no words; the whole, and what did not pass, does.
    told = [m.note for m in manifest.measures if m.slice == "overall" or not m.passed]
    notes = "\n".join(f"* {_cell(note)}" for note in told if note)
    return f"{verdict}\n\n{table}\n\n{notes}".rstrip()


def _measure(measure: Measure) -> tuple[str, ...]:
    verdict = {True: "passed", False: "**failed**", None: "undecidable"}[measure.passed]
    return (
        measure.metric,
        measure.slice,
        _number(measure.candidate),
        _number(measure.baseline),
        _number(measure.threshold),
        verdict,
        _bar(measure.candidate),
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _bar(value: float | None) -> str:
    if value is None or not 0 <= value <= 1:
        return ""
    filled = round(value * _BAR)
    return "█" * filled + "░" * (_BAR - filled)


def _data(manifest: Manifest) -> str:
    later = "".join(f", span {number} in version {v}" for number, v in manifest.spans if v > 1)
    images = ", ".join(f"{count:,} for {split}" for split, count in manifest.images.items())
    return " ".join(
        [
            f"Spans {manifest.span_ranges or 'not recorded'}{later}.",
            f"Images: {images}." if images else "",
            "Near-duplicates are kept on one side of the split; images that could not be used "
            "were quarantined when they came in.",
        ]
    ).replace("  ", " ")


def _limits(manifest: Manifest) -> str:
    undecided = [m.slice for m in manifest.measures if m.passed is None]
    limits = [
        "It always answers with one of its classes, also for an image that shows none of them; a "
        "high probability is no proof that the image belongs to any.",
        "What was measured holds for images like those of the test split: other cameras, light, "
        "crops or regions were not measured.",
        "Probabilities are not calibrated.",
    ]
    if undecided:
        limits.append(f"Too few test images to judge: {', '.join(dict.fromkeys(undecided))}.")
    return "\n".join(f"* {limit}" for limit in limits)


def _origin(manifest: Manifest) -> Iterable[tuple[str, str]]:
    yield "run", manifest.run_id
    yield "code", manifest.code_revision
    yield from manifest.lineage.items()
    yield from manifest.packages.items()
    yield "files", f"{len(manifest.files)}, {manifest.size:,} bytes; hashes in manifest.json"
    yield "model id", manifest.model_id


def _flat(configuration: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in configuration.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

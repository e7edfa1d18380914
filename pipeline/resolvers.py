"""Which artifacts of earlier runs a run reads: the window, the span before, the model in service.

TFX's own span resolver sees numbers only: it would hand a span to the trainer once per version and
once per run of it, refused ones included. These strategies follow the run's plan to the letter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import ml_metadata as mlmd
from ml_metadata.proto import metadata_store_pb2
from tfx import types
from tfx.dsl.components.common.resolver import ResolverStrategy
from tfx.types import artifact_utils, standard_artifacts

from graftline.serving.errors import UserError

Artifacts = dict[str, list[types.Artifact]]


class WindowStrategy(ResolverStrategy):
    """The newest Examples of each span of the plan's window."""

    def __init__(self, spans: Sequence[Sequence[int]]):
        """Takes the window.

        Args:
            spans: pairs of span and version, in the order in which they are read.
        """
        self._spans = [(span, version) for span, version in spans]

    def resolve_artifacts(
        self, store: mlmd.MetadataStore, input_dict: Artifacts
    ) -> Artifacts | None:
        """Keeps `examples` of the window that carry a blessing of the data gate.

        Raises:
            UserError: a span of the window was not ingested or did not pass.
        """
        blessed = {_span_version(artifact) for artifact in input_dict["blessing"]}
        newest = _newest(input_dict["examples"])
        missing = [span for span in self._spans if span not in newest or span not in blessed]
        if missing:
            named = ", ".join(f"span {span} version {version}" for span, version in missing)
            raise UserError(
                f"The window names {named}, which this run has not ingested: it was replaced by a "
                "newer version meanwhile, or the folder of artifacts lost it. Start anew with "
                "`graftline run`."
            )
        return {
            "examples": [newest[span] for span in self._spans],
            "blessing": list(input_dict["blessing"]),
        }


class PreviousSpanStrategy(ResolverStrategy):
    """The data blessing of the span before, or nothing where there is none."""

    def __init__(self, span: int, version: int):
        """Takes the span to compare with; 0 where there is none."""
        self._span = (span, version)

    def resolve_artifacts(
        self, store: mlmd.MetadataStore, input_dict: Artifacts
    ) -> Artifacts | None:
        """Keeps the newest `blessing` of that span."""
        found = _newest(input_dict["blessing"]).get(self._span)
        return {"blessing": [found] if found else []}


class InServiceStrategy(ResolverStrategy):
    """The version in service as a Model, or nothing where none was published yet.

    It is what the base path holds, not the trainer's artifact of old: the comparison is with the
    bytes that serve, also when the metadata store was lost or the version came from elsewhere.
    """

    def __init__(self, uri: str):
        """Takes a folder whose `Format-Serving` is the version; empty where there is none."""
        self._uri = uri

    def resolve_artifacts(
        self, store: mlmd.MetadataStore, input_dict: Artifacts
    ) -> Artifacts | None:
        """Finds the model by its address, and registers it when it is seen for the first time."""
        if not self._uri:
            return {"model": []}
        model = standard_artifacts.Model()
        model.uri = self._uri
        model_type = store.put_artifact_type(model.artifact_type, can_omit_fields=True)
        live = metadata_store_pb2.Artifact.LIVE
        # A copy that was removed, of a version that is back in service, is another artifact.
        known = [a for a in store.get_artifacts_by_uri(self._uri) if a.state == live]
        if not known:
            model.mlmd_artifact.type_id = model_type
            # Nodes take live artifacts only.
            model.mlmd_artifact.state = live
            known = store.get_artifacts_by_id(store.put_artifacts([model.mlmd_artifact]))
        return {"model": [artifact_utils.deserialize_artifact(model.artifact_type, known[0])]}


def _newest(artifacts: Iterable[types.Artifact]) -> dict[tuple[int, int], types.Artifact]:
    """The artifact registered last for each span and version."""
    return {_span_version(artifact): artifact for artifact in sorted(artifacts, key=lambda a: a.id)}


def _span_version(artifact: types.Artifact) -> tuple[int, int]:
    # ExampleGen records both as custom properties, our own artifacts as declared ones.
    if isinstance(artifact, standard_artifacts.Examples):
        return (
            artifact.get_int_custom_property("span"),
            artifact.get_int_custom_property("version"),
        )
    return artifact.span, artifact.version

"""Takes the TFRecord files of a span over as TFX's examples, each as it is.

TFX's own executor reads every record and shuffles all of them, which Beam's runner on one machine
does in memory, images included. A drop has decided the split and mixed the records already: what
goes through Beam here are names of files, so that memory does not grow with the drop, and every
file is held against the digest that the drop noted of it.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgspec
from tfx.components.example_gen import utils
from tfx.components.example_gen.import_example_gen import component, executor
from tfx.components.util import examples_utils
from tfx.dsl.components.base.executor_spec import BeamExecutorSpec
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import proto_utils

from graftline.components.ingest.spans import find_span
from graftline.components.ingest.stages import Meter, appearing, run_stage
from graftline.serving.errors import UserError

_INCOMING = "incoming"
_BUFFER = 1 << 20


class _File(msgspec.Struct, frozen=True):
    """A file to take over: from where, to where, and its SHA-256."""

    source: str
    target: str
    digest: str


class Executor(executor.Executor):  # type: ignore[misc]
    """Copies files where TFX's reads records."""

    def Do(
        self,
        input_dict: dict[str, list[Any]],
        output_dict: dict[str, list[Any]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Makes the examples of the span and version that the driver found.

        Raises:
            UserError: a file is not as the drop wrote it.
            OSError: a file is missing or cannot be read, or the disk is full.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        config = example_gen_pb2.Input()
        proto_utils.json_to_proto(exec_properties["input_config"], config)
        examples = artifact_utils.get_single_instance(
            output_dict[standard_component_specs.EXAMPLES_KEY]
        )
        base = Path(exec_properties["input_base"])
        incoming = Path(examples.uri) / _INCOMING
        incoming.mkdir(parents=True)
        # Found by the driver, as were the files that match the configuration's patterns.
        span = find_span(base, *map(examples.get_int_custom_property, ("span", "version")))
        splits = utils.generate_output_split_names(config, example_gen_pb2.Output())
        examples.split_names = artifact_utils.encode_split_names(splits)
        targets = {split: Path(artifact_utils.get_split_uri([examples], split)) for split in splits}
        for target in targets.values():
            target.mkdir()
        files = [
            _File(str(span.path / name), str(targets[split] / file), digest)
            for name, digest in span.summary.shards.items()
            for split, file in [name.split("/")]
        ]
        run_stage(files, _TakeOver(incoming, len(files)), self._beam_pipeline_args or [])
        shutil.rmtree(incoming)
        examples_utils.set_payload_format(examples, exec_properties["output_data_format"])


class SpanExampleGen(component.ImportExampleGen):  # type: ignore[misc]
    """TFX's ImportExampleGen, driver, artifacts and all, with the executor above."""

    EXECUTOR_SPEC = BeamExecutorSpec(Executor)


class _TakeOver(beam.DoFn):
    """Copies one file; a second attempt elsewhere may be at it, too."""

    def __init__(self, incoming: Path, total: int) -> None:
        self._incoming = str(incoming)
        self._total = total

    def setup(self) -> None:
        self._meter = Meter("taking over TFRecords", self._total, "files")

    def process(self, element: _File) -> None:
        target = Path(element.target)
        digest = hashlib.sha256()
        with appearing(target, Path(self._incoming) / target.name) as staged:
            with Path(element.source).open("rb") as source, staged.open("wb") as copy:
                while block := source.read(_BUFFER):
                    digest.update(block)
                    copy.write(block)
            if digest.hexdigest() != element.digest:
                raise UserError(
                    f"The file {element.source} is damaged: it is no longer what the drop wrote. "
                    "Put it back from a backup, or drop the span's images again."
                )
        self._meter.add()

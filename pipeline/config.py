"""The configuration of a project: one commented YAML, read once into typed, frozen data.

Each section is defined beside the code that reads it; this module composes them, reads
`graftline.yaml` with `key=value` overrides, and writes the commented file of a new project from
the same definitions, so that names, defaults, bounds and comments stand in one place.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
import yaml
from msgspec import Meta

from graftline.components.data_gate.config import DataGateConfig
from graftline.components.ingest.config import DropConfig
from graftline.components.model_gate.config import ModelGateConfig
from graftline.components.serving_probe.config import ProbeConfig
from graftline.components.settings import set_value
from graftline.components.trainer.backbones import registry
from graftline.components.trainer.config import ImageConfig, TrainerConfig
from graftline.components.tuner.config import TunerConfig
from graftline.pipeline.beam.config import BeamConfig
from graftline.pipeline.kubeflow_config import KubeflowConfig
from graftline.pipeline.notify.config import NotifyConfig
from graftline.pipeline.prices import PricesConfig
from graftline.pipeline.watch.config import WatchConfig
from graftline.serving.config import ServingConfig
from graftline.serving.errors import UserError
from graftline.serving.gateway.config import GatewayConfig

FILE_NAME = "graftline.yaml"


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the model is called."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$",
            description="Name of the model: its folder under the base path, what clients ask for.",
        ),
    ] = "model"


class PathsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where things are, relative to the project folder or absolute."""

    schema: Annotated[
        str, Meta(min_length=1, description="The curated schema: review it, commit it.")
    ] = "schema/schema.pbtxt"
    drops: Annotated[
        str,
        Meta(
            min_length=1,
            description="Where `graftline watch` looks for drops: a folder each, complete once its "
            "manifest is there.",
        ),
    ] = "drops"
    spans: Annotated[
        str, Meta(min_length=1, description="Drops as TFRecords: span-<N>/version-<M>.")
    ] = "spans"
    weights: Annotated[
        str,
        Meta(
            min_length=1,
            description="Downloaded ImageNet weights, which several projects may share; files can "
            "be put there by hand. The default is where Keras keeps them.",
        ),
    ] = "~/.keras/models"
    quarantine: Annotated[
        str, Meta(min_length=1, description="Images that could not be used, with the reason.")
    ] = "quarantine"
    runs: Annotated[
        str, Meta(min_length=1, description="One folder per run: configuration, log, verdicts.")
    ] = "runs"
    artifacts: Annotated[
        str,
        Meta(min_length=1, description="What the nodes of the pipeline write, and its metadata."),
    ] = "tfx"
    serving: Annotated[
        str,
        Meta(
            min_length=1,
            description="Base path that TensorFlow Serving watches: <model>/<version>.",
        ),
    ] = "serving"

    def __post_init__(self) -> None:
        """Refuses addresses, which would become folders of that name.

        Raises:
            ValueError: with the path, and what to do.
        """
        for field in self.__struct_fields__:
            path = getattr(self, field)
            if "://" in path:
                raise ValueError(
                    f"{field} must be a folder or a file, not {path!r}: mount the bucket and name "
                    'where it is mounted (docs/kubeflow.md, "The root in a bucket")'
                )


class WindowConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which spans a run trains on."""

    last: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Train on this many newest spans up to the run's own; null: on all."),
    ] = None


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration."""

    model: ModelConfig = ModelConfig()
    paths: PathsConfig = PathsConfig()
    image: ImageConfig = ImageConfig()
    drop: DropConfig = DropConfig()
    data_gate: DataGateConfig = DataGateConfig()
    window: WindowConfig = WindowConfig()
    trainer: TrainerConfig = TrainerConfig()
    tuner: TunerConfig = TunerConfig()
    model_gate: ModelGateConfig = ModelGateConfig()
    probe: ProbeConfig = ProbeConfig()
    serving: ServingConfig = ServingConfig()
    beam: BeamConfig = BeamConfig()
    gateway: GatewayConfig = GatewayConfig()
    notify: NotifyConfig = NotifyConfig()
    watch: WatchConfig = WatchConfig()
    kubeflow: KubeflowConfig = KubeflowConfig()
    prices: PricesConfig = PricesConfig()

    def __post_init__(self) -> None:
        """Refuses sections that do not go together.

        Raises:
            ValueError: with what does not go together, and what does.
        """
        smallest = registry.find(self.trainer.backbone).smallest
        if self.image.size < smallest:
            raise ValueError(
                f"image.size {self.image.size} is too small for {self.trainer.backbone}, which "
                f"takes images of {smallest} pixels and more"
            )


# libyaml reads the same ten times as fast.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML that reads `1e-3` as a number and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    problem="a key must be a word", problem_mark=key_node.start_mark
                )
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML follows, wants a dot and a sign in the exponent of a float.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def load_config(
    path: Path, overrides: Sequence[str] = (), tuned: Mapping[str, Any] | None = None
) -> Config:
    """Reads the configuration of a project.

    Args:
        path: the YAML file.
        overrides: `section.key=value` each, the value in YAML; applied after the file is read.
        tuned: values by `section.key`, which come between the two.

    Raises:
        UserError: the file cannot be read or parsed, or a key is unknown, of the wrong type,
            out of bounds or in an impossible combination; says which, what was found and what is
            allowed.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold sections such as `trainer:`, found {tree!r}.")
    for key, value in (tuned or {}).items():
        try:
            set_value(tree, to_tree(Config()), key, value)
        except ValueError as error:
            raise UserError(f"The tuned value {key}: {error}. Delete it, or tune anew.") from error
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, origin=f"{path}{' with what was tuned' if tuned else ''}")


def parse_config(tree: dict[str, Any], origin: str) -> Config:
    """Turns plain data into a configuration; `origin` names it in errors.

    Raises:
        UserError: as `load_config`.
    """
    try:
        return msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise UserError(f"{origin}: {_explain(str(error), tree)}") from error


def override(config: Config, overrides: Sequence[str]) -> Config:
    """A configuration with `section.key=value` overrides applied.

    Raises:
        UserError: as `load_config`.
    """
    tree = to_tree(config)
    for one in overrides:
        _apply(tree, one)
    return parse_config(tree, origin="the command line")


def to_tree(config: Any) -> dict[str, Any]:
    """Plain data (dicts, lists, scalars) of a configuration or a section."""
    return msgspec.json.decode(msgspec.json.encode(config))


def write_config(config: Config, path: Path) -> None:
    """Writes the configuration as YAML with the meaning and default of every key as comments."""
    head = (
        "# Configuration of a Graftline project. Every key with its meaning; what is left out has\n"
        "# its default. On the command line: graftline run trainer.batch_size=64\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + "\n".join(_lines(config, Config(), 0)) + "\n", encoding="utf-8")


def _lines(value: msgspec.Struct, default: msgspec.Struct, depth: int) -> Iterator[str]:
    indent = "  " * depth
    hints = get_type_hints(type(value), include_extras=True)
    for name in value.__struct_fields__:
        found, usual = getattr(value, name), getattr(default, name)
        if depth == 0:
            yield ""
        if isinstance(found, msgspec.Struct):
            yield from _comment(indent, (type(found).__doc__ or "").split("\n")[0])
            yield f"{indent}{name}:"
            yield from _lines(found, usual if usual is not None else found, depth + 1)
            continue
        meta = [m for m in getattr(hints[name], "__metadata__", ()) if isinstance(m, Meta)]
        described = " ".join(m.description for m in meta if m.description)
        section = _struct_in(hints[name])
        if section is None:
            yield from _comment(indent, f"{described} Default: {_scalar(usual)}")
            yield f"{indent}{name}: {_scalar(found)}"
            continue
        yield from _comment(indent, described)
        for key, hint in get_type_hints(section, include_extras=True).items():
            said = [m.description for m in getattr(hint, "__metadata__", ()) if m.description]
            yield from _comment(indent, f"  {key}: {' '.join(said)}")
        yield f"{indent}{name}:" + (f" {_scalar(found)}" if not found else "")
        if not found:
            continue
        if isinstance(found, dict):
            yield from (f"{indent}  {key}: {_scalar(item)}" for key, item in found.items())
        else:
            yield from (f"{indent}  - {_scalar(item)}" for item in found)


def _comment(indent: str, text: str) -> list[str]:
    deeper = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(
        text.lstrip(),
        98,
        initial_indent=f"{indent}# {deeper}",
        subsequent_indent=f"{indent}# {deeper}",
    )


def _scalar(value: Any) -> str:
    plain = msgspec.to_builtins(value)
    text = yaml.safe_dump(
        plain, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _apply(tree: dict[str, Any], override: str) -> None:
    key, _, text = override.partition("=")
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # a date that is none, for one
        raise UserError(f"The override {override!r} has no valid value after `=`.") from error
    try:
        set_value(tree, to_tree(Config()), key, value)
    except ValueError as error:
        raise UserError(f"The override {override!r}: {error}.") from error


_AT = re.compile(r" - at `\$\.?(?P<path>.*)`$")


def _explain(message: str, tree: dict[str, Any]) -> str:
    """Puts the key's path first, adds what was found and, for an unknown key, what is allowed."""
    at = _AT.search(message)
    path = at["path"] if at else ""
    message = _AT.sub("", message)
    unknown = re.match(r"Object contains unknown field `(.+)`", message)
    if unknown:
        allowed = list(_struct_at(path).__struct_fields__)
        near = difflib.get_close_matches(unknown[1], allowed, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        where = f"{path}.{unknown[1]}" if path else unknown[1]
        return f"{where} is not a known key.{hint} Allowed here: {', '.join(sorted(allowed))}."
    found = _value_at(tree, path)
    message = message[:1].lower() + message[1:]
    said = "" if "..." in path else f"; found {found!r}"  # the keys of a mapping are not told
    return f"{path or 'the file'}: {message.rstrip('.')}{said}."


def _struct_at(path: str) -> Any:
    """The section that a path leads to, also through the items of a list."""
    node: Any = Config
    for part in filter(None, re.split(r"\.|\[.*?\]", path)):
        node = _struct_in(get_type_hints(node)[part])
    return node


def _struct_in(hint: Any) -> Any:
    """The section in a type hint such as `tuple[Bound, ...]`."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint
    return next(filter(None, map(_struct_in, get_args(hint))), None)


def _value_at(tree: Any, path: str) -> Any:
    for part in filter(None, re.split(r"\.|\[(?=\d)|\]", path)):
        if isinstance(tree, dict):
            tree = tree.get(part)
        elif isinstance(tree, list) and part.isdigit():
            tree = tree[int(part)]
    return tree

"""`graftline init`: a project folder for the images at hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import msgspec

from graftline.pipeline.cli.project_command import OverridingCommand
from graftline.pipeline.config import FILE_NAME, ModelConfig
from graftline.serving.errors import UserError

# Sizes for which pretrained backbones are meant; smaller ones lose what the weights know.
_SMALLEST, _LARGEST, _STEP = 96, 224, 32

_IGNORED = """\
# Everything that Graftline makes; graftline.yaml and schema/ are what you commit.
/drops/
/spans/
/quarantine/
/runs/
/tfx/
/serving/
"""


@click.command("init", cls=OverridingCommand)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--images",
    required=True,
    type=click.Path(path_type=Path),
    help="Labelled images: a folder per class, a manifest, or TFRecords.",
)
@click.option("--name", help="Name of the model. Default: the name of DIRECTORY.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
def init(directory: Path, images: Path, name: str | None, as_json: bool) -> None:
    """Make a project folder: a commented configuration and a schema to review."""
    from graftline.components.ingest.survey import survey
    from graftline.pipeline.config import Config, override, write_config
    from graftline.schemas import curated

    overrides = click.get_current_context().meta["overrides"]
    override(Config(), overrides)  # a mistake is told before the images are looked at
    config_file = directory / FILE_NAME
    if config_file.exists():
        raise UserError(
            f"{directory} is a project already: {FILE_NAME} is there and is not overwritten. "
            "Edit it, or choose another folder."
        )
    if name is not None:
        _check_name(name)
    found = survey(images)
    defaults = Config()
    shorter = min(found.median_width, found.median_height)
    size = min(max(-(-shorter // _STEP) * _STEP, _SMALLEST), _LARGEST)
    if size - shorter >= _STEP // 2 and size > _SMALLEST:
        size -= _STEP
    config = Config(
        model=ModelConfig(name=name or _model_name(directory)),
        image=type(defaults.image)(size=size),
    )
    config = override(config, overrides)
    size = config.image.size
    schema_file = directory / Path(config.paths.schema).expanduser()
    if schema_file.exists():
        raise UserError(
            f"{schema_file} is there already and is not overwritten: move it away, or choose "
            "another folder."
        )
    classes = sorted(found.classes)
    try:
        curated.write(curated.build(classes), schema_file)
        ignored = directory / ".gitignore"
        if not ignored.exists():
            ignored.write_text(_IGNORED, encoding="utf-8")
        write_config(config, config_file)
    except OSError as error:
        raise UserError(
            f"The project cannot be written to {directory}: {error.strerror}."
        ) from error
    count = sum(found.classes.values())
    if as_json:
        print(
            json.dumps(
                {
                    "project": str(directory.resolve()),
                    "images": count,
                    "classes": found.classes,
                    "image_size": size,
                },
                indent=2,
                ensure_ascii=False,
            )
        )
        return
    click.echo(
        f"{count} images in {len(classes)} classes, {found.median_width}x{found.median_height} "
        f"at the median; they are resized to {size}x{size}."
    )
    click.echo(f"Review the configuration {config_file} and the schema {schema_file}.")
    here = "" if directory.resolve() == Path.cwd() else f" --project {directory}"
    click.echo(f"Next: graftline drop {images}{here}")


def _check_name(name: str) -> None:
    try:
        msgspec.convert({"name": name}, ModelConfig)
    except msgspec.ValidationError as error:
        raise UserError(f"The model cannot be called {name!r}: {error}.") from error


def _model_name(directory: Path) -> str:
    """The folder's name in the letters that a model's name may have."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", directory.resolve().name).strip("-._")
    return name[:63] or "model"

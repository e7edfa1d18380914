"""`graftline serve`: the embedded model server on the project's published versions."""

from __future__ import annotations

import json
import os
import sys

import click

from graftline.pipeline.cli.project_command import project_command
from graftline.pipeline.project import Project
from graftline.serving.base_path import BasePath
from graftline.serving.models_config import ModelsConfig

_PORT = click.IntRange(0, 65535)


@project_command("serve")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Interface to listen on. There is no login: others only behind a gateway.",
)
@click.option("--port", type=_PORT, default=8500, show_default=True, help="For gRPC; 0: none.")
@click.option("--rest-port", type=_PORT, default=8501, show_default=True, help="For REST; 0: none.")
@click.argument("flags", nargs=-1, metavar="[-- SERVER FLAGS...]", type=click.UNPROCESSED)
def serve(
    project: Project, as_json: bool, host: str, port: int, rest_port: int, flags: tuple[str, ...]
) -> None:
    """Serve the version in service, and every one published later, until Ctrl-C.

    Where there is a models.config (`graftline serve-config`), what it says is served.

    What stands behind `--` goes to the server: TensorFlow Serving's flags, such as
    --enable_batching.
    """
    base_path = BasePath(project.base_path)
    base_path.folder()  # refuses where nothing is published: the server would wait for it
    # What TensorFlow says on the way would drown the addresses.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from graftline.serving.server.__main__ import main

    name = base_path.root.name
    rest = f"http://{host}:{rest_port}/v1/models/{name}" if rest_port else ""
    addresses = {"grpc": f"{host}:{port}" if port else "", "rest": rest, "model": name}

    def say() -> None:
        if as_json:
            print(json.dumps(addresses), flush=True)
            return
        for kind in ("grpc", "rest"):
            if addresses[kind]:
                print(f"{kind.upper():5}{addresses[kind]}")
        if rest:
            body = """'{"instances": [{"b64": "'$(base64 -w0 IMAGE)'"}]}'"""
            print(f"Try:  echo {body} | curl -s -d @- {rest}:predict")
        print("Stop: Ctrl-C", flush=True)

    config = ModelsConfig(base_path.root)
    if config.path.exists() and config.read() is not None and not project.config.serving.mounted_at:
        served = [
            f"--model_config_file={config.path}",
            "--model_config_file_poll_wait_seconds=1",
            "--allow_version_labels_for_unavailable_models=true",
        ]
    else:
        served = [f"--model_name={name}", f"--model_base_path={base_path.root}"]
    arguments = [
        *served,
        f"--bind_address={host}",
        f"--port={port}",
        f"--rest_api_port={rest_port}",
        *flags,
    ]
    # The real server's 255, "cannot serve", is for whoever called this command a mistake to mend:
    # a port that is taken, a flag's file that does not parse.
    sys.exit(min(main(arguments, say), 2))

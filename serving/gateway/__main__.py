"""`python -m graftline.serving.gateway`: the gateway without a project, as in a container.

    python -m graftline.serving.gateway --model_name=flowers --model_base_path=/models/flowers
        [--config=gateway.yaml] [key=value ...]

The file holds what stands in a project's section `gateway`; `key=value` goes before it. Exit codes:
0 stopped by a signal, 2 something is to be mended.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from graftline.serving.errors import UserError
from graftline.serving.gateway.config import GatewayConfig


def read_config(file: Path | None, overrides: Sequence[str]) -> GatewayConfig:
    """The settings in a file, with `key=value` overrides such as `jwt.audience=shop`.

    Raises:
        UserError: the file cannot be read, or a key or value is not as it should be.
    """
    tree: Any = {}
    try:
        if file is not None:
            tree = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        for override in overrides:
            key, _, text = override.partition("=")
            *path, last = key.split(".")
            node = tree
            for name in path:
                node = node.setdefault(name, {})
            node[last] = yaml.safe_load(text)
        return msgspec.convert(tree, GatewayConfig)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"The settings are not valid YAML: {' '.join(str(error).split())}"
        ) from error
    except (msgspec.ValidationError, AttributeError, TypeError) as error:
        raise UserError(f"The settings of the gateway: {error}.") from error


def main(arguments: Sequence[str]) -> int:
    """Runs the gateway until a signal ends it; returns the exit code.

    Args:
        arguments: the command line, program name excluded.
    """
    parser = argparse.ArgumentParser(
        prog="python -m graftline.serving.gateway", description="The gateway, without a project."
    )
    parser.add_argument("--model_name", required=True, help="its name on the model server")
    parser.add_argument(
        "--model_base_path",
        required=True,
        type=Path,
        help="<base>/<model>: where traffic.json says how requests are split",
    )
    parser.add_argument("--config", type=Path, help="YAML with the settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings")
    options = parser.parse_args(arguments)
    from graftline.serving.gateway.service import run

    try:
        config = read_config(options.config, options.overrides)
        scheme = "https" if config.certificate else "http"
        address = f"{scheme}://{config.host or '*'}:{config.port}"
        return run(
            config,
            options.model_name,
            options.model_base_path,
            lambda: print(f"Gateway at {address}", flush=True),
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

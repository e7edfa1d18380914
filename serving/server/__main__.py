"""`python -m graftline.serving.server`: starts the server with TensorFlow Serving's flags.

Exit codes: 0 stopped by a signal, 2 the command line is wrong, 255 it cannot serve, as the real
one.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence

from graftline.serving.errors import UserError
from graftline.serving.server import flags


def main(arguments: Sequence[str], ready: Callable[[], None] = lambda: None) -> int:
    """Runs the server until a signal ends it.

    Args:
        arguments: the command line, program name excluded.
        ready: called once the server answers.

    Returns:
        The exit code.
    """
    if "--help" in arguments:
        print(flags.usage())
        return 0
    if "--version" in arguments:
        from importlib.metadata import version

        print(f"Graftline embedded server: {version('graftline')}")
        print(f"TensorFlow Library: {version('tensorflow')}")
        return 0
    try:
        parsed = flags.parse(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    # TensorFlow reads these when it is imported. It says much on the way that concerns nobody, and
    # loads a Keras, which nothing here uses: Keras 2 takes two seconds less than Keras 3.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="google")
    from graftline.serving.server.server import run

    return run(parsed, ready)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

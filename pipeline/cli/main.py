"""Entry point of the `graftline` command: gathers the commands, turns errors into exit codes."""

from __future__ import annotations

import datetime
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from graftline.pipeline.cli.lazy_group import LazyGroup
from graftline.pipeline.console import begin_command, latest_log
from graftline.pipeline.project import Project
from graftline.serving.errors import Refused, Rejected, UserError

# In the order in which a project meets them.
_COMMANDS = {
    "backbones": "backbones",
    "init": "init",
    "drop": "drops",
    "drops": "drops",
    "run": "runs",
    "tune": "runs",
    "resume": "runs",
    "work": "work",
    "watch": "watch",
    "notify": "notify",
    "status": "runs",
    "runs": "comparison",
    "predict": "predict",
    "predict-batch": "predict_batch",
    "plan": "plan",
    "gc": "gc",
    "serve": "serve",
    "gateway": "gateway",
    "versions": "versions",
    "rollback": "versions",
    "serve-config": "switching",
    "pin": "switching",
    "unpin": "switching",
    "promote": "switching",
    "canary": "switching",
    "withdraw": "versions",
    "restore": "versions",
    "verify": "versions",
    "kubeflow": "kubeflow",
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
@click.version_option(package_name="graftline")
def graftline() -> None:
    """Labelled images in, a served classifier out, again at every data drop, and back."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; never returns.

    Exit codes: 0 done, 1 a crash, 2 the user's mistake, 3 a gate said no, 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    context: dict[str, object] = {}
    begin_command()
    try:
        with graftline.make_context("graftline", list(arguments)) as ctx:
            context = ctx.meta
            graftline.invoke(ctx)
        sys.exit(0)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        error.show()
        _fail(arguments, {"error": error.format_message()}, 2)
    except UserError as error:
        print(error, file=sys.stderr)
        rejected = {"rejected": True} if isinstance(error, Rejected) else {}
        _fail(arguments, {"error": str(error), **rejected}, 2)
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        _fail(arguments, {"refused": str(refusal), "verdict": refusal.verdict}, 3)
    except (KeyboardInterrupt, click.Abort):
        said = "Interrupted; nothing half-done was left in service."
        print(said, file=sys.stderr)
        _fail(arguments, {"interrupted": said}, 130)
    except BrokenPipeError:
        # Whoever read what is printed has seen enough; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as crash:
        _crash(arguments, crash, context.get("project"))


def _fail(arguments: Sequence[str], answer: dict[str, object], code: int) -> NoReturn:
    """Ends the process; whoever asked for JSON gets a document on failure, too."""
    if "--json" in arguments:
        print(json.dumps({**answer, "exit_code": code}, ensure_ascii=False))
    sys.exit(code)


def _crash(arguments: Sequence[str], crash: Exception, project: object) -> NoReturn:
    """The traceback goes to a log, its last line to the screen."""
    last_line = traceback.format_exception_only(crash)[-1].strip()
    said = f"Graftline crashed: {last_line}"
    try:
        log = _log_crash(arguments, project) if isinstance(project, Project) else None
    except OSError:
        log = None
    if log is None:
        traceback.print_exc()
    else:
        said += f"\nThe traceback is in {log}."
    print(said, file=sys.stderr)
    _fail(arguments, {"crash": said}, 1)


def _log_crash(arguments: Sequence[str], project: Project) -> Path:
    """Appends the traceback of the exception at hand to the run's log, or to one of its own."""
    log = latest_log()
    if log is None:
        project.runs.mkdir(parents=True, exist_ok=True)
        log = project.runs / "crash.log"
    with log.open("a", encoding="utf-8") as stream:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        stream.write(f"{now} graftline {' '.join(arguments)}\n{traceback.format_exc()}\n")
    return log


if __name__ == "__main__":
    main()

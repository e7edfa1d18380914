"""What the steps of a run on Kubeflow Pipelines execute: `python -m graftline.kubeflow.node`.

`begin` decides what the run does and compiles the pipeline, once; `run NODE` executes one node of
it with TFX's launcher, as the local runner does; `work` takes part in a training of several pods;
`refused` ends a run that a gate stopped, and `end` tells how it came out. They share nothing but
the project's folder and the metadata database.

A gate's no is an outcome, not a fault: the gate's step succeeds and writes `refused`, which the
package branches on. Exit codes: 0 done, 1 a crash, 2 a mistake, 3 a gate said no, 143 ended by a
signal.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from graftline.kubeflow import beginning, steps
from graftline.serving.errors import Refused, UserError

_folder = click.Path(path_type=Path, file_okay=False)
_file = click.Path(path_type=Path, dir_okay=False)

_project = click.option("--project", type=_folder, required=True, help="The project's folder.")
_runs = click.option("--runs", type=_folder, required=True, help="The folder of its runs.")
_run = click.option("--run", required=True, help="Name of the run.")
_kubeflow_run = click.option("--kubeflow-run", required=True, help="Its id on Kubeflow Pipelines.")


@click.group()
def node() -> None:
    """One step of a run on Kubeflow Pipelines."""


@node.command()
@_project
@_runs
@_kubeflow_run
@click.option("--package", required=True, help="What the package was made from, as JSON.")
@click.option("--schema", required=True, help="The curated schema.")
@click.option("--span", type=click.IntRange(min=0), default=0, help="0: the next untrained one.")
@click.option("--window", type=click.IntRange(min=0), default=0, help="0: as configured.")
@click.option("--overrides", default="[]", help="JSON list of section.key=value.")
@click.option("--force", type=bool, default=False, help="Train again, nothing from the cache.")
@click.option("--accept-anomalies", type=bool, default=False, help="Let the span pass.")
@click.option("--bless", type=bool, default=False, help="Let the candidate pass.")
@click.option("--reason", default="", help="Why an override is right.")
@click.option("--run-file", type=_file, required=True, help="Receives the run's name.")
@click.option("--outcome-file", type=_file, required=True, help="Receives `train` or `nothing`.")
def begin(
    project: Path,
    runs: Path,
    kubeflow_run: str,
    package: str,
    schema: str,
    run_file: Path,
    outcome_file: Path,
    **parameters: object,
) -> None:
    """Decide what the run does; compile the pipeline."""
    asked = beginning.Parameters.read(parameters)
    made_from = beginning.MadeFrom.read(package)
    run, outcome = beginning.begin(project, runs, kubeflow_run, made_from, schema, asked)
    _hand_over(run_file, run)
    _hand_over(outcome_file, outcome)


@node.command()
@click.argument("name", metavar="NODE")
@_project
@_runs
@_run
@click.option("--outcome-file", type=_file, required=True, help="Receives `passed` or `refused`.")
def run(name: str, project: Path, runs: Path, run: str, outcome_file: Path) -> None:
    """Execute one node."""
    _hand_over(outcome_file, steps.run(project, runs, run, name))


@node.command()
@_project
@_runs
@_run
def work(project: Path, runs: Path, run: str) -> None:
    """Take part in the training of a run, as one of several pods."""
    steps.work(project, runs, run)


@node.command()
@_runs
@_run
def refused(runs: Path, run: str) -> None:
    """End a run that a gate stopped, with the verdict."""
    steps.refused(runs, run)


@node.command()
@_project
@_runs
@_kubeflow_run
def end(project: Path, runs: Path, kubeflow_run: str) -> None:
    """Tell how the run came out."""
    steps.end(project, runs, kubeflow_run)


def _hand_over(file: Path, value: str) -> None:
    """Writes an output parameter where Kubeflow Pipelines collects it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a step; never returns."""
    try:
        node.main(arguments, prog_name="node", standalone_mode=False)
        sys.exit(0)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        sys.exit(3)
    except (KeyboardInterrupt, click.Abort):
        print("Ended by a signal; what was half written is removed.", file=sys.stderr)
        sys.exit(143)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


if __name__ == "__main__":
    main()

"""The command line: parses, calls one function, prints. Errors of the user's are one line."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cdp_ml.errors import CdpError

app = typer.Typer(
    name="cdp-ml",
    help="An open, ML-driven customer data platform: from silos to served predictions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Home = Annotated[
    Path, typer.Option("--workspace", "-w", envvar="CDP_WORKSPACE", help="Folder with cdp.yaml.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
HERE = Path()
MENDABLE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
"""What a file system refuses for the user to mend: no space, no permission, no folder there."""


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="Folder to make.")]) -> None:
    """Make a workspace to start from: a commented cdp.yaml and a handful of sample rows."""
    from cdp_ml.workspace import make_workspace

    make_workspace(folder)
    print(f"Made {folder}. Edit {folder / 'cdp.yaml'}, then run: cdp-ml refresh -w {folder}")


@app.command()
def demo_data(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("data/demo"),
    people: Annotated[int, typer.Option(min=100, help="How many people live in the world.")] = 5000,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 7,
) -> None:
    """Write the synthetic world: five silos of a retailer, and the truth beside them."""
    from cdp_ml.synthetic import generate

    for name, rows in generate(out, people, seed).items():
        print(f"{rows:>9,}  {out / name}")


@app.command()
def refresh(
    home: Home = HERE,
    force: Annotated[bool, typer.Option(help="Run every step, due or not.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring everything up to date and publish it; do nothing when nothing changed."""
    from cdp_ml import summary
    from cdp_ml.refresh import refresh as run

    with summary.progress(as_json) as tell:
        outcome = run(home, force, tell)
    _print(summary.as_dict(outcome), summary.render(outcome, home), as_json)


@app.command()
def status(home: Home = HERE, as_json: AsJson = False) -> None:
    """Show what is published: when, as of when, and what it holds."""
    from cdp_ml import summary
    from cdp_ml.workspace import open_workspace

    run = open_workspace(home).run
    _print(run, summary.render_run(run), as_json)


@app.command()
def evaluate(home: Home = HERE, as_json: AsJson = False) -> None:
    """Compare the published links and scores with the known truth of a workspace that has one."""
    from cdp_ml import summary
    from cdp_ml.truth import evaluate_workspace
    from cdp_ml.workspace import open_workspace

    found = evaluate_workspace(open_workspace(home))
    _print(found, summary.render_evaluation(found), as_json)


@app.command()
def tables(
    name: Annotated[str | None, typer.Argument(help="A table; all of them by default.")] = None,
) -> None:
    """Print the data dictionary: what the tables and their columns mean."""
    from cdp_ml import summary

    _print({}, summary.render_tables(name), False)


@app.command()
def serve(
    home: Home = HERE,
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    check: Annotated[bool, typer.Option(help="Start, ask for one score, print it, stop.")] = False,
) -> None:
    """Serve scores, profiles and segments over HTTP."""
    from cdp_ml.serve import check_service, serve_command
    from cdp_ml.workspace import open_workspace

    settings = open_workspace(home).settings
    if check:
        print(json.dumps(check_service(settings), indent=2, default=str))
        return
    command, environment = serve_command(settings, host, port)
    os.execvpe(command[0], command, environment)


@app.command()
def ui(
    home: Home = HERE, port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000
) -> None:
    """Open the MLflow UI on the workspace's experiments and model versions."""
    from cdp_ml.learn.registry import ui_command
    from cdp_ml.serve import check_address
    from cdp_ml.workspace import open_workspace

    command, environment = ui_command(open_workspace(home).settings, port)
    check_address("127.0.0.1", port)
    os.execvpe(command[0], command, environment)


def _print(content: Any, readable: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(content, indent=2, default=str))
        return
    from rich.console import Console

    Console().print(readable)


def main() -> None:
    """Run the command line; what the user can mend is one line on stderr and exit code 1."""
    try:
        app(prog_name="cdp-ml")
    except CdpError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""The command line: parses, calls one function, prints. Errors of the user's are one line."""

from __future__ import annotations

import errno
import getpass
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdp_ml.errors import CdpError

if TYPE_CHECKING:
    import pyarrow as pa

    from cdp_ml.workspace import Workspace

app = typer.Typer(
    name="cdp-ml",
    help="An open, ML-driven customer data platform: from silos to served predictions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

identity = typer.Typer(
    help="See and decide who is whom: review, merge, split, undo, explain.", no_args_is_help=True
)
app.add_typer(identity, name="identity")
features = typer.Typer(help="Check the features that are served.", no_args_is_help=True)
app.add_typer(features, name="features")

Home = Annotated[
    Path, typer.Option("--workspace", "-w", envvar="CDP_WORKSPACE", help="Folder with cdp.yaml.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Actor = Annotated[
    str, typer.Option(default_factory=getpass.getuser, show_default="the user's name", help="Who.")
]
Reason = Annotated[str, typer.Option(help="Why; kept with the decision.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Write without asking.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")]
Chart = Annotated[Path | None, typer.Option("--out", help="Also draw it: FILE.png or FILE.html.")]
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
def evaluate(
    home: Home = HERE,
    as_json: AsJson = False,
    labels: Annotated[Path | None, typer.Option(help="CSV of pairs that people decided.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for charts.")] = None,
) -> None:
    """Compare the published links and scores with the known truth of a workspace that has one."""
    from cdp_ml import summary
    from cdp_ml.truth import evaluate_workspace
    from cdp_ml.workspace import open_workspace

    found = evaluate_workspace(open_workspace(home), labels, out)
    _print(found, summary.render_evaluation(found), as_json)


Model = Annotated[str, typer.Argument(help="A model of the workspace: a file in models/.")]


@app.command()
def train(model: Model, home: Home = HERE) -> None:
    """Train a model on the published features and register it; its gate decides on promotion."""
    from cdp_ml.workspace import open_workspace

    trained = open_workspace(home).train(model, register=True)
    print(f"Version {trained.predictor.version}: {trained.verdict}")
    if trained.promoted:
        print("The next 'cdp-ml refresh' scores with it.")


@app.command()
def promote(
    model: Model,
    version: Annotated[int, typer.Argument(help="Its version, as 'cdp-ml ui' lists it.")],
    home: Home = HERE,
) -> None:
    """Make a registered version of a model the champion, whatever its gate said."""
    from cdp_ml.workspace import open_workspace

    open_workspace(home).promote(model, version)
    print(f"{model} version {version} is the champion: the next 'cdp-ml refresh' scores with it.")


@app.command()
def rollback(model: Model, home: Home = HERE) -> None:
    """Make the champion before the present one champion again."""
    from cdp_ml.workspace import open_workspace

    version = open_workspace(home).rollback(model)
    print(f"{model} version {version} is the champion: the next 'cdp-ml refresh' scores with it.")


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
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 3000,
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
    home: Home = HERE,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 5000,
) -> None:
    """Open the MLflow UI on the workspace's experiments and model versions."""
    from cdp_ml.learn.registry import ui_command
    from cdp_ml.serve import check_address
    from cdp_ml.workspace import open_workspace

    command, environment = ui_command(open_workspace(home).settings, port)
    check_address("127.0.0.1", port)
    # Its first page is about language models, which are not trained here.
    print(f"Open http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning", flush=True)
    os.execvpe(command[0], command, environment)


@identity.command()
def review(
    home: Home = HERE,
    limit: Annotated[int, typer.Option(min=1, help="How many pairs, the most probable.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Write all of them to FILE.csv.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the pairs of customers that might be one person, for people to decide."""
    from cdp_ml import summary
    from cdp_ml.identity.review import queue, write_queue
    from cdp_ml.workspace import open_workspace

    known = open_workspace(home).identity
    if out:
        rows = queue(known)
        write_queue(rows, out)
        print(f"{rows.num_rows:,} pairs in {out}. Write 'same' or 'different' into its column")
        print(f"'decision', or leave it blank; then run: cdp-ml identity decide {out}")
        return
    shown = queue(known, limit).to_pylist()
    _print(shown, summary.render_queue(shown), as_json)


@identity.command()
def decide(
    file: Annotated[Path, typer.Argument(help="CSV of 'review --out', its decisions filled in.")],
    actor: Actor,
    home: Home = HERE,
    reason: Reason = "",
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Decide on the pairs of a file: same, different, or blank for undecided."""
    from cdp_ml.identity.review import read_decisions
    from cdp_ml.workspace import open_workspace

    cdp = open_workspace(home)
    _settle(cdp, read_decisions(cdp.identity, file, actor, reason), yes, dry_run)


@identity.command()
def merge(
    one: Annotated[str, typer.Argument(help="A customer id, or a record: source:its id there.")],
    other: Annotated[str, typer.Argument(help="Likewise.")],
    actor: Actor,
    home: Home = HERE,
    reason: Reason = "",
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Decide that two customers, or records, are one person."""
    from cdp_ml.identity import review as decisions
    from cdp_ml.workspace import open_workspace

    cdp = open_workspace(home)
    _settle(cdp, decisions.merge(cdp.identity, one, other, actor, reason), yes, dry_run)


@identity.command()
def split(
    customer: Annotated[str, typer.Argument(help="A customer id.")],
    records: Annotated[list[str], typer.Argument(help="Those that leave it: source:its id there.")],
    actor: Actor,
    home: Home = HERE,
    reason: Reason = "",
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Decide that some records of a customer are not the person that the others are."""
    from cdp_ml.identity import review as decisions
    from cdp_ml.workspace import open_workspace

    cdp = open_workspace(home)
    _settle(cdp, decisions.split(cdp.identity, customer, records, actor, reason), yes, dry_run)


@identity.command()
def undo(
    override_id: Annotated[str, typer.Argument(help="As 'overrides' lists it.")],
    actor: Actor,
    home: Home = HERE,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Take a decision back."""
    from cdp_ml.identity import review as decisions
    from cdp_ml.workspace import open_workspace

    cdp = open_workspace(home)
    _settle(cdp, decisions.undo(cdp.identity, override_id, actor), yes, dry_run)


def _settle(cdp: Workspace, rows: pa.Table, yes: bool, dry_run: bool) -> None:
    """Show what a decision would change, ask, and write it."""
    from cdp_ml import summary
    from cdp_ml.identity.review import what_would_change, write_decision

    if not rows.num_rows:
        print("Nothing is decided there.")
        return
    change = what_would_change(cdp.identity, rows)
    _print({}, summary.render_change(change), False)
    if dry_run or not (yes or typer.confirm("Write this decision?")):
        print("Nothing was written.")
        return
    write_decision(cdp.identity, rows)
    ids = ", ".join(dict.fromkeys(rows["override_id"].to_pylist()))
    print(f"Written as {ids}. The next 'cdp-ml refresh' applies it.")


@identity.command()
def overrides(home: Home = HERE, as_json: AsJson = False) -> None:
    """List what people decided: who, when, why, and whether it holds."""
    from cdp_ml import summary
    from cdp_ml.identity.review import decisions
    from cdp_ml.workspace import open_workspace

    found = decisions(open_workspace(home).identity).to_pylist()
    _print(found, summary.render_decisions(found), as_json)


@identity.command()
def explain(
    one: Annotated[str, typer.Argument(help="A record, source:its id there; or a customer id.")],
    other: Annotated[str, typer.Argument(help="Likewise.")],
    home: Home = HERE,
    out: Chart = None,
    as_json: AsJson = False,
) -> None:
    """Show what speaks for and against two records being one person, in bits."""
    from cdp_ml import summary
    from cdp_ml.identity import explain, pictures
    from cdp_ml.workspace import open_workspace

    draw = pictures.drawing(out, pictures.draw_waterfall)
    found = explain.explain(open_workspace(home).identity, one, other)
    draw(found)
    _print(found, summary.render_explanation(found), as_json)


@identity.command()
def why(
    customer: Annotated[str, typer.Argument(help="A customer id, or a record of it.")],
    home: Home = HERE,
    out: Chart = None,
    as_json: AsJson = False,
) -> None:
    """Show the links that hold a customer's records together, the weakest first."""
    from cdp_ml import summary
    from cdp_ml.identity import explain, pictures
    from cdp_ml.workspace import open_workspace

    draw = pictures.drawing(out, pictures.draw_customer)
    found = explain.why(open_workspace(home).identity, customer)
    draw(found)
    _print(found, summary.render_why(found), as_json)


@identity.command()
def history(
    name: Annotated[str, typer.Argument(help="A customer id, also a retired one; or a record.")],
    home: Home = HERE,
    as_of: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="UTC.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show who was whom, as known when."""
    from cdp_ml import summary
    from cdp_ml.identity import explain
    from cdp_ml.workspace import open_workspace

    instant = as_of.replace(tzinfo=UTC) if as_of else None
    found = explain.history(open_workspace(home).identity, name, instant)
    _print(found, summary.render_history(found), as_json)


@features.command()
def check(
    customers: Annotated[int, typer.Option(min=1, help="How many are sampled.")] = 20,
    instants: Annotated[int, typer.Option(min=2, help="At how many past instants.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    home: Home = HERE,
    as_json: AsJson = False,
) -> None:
    """Compare the features that are served with those computed offline for the same instants."""
    from cdp_ml import summary
    from cdp_ml.live import check_features
    from cdp_ml.workspace import open_workspace

    found = check_features(open_workspace(home), customers, instants, seed)
    _print(found, summary.render_check(found), as_json)
    if found["different"]:
        raise typer.Exit(1)


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

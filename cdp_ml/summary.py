"""What a refresh, a run or an evaluation looks like to a person: rich renderables, no logic."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cdp_ml.contracts import TABLES, contract

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table as RichTable

    from cdp_ml.refresh import Outcome

TITLES = {
    "ingest": "Reading the sources",
    "identity": "Linking records to customers",
    "profiles": "Building golden records",
    "traits": "Computing traits as of each instant",
    "features": "Filling the online feature store",
    "train": "Training and judging models",
    "score": "Scoring customers",
    "segments": "Updating segments",
}


@contextmanager
def progress(quiet: bool = False) -> Iterator[Callable[[str, str], None]]:
    """Show a spinner beside the running step; silent when stderr is not a terminal.

    Yields:
        What `refresh` calls with (step, "run" | "done" | "skip").
    """
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda step, what: None
        return
    with console.status("Looking what is due") as spinner:

        def tell(step: str, what: str) -> None:
            if what == "run":
                spinner.update(TITLES[step])
            elif what == "done":
                console.print(f"[green]✓[/] {TITLES[step]}")

        yield tell


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """The outcome of a refresh for machines."""
    return {
        "run_id": outcome.run_id,
        "as_of": outcome.as_of.isoformat(),
        "published": outcome.published,
        "seconds": outcome.seconds,
        "reports": outcome.reports,
    }


def render(outcome: Outcome) -> RenderableType:
    """The summary of a refresh."""
    from rich.console import Group

    if not outcome.published:
        return (
            f"[green]Up to date.[/] No source, specification or instant has changed since run "
            f"{outcome.run_id}; nothing was done. ([bold]cdp-ml status[/] shows what is published)"
        )
    return Group(*_tables(outcome.reports, outcome.as_of), _closing(outcome))


def render_run(run: dict[str, Any]) -> RenderableType:
    """A published run."""
    from rich.console import Group

    published = f"{run['published_at']:%Y-%m-%d %H:%M:%S} UTC"
    head = f"Run [bold]{run['run_id']}[/], published {published}"
    return Group(head, *_tables(run["summary"], run["as_of"]))


def render_evaluation(found: dict[str, Any]) -> RenderableType:
    """How near the links and the scores come to the truth."""
    from rich.console import Group

    parts: list[RenderableType] = []
    if identity := found.get("identity"):
        table = _table("Identity against the truth", "measure", ">value")
        for name, value in identity.items():
            table.add_row(name.replace("_", " "), _number(value))
        parts.append(table)
    if models := found.get("models"):
        table = _table(
            "Models out of time against the truth",
            "model",
            ">customers",
            ">AUC",
            ">the truth's AUC",
            ">share of what is attainable",
        )
        for name, m in models.items():
            share = f"{m['attained']:.1%}"
            table.add_row(
                name, f"{m['customers']:,}", f"{m['auc']:.3f}", f"{m['auc_truth']:.3f}", share
            )
        parts.append(table)
    return Group(*parts)


def render_tables(name: str | None) -> RenderableType:
    """The data dictionary: of one table, or an overview.

    Raises:
        ContractError: if there is no such table.
    """
    if name is None:
        table = _table("Tables of the lake", "table", "one row is", "key")
        for t in TABLES.values():
            table.add_row(t.name, t.row, ", ".join(t.key))
        return table
    spec = contract(name)
    table = _table(f"{spec.name}: {spec.row}", "column", "type", "meaning", "unit", "personal")
    for c in spec.columns:
        key = " (key)" if c.name in spec.key else ""
        table.add_row(c.name + key, c.type, c.meaning, c.unit, c.personal)
    return table


def _tables(reports: dict[str, Any], as_of: Any) -> Iterator[RenderableType]:
    if sources := reports.get("ingest", {}).get("sources"):
        yield _sources(sources)
    if identity := reports.get("identity", {}).get("metrics", {}).get("identity"):
        records, customers = int(identity["records"]), int(identity["customers"])
        when = f"{as_of:%Y-%m-%d}"
        yield f"[bold]{records:,}[/] records are [bold]{customers:,}[/] customers as of {when}"
    if models := reports.get("train", {}).get("models"):
        yield _models(models)
    if segments := reports.get("segments", {}).get("metrics"):
        yield _segments(segments)


def _sources(sources: dict[str, Any]) -> RichTable:
    names = ("read", "kept", "repeated", "refused", "filtered")
    table = _table(
        "Rows: read = kept + repeated + refused + not its",
        "source",
        ">read",
        ">kept",
        ">repeated",
        ">refused",
        ">not its",
        ">new",
        ">changed",
    )
    shown = (*names, "new", "changed")
    for source, counts in sources.items():
        table.add_row(source, *(f"{counts.get(n, 0):,}" for n in shown))
    totals = [sum(c.get(n, 0) for c in sources.values()) for n in shown]
    table.add_section()
    table.add_row("all", *(f"{t:,}" for t in totals))
    return table


def _models(models: dict[str, Any]) -> RichTable:
    table = _table("Models", "model", ">version", "verdict")
    for name, trained in models.items():
        version = trained["version"]
        table.add_row(name, "none" if version is None else str(version), trained["verdict"])
    return table


def _segments(segments: dict[str, Any]) -> RichTable:
    table = _table("Segments", "segment", ">customers", ">entered", ">left")
    for name, counts in sorted(segments.items()):
        shown = (f"{int(counts[k]):,}" for k in ("customers", "entered", "left"))
        table.add_row(name, *shown)
    return table


def _closing(outcome: Outcome) -> str:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gib = peak / 2**30 if sys.platform == "darwin" else peak / 2**20
    steps = ", ".join(f"{name} {s:.1f} s" for name, s in outcome.seconds.items())
    return (
        f"[green]Published[/] run [bold]{outcome.run_id}[/] after "
        f"{sum(outcome.seconds.values()):.1f} s, {gib:.1f} GiB at most ({steps})\n"
        "Next: [bold]cdp-ml serve[/] (scores over HTTP), [bold]cdp-ml ui[/] (models), "
        "[bold]cdp-ml status[/] (this again)"
    )


def _table(title: str, *headings: str) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable

    table = RichTable(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in headings:
        right = heading.startswith(">")
        table.add_column(
            heading.removeprefix(">"), justify="right" if right else "left", no_wrap=right
        )
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and value > 1 else f"{value:.3f}"

"""What a refresh, a run or an evaluation looks like to a person: rich renderables, no logic."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

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


def render(outcome: Outcome, home: Path) -> RenderableType:
    """The summary of a refresh of the workspace `home`."""
    from rich.console import Group

    here = "" if home == Path() else f" -w {escape(str(home))}"

    if not outcome.published:
        return (
            f"[green]Up to date.[/] No source, specification or instant has changed since run "
            f"{outcome.run_id}; nothing was done. ([bold]cdp-ml status{here}[/] shows what is "
            "published)"
        )
    return Group(*_tables(outcome.reports, outcome.as_of), _closing(outcome, here))


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
            if not name.endswith(("_low", "_high")):
                table.add_row(name.replace("_", " "), _number(value) + _interval(identity, name))
        parts.append(table)
    if models := found.get("models"):
        table = _table(
            "Models out of time against the truth",
            "model",
            ">customers",
            ">AUC",
            ">the truth's AUC",
            ">attained share",
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
        yield from _refusals(sources)
    yield _customers(reports, as_of) + "\n"
    if models := reports.get("train", {}).get("models"):
        yield _models(models)
    if segments := reports.get("segments", {}).get("metrics"):
        yield _segments(segments)


def _sources(sources: dict[str, Any]) -> RichTable:
    names = ("read", "kept", "repeated", "refused", "filtered")
    table = _table(
        "Rows of the sources: read = kept + repeated + refused + filtered",
        "source",
        ">read",
        ">kept",
        ">repeated",
        ">refused",
        ">filtered",
        ">new",
        ">changed",
    )
    shown = (*names, "new", "changed")
    for source, counts in sources.items():
        table.add_row(escape(source), *(f"{counts.get(n, 0):,}" for n in shown))
    totals = [sum(c.get(n, 0) for c in sources.values()) for n in shown]
    table.add_section()
    table.add_row("all", *(f"{t:,}" for t in totals))
    return table


def _refusals(sources: dict[str, Any]) -> Iterator[str]:
    """Why rows were refused, and where to see them."""
    reasons = [(s, r, n) for s, c in sources.items() for r, n in c.get("reasons", {}).items()]
    if reasons:
        yield "[bold]Refused[/] (each row with its file and line: table 'rejects')"
        yield from (f"  {n:>9,}  {escape(f'{s}: {r}')}" for s, r, n in reasons)
        yield ""


def _customers(reports: dict[str, Any], as_of: Any) -> str:
    """How many customers there are, and how much of what happened is theirs."""
    measured = {k: v for r in reports.values() for k, v in r.get("metrics", {}).items()}
    found = measured.get("identity", {})
    records, customers = (int(found.get(k, 0)) for k in ("records", "customers"))
    if not customers:
        lines = [f"No customers as of {as_of:%Y-%m-%d}: no source of kind people has any rows"]
    else:
        verb = "is" if records == 1 else "are"
        lines = [
            f"{_counted(records, 'record')} {verb} {_counted(customers, 'customer')} "
            f"as of {as_of:%Y-%m-%d}"
        ]
    for facts, one in (("transactions", "order line"), ("events", "event")):
        rows, theirs = (int(measured.get(facts, {}).get(k, 0)) for k in ("rows", "attributed"))
        if rows and theirs:
            lines.append(f"[bold]{theirs:,}[/] of {_counted(rows, one)} by known customers")
        elif rows:
            lines.append(
                f"[yellow]0[/] of {_counted(rows, one)} by known customers: see the sources' "
                "'identifier' and 'identifier_type' in cdp.yaml"
            )
    return "\n".join(lines)


def _counted(number: int, one: str) -> str:
    return f"[bold]{number:,}[/] {one}{'' if number == 1 else 's'}"


def _models(models: dict[str, Any]) -> RichTable:
    table = _table("Models", "model", ">version", "verdict")
    for name, trained in models.items():
        version = "none" if trained["version"] is None else str(trained["version"])
        verdict = trained["verdict"].removeprefix(f"model '{name}': ")
        table.add_row(escape(name), version, escape(verdict))
    return table


def _segments(segments: dict[str, Any]) -> RichTable:
    table = _table("Segments", "segment", ">customers", ">entered", ">left")
    for name, counts in sorted(segments.items()):
        shown = (f"{int(counts[k]):,}" for k in ("customers", "entered", "left"))
        table.add_row(escape(name), *shown)
    return table


def _closing(outcome: Outcome, here: str) -> str:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gib = peak / 2**30 if sys.platform == "darwin" else peak / 2**20
    steps = ", ".join(f"{name} {s:.1f} s" for name, s in outcome.seconds.items())
    return (
        f"[green]Published[/] run [bold]{outcome.run_id}[/] after "
        f"{sum(outcome.seconds.values()):.1f} s, {gib:.1f} GiB at most ({steps})\n"
        "Next: " + ", ".join(f"[bold]cdp-ml {c}[/] ({why})" for c, why in _next(outcome, here))
    )


def _next(outcome: Outcome, here: str) -> Iterator[tuple[str, str]]:
    """What to type next, and why."""
    models = outcome.reports.get("train", {}).get("models", {})
    if any(m["version"] is not None for m in models.values()):
        yield f"serve{here}", "scores over HTTP"
        yield f"ui{here}", "models"
    yield f"status{here}", "this again"
    yield "tables", "what the tables hold"


def _table(title: str, *headings: str) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable

    table = RichTable(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        min_width=len(title),
    )
    for number, heading in enumerate(headings):
        right = heading.startswith(">")
        table.add_column(
            heading.removeprefix(">"),
            justify="right" if right else "left",
            no_wrap=right or number == 0,  # a name cut short cannot be looked up
        )
    return table


def _interval(measured: dict[str, float], name: str) -> str:
    """The 95% interval of a measure that has one."""
    if f"{name}_low" not in measured:
        return ""
    return f" ({_number(measured[f'{name}_low'])} to {_number(measured[f'{name}_high'])})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and value > 1 else f"{value:.3f}"

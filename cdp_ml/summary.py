"""What a refresh, a run, an evaluation or a customer looks like to a person: no logic."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from cdp_ml.contracts import TABLES, contract

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table as RichTable

    from cdp_ml.identity.review import Change
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
STEPS_SAID = {
    "prior": "two records taken at random",
    "household": "others of a home share it too",
    "namesakes": "others of this name share it too",
    "contradiction": "other given name and birth date",
}
"""What moves a match weight, besides the fields."""


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
    """How near the links and the scores come to the truth, or to what people decided."""
    from rich.console import Group

    return Group(*_evaluated(found))


def _evaluated(found: dict[str, Any]) -> Iterator[RenderableType]:
    if "identity" in found:
        yield from _identity(found["identity"], found["sources"])
    if "thresholds" in found:
        yield _thresholds(found["thresholds"], found["threshold"])
    if "labels" in found:
        yield from _labels(found["labels"])
    if found.get("models"):
        yield _models_against_truth(found["models"])
        yield (
            "Observer: the best AUC for who knows what is seen; truth: also what is hidden.\n"
            "Attained: the share of the way there from chance."
        )
    if "charts" in found:
        yield "Charts: " + escape(", ".join(found["charts"]))


def _identity(measured: dict[str, float], sources: dict[str, Any]) -> Iterator[RenderableType]:
    counts = {n: f"{measured[n]:,.0f}" for n in ("records", "people", "customers")}
    table = _table("Identity against the truth (95% interval)", "", ">pairs", ">B-cubed")
    for ratio, heading in _RATIOS.items():
        shown = (_number(measured[n]) + _interval(measured, n) for n in (ratio, f"b3_{ratio}"))
        table.add_row(heading.removeprefix(">"), *shown)
    yield table
    yield "{records} records of {people} people are {customers} customers\n".format(**counts)
    pairs = {"pairs_true": ">true pairs", "pairs_linked": ">linked pairs"}
    table = _table("Pairs by source", "sources", *pairs.values(), *_RATIOS.values())
    for name, m in sources.items():
        numbers = (f"{m[p]:,.0f}" for p in pairs)
        table.add_row(escape(name), *numbers, *(_number(m[ratio]) for ratio in _RATIOS))
    yield table


_RATIOS = {"precision": ">precision", "recall": ">recall", "f1": ">F1"}


def _thresholds(found: list[dict[str, float]], in_use: float) -> RichTable:
    table = _table(
        "What other thresholds would give (* in use)",
        ">threshold",
        ">bits",
        ">customers",
        ">precision",
        ">recall",
        ">F1",
        ">B-cubed F1",
    )
    for at in found:
        mark = "*" if at["threshold"] == in_use else ""
        ratios = (_number(at[n]) for n in ("precision", "recall", "f1", "b3_f1"))
        head = (f"{mark}{at['threshold']:g}", f"{at['match_weight']:+.1f}")
        table.add_row(*head, f"{at['customers']:,.0f}", *ratios)
    return table


def _labels(found: dict[str, Any]) -> Iterator[RenderableType]:
    title = "Identity against decisions of people (95% interval)"
    table = _table(title, "of the labeled pairs", ">linked", ">precision", ">recall")
    for name in ("clusters", "edges"):
        ratios = (_number(found[name][r]) + _interval(found[name], r) for r in _JUDGED)
        table.add_row(name, f"{found[name]['linked']:,}", *ratios)
    yield table
    reasons = {
        "applied": "applied as decisions",
        "unknown": "of records that are not there",
        "contradictory": "with both decisions",
    }
    left_out = "".join(f", {found[k]:,} left out ({why})" for k, why in reasons.items() if found[k])
    yield f"{found['same']:,} pairs the same, {found['different']:,} different{left_out}"
    yield "Pairs of the review queue are the doubtful ones: they do not stand for all.\n"


_JUDGED = ("precision", "recall")


def _models_against_truth(models: dict[str, Any]) -> RichTable:
    table = _table(
        "Models out of time against the truth",
        "model",
        ">customers",
        ">AUC",
        ">observer",
        ">attained",
        ">truth",
        ">attained",
        ">ECE",
    )
    for name, m in models.items():
        table.add_row(
            name,
            f"{m['customers']:,}",
            f"{m['auc']:.3f}",
            *_best_and_share(m.get("auc_observer"), m.get("attained_observer")),
            *_best_and_share(m["auc_truth"], m["attained"]),
            f"{m['ece']:.3f}",
        )
    return table


def _best_and_share(best: float | None, attained: float | None) -> tuple[str, str]:
    if best is None or attained is None:
        return "", ""
    return f"{best:.3f}", f"{attained:.1%}"


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


def render_queue(rows: list[dict[str, Any]]) -> RenderableType:
    """The review queue."""
    if not rows:
        return "Nothing is to be decided: no two customers are doubtful."
    table = _table(
        "To be decided: are they one person?",
        "record", "record", "customer", "customer", "why", ">bits", ">probability", "evidence",
    )  # fmt: skip
    for r in rows:
        names = (r["record_l"], r["record_r"], r["customer_l"], r["customer_r"], r["reason"])
        said = escape(r["evidence"] or "")
        table.add_row(*map(escape, names), *_weighed(r), said)
    return table


def _weighed(row: dict[str, Any]) -> tuple[str, str]:
    """Match weight and probability; people and identifiers need none."""
    weight, probability = row["match_weight"], row["match_probability"]
    return (
        "" if weight is None else f"{weight:+.1f}",
        "" if probability is None else percent(probability),
    )


def render_change(change: Change) -> RenderableType:
    """What a decision would change."""
    from rich.console import Group

    moves = change.moves.to_pylist()
    lines: list[RenderableType] = []
    if change.pending:
        lines.append(f"Together with what no refresh has applied yet: {', '.join(change.pending)}")
    if change.in_vain:
        lines.append(
            f"[yellow]{change.in_vain} of the pairs would stay apart[/]: people told other records "
            "of their customers apart; 'cdp-ml identity overrides' lists these decisions"
        )
    if not moves:
        return Group(*lines, "No record would get another customer.")
    table = _table("What the next refresh would change", "record", "customer", "would become")
    for m in moves:
        table.add_row(escape(m["record"]), m["customer_id"], m["becomes"])
    return Group(*lines, *dict.fromkeys(map(_move, moves)), table)


def _move(move: dict[str, Any]) -> str:
    if move["retires"]:
        return f"Customer [bold]{move['customer_id']}[/] merges into [bold]{move['becomes']}[/]."
    which = "a new customer" if move["is_new"] else "customer"
    return (
        f"Records of customer [bold]{move['customer_id']}[/] go to {which} "
        f"[bold]{move['becomes']}[/]."
    )


def render_check(found: dict[str, Any]) -> RenderableType:
    """Whether features served equal features computed."""
    said = (
        f"{found['compared']:,} values of {found['customers']} customers compared, "
        f"{found['pushed']:,} facts pushed in between"
    )
    if not found["different"]:
        return f"{said}: online equals offline."
    table = _table(f"{said}: these differ", "customer", "feature", "as of", "online", "offline")
    for r in found["different"]:
        values = (str(r["online"]), str(r["offline"]))
        table.add_row(r["customer_id"], r["feature"], _minute(r["event_timestamp"]), *values)
    return table


def render_decisions(rows: list[dict[str, Any]]) -> RenderableType:
    """What people decided."""
    if not rows:
        return "Nobody has decided anything yet; 'cdp-ml identity review' shows what is doubtful."
    table = _table("Decisions", "id", "decision", ">pairs", "who", "when (UTC)", "why", "state")
    for r in rows:
        state = r["state"] + (f" by {r['undone_by']}" if r["undone_by"] else "")
        told = (escape(r["actor"]), _minute(r["event_timestamp"]), escape(r["reason"] or ""))
        table.add_row(r["override_id"], r["decision"], f"{r['pairs']:,}", *told, escape(state))
    return table


def render_explanation(found: dict[str, Any]) -> RenderableType:
    """Why two records are one person or two."""
    from rich.console import Group

    a, b = map(escape, found["records"])
    table = _table(f"{a} and {b}", "", a, b, "found", ">bits", ">of them rarity")
    for step in found["steps"]:
        values = (escape(v) for v in step.get("values", ("", "")))
        rarity = f"{step['rarity']:+.2f}" if step.get("rarity") else ""
        level = escape(step.get("level", STEPS_SAID.get(step["name"], "")))
        table.add_row(escape(step["name"]), *values, level, f"{step['bits']:+.2f}", rarity)
    table.add_section()
    probability = f"probability {percent(found['probability'])}"
    table.add_row("match weight", "", "", probability, f"{found['weight']:+.2f}", "")
    return Group(table, *_verdict(found))


def _verdict(found: dict[str, Any]) -> Iterator[str]:
    """What is stronger than the weight, and what came of it all."""
    if decision := found["decision"]:
        did = "joins them" if decision["decision"] == "must-link" else "tells them apart"
        who, when = escape(decision["actor"]), _minute(decision["event_timestamp"])
        yield f"A person {did}: {who}, {when}, decision {decision['override_id']}."
    for kind in found["identifiers"]:
        yield f"Both bear the same identifier of type '{escape(kind)}', which joins for certain."
    one, other = found["customers"]
    if one == other:
        yield f"They are one customer, {one}; 'cdp-ml identity why {one}' shows what holds it."
    else:
        yield f"They are two customers, {one} and {other}."
    if review := found["review"]:
        yield f"People are asked ({review}); 'cdp-ml identity merge' and 'split' decide."


def render_why(found: dict[str, Any]) -> RenderableType:
    """What holds a customer together."""
    records = len(found["records"])
    if not found["needed"]:
        return f"Customer {found['customer_id']} is one record, {escape(found['records'][0])}."
    title = f"What holds the {records} records of {found['customer_id']}, the weakest first"
    table = _table(
        title, "record", "record", "kind", ">bits", ">probability", "evidence", "who", "since (UTC)"
    )
    for e in found["needed"]:
        names = (escape(e["record_l"]), escape(e["record_r"]), e["kind"])
        rest = (escape(e["evidence"]), escape(e["actor"]), _minute(e["known_at"]))
        table.add_row(*names, *_weighed(e), *rest)
    return table


def render_history(found: dict[str, Any]) -> RenderableType:
    """Who was whom, as known when."""
    from rich.console import Group

    links = _table("Links", "record", "customer", ">confidence", "from (UTC)", "to (UTC)")
    for r in found["links"]:
        ends = ["", ""]
        if "valid_from" in r:
            ends = [_minute(r["valid_from"]), _minute(r["valid_to"]) or "holds"]
        links.add_row(escape(r["record"]), r["customer_id"], percent(r["confidence"]), *ends)
    events = _table("Events", "when (UTC)", "event", "customer", "into", "why", "who")
    for e in found["events"]:
        ids = (e["customer_id"], e["into_customer_id"] or "")
        when = _minute(e["event_timestamp"])
        events.add_row(when, e["event"], *ids, escape(e["reason"]), escape(e["actor"]))
    none = "No link held then." if not found["links"] else links
    return Group(none, *([events] if found["events"] else []))


def percent(probability: float) -> str:
    """A probability to be read; never 0% or 100% if it is not."""
    if 0.001 <= probability <= 0.999 or probability in (0, 1):
        return f"{probability:.1%}"
    return "<0.1%" if probability < 0.5 else ">99.9%"


def _minute(instant: datetime | None) -> str:
    return "" if instant is None else f"{instant:%Y-%m-%d %H:%M}"


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

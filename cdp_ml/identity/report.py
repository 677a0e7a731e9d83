"""What a reviewer reads of a trained linkage model: charts, tables and a report, as files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cdp_ml.identity.charts import model_figures, save_figures
from cdp_ml.identity.model import Model
from cdp_ml.identity.weighing import levels


def write_report(model: Model, metrics: Mapping[str, float], folder: Path) -> None:
    """Write a model's JSON, charts (PNG) and report (Markdown).

    No file holds a value of a record: the model's tables of common given names and of hashes are
    not among them.

    Args:
        model: the model.
        metrics: what the first linking with it gave.
        folder: where to write; made if absent.
    """
    save_figures(model_figures(model), folder / "plots")
    (folder / "model.json").write_text(model.json, encoding="utf-8")
    (folder / "report.md").write_text(report(model, metrics), encoding="utf-8")


def report(model: Model, metrics: Mapping[str, float]) -> str:
    """What was learned, and from what, as Markdown."""
    parts = [summary(model), "## Linking", _table(("measure", ">value"), _numbers(metrics))]
    parts += ["## What a comparison level is worth", _LEVELS, _table(_HEADS, _levels(model))]
    if model.unobserved:
        parts += ["### Never observed", _UNOBSERVED, "\n".join(f"- {x}" for x in model.unobserved)]
    for name, context in model.contexts.items():
        share = f"Of the pairs that share what these share, {context['share']:.1%} are matches."
        parts += [f"## In the context '{name}'", share, _table(_HEADS, _context(model, context))]
    parts += ["## Training", _SESSIONS]
    parts += [_table(("training rule", ">iterations", ">share of matches"), _sessions(model))]
    parts += ["## Blocking rules", "The best first; larger blocks than the limit are left out."]
    blocks = ((f"`{b.rule}`", f"{b.limit}") for b in model.blocks)
    parts.append(_table(("rule", ">records a block may have"), blocks))
    return "# identity\n\n" + "\n\n".join(parts) + "\n"


def summary(model: Model) -> str:
    """The model in a line."""
    fields = ", ".join(c["output_column_name"] for c in model.settings["comparisons"])
    return (
        f"Learned without labels from {model.records:,} records; compares {fields}, of pairs that "
        f"{len(model.blocks)} blocking rules bring together."
    )


def facts(model: Model) -> tuple[dict[str, str], dict[str, float]]:
    """What runs are compared by: parameters and metrics of the training."""
    parameters = {
        "specification": model.spec,
        "records": str(model.records),
        "blocking_rules": str(len(model.blocks)),
        "contexts": ", ".join(model.contexts) or "none",
        "unobserved": "; ".join(model.unobserved) or "none",
    }
    prior = model.settings["probability_two_random_records_match"]
    metrics = {"prior": prior, "unobserved_levels": float(len(model.unobserved))}
    metrics |= {f"share_{name}": c["share"] for name, c in model.contexts.items()}
    for rule, session in model.sessions.items():
        name = "_".join(rule.split(", "))
        metrics[f"em_iterations/{name}"] = float(session["iterations"])
        metrics[f"em_share/{name}"] = session["share"]
    return parameters, metrics


_HEADS = ("field", "level", ">m", ">u", ">bits")
_LEVELS = (
    "`m` is a level's share of matches, `u` of random pairs, and bits the base 2 logarithm of m/u. "
    "Rare values add to it, common ones take from it."
)
_UNOBSERVED = (
    "Not seen among matches (m): the declared share stays. Not seen among random pairs (u): it is "
    "taken to be small. Both matter only if such pairs come."
)
_SESSIONS = (
    "Expectation maximisation ran among the pairs that agree on a rule, and there learned the "
    "fields that are not in it. Rules with too few pairs, or without convergence, are not listed."
)


def _levels(model: Model) -> Iterator[Sequence[str]]:
    for comparison in model.settings["comparisons"]:
        for _, trained, declared in levels(model, comparison):
            m, u = trained["m_probability"], trained["u_probability"]
            yield _row(comparison["output_column_name"], declared.label, m, u)


def _context(model: Model, context: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for comparison in model.settings["comparisons"]:
        field = comparison["output_column_name"]
        if fitted := context["fields"].get(field):
            labels = (declared.label for _, _, declared in levels(model, comparison))
            for label, m, u in zip(labels, fitted["m"], fitted["u"], strict=True):
                yield _row(field, label, m, u)


def _row(field: str, level: str, m: float, u: float) -> Sequence[str]:
    return field, level, f"{m:.3g}", f"{u:.3g}", f"{math.log2(m / u):+.1f}"


def _sessions(model: Model) -> Iterator[Sequence[str]]:
    for rule, session in model.sessions.items():
        yield f"`{rule}`", str(session["iterations"]), f"{session['share']:.1%}"


def _numbers(metrics: Mapping[str, float]) -> Iterator[Sequence[str]]:
    for name, value in metrics.items():
        yield name.replace("_", " "), f"{value:,.0f}" if value >= 1 or not value else f"{value:.3g}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns whose head begins with '>' are aligned to the right."""
    rule = "".join("---:|" if h.startswith(">") else "---|" for h in heads)
    shown = " | ".join(h.removeprefix(">") for h in heads)
    return "\n".join([f"| {shown} |", f"|{rule}", *(f"| {' | '.join(r)} |" for r in rows)])

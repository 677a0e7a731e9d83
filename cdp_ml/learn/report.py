"""What a reviewer reads of a training run: plots, tables and a model card, as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.learn.evaluate import Estimate
from cdp_ml.learn.training import Trained

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cdp_ml.config import ModelSpec
    from cdp_ml.learn.datasets import TimeSplit

MOST_LINES = 15
"""A table in the card shows so many lines; its CSV all."""
_BLUE, _GREY = "#1f5fa8", "#9aa3ad"
_CSS = (
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}"
    "td,th{border-bottom:1px solid #ddd;padding:.3em .7em}"
    "figure{display:inline-block;margin:0}img{max-width:29em}"
)
_LABELS = {
    "auc": "AUC",
    "auc_gain": "AUC above the baseline",
    "gini": "Gini, normalized",
    "gini_gain": "Gini above the baseline",
    "bias": "predicted over actual spend",
    "decile_mape": "decile MAPE",
    "mae": "mean absolute error",
    "brier": "Brier score",
    "ece": "expected calibration error",
    "log_loss": "log-loss",
    "qini": "Qini",
    "auuc": "AUUC",
    "balance_auc": "AUC of telling the arms apart",
}
_BASELINE_STYLE = {
    "logistic": "--",
    "recency": ":",
    "frequency": "-.",
    "bgnbd": (0, (5, 1)),
    "propensity": "--",
    "rule": ":",
}


def write_report(trained: Trained, folder: Path) -> None:
    """Write a run's plots (PNG), tables (CSV), metrics (JSON) and model card (Markdown).

    Args:
        trained: the model.
        folder: where to write; made if absent. No file holds a customer's data.
    """
    import pyarrow.csv

    for sub in ("plots", "tables"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for name, figure in figures(trained).items():
        figure.savefig(folder / "plots" / f"{name}.png", dpi=90)
    for name, table in trained.evaluation.tables.items():
        pyarrow.csv.write_csv(table, folder / "tables" / f"{name}.csv")
    metrics = {k: [e.value, e.low, e.high] for k, e in trained.evaluation.metrics.items()}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    card = model_card(trained)
    (folder / "model_card.md").write_text(card, encoding="utf-8")
    (folder / "report.html").write_text(_page(card, folder / "plots"), encoding="utf-8")
    if "champion" in trained.scores:
        (folder / "champion.md").write_text(comparison(trained), encoding="utf-8")


def comparison(trained: Trained) -> str:
    """The challenger beside the champion on the same test customers, and the verdict, as Markdown.

    Args:
        trained: a model that was compared with a champion.
    """
    found, test = trained.evaluation.metrics, trained.split.test
    lines = ["| metric | challenger | champion | gain |", "|---|---:|---:|---:|"]
    for name in (n.removeprefix("champion/") for n in found if n.startswith("champion/")):
        if name in found:
            gain = found.get(f"champion/{name}_gain")
            beside = (_interval(found[name]), _interval(found[f"champion/{name}"]))
            lines.append(f"| {_label(name)} | {' | '.join(beside)} | {gain or ''} |")
    return "\n".join(
        [
            f"# {trained.spec.name}: challenger and champion\n",
            f"{trained.verdict}\n",
            f"Both scored the same {trained.rows['test_rows']:,} customers as of {test:%Y-%m-%d}; "
            "intervals are of 95%, from a bootstrap over customers, paired for the gains.\n",
            *lines,
            "",
        ]
    )


def _page(card: str, plots: Path) -> str:
    """The model card and the plots as one HTML page that needs no other file."""
    import base64

    from markdown_it import MarkdownIt

    text = MarkdownIt("commonmark", {"html": False}).enable("table").render(card)
    images = "".join(
        f'<figure><img alt="{p.stem}" src="data:image/png;base64,'
        f'{base64.b64encode(p.read_bytes()).decode()}"></figure>'
        for p in sorted(plots.glob("*.png"))
    )
    return f"<!doctype html><meta charset='utf-8'><style>{_CSS}</style>{text}<h2>Plots</h2>{images}"


def model_card(trained: Trained) -> str:
    """What the model is, how it was trained and judged, and its limits, as Markdown."""
    return f"# {trained.spec.name}\n\n{_card(trained)}"


def description(trained: Trained) -> str:
    """The model card for MLflow's pages, which show a title already.

    They list its first line, the verdict, and set the cells of tables without any space between.
    """
    lines = _card(trained).splitlines()
    return "\n".join(x.replace(" | ", "&nbsp;&nbsp; | ") if x[:2] == "| " else x for x in lines)


def _card(trained: Trained) -> str:
    spec, split = trained.spec, trained.split
    told = _TOLD.get(spec.task, _tell_supervised)(spec, split, trained.rows)
    parts = [trained.evaluation.verdict, spec.description, *told]
    parts += ["## Metrics", _metrics_markdown(trained)]
    if trained.choice is not None and trained.choice.calibration:
        parts.append(trained.choice.calibration)
    for name, table in trained.evaluation.tables.items():
        parts += [f"## {name.capitalize()}", _markdown(table.slice(0, MOST_LINES))]
    parts += ["## Features", ", ".join(f"`{f}`" for f in trained.predictor.features)]
    if trained.excluded:
        parts.append("Left out, for want of two values: " + ", ".join(trained.excluded))
    parts += ["## Limits", _limits(trained)]
    return "\n\n".join(parts) + "\n"


def _tell_supervised(spec: ModelSpec, split: TimeSplit, rows: Mapping[str, int]) -> list[str]:
    return [
        f"Predicts {_predicted(spec)} within {spec.label.within_days} days, for "
        f"customers with `{spec.population}`.",
        f"Trained on {len(split.train)} snapshots from {split.train[0]:%Y-%m-%d} to "
        f"{split.train[-1]:%Y-%m-%d} ({rows['train_rows']:,} rows), tested on "
        f"{split.test:%Y-%m-%d} ({rows['test_rows']:,} rows), whose label window "
        f"closed by {split.as_of:%Y-%m-%d}.",
    ]


def _tell_clusters(spec: ModelSpec, split: TimeSplit, rows: Mapping[str, int]) -> list[str]:
    return [
        f"Groups the {rows['train_rows']:,} customers with `{spec.population}` as of "
        f"{split.as_of:%Y-%m-%d}."
    ]


def _tell_uplift(spec: ModelSpec, split: TimeSplit, rows: Mapping[str, int]) -> list[str]:
    return [
        f"Predicts how much more probable treatment makes: {spec.label.outcome} within "
        f"{spec.label.within_days} days, for customers with `{spec.population}`.",
        f"Learned from {rows['train_rows']:,} customers of the campaign `{spec.campaign}`, "
        f"{rows['train_treated']:,} of them in the arm `{spec.treatment}`, by what was known on "
        f"{split.test:%Y-%m-%d}, before it began; each was judged by models that had not seen her.",
    ]


def _tell_next(spec: ModelSpec, split: TimeSplit, rows: Mapping[str, int]) -> list[str]:
    what = {"category": "categories", "product": "products"}[spec.item]
    return [
        f"Offers each customer the {spec.top} of {rows['items']:,} {what} that she most probably "
        "buys next; a score is the probability to buy it, of who buys at all within "
        f"{split.horizon.days} days.",
        f"Trained on what {rows['train_customers']:,} customers bought in {rows['train_windows']} "
        f"windows of {split.horizon.days} days before {split.test:%Y-%m-%d}, tested on what "
        f"{rows['test_customers']:,} bought from then to {split.as_of:%Y-%m-%d}.",
    ]


def _predicted(spec: ModelSpec) -> str:
    if spec.task == "value":
        return "the spend" + spec.label.outcome.removeprefix("order").replace(" of ", " on ", 1)
    return f"the probability of: {spec.label.outcome},"


def figures(trained: Trained) -> dict[str, Figure]:
    """The run's plots by name."""
    if trained.spec.task == "clustering":
        return {"profiles": _profiles_figure(trained)}
    return {name: _figure(trained, draw) for name, draw in _DRAWN[trained.spec.task].items()}


def _figure(trained: Trained, draw: Any) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    draw(axes, trained)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, frameon=False, fontsize=8)
    return figure


def _draw_roc(axes: Axes, trained: Trained) -> None:
    from sklearn.metrics import roc_curve

    for name, score in trained.scores.items():
        fpr, tpr, _ = roc_curve(trained.outcomes, score)
        axes.plot(fpr, tpr, label=_legend(trained, name, "auc"), **_style(name))
    axes.plot([0, 1], [0, 1], color="lightgrey", linewidth=0.8)
    axes.set(title="ROC", xlabel="False positive rate", ylabel="True positive rate")


def _draw_precision_recall(axes: Axes, trained: Trained) -> None:
    from sklearn.metrics import precision_recall_curve

    for name, score in trained.scores.items():
        precision, recall, _ = precision_recall_curve(trained.outcomes, score)
        axes.plot(
            recall, precision, label=_legend(trained, name, "average_precision"), **_style(name)
        )
    axes.axhline(trained.evaluation.metrics["base_rate"].value, color="lightgrey", linewidth=0.8)
    axes.set(title="Precision and recall", xlabel="Recall", ylabel="Precision", ylim=(0, 1.02))


def _draw_reliability(axes: Axes, trained: Trained) -> None:
    deciles, value = trained.evaluation.tables["deciles"], trained.spec.task == "value"
    outcome = "mean_spend" if value else "outcome_rate"
    predicted, observed = (deciles[c].to_numpy() for c in ("mean_score", outcome))
    limit = max(predicted.max(), observed.max()) * 1.05
    axes.plot([0, limit], [0, limit], color="lightgrey", linewidth=0.8)
    label = _legend(trained, "model", "bias" if value else "ece")
    axes.plot(predicted, observed, "o-", color=_BLUE, label=label)
    axes.set(title="Reliability, by decile", xlabel="Predicted", ylabel="Observed")


def _draw_gain(axes: Axes, trained: Trained) -> None:
    import numpy as np

    assert trained.outcomes is not None
    share = np.arange(len(trained.outcomes) + 1) / len(trained.outcomes)
    metric = "gini" if trained.spec.task == "value" else "top_decile_lift"
    for name, score in trained.scores.items():
        found = trained.outcomes[np.argsort(-score, kind="stable")].cumsum()
        label = _legend(trained, name, metric)
        axes.plot(share, np.r_[0, found] / found[-1], label=label, **_style(name))
    axes.plot([0, 1], [0, 1], color="lightgrey", linewidth=0.8)
    axes.set(title="Gain", xlabel="Share of customers targeted", ylabel="Share of outcomes reached")


def _draw_lift(axes: Axes, trained: Trained) -> None:
    deciles = trained.evaluation.tables["deciles"]
    axes.bar(deciles["decile"].to_pylist(), deciles["lift"].to_pylist(), color=_BLUE)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(title="Lift, by decile of the score", xlabel="Decile", ylabel="Times the mean")
    axes.set_xticks(range(1, 11))


def _draw_scores(axes: Axes, trained: Trained) -> None:
    import numpy as np

    assert trained.outcomes is not None
    score, happened = trained.scores["model"], trained.outcomes > 0
    top = 1.0 if trained.spec.task == "propensity" else float(np.quantile(score, 0.99)) or 1.0
    for shown, label, color in (
        (~happened, "without the outcome", _GREY),
        (happened, "with it", _BLUE),
    ):
        axes.hist(score[shown], bins=30, range=(0, top), color=color, alpha=0.6, label=label)
    axes.set(title="Scores of the test customers", xlabel="Score", ylabel="Customers")


def _draw_contributions(axes: Axes, trained: Trained) -> None:
    """A dot a customer: what the feature adds, from its low values (grey) to its high (blue)."""
    import numpy as np

    if trained.explained is None:
        return
    x, shares = trained.explained
    random = np.random.default_rng(1)
    best = np.argsort(np.abs(shares).mean(axis=0))[-12:]
    for place, number in enumerate(best):
        rank = np.argsort(np.argsort(np.nan_to_num(x[:, number], nan=-1))) / max(len(x), 1)
        height = place + random.uniform(-0.3, 0.3, len(x))
        axes.scatter(shares[:, number], height, c=rank, cmap="coolwarm", s=4, linewidths=0)
    axes.set_yticks(range(len(best)), [trained.predictor.features[n] for n in best])
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set(title="Contributions (SHAP): blue low values, red high", xlabel="Adds to the score")


def _draw_drift(axes: Axes, trained: Trained) -> None:
    table = trained.evaluation.tables["drift"].slice(0, 15).to_pylist()[::-1]
    axes.barh([r["feature"] for r in table], [r["psi"] for r in table], color=_BLUE)
    for limit in (0.1, 0.25):
        axes.axvline(limit, color="grey", linewidth=0.8, linestyle=":")
    axes.set(title="Drift from training to test", xlabel="Population stability index")


def _draw_importance(axes: Axes, trained: Trained) -> None:
    total = sum(trained.importance.values()) or 1.0
    best = sorted(trained.importance.items(), key=lambda item: item[1])[-15:]
    axes.barh([name for name, _ in best], [gain / total for _, gain in best], color=_BLUE)
    axes.set(title="Importance", xlabel="Share of the trees' total gain")


def _draw_qini(axes: Axes, trained: Trained) -> None:
    table = trained.evaluation.tables["qini"]
    axes.plot(table["share"], table["random"], color="lightgrey", linewidth=0.8, label="random")
    rivals = {n.partition("/")[0] for n in trained.evaluation.metrics if "/" in n}
    for name in table.column_names[2:]:
        is_rival = f"baseline_{name}" in rivals
        style = _style(name if is_rival else "model")
        key = f"baseline_{name}/qini" if is_rival else "qini"
        found = trained.evaluation.metrics[key].value
        axes.plot(table["share"], table[name], label=f"{name}: Qini {found:.3f}", **style)
    axes.set(
        title="Qini curve",
        xlabel="Share of customers targeted",
        ylabel="Further outcomes per customer",
    )


def _draw_uplift(axes: Axes, trained: Trained) -> None:
    deciles = trained.evaluation.tables["deciles"]
    axes.bar(deciles["decile"].to_pylist(), deciles["uplift"].to_pylist(), color=_BLUE)
    effect = trained.evaluation.metrics["average_effect"].value
    axes.axhline(effect, color="grey", linewidth=0.8, label=f"average effect {effect:+.3f}")
    axes.set(title="Uplift, by decile of the score", xlabel="Decile", ylabel="Uplift")
    axes.set_xticks(range(1, 11))


def _draw_balance(axes: Axes, trained: Trained) -> None:
    rows = sorted(
        trained.evaluation.tables["balance"].to_pylist(), key=lambda r: abs(r["difference"])
    )[-15:]
    axes.barh([r["feature"] for r in rows], [r["difference"] for r in rows], color=_BLUE)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set(title="Arms before the campaign", xlabel="Difference, in standard deviations")


def _draw_recall(axes: Axes, trained: Trained) -> None:
    """The recall of the model and of each baseline, with intervals."""
    found = trained.evaluation.metrics
    (metric,) = (n for n in found if n.startswith("recall_at_"))
    rivals = [n.partition("/")[0] for n in found if n.endswith(f"/{metric}")]
    bars = {"model": found[metric], **{r: found[f"{r}/{metric}"] for r in rivals}}
    names = [n.removeprefix("baseline_").replace("_", " ") for n in bars][::-1]
    shown = list(bars.values())[::-1]
    # Where an interval is a point, rounding may put it beside the value.
    error = [[max(s, 0) for s in side] for side in zip(*map(_sides, shown), strict=True)]
    color = [_GREY] * len(rivals) + [_BLUE]
    axes.barh(names, [e.value for e in shown], xerr=error, color=color, ecolor="#444")
    axes.set(title=f"{_label(metric).capitalize()}, 95% intervals", xlabel="Recall")


def _sides(e: Estimate) -> tuple[float, float]:
    return e.value - e.low, e.high - e.value


def _profiles_figure(trained: Trained) -> Figure:
    """A heat map: each cluster's center, in standard deviations from the mean customer."""
    from matplotlib.figure import Figure

    centers, predictor = trained.predictor.model[-1].cluster_centers_, trained.predictor
    width, height = 3 + 0.9 * len(predictor.features), 2 + 0.5 * len(predictor.clusters)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(centers, cmap="RdBu_r", vmin=-2, vmax=2, aspect="auto")
    axes.set_xticks(range(len(predictor.features)), predictor.features, rotation=30, ha="right")
    axes.set_yticks(range(len(predictor.clusters)), predictor.clusters)
    for (row, column), value in _cells(centers):
        axes.text(
            column, row, f"{value:+.1f}", ha="center", va="center", fontsize=8, color=_ink(value)
        )
    figure.colorbar(image, label="standard deviations from the mean")
    axes.set_title("Clusters")
    return figure


def _ink(value: float) -> str:
    """White on the dark ends of the color scale."""
    return "white" if abs(value) > 1.2 else "black"


def _cells(values: Any) -> Any:
    import numpy as np

    return np.ndenumerate(values)


def _style(name: str) -> dict[str, Any]:
    if name == "model":
        return {"color": _BLUE, "linewidth": 2, "zorder": 3}
    return {"color": _GREY, "linewidth": 1.2, "linestyle": _BASELINE_STYLE.get(name, "-")}


def _legend(trained: Trained, name: str, metric: str) -> str:
    where = {"model": "", "champion": "champion/"}.get(name, f"baseline_{name}/")
    key = where + metric
    return f"{name}: {_label(metric)} {trained.evaluation.metrics[key].value:.3f}"


def _metrics_markdown(trained: Trained) -> str:
    """One row a metric; the model with its 95% interval, and beside it the baselines."""
    found = trained.evaluation.metrics
    rivals = list(dict.fromkeys(name.partition("/")[0] for name in found if "/" in name))
    heads = ["metric", "model (95% interval)", *(r.replace("_", " ") for r in rivals)]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for name, estimate in found.items():
        if "/" not in name:
            beside = (found.get(f"{rival}/{name}") for rival in rivals)
            cells = [
                _label(name),
                _interval(estimate),
                *(_beside(name, e) if e else "" for e in beside),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _beside(name: str, e: Estimate) -> str:
    """A baseline's value; a gain over it with its interval, which decides."""
    return _interval(e) if name.endswith("_gain") else f"{e.value:.3f}"


def _interval(e: Estimate) -> str:
    if e.low == e.high:
        return f"{e.value:.3f}".removesuffix(".000")
    return f"{e.value:.3f} ({e.low:.3f} to {e.high:.3f})"


def _label(metric: str) -> str:
    return _LABELS.get(metric, metric.replace("_", " "))


def _markdown(table: pa.Table) -> str:
    """A table whose numbers are aligned to the right."""
    import pyarrow.types as kind

    rule = "".join("---|" if kind.is_string(f.type) else "---:|" for f in table.schema)
    head = f"| {' | '.join(table.column_names)} |\n|{rule}"
    rows = (f"| {' | '.join(_cell(v) for v in row.values())} |" for row in table.to_pylist())
    return "\n".join([head, *rows])


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _limits(trained: Trained) -> str:
    return _LIMITS.get(trained.spec.task, _LIMITS["propensity"])


def parameters(trained: Trained) -> Mapping[str, str]:
    """What the run is compared by: specification, instants and estimator, as text."""
    spec, split = trained.spec, trained.split
    common = {
        "task": spec.task,
        "features": ", ".join(trained.predictor.features),
        "excluded_features": ", ".join(trained.excluded) or "none",
        "as_of": f"{split.as_of:%Y-%m-%d}",
    }
    if spec.features:
        common["population"] = spec.population
    if spec.task != "clustering":
        common |= {
            "horizon_days": str(split.horizon.days),
            "train_snapshots": ", ".join(f"{t:%Y-%m-%d}" for t in split.train),
            "test_snapshot": f"{split.test:%Y-%m-%d}",
        }
    if spec.task == "uplift":
        common |= {"campaign": str(spec.campaign), "treatment": spec.treatment}
        common["outcome"] = spec.label.outcome
    elif spec.task == "next_category":
        common |= {"item": spec.item, "top": str(spec.top)}
    elif spec.task != "clustering":
        common["outcome"] = "spend" if spec.task == "value" else spec.label.outcome
        sigmoid = trained.choice and trained.choice.sigmoid
        common["calibration"] = "sigmoid" if sigmoid else "none"
    chosen = {f"estimator.{k}": str(v) for k, v in trained.parameters.items()}
    return {k: v[:6000] for k, v in {**common, **chosen}.items()}


_TOLD = {"clustering": _tell_clusters, "uplift": _tell_uplift, "next_category": _tell_next}
_LIMITS = {
    "propensity": "Judged on one test instant: a season that the training snapshots do not hold "
    "may differ. Not for decisions with legal effect on a person. Scores of customers outside the "
    "population mean nothing.",
    "clustering": "Clusters describe, they do not predict. Trained again they begin at these, and "
    "keep their names; their number may change.",
    "uplift": "Judged on one campaign: another offer, channel or season may change others. Not for "
    "decisions with legal effect on a person. Scores of customers outside the population mean "
    "nothing.",
    "next_category": "Judged on one window: another season may differ. It offers what was bought, "
    "and learns nothing of what customers saw and left. Who never bought is offered nothing.",
}
_JUDGED = {
    "reliability": _draw_reliability,
    "gain": _draw_gain,
    "lift": _draw_lift,
    "scores": _draw_scores,
    "importance": _draw_importance,
    "contributions": _draw_contributions,
    "drift": _draw_drift,
}
_DRAWN = {
    "propensity": {"roc": _draw_roc, "precision_recall": _draw_precision_recall, **_JUDGED},
    "value": _JUDGED,
    "uplift": {"qini": _draw_qini, "deciles": _draw_uplift, "balance": _draw_balance},
    "next_category": {
        "recall": _draw_recall,
        "importance": _draw_importance,
        "contributions": _draw_contributions,
    },
}
"""The plots of each task but clustering, by name."""

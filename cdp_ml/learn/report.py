"""What a reviewer reads of a training run: plots, tables and a model card, as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.learn.evaluate import Estimate
from cdp_ml.learn.training import Trained
from cdp_ml.learn.uplift_metrics import LEVEL

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cdp_ml.config import ModelSpec
    from cdp_ml.learn.datasets import TimeSplit

MOST_LINES = 15
"""A table in the card shows so many lines; its CSV all."""
CURVE_POINTS = 500
_BLUE, _GREY = "#1f5fa8", "#9aa3ad"
_CSS = (
    "body{font:15px/1.5 sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}"
    "td,th{border-bottom:1px solid #ddd;padding:.25em .8em;white-space:nowrap}"
    "h2{margin:1.6em 0 .4em}code{font-size:.9em}"
    ".verdict{font-size:1.1em;padding:.7em 1em;border-left:6px solid #b7791f;background:#fdf6e7}"
    ".promoted{border-color:#2f7d46;background:#eaf5ec}"
    ".plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(27em,1fr));gap:1em}"
    "figure{margin:0}img{width:100%}"
)
_LABELS = {
    "auc": "AUC",
    "gini": "Gini, normalized",
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
_SHORT = {"average_precision": "AP", "ece": "ECE", "brier": "Brier", "mae": "MAE"}
"""How metrics are called at the head of a wide table."""
_NAMES = {
    "logistic": "logistic regression",
    "bgnbd": "BG/NBD",
    "rfm": "RFM score",
    "t_logistic": "T-learner, logistic",
    "t_lightgbm": "T-learner, LightGBM",
    "x_lightgbm": "X-learner, LightGBM",
    "propensity": "targeting by propensity",
    "rule": "one-feature rule",
    "tifu_knn": "TIFU-kNN",
}
"""What scores are called where people read; others by their own names."""
_STYLES = {
    "champion": ("#222222", (0, (1, 1))),
    "logistic": ("#d55e00", "--"),
    "bgnbd": ("#009e73", "-."),
    "recency": ("#cc79a7", ":"),
    "frequency": ("#e69f00", (0, (5, 1))),
    "monetary": ("#8c6d31", (0, (3, 1, 1, 1))),
    "rfm": ("#56b4e9", "-"),
    "t_logistic": ("#d55e00", "--"),
    "t_lightgbm": ("#e69f00", (0, (5, 1))),
    "x_lightgbm": ("#009e73", "-."),
    "propensity": ("#cc79a7", ":"),
    "rule": ("#56b4e9", "-"),
}
"""The color (Okabe and Ito's, which the color-blind tell apart) and line of each rival."""
_EXPLAINED = {
    "deciles": "The customers in ten equal parts, from the highest scores to the lowest.",
    "drift": "How far the test customers are from those of the training: below 0.1 is little, "
    "above 0.25 much. What only grows with time, such as a tenure, always drifts.",
    "candidates": "What this one was chosen from, without a look at the test.",
    "profiles": "What the customers of each cluster are like: medians, and shares of the whole.",
    "balance": "What the arms were like before the campaign, in standard deviations: chance alone "
    "leaves differences of a few hundredths in thousands of customers, more in hundreds.",
}
_MAIN = ("auc", "gini", "qini", "recall_at_", "stability")
"""How the names of the metrics begin by which models of each task are ranked."""
_TELLING = (
    *("log_loss", "ece", "bias", "decile_mape"),
    *("average_effect", "silhouette", "smallest_share", "clusters"),
)
_ABOUT_ECE = (
    "Draws with repetition are less even than the customers themselves: the interval of the "
    "expected calibration error lies high."
)
_ABOUT_UPLIFT = (
    f"Intervals are of 95%, but of {LEVEL:.0%} of Qini, AUUC, top decile and leads: scores from "
    "cross-fitting are less certain than a bootstrap of the customers shows."
)
_DRAWN_ONLY = ("qini",)
"""Tables with too many lines to be read: they have a plot, and a CSV."""


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
        figure.savefig(folder / "plots" / f"{name}.png", dpi=110)
    for name, table in trained.evaluation.tables.items():
        pyarrow.csv.write_csv(table, folder / "tables" / f"{name}.csv")
    metrics = {k: [e.value, e.low, e.high] for k, e in trained.evaluation.metrics.items()}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    (folder / "model_card.md").write_text(model_card(trained), encoding="utf-8")
    (folder / "report.html").write_text(_page(trained, folder / "plots"), encoding="utf-8")
    if trained.champion is not None:
        (folder / "champion.md").write_text(comparison(trained), encoding="utf-8")


def comparison(trained: Trained) -> str:
    """The challenger beside the champion on the same test customers, and the verdict, as Markdown.

    Args:
        trained: a model that was compared with a champion.
    """
    found, split = trained.evaluation.metrics, trained.split
    level = f"{LEVEL:.0%}" if trained.spec.task == "uplift" else "95%"
    tested = trained.rows[_TESTED.get(trained.spec.task, "test_rows")]
    lines = ["| metric | challenger | champion | gain |", "|---|---:|---:|---:|"]
    for name in (n.removeprefix("champion/") for n in found if n.startswith("champion/")):
        if name in found and not name.endswith("_gain"):
            gain = found.get(f"champion/{name}_gain")
            beside = (found[name], found[f"champion/{name}"], *([gain] if gain else []))
            cells = [_interval(e) for e in beside]
            lines.append(f"| {_label(name)} | {' | '.join(cells)} |")
    return "\n".join(
        [
            f"# {trained.spec.name}: challenger and champion (version {trained.champion})\n",
            f"{trained.verdict}\n",
            f"{_against_champion(found)}\n",
            f"Both scored the same {tested:,} customers as of {split.test:%Y-%m-%d}; intervals are "
            f"of {level}, from a bootstrap over customers, paired for the gains.\n",
            *lines,
            "",
        ]
    )


def _against_champion(found: Mapping[str, Estimate]) -> str:
    """Whether the challenger is better than the champion, in a sentence."""
    # Of a propensity there are two, of which the last decides.
    key = [n for n in found if n.startswith("champion/") and n.endswith("_gain")][-1]
    metric, gain = key.removeprefix("champion/").removesuffix("_gain"), found[key]
    told = "no better and no worse than" if gain.low <= 0 <= gain.high else "better than"
    told = "worse than" if gain.high < 0 else told
    return f"In {_label(metric)} the challenger is {told} the champion: gain {_interval(gain)}."


def _page(trained: Trained, plots: Path) -> str:
    """The card and the plots as one HTML page that needs no other file; the verdict stands out."""
    import base64
    from html import escape

    from markdown_it import MarkdownIt

    write = MarkdownIt("commonmark", {"html": False}).enable("table").render
    images = "".join(
        f'<figure><img alt="{p.stem}" src="data:image/png;base64,'
        f'{base64.b64encode(p.read_bytes()).decode()}"></figure>'
        for p in sorted(plots.glob("*.png"), key=lambda p: list(_drawn(trained)).index(p.stem))
    )
    promoted = " promoted" if trained.promoted else ""
    name, verdict = escape(trained.spec.name), escape(trained.verdict)
    judged, rest = ("\n\n".join(parts) for parts in (_judgement(trained), _details(trained)))
    return (
        f"<!doctype html><meta charset='utf-8'><title>{name}</title><style>{_CSS}</style>"
        f"<h1>{name}</h1><p class='verdict{promoted}'>{verdict}</p>{write(judged)}"
        f"<h2>Plots</h2><div class='plots'>{images}</div>{write(rest)}"
    )


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
    parts = [trained.verdict, *_judgement(trained), *_details(trained)]
    return "\n\n".join(parts) + "\n"


def _judgement(trained: Trained) -> list[str]:
    """What the model is, and how good, beside what else could be used."""
    spec, split = trained.spec, trained.split
    told = _TOLD.get(spec.task, _tell_supervised)(spec, split, trained.rows)
    parts = [spec.description, *told, "## Metrics", _metrics_markdown(trained)]
    if "ece" in trained.evaluation.metrics:
        parts.append(_ABOUT_ECE)
    if spec.task == "uplift":
        parts.append(_ABOUT_UPLIFT)
    if beside := _rivals_markdown(trained):
        parts += ["## Beside the baselines", beside]
    if trained.choice is not None and trained.choice.calibration:
        parts.append(trained.choice.calibration)
    return parts


def _details(trained: Trained) -> list[str]:
    parts = []
    for name, table in trained.evaluation.tables.items():
        if name not in _DRAWN_ONLY:
            told = [_EXPLAINED[name]] if name in _EXPLAINED else []
            shown = _largest_first(table).slice(0, MOST_LINES)
            parts += [f"## {name.capitalize()}", *told, _markdown(shown)]
    parts += ["## Limits", _limits(trained)]
    parts += ["## Features", ", ".join(f"`{f}`" for f in trained.predictor.features)]
    if trained.excluded:
        parts.append("Left out, for want of two values: " + ", ".join(trained.excluded))
    return parts


def _tell_supervised(spec: ModelSpec, split: TimeSplit, rows: Mapping[str, int]) -> list[str]:
    return [
        f"Predicts {_predicted(spec)}, for customers with `{spec.population}`.",
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
        f"Predicts how much more probable treatment makes *{_outcome(spec)}*, for customers with "
        f"`{spec.population}`.",
        f"Learned from {rows['train_rows']:,} customers of the campaign `{spec.campaign}`, "
        f"{rows['train_treated']:,} of them in the arm `{spec.treatment}`, by what was known on "
        f"{split.test:%Y-%m-%d}, before it began; no customer was judged by a model that had seen "
        "that customer.",
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
        return "the spend" + _outcome(spec).removeprefix("order").replace(" of ", " on ", 1)
    return f"the probability of *{_outcome(spec)}*"


def _outcome(spec: ModelSpec) -> str:
    return f"{spec.label.outcome} within {spec.label.within_days} days"


def figures(trained: Trained) -> dict[str, Figure]:
    """The run's plots by name, those that judge the model first."""
    return {name: _figure(trained, draw) for name, draw in _drawn(trained).items()}


def _drawn(trained: Trained) -> Mapping[str, Any]:
    drawn = _DRAWN[trained.spec.task]
    tried = trained.evaluation.tables.get("candidates")
    is_choice = tried is not None and tried.num_rows > 1
    return {name: draw for name, draw in drawn.items() if name != "candidates" or is_choice}


def _figure(trained: Trained, draw: Any) -> Figure:
    from matplotlib.figure import Figure

    # Making room for names takes as long as drawing does.
    figure = Figure(figsize=(6.4, 4.6), layout="constrained" if draw in _WITH_NAMES else None)
    axes = figure.add_subplot()
    if draw not in _WITH_NAMES:
        figure.subplots_adjust(left=0.13, right=0.97, bottom=0.12, top=0.92)
    axes.set_axisbelow(True)
    draw(axes, trained)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, frameon=False, fontsize=9)
    return figure


def _draw_roc(axes: Axes, trained: Trained) -> None:
    from sklearn.metrics import roc_curve

    for name, score in trained.scores.items():
        fpr, tpr, _ = roc_curve(trained.outcomes, score)
        axes.plot(*_thinned(fpr, tpr), label=_legend(trained, name, "auc"), **_style(name))
    axes.plot([0, 1], [0, 1], color="lightgrey", linewidth=0.8)
    axes.set(title="ROC", xlabel="False positive rate", ylabel="True positive rate")


def _draw_precision_recall(axes: Axes, trained: Trained) -> None:
    from sklearn.metrics import precision_recall_curve

    for name, score in trained.scores.items():
        precision, recall, _ = precision_recall_curve(trained.outcomes, score)
        label = _legend(trained, name, "average_precision")
        axes.plot(*_thinned(recall, precision), label=label, **_style(name))
    axes.axhline(trained.evaluation.metrics["base_rate"].value, color="lightgrey", linewidth=0.8)
    axes.set(title="Precision and recall", xlabel="Recall", ylabel="Precision", ylim=(0, 1.02))


def _thinned(*curve: np.ndarray) -> list[np.ndarray]:
    """As many points of a curve as can be told apart: a hundred thousand take a second to draw."""
    import numpy as np

    places = np.linspace(0, len(curve[0]) - 1, min(len(curve[0]), CURVE_POINTS)).astype(int)
    return [values[places] for values in curve]


def _draw_reliability(axes: Axes, trained: Trained) -> None:
    import numpy as np

    deciles, value = trained.evaluation.tables["deciles"], trained.spec.task == "value"
    outcome = "mean_spend" if value else "outcome_rate"
    predicted, observed = (deciles[c].to_numpy() for c in ("mean_score", outcome))
    error = None
    if not value:
        error = 1.96 * np.sqrt(observed * (1 - observed) / np.maximum(deciles["customers"], 1))
    limit = max(predicted.max(), observed.max()) * 1.05
    axes.plot([0, limit], [0, limit], color="grey", linewidth=0.8, label="as predicted")
    label = _legend(trained, "model", "bias" if value else "ece")
    axes.errorbar(predicted, observed, error, fmt="o-", color=_BLUE, capsize=2, label=label)
    what = "spend" if value else "share with the outcome, 95% intervals"
    axes.set(title="Reliability, by decile of the score", xlabel="Predicted, mean of the decile")
    axes.set(ylabel=f"Observed {what}")


def _draw_gain(axes: Axes, trained: Trained) -> None:
    import numpy as np

    assert trained.outcomes is not None
    share = np.arange(len(trained.outcomes) + 1) / len(trained.outcomes)
    is_value = trained.spec.task == "value"
    metric = "gini" if is_value else "top_decile_lift"
    for name, score in trained.scores.items():
        found = trained.outcomes[np.argsort(-score, kind="stable")].cumsum()
        label = _legend(trained, name, metric)
        reached = np.r_[0, found] / found[-1]
        axes.plot(*_thinned(share, reached), label=label, **_style(name))
    axes.plot([0, 1], [0, 1], color="lightgrey", linewidth=0.8)
    what = "Share of all spend" if is_value else "Share of all with the outcome"
    axes.set(title="Gain", xlabel="Share of customers, highest scores first", ylabel=what)


def _draw_lift(axes: Axes, trained: Trained) -> None:
    deciles = trained.evaluation.tables["deciles"]
    bars = axes.bar(deciles["decile"].to_pylist(), deciles["lift"].to_pylist(), color=_BLUE)
    axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.axhline(1, color="grey", linewidth=0.8)
    what = "Spend" if trained.spec.task == "value" else "Outcomes"
    axes.set(title="Lift, by decile of the score", xlabel="Decile, highest scores first")
    axes.set(ylabel=f"{what}, times the mean of all")
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
    what = "Probability" if trained.spec.task == "propensity" else "Predicted spend"
    axes.set(title="Scores of the test customers", xlabel=what, ylabel="Customers")


def _draw_contributions(axes: Axes, trained: Trained) -> None:
    """A dot a customer: what the feature adds, from its low values (blue) to its high (red)."""
    import numpy as np

    if trained.explained is None:
        return
    x, shares = trained.explained
    random = np.random.default_rng(1)
    best = np.argsort(np.abs(shares).mean(axis=0))[-12:]
    for place, number in enumerate(best):
        rank = np.argsort(np.argsort(np.nan_to_num(x[:, number], nan=-1))) / max(len(x), 1)
        height = place + random.uniform(-0.3, 0.3, len(x))
        dots = axes.scatter(shares[:, number], height, c=rank, cmap="coolwarm", s=5, linewidths=0)
    bar = axes.figure.colorbar(dots, ax=axes, ticks=[0, rank.max()], aspect=40)
    bar.ax.set_yticklabels(["low", "high"])
    bar.set_label("value of the feature", labelpad=-12)
    axes.set_yticks(range(len(best)), [trained.predictor.features[n] for n in best])
    axes.axvline(0, color="grey", linewidth=0.8)
    unit = _SHAP_UNITS.get(trained.spec.task, "score")
    axes.set(title="Contributions (SHAP): a dot a customer", xlabel=f"Adds to the {unit}")


def _draw_drift(axes: Axes, trained: Trained) -> None:
    table = trained.evaluation.tables["drift"].slice(0, 15).to_pylist()[::-1]
    axes.barh([r["feature"] for r in table], [r["psi"] for r in table], color=_BLUE)
    for limit, label, line in (
        (0.1, "0.1: below is little", ":"),
        (0.25, "0.25: above is much", "--"),
    ):
        axes.axvline(limit, color="#444", linewidth=0.9, linestyle=line, label=label)
    axes.set(title="Drift from training to test", xlabel="Population stability index (PSI)")


def _draw_importance(axes: Axes, trained: Trained) -> None:
    total = sum(trained.importance.values()) or 1.0
    best = sorted(trained.importance.items(), key=lambda item: item[1])[-15:]
    axes.barh([name for name, _ in best], [gain / total for _, gain in best], color=_BLUE)
    axes.set(title="Importance", xlabel="Share of the trees' total gain")


def _draw_qini(axes: Axes, trained: Trained) -> None:
    table = trained.evaluation.tables["qini"]
    axes.plot(table["share"], table["random"], color="lightgrey", linewidth=0.8, label="random")
    metrics = trained.evaluation.metrics
    for name in table.column_names[2:]:
        theirs = (f"baseline_{name}/qini", f"{name}/qini")
        key = next((k for k in theirs if k in metrics), "qini")
        style = _style("model" if key == "qini" else name)
        found = metrics[key].value
        said = "chosen: " if key == "qini" else ""
        axes.plot(
            table["share"], table[name], label=f"{said}{_name(name)}: Qini {found:.3f}", **style
        )
    axes.set(
        title="Qini curve",
        xlabel="Share of customers targeted, highest scores first",
        ylabel="Further outcomes per customer",
    )


def _draw_uplift(axes: Axes, trained: Trained) -> None:
    import numpy as np

    deciles = trained.evaluation.tables["deciles"]
    size, treated, uplift, *rates = (
        deciles[c].to_numpy() for c in ("customers", "treated", "uplift", *_RATES)
    )
    number = (treated, size - treated)
    variance = sum(r * (1 - r) / np.maximum(n, 1) for r, n in zip(rates, number, strict=True))
    error = {"ecolor": "#444", "elinewidth": 1, "capsize": 2}
    bars = 1.96 * np.sqrt(variance)
    axes.bar(deciles["decile"].to_pylist(), uplift, yerr=bars, color=_BLUE, error_kw=error)
    effect = trained.evaluation.metrics["average_effect"].value
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.axhline(
        effect, color="#d55e00", linestyle="--", label=f"average effect {effect:+.3f}", zorder=0
    )
    axes.set(title="Uplift, by decile of the score, 95% intervals")
    axes.set(xlabel="Decile, highest scores first", ylabel="More with the outcome, if treated")
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
    metric = next(n for n in found if n.startswith("recall_at_"))
    rivals = [n.partition("/")[0] for n in found if n.endswith(f"/{metric}")]
    bars = {"model": found[metric], **{r: found[f"{r}/{metric}"] for r in rivals}}
    names = [_name(n.removeprefix("baseline_")) for n in bars][::-1]
    shown = list(bars.values())[::-1]
    # Where an interval is a point, rounding may put it beside the value.
    error = [[max(s, 0) for s in side] for side in zip(*map(_sides, shown), strict=True)]
    color = [_GREY] * len(rivals) + [_BLUE]
    axes.barh(names, [e.value for e in shown], xerr=error, color=color, ecolor="#444")
    axes.set(title=f"{_label(metric).capitalize()}, 95% intervals")
    axes.set(xlabel="Share of what was bought next that was offered")


def _sides(e: Estimate) -> tuple[float, float]:
    return e.value - e.low, e.high - e.value


def _draw_profiles(axes: Axes, trained: Trained) -> None:
    """A heat map: each cluster's center, in standard deviations from the mean customer."""
    predictor = trained.predictor
    centers = predictor.model[-1].cluster_centers_
    image = axes.imshow(centers, cmap="RdBu_r", vmin=-2, vmax=2, aspect="auto")
    axes.set_xticks(range(len(predictor.features)), predictor.features, rotation=20, ha="right")
    axes.set_yticks(range(len(predictor.clusters)), predictor.clusters)
    for (row, column), value in _cells(centers):
        axes.text(column, row, f"{value:+.1f}", ha="center", va="center", color=_ink(value))
    axes.figure.colorbar(image, label="standard deviations from the mean customer")
    axes.set_title("Clusters: what sets them apart")


def _draw_sizes(axes: Axes, trained: Trained) -> None:
    """Each cluster's share of the customers, and of what they spend."""
    import numpy as np

    table = trained.evaluation.tables["profiles"]
    shares = {"of customers": table["share"]}
    shares |= {f"of {c[9:]}": table[c] for c in table.column_names if c.startswith("share_of_")}
    place, thick = np.arange(table.num_rows)[::-1], 0.8 / len(shares)
    for number, (label, share) in enumerate(shares.items()):
        color = _GREY if number == 0 else _BLUE
        bars = axes.barh(place - number * thick, share, thick, color=color, label=label)
        axes.bar_label(bars, [f" {s:.0%}" for s in share.to_pylist()], fontsize=8)
    axes.set_yticks(place - thick * (len(shares) - 1) / 2, table["cluster"].to_pylist())
    axes.set(title="Clusters: their share", xlabel="Share of all")


def _draw_candidates(axes: Axes, trained: Trained) -> None:
    """Stability and silhouette by number of clusters."""
    table = trained.evaluation.tables["candidates"]
    number, found, *sides = (
        table[c].to_numpy() for c in ("clusters", "stability", "stability_low", "stability_high")
    )
    error = [(found - sides[0]).clip(0), (sides[1] - found).clip(0)]
    label = "stability (adjusted Rand index), 95% intervals"
    axes.errorbar(number, found, error, fmt="o-", color=_BLUE, capsize=2, label=label)
    axes.plot(number, table["silhouette"], "s--", color="#d55e00", label="silhouette")
    chosen = trained.evaluation.metrics["clusters"].value
    axes.axvline(chosen, color=_GREY, linewidth=8, alpha=0.3, label="chosen")
    axes.set(title="How many clusters", xlabel="Clusters", ylim=(0, 1.05))
    axes.set_xticks(number)


def _ink(value: float) -> str:
    """White on the dark ends of the color scale."""
    return "white" if abs(value) > 1.2 else "black"


def _cells(values: Any) -> Any:
    import numpy as np

    return np.ndenumerate(values)


def _style(name: str) -> dict[str, Any]:
    if name == "model":
        return {"color": _BLUE, "linewidth": 2.5, "zorder": 3}
    color, line = _STYLES.get(name, (_GREY, "-"))
    return {"color": color, "linewidth": 1.1, "linestyle": line}


def _legend(trained: Trained, name: str, metric: str) -> str:
    where = {"model": "", "champion": "champion/"}.get(name, f"baseline_{name}/")
    key = where + metric
    return f"{_name(name)}: {_label(metric)} {trained.evaluation.metrics[key].value:.3f}"


def _name(score: str) -> str:
    return _NAMES.get(score, score.replace("_", " "))


def _metrics_markdown(trained: Trained) -> str:
    """The model's own metrics, each with its interval."""
    level = "" if trained.spec.task == "uplift" else "95% "
    lines = [f"| metric | value | {level}interval |", "|---|---:|---:|"]
    for name, e in trained.evaluation.metrics.items():
        if "/" not in name:
            exact = e.low == e.high
            value = f"{e.value:.3f}".removesuffix(".000") if exact else f"{e.value:.3f}"
            sides = "" if exact else f"{e.low:.3f} to {e.high:.3f}"
            lines.append(f"| {_label(name)} | {value} | {sides} |")
    return "\n".join(lines)


def _rivals_markdown(trained: Trained) -> str:
    """One row a score: the model, the baselines, the champion; nothing if there is no other.

    What is the same for all, such as the base rate, is left out.
    """
    found = trained.evaluation.metrics
    rivals = list(dict.fromkeys(name.partition("/")[0] for name in found if "/" in name))
    shared = [m for m in found if any(_differs(found, f"{r}/{m}", m) for r in rivals)]
    gains = [m for m in shared if m.endswith("_gain")]
    columns = [m for m in shared if m not in gains]
    heads = [_SHORT.get(m, _label(m)) for m in columns]
    heads = ["", *heads, *(f"lead in {_label(m.removesuffix('_gain'))}" for m in gains)]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for rival in ("", *rivals):
        name = _name(rival.removeprefix("baseline_")) if rival else "**model**"
        beside = [found.get(f"{rival}/{m}" if rival else m) for m in columns]
        leads = [found.get(f"{rival}/{m}") if rival else None for m in gains]
        cells = [f"{e.value:.3f}" if e else "" for e in beside]
        cells += [_interval(e) if e else "" for e in leads]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) if rivals else ""


def _differs(found: Mapping[str, Estimate], theirs: str, ours: str) -> bool:
    return theirs in found and (ours.endswith("_gain") or found[theirs] != found[ours])


def _interval(e: Estimate) -> str:
    # Rounded first, that nothing reads -0.000.
    value, low, high = (f"{round(v, 3) + 0.0:.3f}" for v in (e.value, e.low, e.high))
    if e.low == e.high:
        return value.removesuffix(".000")
    return f"{value}\u00a0({low}\u00a0to\u00a0{high})"


def _label(metric: str) -> str:
    measured = metric.removesuffix("_gain")
    above = " above the baseline" if measured != metric else ""
    return _LABELS.get(measured, measured.replace("_", " ")) + above


def _largest_first(table: pa.Table) -> pa.Table:
    """A table of differences with the largest first; any other as it is."""
    import pyarrow.compute as pc

    if "difference" not in table.column_names:
        return table
    return table.take(pc.sort_indices(pc.negate(pc.abs(table["difference"]))))


def _markdown(table: pa.Table) -> str:
    """A table whose numbers are aligned to the right."""
    import pyarrow.types as kind

    rule = "".join("---|" if kind.is_string(f.type) else "---:|" for f in table.schema)
    head = " | ".join(name.replace("_", " ") for name in table.column_names)
    columns = [_cells_of(column.to_pylist()) for column in table.columns]
    rows = (f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))
    return "\n".join([f"| {head} |\n|{rule}", *rows])


def _cells_of(values: list[Any]) -> list[str]:
    """A column's cells: three decimals where all are small, else as many as each needs."""
    small = all(abs(v) < 10 for v in values if isinstance(v, float))
    return [
        str(v) if not isinstance(v, float) else f"{v:.3f}" if small else f"{v:,.{_decimals(v)}f}"
        for v in values
    ]


def _decimals(value: float) -> int:
    return 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2


def _limits(trained: Trained) -> str:
    return _LIMITS.get(trained.spec.task, _LIMITS["propensity"])


@dataclass(frozen=True)
class Tried:
    """One of the models that a training chose from, judged without the test."""

    name: str
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    chosen: bool


def candidates(trained: Trained) -> list[Tried]:
    """What a training chose from: numbers of leaves or of clusters, or learners of uplift."""
    if trained.spec.task == "clustering":
        return _tried_clusters(trained)
    if trained.spec.task == "uplift":
        return _tried_learners(trained)
    return [
        Tried(
            f"{c.parameters['num_leaves']} leaves"
            + (", trees alone" if c.parameters.get("logistic_share") == 0 else ""),
            {k: str(v) for k, v in c.parameters.items()},
            {**c.metrics, "seconds": c.seconds},
            c.parameters == trained.parameters,
        )
        for c in (trained.choice.candidates if trained.choice else ())
    ]


def _tried_clusters(trained: Trained) -> list[Tried]:
    chosen = trained.evaluation.metrics["clusters"].value
    rows = trained.evaluation.tables["candidates"].to_pylist()
    return [
        Tried(
            f"{r['clusters']} clusters",
            {"clusters": str(r["clusters"])},
            {k: float(v) for k, v in r.items() if k != "clusters"},
            r["clusters"] == chosen,
        )
        for r in rows
    ]


def _tried_learners(trained: Trained) -> list[Tried]:
    found, chosen = trained.evaluation.metrics, trained.parameters["learner"]
    measured = ("qini", "auuc", "uplift_top_decile")
    return [
        Tried(
            _name(learner),
            {"learner": learner},
            {
                m: found[m if learner == chosen else f"baseline_{learner}/{m}"].value
                for m in measured
            },
            learner == chosen,
        )
        for learner in trained.evaluation.tables["qini"].column_names[2:]
        if learner != "champion"
    ]


def decisive(found: Mapping[str, Estimate]) -> list[str]:
    """The few metrics by which runs of a model are compared, among all."""
    main = next(m for m in found if m.startswith(_MAIN))
    rivals = [f"{rival}/{main}" for rival in dict.fromkeys(m.partition("/")[0] for m in found)]
    own = [m for m in found if "/" not in m]
    named = [m for m in own if m in _TELLING or m.endswith("_gain") or "_lead_over_" in m]
    return [main, f"{main}_low", f"{main}_high", *named, *(r for r in rivals if r in found)]


def parameters(trained: Trained) -> Mapping[str, str]:
    """What the run is compared by: specification, instants and estimator, as text."""
    spec, split = trained.spec, trained.split
    common = {
        "task": spec.task,
        "features": str(len(trained.predictor.features)),
        "excluded_features": ", ".join(trained.excluded) or "none",
        "as_of": f"{split.as_of:%Y-%m-%d}",
        "cadence_days": str(spec.cadence_days),
    }
    if spec.features:
        common |= {"feature_service": spec.features, "population": spec.population}
    if spec.task in ("propensity", "value"):
        common["beat_baselines_by"] = f"{spec.beat_baselines_by:g}"
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


_TESTED = {"uplift": "train_rows", "next_category": "test_customers"}
"""What tells on how many customers models of a task are judged, if not `test_rows`."""
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
_WITH_NAMES = (
    *(_draw_importance, _draw_contributions, _draw_drift, _draw_balance, _draw_recall),
    *(_draw_profiles, _draw_sizes),
)
"""Plots whose bars or rows have names, as long as those are."""
_RATES = ("rate_treated", "rate_control")
_SHAP_UNITS = {"propensity": "log-odds", "value": "logarithm of the spend"}
_DRAWN = {
    "clustering": {
        "profiles": _draw_profiles,
        "shares": _draw_sizes,
        "candidates": _draw_candidates,
    },
    "propensity": {"roc": _draw_roc, "precision_recall": _draw_precision_recall, **_JUDGED},
    "value": _JUDGED,
    "uplift": {"qini": _draw_qini, "deciles": _draw_uplift, "balance": _draw_balance},
    "next_category": {
        "recall": _draw_recall,
        "importance": _draw_importance,
        "contributions": _draw_contributions,
    },
}
"""The plots of each task, by name."""

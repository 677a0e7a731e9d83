"""Charts of a linkage model and of its evaluation, as matplotlib figures; none shows a record."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cdp_ml.identity.dependence import context_bits
from cdp_ml.identity.model import Model
from cdp_ml.identity.weighing import levels

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _RED, _GREY = "#1f5fa8", "#b5483a", "#9aa3ad"
Bits = dict[str, dict[str, float]]
"""By field, the match weight of each comparison level, the best first."""


def level_bits(model: Model) -> Bits:
    """The match weights of the model of all pairs, before term frequencies."""
    return {
        comparison["output_column_name"]: {
            declared.label: math.log2(trained["m_probability"] / trained["u_probability"])
            for _, trained, declared in levels(model, comparison)
        }
        for comparison in model.settings["comparisons"]
    }


def model_figures(model: Model) -> dict[str, Figure]:
    """A model's charts by name: its match weights, and those of each context beside them."""
    plain = level_bits(model)
    figures = {"match_weights": _bars(plain, "Match weights", {})}
    for name, context in model.contexts.items():
        inside = {
            field: dict(zip(plain[field], bits, strict=True))
            for field, bits in context_bits(context)[1].items()
        }
        share = f"{context['share']:.0%} of the pairs are matches"
        figures[name] = _bars(inside, f"Match weights, {name}: {share}", plain)
    return figures


def evaluation_figures(
    thresholds: Sequence[Mapping[str, float]], weights: pa.Table, threshold: float
) -> dict[str, Figure]:
    """The charts of `evaluate_thresholds`, by name.

    Args:
        thresholds: its figures by threshold.
        weights: its histogram.
        threshold: the one in use.
    """
    figures = {}
    drawn: dict[str, Callable[[Axes], None]] = {
        "precision_recall": lambda axes: _draw_precision_recall(axes, thresholds, threshold),
        "f1_by_threshold": lambda axes: _draw_by_threshold(axes, thresholds, threshold),
        "pair_weights": lambda axes: _draw_weights(axes, weights, threshold),
    }
    for name, draw in drawn.items():
        figures[name] = _figure(6.4, 4.5)
        draw(figures[name].axes[0])
    return figures


def save_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write figures as PNG, each under its name; the folder is made if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=90)
    return paths


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.add_subplot().spines[["top", "right"]].set_visible(False)
    return figure


def _bars(bits: Bits, title: str, others: Bits) -> Figure:
    """A bar for each level, the fields one under the other; `others` are marked on them."""
    rows = [(f, level, b) for f, found in bits.items() for level, b in found.items()]
    gaps = {field: 0.8 * number for number, field in enumerate(bits)}
    at = [number + gaps[field] for number, (field, _, _) in enumerate(rows)]
    figure = _figure(7.5, 1.1 + 0.21 * (len(rows) + 0.8 * len(bits)))
    axes = figure.axes[0]
    weights = [b for _, _, b in rows]
    axes.barh(at, weights, color=[_BLUE if b > 0 else _RED for b in weights], height=0.75)
    if others:
        marks = [others[field][level] for field, level, _ in rows]
        axes.plot(marks, at, "|", color="black", markersize=9)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(at, [level for _, level, _ in rows], fontsize=8)
    _name_fields(axes, rows, at)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(at[-1] + 0.7, -0.7)
    axes.set_title(title, loc="left", fontsize=11)
    marked = "; black: among all pairs" if others else ""
    axes.set_xlabel(f"bits that speak for a match (right) or against it (left){marked}", fontsize=8)
    return figure


def _name_fields(axes: Axes, rows: Sequence[tuple[str, str, float]], at: Sequence[float]) -> None:
    """Write each field's name at the right edge, beside its first level."""
    seen: set[str] = set()
    for place, (field, _, _) in zip(at, rows, strict=True):
        if field not in seen:
            seen.add(field)
            axes.axhline(place - 0.9, color="lightgrey", linewidth=0.6)
            axes.annotate(
                field.replace("_", " "),
                (1.0, place),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="center",
                fontsize=9,
                fontweight="bold",
            )


def _draw_precision_recall(
    axes: Axes, found: Sequence[Mapping[str, float]], threshold: float
) -> None:
    axes.plot([f["recall"] for f in found], [f["precision"] for f in found], "o-", color=_BLUE)
    for at in found:
        used = at["threshold"] == threshold
        axes.annotate(
            f"{at['threshold']:g}{' (in use)' if used else ''}",
            (at["recall"], at["precision"]),
            xytext=(-6, -6),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
            fontweight="bold" if used else "normal",
        )
    axes.margins(0.12)
    axes.set(title="Precision and recall of pairs, by threshold", xlabel="Recall")
    axes.set_ylabel("Precision")


def _draw_by_threshold(axes: Axes, found: Sequence[Mapping[str, float]], threshold: float) -> None:
    bits = [f["match_weight"] for f in found]
    lines = {"precision": ("--", _GREY), "recall": (":", _GREY), "f1": ("-", _BLUE)}
    for name, (style, color) in lines.items():
        label = "F1" if name == "f1" else name
        axes.plot(bits, [f[name] for f in found], style, color=color, label=label, linewidth=2)
    in_use = next(f["match_weight"] for f in found if f["threshold"] == threshold)
    axes.axvline(in_use, color="black", linewidth=0.8, label="in use")
    axes.set_xticks(bits, [f"{f['threshold']:g}" for f in found], fontsize=8, rotation=45)
    axes.legend(frameon=False, fontsize=8)
    axes.set(title="Pairs, by threshold", xlabel="Threshold (match probability; spaced by weight)")


def _draw_weights(axes: Axes, weights: pa.Table, threshold: float) -> None:
    from cdp_ml.identity.evaluate import WEIGHTS

    at = weights["match_weight"].to_numpy() + 0.5
    edges = range(WEIGHTS[0], WEIGHTS[1] + 2)
    for name, label, color in (("false", "of two people", _RED), ("true", "of one person", _BLUE)):
        counts = weights[name].to_numpy()
        axes.hist(at, edges, weights=counts, color=color, alpha=0.6, label=label)
    bits = math.log2(threshold / (1 - threshold))
    axes.axvline(bits, color="black", linewidth=0.8, label="threshold in use")
    axes.set_yscale("log")
    axes.set_xlim(at.min(initial=bits) - 1, at.max(initial=bits) + 1)
    axes.legend(frameon=False, fontsize=8)
    axes.set(title="Match weights of the pairs that were weighed", xlabel="bits", ylabel="Pairs")

"""Charts of what `cdp_ml.identity.explain` finds, as PNG or as one HTML file without links."""

from __future__ import annotations

import html
import math
import warnings
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.errors import ConfigError, nearest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOR, AGAINST, SUM, WEAK, PALE = "#2a7f62", "#c8553d", "#33415c", "#c8553d", "#b8c0cc"
LONGEST = 32
"""Characters of a value that a chart shows."""
MOST_LABELED = 12
"""Links that a chart labels with their weights; of more only the weakest."""
Places = dict[str, tuple[float, float]]
FORMATS = (".png", ".html")
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font-family:sans-serif;margin:2em}}svg{{max-width:100%;height:auto}}</style>
<h1>{title}</h1>
{svg}
</html>
"""


def drawing(
    path: Path | None, draw: Callable[[dict[str, Any], Path], None]
) -> Callable[[dict[str, Any]], None]:
    """What draws to a file, checked before anything is computed; nothing without a file.

    Raises:
        ConfigError: if the name ends otherwise than in .png or .html, or its folder is absent.
    """
    if path is None:
        return lambda found: None
    if path.suffix not in FORMATS:
        raise ConfigError(f"{path}: no format '{path.suffix}'; {nearest(path.suffix, FORMATS)}")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}; choose another one")
    return lambda found: draw(found, path)


def draw_waterfall(explained: dict[str, Any], path: Path) -> None:
    """Draw how the match weight of two records comes about, from the prior to the sum.

    Args:
        explained: what `explain` returns.
        path: the file to write.
    """
    import numpy as np

    steps = [s for s in explained["steps"] if s["bits"]]
    bits = np.array([s["bits"] for s in steps] + [explained["weight"]])
    start = np.append(np.cumsum(bits[:-1]) - bits[:-1], 0.0)
    figure, axes = _canvas(11, 1.4 + 0.42 * len(bits))
    colors = [FOR if b >= 0 else AGAINST for b in bits[:-1]] + [SUM]
    rows = np.arange(len(bits))
    axes.barh(rows, bits, left=start, color=colors, height=0.62)
    ends = start + bits
    axes.vlines(ends[:-1], rows[:-1], rows[1:], color=PALE, linewidth=0.8, zorder=0)
    _label_bars(axes, bits, start)
    axes.axvline(0, color=SUM, linewidth=0.8)
    axes.set_yticks(rows, [*map(_step_label, steps), "match weight"])
    axes.invert_yaxis()
    axes.use_sticky_edges = False
    axes.margins(x=0.1)
    axes.set_xlabel("bits; each more doubles the odds that both records are one person")
    a, b = explained["records"]
    title = f"{a} and {b}: {explained['weight']:+.1f} bits, probability " + _percent(
        explained["probability"]
    )
    _save(figure, axes, title, path)


def _label_bars(axes: Axes, bits: npt.NDArray[np.float64], start: npt.NDArray[np.float64]) -> None:
    reach = max(start.max(), (start + bits).max()) - min(start.min(), (start + bits).min())
    for row, (b, s) in enumerate(zip(bits, start, strict=True)):
        right = b >= 0
        end = s + b + (0.01 if right else -0.01) * reach
        axes.text(end, row, f"{b:+.1f}", va="center", ha="left" if right else "right", fontsize=9)


def _step_label(step: dict[str, Any]) -> str:
    """What was compared and found, such as 'surname: exact (smith = smith)'."""
    if "values" not in step:
        return str(step["name"])
    a, b = (_short(v) or "-" for v in step["values"])
    both = a if a == b else f"{a} | {b}"
    return f"{step['name'].replace('_', ' ')}: {step['level']}\n{both}"


def _percent(probability: float) -> str:
    """A probability; never 0% or 100% if it is not."""
    return f"{min(max(probability, 0.001), 1 if probability == 1 else 0.999):.1%}"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def draw_customer(found: dict[str, Any], path: Path) -> None:
    """Draw a customer's records and the links among them, the weakest needed one marked.

    Args:
        found: what `why` returns.
        path: the file to write.
    """
    needed = found["needed"]
    place = _on_circle(found["records"], needed)
    figure, axes = _canvas(10, 8)
    for edge in found["edges"]:
        _draw_edge(axes, place, edge, PALE, 0.8)
    for edge in reversed(needed):
        is_weakest = edge is needed[0]
        _draw_edge(axes, place, edge, WEAK if is_weakest else FOR, 3 if is_weakest else 2)
        if len(needed) <= MOST_LABELED or is_weakest:
            _label_edge(axes, place, edge, is_weakest)
    _draw_records(axes, place)
    axes.set(xlim=(-1.6, 1.6), ylim=(-1.25, 1.25), aspect="equal")
    axes.axis("off")
    count = f"{len(place)} record" + ("" if len(place) == 1 else "s")
    _save(figure, axes, f"{found['customer_id']}: {count}{_weakest(needed)}", path)


def _draw_records(axes: Axes, place: Places) -> None:
    size = 9 if len(place) <= 40 else 5
    for record, (x, y) in place.items():
        axes.plot(x, y, "o", color=SUM, markersize=size, zorder=3)
        axes.annotate(
            record, (x, y), (11 * x, 11 * y or 11), textcoords="offset points",
            ha=_nearest_side(x, "right", "left"), va=_nearest_side(y or 1, "top", "bottom"),
            fontsize=size, parse_math=False,
        )  # fmt: skip


def _nearest_side(direction: float, low: str, high: str) -> str:
    """Where a text begins that is to lie off a point in a direction."""
    return "center" if abs(direction) < 0.1 else low if direction < 0 else high


def _weakest(needed: list[dict[str, Any]]) -> str:
    if not needed:
        return ""
    return f"; the weakest link that it needs: {_percent(needed[0]['match_probability'])}"


def _draw_edge(axes: Axes, place: Places, edge: dict[str, Any], color: str, width: float) -> None:
    (x0, y0), (x1, y1) = place[edge["record_l"]], place[edge["record_r"]]
    dashed = "-" if edge["kind"] == "probabilistic" else "--"
    axes.plot([x0, x1], [y0, y1], dashed, color=color, linewidth=width, zorder=1 + width / 10)


def _label_edge(axes: Axes, place: Places, edge: dict[str, Any], is_weakest: bool) -> None:
    (x0, y0), (x1, y1) = place[edge["record_l"]], place[edge["record_r"]]
    weight = edge["match_weight"]
    said = edge["kind"] if edge["kind"] != "probabilistic" else f"{weight:+.1f} bits"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.85}
    axes.text(
        (x0 + x1) / 2, (y0 + y1) / 2, said, ha="center", va="center", fontsize=8, zorder=2.5,
        color=WEAK if is_weakest else FOR, bbox=box,
    )  # fmt: skip


def _on_circle(records: list[str], needed: list[dict[str, Any]]) -> Places:
    """The records around a circle, those that the strongest links join side by side."""
    group = {r: [r] for r in records}
    for edge in reversed(needed):
        joined = group[edge["record_l"]] + group[edge["record_r"]]
        group.update(dict.fromkeys(joined, joined))
    order = list(dict.fromkeys(r for g in group.values() for r in g))
    if len(order) == 1:
        return {order[0]: (0.0, 0.0)}
    angles = [2 * math.pi * (i + 0.5) / len(order) for i in range(len(order))]
    return {r: (math.cos(t), math.sin(t)) for r, t in zip(order, angles, strict=True)}


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=9)
    return figure, axes


def _save(figure: Figure, axes: Axes, title: str, path: Path) -> None:
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        if path.suffix == ".png":
            axes.set_title(title, loc="left", fontsize=11, parse_math=False)
            figure.savefig(path, dpi=150)
            return
        drawn = StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    svg = drawn.getvalue()
    page = PAGE.format(title=html.escape(title), svg=svg[svg.index("<svg") :])
    path.write_text(page, encoding="utf-8")

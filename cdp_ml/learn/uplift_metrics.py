"""How well scores of uplift rank customers, told from groups of them: Qini, AUUC, and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cdp_ml.learn.evaluate import Estimate, bootstrap_weights, interval, ratio
from cdp_ml.learn.uplift_experiment import Experiment, summands

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

METRICS = ("qini", "auuc", "uplift_top_decile")
LED = ("propensity", "rule", "champion")
"""Over whom the lead of each other score is measured."""
DRAWS, LEVEL = 600, 0.99
"""Cross-fitted scores differ from draw to draw too, but are held fixed: so wide, intervals let 2%
of campaigns without effect promote a model (`benchmarks/uplift.py --null 240`)."""
SEED = 1


def uplift_metrics(
    y: np.ndarray, treated: np.ndarray, scores: Mapping[str, np.ndarray], draws: int | None = None
) -> dict[str, Estimate]:
    """Judge scores of uplift, with paired bootstrap intervals over customers, of `LEVEL`.

    Args:
        y: outcomes, 0 or 1.
        treated: 0 or 1.
        scores: by name one score a customer, or repeats x customers, over which metrics are means.
        draws: bootstrap draws; `DRAWS` by default.

    Returns:
        By `NAME/METRIC`: qini (area between the Qini curve and the random line, over that of a
        perfect ranking; Radcliffe 2007, normalized as in scikit-uplift), auuc (mean over the share
        targeted of the share's uplift times the share, half the average effect if random) and
        uplift_top_decile; and `NAME/qini_lead/OTHER`, how much larger the Qini of NAME is.
    """
    import numpy as np

    measures = {
        name: [_measurer(y, treated, one) for one in np.atleast_2d(score)]
        for name, score in scores.items()
    }
    weights = (np.ones(len(y)), *bootstrap_weights(len(y), draws or DRAWS, SEED))
    drawn = [_measured(measures, w) for w in weights]
    return {key: interval(drawn[0][key], [d[key] for d in drawn[1:]], LEVEL) for key in drawn[0]}


def qini(y: np.ndarray, treated: np.ndarray, score: np.ndarray) -> float:
    """The Qini coefficient of one score, as in `uplift_metrics`."""
    import numpy as np

    return float(_measurer(y, treated, score)(np.ones(len(y)))[0])


def average_effect(experiment: Experiment) -> Estimate:
    """The difference between the arms' shares of outcomes, with its 95% bootstrap interval."""
    import numpy as np

    sums = np.stack(list(experiment.summands.values()))

    def effect(weights: np.ndarray) -> float:
        t, c, yt, yc = sums @ weights
        return float(yt / max(t, 1) - yc / max(c, 1))

    rows = len(experiment.y)
    drawn = [effect(w) for w in bootstrap_weights(rows, DRAWS, SEED)]
    return interval(effect(np.ones(rows)), drawn)


def decile_table(experiment: Experiment, score: np.ndarray) -> pa.Table:
    """The customers in ten bins of equal size, by score from high to low.

    Returns:
        decile, customers, treated, rate_treated, rate_control and uplift.
    """
    import numpy as np
    import pyarrow as pa

    rank = np.empty(len(score), dtype=np.int64)
    rank[np.argsort(-score, kind="stable")] = np.arange(len(score))
    bins = rank * 10 // max(len(score), 1)
    total = {n: np.bincount(bins, w, minlength=10) for n, w in experiment.summands.items()}
    size = total["treated"] + total["control"]
    rates = [ratio(total[f"y_{a}"], total[a]) for a in ("treated", "control")]
    return pa.table(
        {
            "decile": np.arange(1, 11),
            "customers": size.astype(int),
            "treated": total["treated"].astype(int),
            "rate_treated": rates[0],
            "rate_control": rates[1],
            "uplift": rates[0] - rates[1],
        }
    )


def curve_table(experiment: Experiment, scores: Mapping[str, np.ndarray]) -> pa.Table:
    """The Qini curves: further outcomes per customer of the campaign, by share targeted.

    Returns:
        share, random and a column for each score; 51 rows.
    """
    import numpy as np
    import pyarrow as pa

    rows, share = len(experiment.y), np.linspace(0, 1, 51)
    ones, curves = np.ones(rows), {}
    for name, score in scores.items():
        n, qini, _ = _curves(experiment.y, experiment.treated, score)(ones)
        curves[name] = np.interp(share * rows, n, qini) / rows
    end = next(iter(curves.values()))[-1]
    return pa.table({"share": share, "random": share * end, **curves})


def _measured(
    measures: Mapping[str, list[Callable[[np.ndarray], np.ndarray]]], weights: np.ndarray
) -> dict[str, float]:
    """The metrics of each score, means over its repeats, and the leads."""
    import numpy as np

    means = {name: np.mean([m(weights) for m in each], axis=0) for name, each in measures.items()}
    found = {
        f"{name}/{metric}": float(value)
        for name, mean in means.items()
        for metric, value in zip(METRICS, mean, strict=True)
    }
    for one in means:
        for other in LED:
            if other in means and other != one:
                found[f"{one}/qini_lead/{other}"] = float(means[one][0] - means[other][0])
    return found


def _measurer(
    y: np.ndarray, treated: np.ndarray, score: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from weights of the customers to the `METRICS`."""
    import numpy as np

    curves = _curves(y, treated, score)

    def measure(weights: np.ndarray) -> np.ndarray:
        n, qini, uplift = curves(weights)
        outcomes = [float(weights @ (y * arm)) for arm in (treated, 1 - treated)]
        random = n[-1] * qini[-1] / 2
        best = _perfect_area(n[-1], outcomes, qini[-1]) - random
        coefficient = (np.trapezoid(qini, n) - random) / best if best > 0 else 0.0
        top = np.interp(n[-1] / 10, n, uplift) / (n[-1] / 10)
        return np.array([coefficient, np.trapezoid(uplift, n) / n[-1] ** 2, top])

    return measure


def _perfect_area(total: float, outcomes: list[float], end: float) -> float:
    """Under the Qini curve if all treated outcomes came first, all others last."""
    import numpy as np

    first, last = outcomes
    return float(np.trapezoid([0, first, first, end], [0, first, total - last, total]))


def _curves(y: np.ndarray, treated: np.ndarray, score: np.ndarray) -> Callable[..., Any]:
    """A function from weights to customers targeted, Qini curve and uplift curve, ties in one."""
    import numpy as np

    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    sums = {name: values[order] for name, values in summands(y, treated).items()}

    def curves(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        w = weights[order]
        total = {n: np.append(0, (w * v).cumsum()[ends]) for n, v in sums.items()}
        t, c = total["treated"], total["control"]
        qini = total["y_treated"] - ratio(total["y_control"] * t, c)
        uplift = (ratio(total["y_treated"], t) - ratio(total["y_control"], c)) * (t + c)
        return t + c, qini, uplift

    return curves

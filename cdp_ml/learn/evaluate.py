"""How good a model is: metrics with intervals, beside baselines, and the promotion gate.

Intervals are 95% percentile bootstrap intervals over customers (Efron and Tibshirani 1993). The
metrics of a probability equal scikit-learn's; they are computed here from counts at the distinct
scores, so that a bootstrap draw costs one pass and no sort.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdp_ml.errors import NotPromotedError
from cdp_ml.learn.baselines import PROBABLE

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

DRAWS = 200
BINS = 10
ECE_SLACK = 0.01
MOST_BIAS = 1.5
MAPE_SLACK = 0.1
FEWEST = 20
"""Fewer customers of a class than this, in training or test, and nothing can be judged."""


@dataclass(frozen=True)
class Estimate:
    """A metric on the test, with its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def __format__(self, how: str) -> str:
        # Rounded first, that nothing reads -0.000.
        rounded = (round(v, 9) + 0.0 for v in (self.value, self.low, self.high))
        value, low, high = (format(v, how or ".3f") for v in rounded)
        return f"{value} [{low}, {high}]"

    def __str__(self) -> str:
        return format(self, "")


@dataclass(frozen=True)
class Evaluation:
    """A model judged: metrics by name, its tables, and whether it may be served.

    `metrics` holds the model's own as `auc`, and the baselines' as `baseline_recency/auc`.
    """

    metrics: Mapping[str, Estimate]
    tables: Mapping[str, pa.Table]
    promoted: bool
    verdict: str


def check_learnable(y: np.ndarray, name: str, part: str) -> None:
    """Refuse outcomes from which nothing can be learnt or judged.

    Args:
        y: outcomes, 0 or 1.
        name: the model's name, for the message.
        part: 'training' or 'test'.

    Raises:
        NotPromotedError: if fewer than `FEWEST` rows had the outcome, or did not have it.
    """
    if not len(y):
        raise NotPromotedError(
            f"model '{name}': {part} has 0 rows: nobody is in its 'population' then"
        )
    if not is_learnable(y):
        positives = int(y.sum())
        raise NotPromotedError(
            f"model '{name}': {part} has {len(y)} rows, {positives} of them with the outcome; "
            f"needs at least {FEWEST} with it and {FEWEST} without: no model this time"
        )


def is_learnable(y: np.ndarray) -> bool:
    """Whether at least `FEWEST` rows had the outcome, and as many did not."""
    positives = int(y.sum())
    return min(positives, len(y) - positives) >= FEWEST


def propensity_metrics(
    y: np.ndarray, score: np.ndarray, probability: bool = True, draws: int = DRAWS, seed: int = 1
) -> dict[str, Estimate]:
    """Judge scores against outcomes.

    Args:
        y: outcomes, 0 or 1.
        score: the higher, the likelier.
        probability: whether scores are probabilities; ranks have no Brier score, log-loss or ECE.
        draws: bootstrap draws.
        seed: of the bootstrap.

    Returns:
        auc; average_precision; top_decile_lift (share of outcomes in the tenth with the highest
        scores over that in all); base_rate; and for probabilities brier, log_loss and ece
        (expected calibration error over ten bins of equal size).
    """
    return _estimates({"": _measurer(y, score, probability)}, len(y), draws, seed)


def auc_gain(
    y: np.ndarray, score: np.ndarray, other: np.ndarray, draws: int = DRAWS, seed: int = 1
) -> Estimate:
    """How much higher the AUC of `score` is than that of `other`, by a paired bootstrap."""
    import numpy as np

    ours, theirs = _auc_of(y, score), _auc_of(y, other)
    drawn = [ours(w) - theirs(w) for w in bootstrap_weights(len(y), draws, seed)]
    unweighted = np.ones(len(y))
    return interval(ours(unweighted) - theirs(unweighted), np.array(drawn))


def judge_propensity(
    name: str,
    y: np.ndarray,
    score: np.ndarray,
    baselines: Mapping[str, np.ndarray],
    beat_by: float,
    champion: np.ndarray | None = None,
) -> Evaluation:
    """Evaluate a propensity model on its test, and decide whether it may be served.

    It is promoted if its AUC exceeds that of the best baseline by more than `beat_by`, its log-loss
    is below that of the logistic regression (whoever ranks alike must know better how likely), and
    against the champion on the same customers the 95% interval of the gain in log-loss (paired
    bootstrap) does not reach below 0, and its ECE is no worse by `ECE_SLACK`.

    Args:
        name: the model's name.
        y: outcomes, 0 or 1.
        score: the model's probabilities.
        baselines: scores by baseline; those of `cdp_ml.learn.baselines.PROBABLE` are
            probabilities, the others ranks.
        beat_by: how much better than the best baseline it must be, in AUC.
        champion: the present champion's probabilities, if there is one.

    Returns:
        Its metrics `auc_gain` is over the best baseline, `baseline_X/auc_gain` over X.
    """
    measures = {"": _measurer(y, score, True)}
    measures |= {f"baseline_{b}/": _measurer(y, s, b in PROBABLE) for b, s in baselines.items()}
    if champion is not None:
        measures["champion/"] = _measurer(y, champion, True)
    metrics = _estimates(measures, len(y), DRAWS, 1, {"auc": 1.0, "log_loss": -1.0})
    best = _best(metrics, baselines, "auc")
    metrics["auc_gain"] = metrics[f"baseline_{best}/auc_gain"]
    promoted, verdict = _verdict(name, metrics, best, beat_by)
    return Evaluation(metrics, {"deciles": decile_table(y, score)}, promoted, verdict)


def judge_value(
    name: str,
    y: np.ndarray,
    score: np.ndarray,
    baselines: Mapping[str, np.ndarray],
    beat_by: float,
    champion: np.ndarray | None = None,
) -> Evaluation:
    """Evaluate a value model on its test, and decide whether it may be served.

    It is promoted if its normalized Gini exceeds that of the best baseline by more than `beat_by`,
    the sum of its predictions is within a factor of `MOST_BIAS` of what was spent, its decile MAPE
    is no worse than BG/NBD's by `MAPE_SLACK`, and against the champion on the same customers the
    95% interval of the gain in Gini (paired bootstrap) does not reach below 0. MAE is no gate:
    whoever predicts 0 for all beats BG/NBD's.

    Args:
        name: the model's name.
        y: what each customer spent.
        score: the prediction.
        baselines: scores by baseline; that of `bgnbd` is an amount, the others are ranks.
        beat_by: how much better than the best baseline it must be, in Gini.
        champion: the present champion's predictions, if there is one.
    """
    measures = {"": _value_measurer(y, score, True)}
    measures |= {
        f"baseline_{b}/": _value_measurer(y, s, b == "bgnbd") for b, s in baselines.items()
    }
    if champion is not None:
        measures["champion/"] = _value_measurer(y, champion, True)
    metrics = _estimates(measures, len(y), DRAWS, 1, {"gini": 1.0})
    best = _best(metrics, baselines, "gini")
    metrics["gini_gain"] = metrics[f"baseline_{best}/gini_gain"]
    promoted, verdict = _value_verdict(name, metrics, best, beat_by)
    return Evaluation(metrics, {"deciles": value_deciles(y, score)}, promoted, verdict)


def value_metrics(
    y: np.ndarray, score: np.ndarray, amount: bool = True, draws: int = DRAWS, seed: int = 1
) -> dict[str, Estimate]:
    """Judge predictions of spend.

    Args:
        y: what each customer spent.
        score: the prediction, or a rank.
        amount: whether scores are amounts of money; ranks have no bias and no errors.
        draws: bootstrap draws.
        seed: of the bootstrap.

    Returns:
        gini (normalized: 1 for the order of the spend itself, 0 for chance); top_decile_share (of
        all spend, that of the tenth with the highest predictions); mean_spend; and for amounts
        bias (sum predicted over sum spent), decile_mape (the relative error of the sums of the
        deciles of prediction, weighted by their spend: the poorest would decide otherwise) and
        mae.
    """
    return _estimates({"": _value_measurer(y, score, amount)}, len(y), draws, seed)


def value_deciles(y: np.ndarray, score: np.ndarray) -> pa.Table:
    """The test customers in ten bins of equal size, by prediction from high to low.

    Returns:
        decile, customers, mean_score, mean_spend, lift (over the mean of all) and gain (share of
        all spend in this and the bins above).
    """
    table = decile_table(y, score)
    names = ["mean_spend" if c == "outcome_rate" else c for c in table.column_names]
    return table.rename_columns(names)


def realized_metrics(y: np.ndarray, score: np.ndarray, task: str) -> dict[str, float]:
    """What scores that were given turned out to be worth, once their outcomes were known.

    Returns:
        realized_auc, realized_ece and realized_base_rate of a propensity; realized_gini and
        realized_bias of a value; nothing if there are too few outcomes to judge.
    """
    if not is_learnable(y > 0):
        return {}
    if task == "value":
        found = value_metrics(y, score, draws=1)
        return {f"realized_{n}": found[n].value for n in ("gini", "bias")}
    found = propensity_metrics(y, score, draws=1)
    return {f"realized_{n}": found[n].value for n in ("auc", "ece", "base_rate")}


def decile_table(y: np.ndarray, score: np.ndarray) -> pa.Table:
    """The test customers in ten bins of equal size, by score from high to low.

    Returns:
        decile, customers, mean_score, outcome_rate, lift (rate over that of all) and gain (share of
        all outcomes in this and the bins above).
    """
    import numpy as np
    import pyarrow as pa

    bins = _equal_bins(score)
    number = np.bincount(bins, minlength=BINS)[::-1]
    outcomes = np.bincount(bins, y, minlength=BINS)[::-1]
    scores = np.bincount(bins, score, minlength=BINS)[::-1]
    rate = ratio(outcomes, number)
    return pa.table(
        {
            "decile": np.arange(1, BINS + 1),
            "customers": number,
            "mean_score": ratio(scores, number),
            "outcome_rate": rate,
            "lift": ratio(rate, np.full(BINS, y.mean())),
            "gain": ratio(outcomes.cumsum(), np.full(BINS, y.sum())),
        }
    )


def auc_against_truth(y: np.ndarray, score: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Compare a model with the best that anyone could do: the true probabilities.

    Args:
        y: outcomes, 0 or 1.
        score: the model's scores.
        truth: the true probability of each outcome.

    Returns:
        auc; auc_truth; and attained, (auc - 0.5) / (auc_truth - 0.5).
    """
    import numpy as np

    y, score, truth = (np.asarray(values, dtype=float) for values in (y, score, truth))
    weights = np.ones(len(y))
    auc, best = _auc_of(y, score)(weights), _auc_of(y, truth)(weights)
    attained = (auc - 0.5) / (best - 0.5) if best != 0.5 else float("nan")
    return {"auc": auc, "auc_truth": best, "attained": attained}


def _best(metrics: Mapping[str, Estimate], baselines: Mapping[str, Any], metric: str) -> str:
    """The baseline with the highest value of a metric."""
    return max(baselines, key=lambda b: metrics[f"baseline_{b}/{metric}"].value)


def _verdict(
    name: str, metrics: Mapping[str, Estimate], best: str, beat_by: float
) -> tuple[bool, str]:
    lead, compared = _beside_best(metrics, best, "auc", "AUC")
    if lead <= beat_by:
        return _refused(name, compared, _by_more_than(beat_by))
    rival = metrics.get("baseline_logistic/log_loss")
    if rival is not None:
        compared += f"; log-loss {metrics['log_loss'].value:.3f}, logistic {rival.value:.3f}"
        if metrics["log_loss"].value >= rival.value:
            return _refused(name, compared, "it must be lower")
    if "champion/log_loss" in metrics:
        gain = metrics["champion/log_loss_gain"]
        compared += f"; gain over the champion in log-loss on the same customers {gain:.4f}"
        if gain.low < 0:
            return _refused(name, compared, "its interval must not reach below 0")
        rise = metrics["ece"].value - metrics["champion/ece"].value
        if rise > ECE_SLACK:
            return _refused(name, compared, f"its ECE is worse than the champion's by {rise:.3f}")
    return True, f"{name} is promoted: {compared}."


def _value_verdict(
    name: str, metrics: Mapping[str, Estimate], best: str, beat_by: float
) -> tuple[bool, str]:
    lead, compared = _beside_best(metrics, best, "gini", "Gini")
    if lead <= beat_by:
        return _refused(name, compared, _by_more_than(beat_by))
    bias = metrics["bias"].value
    compared += f"; predicted over actual spend {bias:.2f}"
    if not 1 / MOST_BIAS <= bias <= MOST_BIAS:
        limits = f"{1 / MOST_BIAS:.2f} and {MOST_BIAS:.2f}"
        return _refused(name, compared, f"it must be between {limits}")
    rival = metrics.get("baseline_bgnbd/decile_mape")
    if rival is not None:
        compared += f"; decile MAPE {metrics['decile_mape'].value:.2f}, BG/NBD {rival.value:.2f}"
        if metrics["decile_mape"].value > rival.value + MAPE_SLACK:
            return _refused(name, compared, f"it may be worse by {MAPE_SLACK:g} at most")
    if "champion/gini" in metrics:
        gain = metrics["champion/gini_gain"]
        compared += f"; gain over the champion in Gini on the same customers {gain:.4f}"
        if gain.low < 0:
            return _refused(name, compared, "its interval must not reach below 0")
    return True, f"{name} is promoted: {compared}."


def _beside_best(
    metrics: Mapping[str, Estimate], best: str, metric: str, label: str
) -> tuple[float, str]:
    """The lead over the best baseline, and both values in words."""
    ours, theirs = metrics[metric].value, metrics[f"baseline_{best}/{metric}"].value
    said = f"{label} {ours:.3f}, the best baseline ({best}) {theirs:.3f}"
    return ours - theirs, f"{said}, lead {metrics[f'{metric}_gain']}"


def _refused(name: str, compared: str, needed: str) -> tuple[bool, str]:
    return False, f"{name} is not promoted: {compared}; {needed}."


def _by_more_than(lead: float) -> str:
    return "it must be better" + (f" by more than {lead:g}" if lead else "")


def _value_measurer(y: np.ndarray, score: np.ndarray, amount: bool) -> Any:
    """A function from weights of the rows to the metrics by name."""
    import numpy as np

    gini, best = _gini_of(y, score), _gini_of(y, y)
    bins = _equal_bins(score)

    def measure(weights: np.ndarray) -> dict[str, float]:
        actual = np.bincount(bins, weights * y, BINS)
        total = float(actual.sum())
        most = best(weights)
        found = {
            "gini": gini(weights) / most if most else 0.0,
            "top_decile_share": float(actual[-1] / total) if total else 0.0,
            "mean_spend": total / float(weights.sum()),
        }
        if amount:
            predicted = np.bincount(bins, weights * score, BINS)
            found["bias"] = float(predicted.sum() / total) if total else 0.0
            found["decile_mape"] = float(np.abs(predicted - actual).sum() / total) if total else 0.0
            found["mae"] = float(weights @ np.abs(score - y) / weights.sum())
        return found

    return measure


def _gini_of(y: np.ndarray, score: np.ndarray) -> Any:
    """A function from weights of the rows to the Gini of spend by falling score; ties share."""
    import numpy as np

    distinct, place = np.unique(-score, return_inverse=True)

    def gini(weights: np.ndarray) -> float:
        spend = np.bincount(place, weights * y, len(distinct))
        number = np.bincount(place, weights, len(distinct))
        if not spend.sum():
            return 0.0
        reached = (spend.cumsum() - spend / 2) / spend.sum()
        return float(number @ reached / number.sum()) - 0.5

    return gini


def _estimates(
    measures: Mapping[str, Any],
    rows: int,
    draws: int,
    seed: int,
    paired: Mapping[str, float] | None = None,
) -> dict[str, Estimate]:
    """Estimate the metrics of several scores on the same draws of customers.

    Args:
        measures: by prefix of the names, a function from weights to metrics; "" is the model.
        rows: how many customers.
        draws: bootstrap draws.
        seed: of the bootstrap.
        paired: metrics of which the model's gain over each other is estimated too, as
            `PREFIXmetric_gain`, and their sign: 1 if higher is better, -1 if lower is.
    """
    import numpy as np

    # In bytes: 200 draws of a million customers are 200 MB rather than 1.6 GB.
    weights = [
        np.ones(rows, "u1"),
        *(w.astype("u1") for w in bootstrap_weights(rows, draws, seed)),
    ]
    found: dict[str, np.ndarray] = {}
    for prefix, measure in measures.items():
        drawn = [measure(w.astype(float)) for w in weights]
        found |= {prefix + m: np.array([d[m] for d in drawn]) for m in drawn[0]}
        for metric, sign in (paired or {}).items():
            if prefix and metric in drawn[0]:
                found[f"{prefix}{metric}_gain"] = sign * (found[metric] - found[prefix + metric])
    return {name: interval(values[0], values[1:]) for name, values in found.items()}


def _measurer(y: np.ndarray, score: np.ndarray, probability: bool) -> Any:
    """A function from weights of the rows to the metrics by name."""
    import numpy as np

    distinct, place = np.unique(score, return_inverse=True)
    bins = _equal_bins(score)
    loss = _losses(y, score) if probability else {}

    def measure(weights: np.ndarray) -> dict[str, float]:
        ones = np.bincount(place, weights * y, len(distinct))
        zeros = np.bincount(place, weights * (1 - y), len(distinct))
        number, outcomes = np.bincount(bins, weights, BINS), np.bincount(bins, weights * y, BINS)
        base = float(outcomes.sum() / number.sum())
        found = {
            "auc": _auc(ones, zeros),
            "average_precision": _average_precision(ones, zeros),
            "top_decile_lift": float(ratio(outcomes, number)[-1] / base) if base else 0.0,
            "base_rate": base,
        }
        found |= {k: float(weights @ v / weights.sum()) for k, v in loss.items()}
        if probability:
            gaps = np.abs(np.bincount(bins, weights * score, BINS) - outcomes)
            found["ece"] = float(gaps.sum() / number.sum())
        return found

    return measure


def _losses(y: np.ndarray, p: np.ndarray) -> dict[str, np.ndarray]:
    import numpy as np

    safe = np.clip(p, 1e-15, 1 - 1e-15)
    return {
        "brier": (p - y) ** 2,
        "log_loss": -(y * np.log(safe) + (1 - y) * np.log(1 - safe)),
    }


def _auc_of(y: np.ndarray, score: np.ndarray) -> Any:
    """A function from weights of the rows to the AUC."""
    import numpy as np

    distinct, place = np.unique(score, return_inverse=True)

    def auc(weights: np.ndarray) -> float:
        return _auc(
            np.bincount(place, weights * y, len(distinct)),
            np.bincount(place, weights * (1 - y), len(distinct)),
        )

    return auc


def _auc(ones: np.ndarray, zeros: np.ndarray) -> float:
    """The area under the ROC curve from counts at rising scores; ties count half."""
    pairs = ones.sum() * zeros.sum()
    below = zeros.cumsum() - zeros / 2
    return float(ones @ below / pairs) if pairs else 0.5


def _average_precision(ones: np.ndarray, zeros: np.ndarray) -> float:
    found, seen = ones[::-1].cumsum(), (ones + zeros)[::-1].cumsum()
    return float(ones[::-1] @ ratio(found, seen) / found[-1]) if found[-1] else 0.0


def _equal_bins(score: np.ndarray) -> np.ndarray:
    """The bin of each row, 0 (lowest scores) to 9, of equal size; order decides between ties."""
    import numpy as np

    rank = np.empty(len(score), dtype=np.int64)
    rank[np.argsort(score, kind="stable")] = np.arange(len(score))
    return rank * BINS // max(len(score), 1)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """One array over another; 0 where the other is 0."""
    import numpy as np

    shares: np.ndarray = np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
    return shares


def too_few_to_tell(gain: Estimate, rows: int) -> str:
    """What a verdict adds where there is a gain, but its interval is not above 0.

    An interval shrinks with the root of the number of customers, so it says from how many on a gain
    of this size would be clear of 0. Nothing where there is none.
    """
    if not gain.low <= 0 < gain.value:
        return ""
    needed = rows * ((gain.value - gain.low) / gain.value) ** 2
    step = 10 ** max(0, len(str(int(needed))) - 2)
    rounded = -int(-needed // step) * step
    return (
        f"; {rows:,} customers are too few to tell: such a gain would show with about {rounded:,}"
    )


def bootstrap_weights(rows: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is in each draw of so many rows with replacement."""
    import numpy as np

    random = np.random.default_rng(seed)
    for _ in range(draws):
        yield np.bincount(random.integers(0, rows, rows), minlength=rows).astype(float)


def interval(value: float, drawn: Sequence[float] | np.ndarray, level: float = 0.95) -> Estimate:
    """A metric with its percentile interval over the draws."""
    import numpy as np

    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), float(low), float(high))

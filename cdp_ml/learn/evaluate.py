"""How good a model is: metrics with intervals, beside baselines, and the promotion gate.

Intervals are 95% percentile bootstrap intervals over customers (Efron and Tibshirani 1993). The
metrics of a probability equal scikit-learn's; they are computed here from counts at the distinct
scores, so that a bootstrap draw costs one pass and no sort.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdp_ml.errors import NotPromotedError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

DRAWS = 200
BINS = 10
FEWEST = 20
"""Fewer customers of a class than this, in training or test, and nothing can be judged."""


@dataclass(frozen=True)
class Estimate:
    """A metric on the test, with its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


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
    import numpy as np

    measure = _measurer(y, score, probability)
    point = measure(np.ones(len(y)))
    drawn = [measure(w) for w in _bootstrap_weights(len(y), draws, seed)]
    return {
        name: _interval(value, np.array([d[name] for d in drawn])) for name, value in point.items()
    }


def auc_gain(
    y: np.ndarray, score: np.ndarray, other: np.ndarray, draws: int = DRAWS, seed: int = 1
) -> Estimate:
    """How much higher the AUC of `score` is than that of `other`, by a paired bootstrap."""
    import numpy as np

    ours, theirs = _auc_of(y, score), _auc_of(y, other)
    drawn = [ours(w) - theirs(w) for w in _bootstrap_weights(len(y), draws, seed)]
    unweighted = np.ones(len(y))
    return _interval(ours(unweighted) - theirs(unweighted), np.array(drawn))


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
    its AUC is not below that of the champion on the same customers.

    Args:
        name: the model's name.
        y: outcomes, 0 or 1.
        score: the model's probabilities.
        baselines: scores by baseline; `logistic` holds probabilities, the others ranks.
        beat_by: how much better than the best baseline it must be, in AUC.
        champion: the present champion's probabilities, if there is one.
    """
    ours = propensity_metrics(y, score)
    theirs = {b: propensity_metrics(y, s, b == "logistic") for b, s in baselines.items()}
    best = max(theirs, key=lambda b: theirs[b]["auc"].value)
    metrics = {**ours, "auc_gain": auc_gain(y, score, baselines[best])}
    for baseline, found in theirs.items():
        metrics |= {f"baseline_{baseline}/{m}": e for m, e in found.items() if m != "base_rate"}
    if champion is not None:
        metrics["champion/auc"] = propensity_metrics(y, champion)["auc"]
    promoted, verdict = _verdict(name, metrics, best, beat_by)
    return Evaluation(metrics, {"deciles": decile_table(y, score)}, promoted, verdict)


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
    rate = _share(outcomes, number)
    return pa.table(
        {
            "decile": np.arange(1, BINS + 1),
            "customers": number,
            "mean_score": _share(scores, number),
            "outcome_rate": rate,
            "lift": _share(rate, np.full(BINS, y.mean())),
            "gain": _share(outcomes.cumsum(), np.full(BINS, y.sum())),
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


def _verdict(
    name: str, metrics: Mapping[str, Estimate], best: str, beat_by: float
) -> tuple[bool, str]:
    ours, theirs = metrics["auc"].value, metrics[f"baseline_{best}/auc"].value
    compared = f"AUC {ours:.3f}, the best baseline ({best}) {theirs:.3f}"
    compared += f", lead {metrics['auc_gain']}"
    if ours - theirs <= beat_by:
        needed = f" by more than {beat_by:g}" if beat_by else ""
        return False, f"{name} is not promoted: {compared}; it must be better{needed}."
    rival = metrics.get("baseline_logistic/log_loss")
    if rival is not None:
        compared += f"; log-loss {metrics['log_loss'].value:.3f}, logistic {rival.value:.3f}"
        if metrics["log_loss"].value >= rival.value:
            return False, f"{name} is not promoted: {compared}; it must be lower."
    champion = metrics.get("champion/auc")
    if champion is not None:
        compared += f"; AUC of the champion {champion.value:.3f}"
        if ours < champion.value:
            return False, f"{name} is not promoted: {compared} on the same customers."
    return True, f"{name} is promoted: {compared}."


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
            "top_decile_lift": float(_share(outcomes, number)[-1] / base) if base else 0.0,
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
    return float(ones[::-1] @ _share(found, seen) / found[-1]) if found[-1] else 0.0


def _equal_bins(score: np.ndarray) -> np.ndarray:
    """The bin of each row, 0 (lowest scores) to 9, of equal size; order decides between ties."""
    import numpy as np

    rank = np.empty(len(score), dtype=np.int64)
    rank[np.argsort(score, kind="stable")] = np.arange(len(score))
    return rank * BINS // max(len(score), 1)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    import numpy as np

    shares: np.ndarray = np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
    return shares


def _bootstrap_weights(rows: int, draws: int, seed: int) -> Any:
    import numpy as np

    random = np.random.default_rng(seed)
    for _ in range(draws):
        yield np.bincount(random.integers(0, rows, rows), minlength=rows).astype(float)


def _interval(value: float, drawn: np.ndarray) -> Estimate:
    import numpy as np

    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))

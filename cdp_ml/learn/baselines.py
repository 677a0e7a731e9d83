"""What a model has to beat: ranks that need no learning, BG/NBD and a logistic regression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdp_ml.errors import NotPromotedError
from cdp_ml.learn.bgnbd import BgNbd, GammaGamma, fit_bgnbd, fit_gamma_gamma

if TYPE_CHECKING:
    import numpy as np
    from sklearn.pipeline import Pipeline

PROBABLE = ("logistic", "bgnbd")
"""The baselines of a propensity that are probabilities; the others are ranks."""
HISTORY = ("orders_lifetime", "days_since_first_order", "days_since_last_order")
VALUE_HISTORY = (*HISTORY, "spend_lifetime")
_RANKS = {
    "recency": ("days_since_last_order",),
    "frequency": ("orders_365d", "orders_lifetime"),
    "monetary": ("spend_365d", "spend_lifetime"),
}
"""By rank, the features that tell it; the first that there is."""


@dataclass(frozen=True)
class Expectation:
    """What BG/NBD and Gamma-Gamma expect of a customer within the `ahead` days to come."""

    bgnbd: BgNbd
    value: GammaGamma
    ahead: float

    def spend(self, x: np.ndarray, features: tuple[str, ...]) -> np.ndarray:
        """The expected spend of each row, which has the features of `VALUE_HISTORY`."""
        orders, mean = _orders_and_mean(x, features)
        number = self.bgnbd.purchases(*_history(x, features), self.ahead)
        found: np.ndarray = number * self.value.mean_value(orders, mean)
        return found


def has_history(features: tuple[str, ...], value: bool = False) -> bool:
    """Whether the features tell what BG/NBD (and for a value Gamma-Gamma) needs."""
    return set(VALUE_HISTORY if value else HISTORY) <= set(features)


def fit_expectation(x: np.ndarray, features: tuple[str, ...], ahead: float) -> Expectation:
    """Fit BG/NBD and Gamma-Gamma to customers at one instant.

    Raises:
        NotPromotedError: if nobody bought twice, or all customers are worth the same.
    """
    return Expectation(
        fit_bgnbd(*_history(x, features)), fit_gamma_gamma(*_orders_and_mean(x, features)), ahead
    )


def rank_scores(x: np.ndarray, features: tuple[str, ...], happens: bool) -> dict[str, np.ndarray]:
    """Rank customers as one would without a model.

    Recency ranks by `days_since_last_order` (the fewer, the likelier to buy; unknown is last),
    frequency by `orders_365d` or `orders_lifetime`, monetary by the spend, and RFM by the sum of
    the fifths into which these three fall (Hughes 1994). A rank is left out where its feature is.

    Args:
        x: rows.
        features: names of the columns.
        happens: whether the outcome is the order, or its absence, which turns the ranks around.

    Returns:
        Scores by rank; the higher, the likelier the outcome.
    """
    import numpy as np

    found = {}
    for name, wanted in _RANKS.items():
        known = next((f for f in wanted if f in features), None)
        if known is not None:
            value = x[:, features.index(known)]
            recent = name == "recency"
            found[name] = -np.nan_to_num(value, nan=1e6) if recent else np.nan_to_num(value)
    if len(found) == len(_RANKS):
        found["rfm"] = np.sum([_fifths(v) for v in found.values()], axis=0)
    sign = 1.0 if happens else -1.0
    return {name: sign * value for name, value in found.items()}


def propensity_baselines(
    logistic: Pipeline,
    x: np.ndarray,
    features: tuple[str, ...],
    happens: bool,
    ahead: float,
) -> dict[str, np.ndarray]:
    """Score test rows by each baseline; the ones of `PROBABLE` are probabilities.

    BG/NBD learns from histories alone, no outcomes: it is fitted to those of the test rows
    themselves, the newest there are, which makes it a stronger rival.

    Args:
        logistic: of `cdp_ml.learn.estimators.fit_logistic`.
        x: test rows.
        features: names of the columns.
        happens: whether the outcome is the order, or its absence.
        ahead: the horizon in days.
    """
    scores = {"logistic": logistic.predict_proba(x)[:, 1]}
    ranks = rank_scores(x, features, happens)
    scores |= {name: ranks[name] for name in ("recency", "frequency", "rfm") if name in ranks}
    if has_history(features):
        try:
            history = _history(x, features)
            buys = fit_bgnbd(*history).buys(*history, ahead)
        except NotPromotedError:
            return scores
        scores["bgnbd"] = buys if happens else 1 - buys
    return scores


def value_baselines(
    x: np.ndarray, features: tuple[str, ...], ahead: float
) -> Mapping[str, np.ndarray]:
    """Score test rows by each baseline; only `bgnbd`, with Gamma-Gamma, is an amount of money."""
    scores = rank_scores(x, features, happens=True)
    expectation = expectation_at(x, features, ahead)
    if expectation is not None:
        scores["bgnbd"] = expectation.spend(x, features)
    return scores


def expectation_at(x: np.ndarray, features: tuple[str, ...], ahead: float) -> Expectation | None:
    """`fit_expectation`; None if the features or the customers do not tell it."""
    if not has_history(features, value=True):
        return None
    try:
        return fit_expectation(x, features, ahead)
    except NotPromotedError:
        return None


def _history(x: np.ndarray, features: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Repeat purchases, time from the first to the last, and time since the first, in days."""
    import numpy as np

    orders, age, since = (np.nan_to_num(x[:, features.index(f)]) for f in HISTORY)
    return np.maximum(orders - 1, 0), np.maximum(age - since, 0), np.maximum(age, 0)


def _orders_and_mean(x: np.ndarray, features: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Orders and their mean value; all of them, for traits do not tell the first one's apart."""
    import numpy as np

    orders, spend = (
        np.nan_to_num(x[:, features.index(f)]) for f in ("orders_lifetime", "spend_lifetime")
    )
    return orders, np.maximum(spend, 0) / np.maximum(orders, 1)


def _fifths(values: np.ndarray) -> np.ndarray:
    """The fifth into which each value falls, from 1; equal values fall into the same."""
    import numpy as np

    found: np.ndarray = np.searchsorted(np.quantile(values, [0.2, 0.4, 0.6, 0.8]), values) + 1
    return found

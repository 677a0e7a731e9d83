"""Predictions of a fitted model: for all customers at once, and for one with its reasons."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cdp_ml.contracts import arrow_schema
from cdp_ml.errors import CdpError
from cdp_ml.learn.datasets import matrix

if TYPE_CHECKING:
    import lightgbm as lgb
    import numpy as np
    import pyarrow as pa


@dataclass(frozen=True)
class Reason:
    """A feature's share in a score: its value, and what it adds to the log-odds.

    For a value, what it adds to the logarithm of the spend that the trees predict.
    """

    feature: str
    value: float | None
    contribution: float


@dataclass(frozen=True)
class Predictor:
    """A fitted model, ready to score; `version` is 0 until it is registered.

    `model` is a LightGBM booster for propensities, a `cdp_ml.learn.value.ValueModel` for values, a
    scikit-learn pipeline that ends in k-means for clusterings, of which `clusters` names the
    clusters by number. `profile` is what `cdp_ml.learn.drift` compares later customers with.
    """

    name: str
    version: int
    task: str
    features: tuple[str, ...]
    model: Any
    clusters: tuple[str, ...] = ()
    profile: Mapping[str, Any] = field(default_factory=dict)

    @property
    def booster(self) -> lgb.Booster:
        """The trees of a propensity or a value model."""
        return self.model.booster if self.task == "value" else self.model

    def predict(self, frame: pa.Table | Mapping[str, Any]) -> np.ndarray:
        """The score of each row: a probability, a spend, or the distance to its cluster's center.

        Args:
            frame: features by name; further columns are ignored.

        Raises:
            ContractError: if a feature is missing.
        """
        x = matrix(frame, self.features)
        scores: np.ndarray
        if self.task == "clustering":
            scores = self.model.transform(x).min(axis=1)
        else:
            scores = self.model.predict(x, num_threads=_threads(x))
        return scores

    def assign(self, frame: pa.Table | Mapping[str, Any]) -> np.ndarray:
        """The name of each row's cluster; for clustering models only."""
        import numpy as np

        number = self.model.predict(matrix(frame, self.features))
        names: np.ndarray = np.array(self.clusters, dtype=object)[number]
        return names

    def reasons(self, frame: pa.Table | Mapping[str, Any], top: int = 3) -> list[list[Reason]]:
        """The features that move each row's score most, by LightGBM's own Shapley values.

        All features' contributions and the model's expectation add up to the log-odds of the score
        (Lundberg et al. 2020). A clustering has no reasons.

        Args:
            frame: features by name, of the rows to explain: it costs over a millisecond a row.
            top: reasons a row.

        Raises:
            ContractError: if a feature is missing.
        """
        import numpy as np

        x = matrix(frame, self.features)
        if self.task == "clustering":
            return [[] for _ in x]
        shares = self.model.predict(x, pred_contrib=True, num_threads=_threads(x))[:, :-1]
        order = np.argsort(-np.abs(shares), axis=1, kind="stable")[:, :top]
        return [
            [Reason(self.features[i], _known(values[i]), float(share[i])) for i in best]
            for best, values, share in zip(order, x, shares, strict=True)
        ]


def score_customers(predictor: Predictor, features: pa.Table, as_of: datetime) -> pa.Table:
    """Score customers.

    Args:
        predictor: a registered model.
        features: customer_id and the features as of the instant, one row a customer.
        as_of: the instant, UTC.

    Returns:
        Table `scores`. `percentile` is the share of these customers with a lower score, so the top
        tenth lies at 0.9 and above.

    Raises:
        ContractError: if a feature is missing.
        CdpError: if the predictor was not registered.
    """
    import pyarrow as pa

    if not predictor.version:
        raise CdpError(f"model '{predictor.name}' is not registered; log its run first")
    rows, schema = features.num_rows, arrow_schema("scores")
    scores = pa.array(predictor.predict(features) if rows else [], pa.float64())
    clusters = predictor.assign(features) if rows and predictor.clusters else [None] * rows
    columns = {
        "model": pa.repeat(pa.scalar(predictor.name), rows),
        "model_version": pa.repeat(pa.scalar(predictor.version, pa.int64()), rows),
        "customer_id": features["customer_id"].cast(pa.string()),
        "as_of": pa.repeat(pa.scalar(as_of, pa.timestamp("us", "UTC")), rows),
        "score": scores,
        "percentile": _percentiles(scores),
        "cluster": pa.array(clusters, pa.string()),
    }
    return pa.table(columns, schema=schema)


def _percentiles(scores: pa.Array) -> pa.Array:
    """The share of rows with a lower score."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not len(scores):
        return pa.array([], pa.float64())
    below = pc.subtract(pc.rank(scores, sort_keys="ascending", tiebreaker="min"), 1)
    return pc.divide(below.cast(pa.float64()), float(len(scores)))


def _known(value: float) -> float | None:
    return None if value != value else float(value)


def _threads(x: np.ndarray) -> int:
    """One thread for a few rows, all cores for many: starting more costs more than it gains."""
    return 1 if len(x) < 10_000 else os.cpu_count() or 1

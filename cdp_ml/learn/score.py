"""Predictions of a fitted model: for all customers at once, and for one with its reasons."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cdp_ml.contracts import arrow_schema
from cdp_ml.errors import CdpError
from cdp_ml.learn.datasets import matrix
from cdp_ml.learn.next_category_purchases import places

if TYPE_CHECKING:
    import lightgbm as lgb
    import numpy as np
    import pyarrow as pa

    from cdp_ml.config import ModelSpec


BLOCK = 6144
"""So many rows are scored at a time: their matrix stays in the cache between copy and trees.

A row group of the lake falls into an even number of them, so that no core waits for another.
"""


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
    `cdp_ml.learn.uplift.UpliftModel`, a `cdp_ml.learn.next_category.Ranker`, or a scikit-learn
    pipeline that ends in k-means for clusterings, of which `clusters` names the clusters by number.
    `profile` is what `cdp_ml.learn.drift` compares later customers with. `learned_until` is when
    the last label window that it was trained on closed, `question` its specification's; None of
    models registered without.
    """

    name: str
    version: int
    task: str
    features: tuple[str, ...]
    model: Any
    clusters: tuple[str, ...] = ()
    profile: Mapping[str, Any] = field(default_factory=dict)
    learned_until: datetime | None = None
    question: str | None = None

    def answers(self, spec: ModelSpec) -> bool:
        """Whether it predicts what a specification, perhaps changed since, asks for."""
        asked, before = json.loads(spec.question()), json.loads(self.question or "{}")
        same = all(before.get(key, value) == value for key, value in asked.items())
        return same and self.task == spec.task

    @property
    def booster(self) -> lgb.Booster:
        """The trees of a propensity, a value or a next_category model."""
        return self.model if self.task == "propensity" else self.model.booster

    def predict(self, frame: pa.Table | Mapping[str, Any]) -> np.ndarray:
        """The score of each row: a probability, a spend, an uplift, or the distance to a center.

        Rows of a next_category model are a customer's candidates; `recommend_items` makes them.

        Args:
            frame: features by name; further columns are ignored.

        Raises:
            ContractError: if a feature is missing.
        """
        import numpy as np

        blocks = list(_blocks(frame))
        if len(blocks) == 1:
            return self._scores(frame)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return np.concatenate(list(pool.map(self._scores, blocks)))

    def _scores(self, frame: pa.Table | Mapping[str, Any]) -> np.ndarray:
        x = matrix(frame, self.features)
        scores: np.ndarray
        if self.task == "clustering":
            scores = self.model.transform(x).min(axis=1)
        elif self.task == "uplift":
            scores = self.model.predict(x)
        elif self.task == "next_category":
            scores = self.booster.predict(x, num_threads=_threads(x))
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
        (Lundberg et al. 2020). Only propensities and values have reasons.

        Args:
            frame: features by name, of the rows to explain: it costs over a millisecond a row.
            top: reasons a row.

        Raises:
            ContractError: if a feature is missing.
        """
        import numpy as np

        x = matrix(frame, self.features)
        if self.task not in ("propensity", "value"):
            return [[] for _ in x]
        shares = self.model.predict(x, pred_contrib=True, num_threads=_threads(x))[:, :-1]
        order = np.argsort(-np.abs(shares), axis=1, kind="stable")[:, :top]
        return [
            [Reason(self.features[i], _known(values[i]), float(share[i])) for i in best]
            for best, values, share in zip(order, x, shares, strict=True)
        ]


def score_customers(
    predictor: Predictor, features: Iterable[pa.Table], as_of: datetime
) -> pa.Table:
    """Score customers, some after the others.

    Args:
        predictor: a registered model.
        features: tables of customer_id and the features as of the instant, one row a customer.
        as_of: the instant, UTC.

    Returns:
        Table `scores`. `percentile` is the share of all these customers with a lower score, so the
        top tenth lies at 0.9 and above.

    Raises:
        ContractError: if a feature is missing.
        CdpError: if the predictor was not registered.
    """
    import pyarrow as pa

    _check_registered(predictor)
    schema = arrow_schema("scores")
    found = pa.concat_tables(_scored(predictor, features))
    origin = _origin(predictor, as_of, found.num_rows)
    columns = {name: found[name] for name in found.column_names}
    columns |= {**origin, "percentile": _percentiles(found["score"])}
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _scored(predictor: Predictor, features: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """customer_id, score and cluster of some customers after the others.

    The next are read while the former are scored, and no core waits for the other in between.
    """
    held: list[tuple[pa.Table, list[Future[np.ndarray]]]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for rows in features:
            parts = _blocks(rows) if rows.num_rows else ()
            held.append((rows, [pool.submit(predictor.predict, part) for part in parts]))
            if len(held) > 1:
                yield _scores_of(predictor, *held.pop(0))
        for rows, scores in held:
            yield _scores_of(predictor, rows, scores)


def _scores_of(predictor: Predictor, rows: pa.Table, scores: list[Future[np.ndarray]]) -> pa.Table:
    import pyarrow as pa

    count = rows.num_rows
    clusters = predictor.assign(rows) if count and predictor.clusters else [None] * count
    return pa.table(
        {
            "customer_id": rows["customer_id"].cast(pa.string()),
            "score": pa.chunked_array([part.result() for part in scores], pa.float64()),
            "cluster": pa.array(clusters, pa.string()),
        }
    )


def recommend_items(
    predictor: Predictor, lines: pa.Table, as_of: datetime, top: int = 3
) -> pa.Table:
    """What each customer who has bought probably buys next.

    Args:
        predictor: a registered model of the task next_category.
        lines: orders, as for `cdp_ml.learn.next_category.recommend`.
        as_of: the instant, UTC; only orders before it count.
        top: items a customer, at most.

    Returns:
        Table `recommendations`.

    Raises:
        CdpError: if the predictor was not registered.
    """
    import pyarrow as pa

    from cdp_ml.learn.next_category import recommend

    _check_registered(predictor)
    found, schema = recommend(lines, predictor.model, as_of, top), arrow_schema("recommendations")
    origin = _origin(predictor, as_of, found.num_rows)
    columns = [origin[name] if name in origin else found[name] for name in schema.names]
    return pa.table(columns, schema=schema)


def _check_registered(predictor: Predictor) -> None:
    if not predictor.version:
        raise CdpError(f"model '{predictor.name}' is not registered; log its run first")


def _origin(predictor: Predictor, as_of: datetime, rows: int) -> dict[str, pa.Array]:
    """The columns that say which model computed rows, and as of when."""
    import pyarrow as pa

    return {
        "model": pa.repeat(pa.scalar(predictor.name), rows),
        "model_version": pa.repeat(pa.scalar(predictor.version, pa.int64()), rows),
        "as_of": pa.repeat(pa.scalar(as_of, pa.timestamp("us", "UTC")), rows),
    }


def _percentiles(scores: pa.ChunkedArray) -> pa.Array:
    """The share of rows with a lower score; the lower and upper half are sorted side by side."""
    import numpy as np
    import pyarrow as pa

    values = scores.to_numpy()
    below = np.empty(len(values))
    some = values[:: max(len(values) // 1_000, 1)]
    low = values < (np.median(some) if len(some) else 0)

    def rank(half: np.ndarray, lower: int) -> None:
        below[half] = lower + _lower(values[half])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(rank, (low, ~low), (0, int(low.sum()))))
    return pa.array(below / max(len(values), 1))


def _lower(values: np.ndarray) -> np.ndarray:
    """How many of the values are lower than each."""
    import numpy as np

    order = np.argsort(values)
    lower = np.empty(len(values), dtype=np.int64)
    lower[order] = np.arange(len(values)) - places(values[order])
    return lower


def _blocks(frame: pa.Table | Mapping[str, Any]) -> Iterator[pa.Table | Mapping[str, Any]]:
    """The rows of an Arrow table in blocks, without copying; any other frame as it is."""
    import pyarrow as pa

    if not isinstance(frame, pa.Table):
        yield frame
        return
    for at in range(0, max(frame.num_rows, 1), BLOCK):
        yield frame.slice(at, BLOCK)


def _known(value: float) -> float | None:
    return None if value != value else float(value)


def _threads(x: np.ndarray) -> int:
    """One thread for a few rows, all cores for many: starting more costs more than it gains."""
    return 1 if len(x) < 10_000 else os.cpu_count() or 1

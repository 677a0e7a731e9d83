"""What a customer buys next: categories or products, from what customers buy again and after what.

Candidates come from TIFU-kNN (`next_category_candidates`). Gradient-boosted trees then rank them by
what is known of each (`next_category_features`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdp_ml.learn.next_category_candidates import Ranked, joined
from cdp_ml.learn.next_category_features import candidates
from cdp_ml.learn.next_category_purchases import Purchases, item_names, purchases_before

if TYPE_CHECKING:
    from datetime import datetime

    import lightgbm as lgb
    import numpy as np
    import pyarrow as pa

DEFAULTS: Mapping[str, int | float | str] = {
    "n_estimators": 200,
    "num_leaves": 31,
    "extra_trees": False,
    "learning_rate": 0.05,
    "min_child_samples": 100,
    "subsample": 0.8,
    "subsample_freq": 1,
    "colsample_bytree": 0.7,
    "reg_lambda": 5.0,
    "seed": 1,
    "neighbors": 300,
    "group": 7,
    "decay_within": 0.9,
    "decay_between": 0.7,
    "own_share": 0.7,
    "candidates": 80,
    "within_days": 30,
    "windows": 6,
}
"""Parameters: of LightGBM, of TIFU-kNN (as published for Ta-Feng), and of what is looked at."""
TOP = 10
AT_ONCE = 20_000
"""The candidates of so many customers are held at a time."""


@dataclass(frozen=True)
class Ranker:
    """A trained model of the next items: the trees, and the parameters of the candidates."""

    booster: lgb.Booster
    parameters: Mapping[str, int | float | str]


def recommend(lines: pa.Table, ranker: Ranker, as_of: datetime, top: int = TOP) -> pa.Table:
    """The items that each customer most probably buys next.

    Args:
        lines: customer_id, order_id, event_timestamp (UTC) and item (text: a category or product;
            null is left out), one row an order line that was bought; what is not before `as_of` is
            not looked at.
        ranker: as from `next_category_training.train_next`.
        as_of: the instant, UTC.
        top: items a customer.

    Returns:
        customer_id, item, rank (1 is the best), score (probability to buy it, given that the
        customer buys something) and bought_before, by customer and rank; of all who bought before.
    """
    import numpy as np
    import pyarrow as pa

    names = item_names(lines, as_of)
    p, customers = purchases_before(lines, as_of, names)
    found = rank_items(p, ranker, top)
    before = np.isin(p.pair(found.customer, found.item), p.pair(p.customer, p.item))
    return pa.table(
        {
            "customer_id": customers.take(pa.array(found.customer)),
            "item": names.take(pa.array(found.item)),
            "rank": pa.array(found.rank, pa.int64()),
            "score": pa.array(found.score, pa.float64()),
            "bought_before": pa.array(before, pa.bool_()),
        }
    )


def rank_items(
    p: Purchases, ranker: Ranker, top: int = TOP, chosen: np.ndarray | None = None
) -> Ranked:
    """The items that each customer most probably buys next; `score` is the probability."""
    import numpy as np

    every = np.arange(p.customers) if chosen is None else chosen
    groups = np.split(every, range(AT_ONCE, len(every), AT_ONCE))
    return joined([_rank_group(p, ranker, top, group) for group in groups])


def _rank_group(p: Purchases, ranker: Ranker, top: int, chosen: np.ndarray) -> Ranked:
    import numpy as np

    found, x = candidates(p, ranker.parameters, chosen)
    if not len(x):
        return found
    score = np.asarray(ranker.booster.predict(x))
    order = np.lexsort((-score, found.customer))
    ranked = Ranked(found.customer[order], found.item[order], score[order], found.rank[order])
    return ranked.first(top)

"""What is known of a customer and an item that she may buy next.

How often the item is bought again at all, how long ago she bought it, and what is bought within
some days after her last order. So it is learned from the data whether who bought cushions wants
cushions again, or covers. All is done with sparse matrices of customers, orders and items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdp_ml.learn.next_category_candidates import Ranked, best, joined, neighborhoods, tifu_vectors
from cdp_ml.learn.next_category_purchases import Purchases

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_matrix

_DENSE = ("tifu", "tifu_rank", "own", "alike", "after_last_order", "after_history", "with_history")
"""What is taken from matrices of customers and items, chunk by chunk."""
FEATURES = (
    "tifu",
    "tifu_rank",
    "own",
    "alike",
    "times_bought",
    "share_of_orders",
    "orders_since",
    "days_since",
    "days_since_by_gap",
    "bought_again",
    "gap",
    "popularity",
    "recent_popularity",
    "after_last_order",
    "after_history",
    "with_history",
    "orders",
    "order_size",
    "share_bought_again",
    "days_since_last_order",
)
SHRINK = 10
"""Shares of fewer purchases than about this are drawn to 0, or to the mean of all items."""


def candidates(
    p: Purchases, params: Mapping[str, Any], chosen: np.ndarray | None = None
) -> tuple[Ranked, np.ndarray]:
    """The candidates of TIFU-kNN for each customer, filled with what is bought most.

    Returns:
        The candidates, and what is known of each: a matrix candidates x `FEATURES`.
    """
    import numpy as np

    found, dense = _found_by_tifu(p, params, chosen)
    columns = {**dense, **_pair_and_item_features(p, found), **_customer_features(p, found)}
    return found, np.column_stack([columns[name] for name in FEATURES])


def transitions(p: Purchases, within: float) -> tuple[csr_matrix, csr_matrix]:
    """How often an item is in the customer's next order, if within so many days, or in the same.

    Returns:
        items x items, the shares of the row's orders; shrunk towards 0 where these are few.
    """
    import numpy as np

    orders, number = np.unique(_order_key(p), return_inverse=True)
    bought = _indicator(number, p.item, (len(orders), p.items))
    days = np.zeros(len(orders))
    days[number] = p.days
    # An order's key is one less than that of the order before it.
    later = np.flatnonzero((np.diff(orders) == 1) & (np.diff(days) <= within))
    after = bought[later + 1].T @ bought[later]
    beside = (bought.T @ bought).tocsr()
    beside.setdiag(0)
    return _shares(after, bought[later + 1]), _shares(beside, bought)


def _order_key(p: Purchases) -> np.ndarray:
    """A number for each line's order, by customer and then backwards in time."""
    import numpy as np

    key: np.ndarray = p.customer.astype(np.int64) * (int(p.order.max(initial=0)) + 2) + p.order
    return key


def _indicator(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> csr_matrix:
    import numpy as np
    from scipy.sparse import coo_matrix

    return coo_matrix((np.ones(len(row)), (row, column)), shape).tocsr()


def _shares(together: csr_matrix, orders: csr_matrix) -> csr_matrix:
    """Counts of items bought together as shares of the orders of the row's item."""
    import numpy as np
    from scipy.sparse import diags

    times = np.asarray(orders.sum(axis=0)).ravel()
    return (diags(1 / (times + SHRINK)) @ together).tocsr().astype(np.float32)


def _found_by_tifu(
    p: Purchases, params: Mapping[str, Any], chosen: np.ndarray | None
) -> tuple[Ranked, dict[str, np.ndarray]]:
    """The candidates, and the features of `_DENSE` for each."""
    import numpy as np

    after, beside = transitions(p, float(params["within_days"]))
    last = p.matrix(np.ones(len(p.item)), p.order == 0)
    vectors, own_share = tifu_vectors(p, params), float(params["own_share"])
    filling = 1e-6 * np.bincount(p.item, minlength=p.items) / max(len(p.item), 1)
    ranked, known = [], []
    for near in neighborhoods(p, params, chosen):
        rows = near.rows
        score = near.score(own_share) + filling
        found = best([(rows, score)], int(params["candidates"]))
        at = (np.searchsorted(rows, found.customer), found.item)
        later = (last[rows] @ after, vectors[rows] @ after, vectors[rows] @ beside)
        dense = (near.own, near.alike, *(m.toarray() for m in later))
        ranked.append(found)
        known.append(np.column_stack([found.score, found.rank, *(d[at] for d in dense)]))
    columns = np.concatenate(known) if known else np.zeros((0, len(_DENSE)))
    return joined(ranked), dict(zip(_DENSE, columns.T, strict=True))


@dataclass(frozen=True)
class _Pairs:
    """Each customer and item that she bought, by `number`: in how many orders, and when."""

    number: np.ndarray
    item: np.ndarray
    times: np.ndarray
    first: np.ndarray
    latest: np.ndarray
    orders_since: np.ndarray

    def find(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For numbers of pairs: whether they were bought, and where they stand if so."""
        import numpy as np

        at = np.searchsorted(self.number, wanted)
        return np.isin(wanted, self.number), at


def _pairs(p: Purchases) -> _Pairs:
    import numpy as np

    number, place = np.unique(p.pair(p.customer, p.item), return_inverse=True)

    def reduced(values: np.ndarray, which: np.ufunc, start: float) -> np.ndarray:
        found = np.full(len(number), start)
        which.at(found, place, values)
        return found

    return _Pairs(
        number=number,
        item=number % p.items,
        times=np.bincount(place, minlength=len(number)).astype(float),
        first=reduced(p.days, np.maximum, -np.inf),
        latest=reduced(p.days, np.minimum, np.inf),
        orders_since=reduced(p.order, np.minimum, np.inf),
    )


def _pair_and_item_features(p: Purchases, found: Ranked) -> dict[str, np.ndarray]:
    """What is known of a customer's own purchases of an item, and of all purchases of it."""
    import numpy as np

    pairs = _pairs(p)
    items = {name: values[found.item] for name, values in _item_features(p, pairs).items()}
    bought, at = pairs.find(p.pair(found.customer, found.item))

    def own(values: np.ndarray, otherwise: float) -> np.ndarray:
        known = np.full(len(bought), otherwise)
        known[bought] = values[at[bought]]
        return known

    times, days = own(pairs.times, 0.0), own(pairs.latest, np.nan)
    return {
        **items,
        "times_bought": times,
        "share_of_orders": times / np.maximum(p.orders[found.customer], 1),
        "orders_since": own(pairs.orders_since, np.nan),
        "days_since": days,
        "days_since_by_gap": days / np.maximum(items["gap"], 1.0),
    }


def _item_features(p: Purchases, pairs: _Pairs) -> dict[str, np.ndarray]:
    """What is known of all purchases of each item."""
    import numpy as np

    def count(item: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(item, weight, minlength=p.items)

    again = pairs.times > 1
    apart = ((pairs.first - pairs.latest) / np.maximum(pairs.times - 1, 1))[again]
    repeated, gaps = count(pairs.item[again]), count(pairs.item[again], apart)
    mean = again.mean() if len(again) else 0.0
    return {
        "bought_again": (repeated + SHRINK * mean) / (count(pairs.item) + SHRINK),
        "gap": np.divide(gaps, repeated, out=np.full(p.items, np.nan), where=repeated > 0),
        "popularity": count(p.item) / max(p.orders.sum(), 1),
        "recent_popularity": count(p.item[p.order == 0]) / max((p.orders > 0).sum(), 1),
    }


def _customer_features(p: Purchases, found: Ranked) -> dict[str, np.ndarray]:
    import numpy as np

    lines = np.bincount(p.customer, minlength=p.customers)
    pairs = np.unique(p.pair(p.customer, p.item))
    different = np.bincount(pairs // p.items, minlength=p.customers)
    last = np.full(p.customers, np.nan)
    last[p.customer[p.order == 0]] = p.days[p.order == 0]
    by_customer = {
        "orders": p.orders.astype(float),
        "order_size": lines / np.maximum(p.orders, 1),
        "share_bought_again": 1 - different / np.maximum(lines, 1),
        "days_since_last_order": last,
    }
    return {name: values[found.customer] for name, values in by_customer.items()}

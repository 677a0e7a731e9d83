"""What a customer buys next: categories or products, from what customers buy again and after what.

Candidates come from TIFU-kNN (Hu, He, Gao, Zhang 2020): what the customer bought, later purchases
counting more, and what customers alike bought. Gradient-boosted trees then rank them by how often
an item is bought again at all, how long ago the customer bought it, and what is bought within 30
days after the last order. So it is learned from the data whether who bought cushions wants cushions
again, or covers. All is done with sparse matrices of customers, orders and items.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.errors import NotPromotedError
from cdp_ml.learn.estimators import estimator_of, fit_lightgbm, with_defaults
from cdp_ml.learn.evaluate import Estimate, Evaluation

if TYPE_CHECKING:
    from datetime import datetime

    import lightgbm as lgb
    import numpy as np
    import pyarrow as pa
    from ibis.expr.types import Table
    from scipy.sparse import csr_matrix

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
SMALL = 10_000
"""Fewer customers than this, over all windows, get trees of 8 leaves unless the number is given."""
_NOT_TREES = ("neighbors", "group", "decay_within", "decay_between", "own_share", "candidates",
              "within_days", "windows")  # fmt: skip
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
_LINE = ("customer_id", "order_id", "event_timestamp")
TOP = 10
CHUNK = 1_000
CELLS = 20_000_000
POOL = 20_000
"""More customers than this are compared with a sample of so many of them."""
SHRINK = 10
SAMPLE = 500
DRAWS = 300
FEWEST = 50
"""With fewer customers who bought something in the window, nothing can be learned or judged."""


@dataclass(frozen=True)
class Purchases:
    """Order lines before an instant, as parallel arrays.

    `customer` and `item` are numbers below `customers` and `items`, `order` counts a customer's
    orders backwards (0 is the latest), `days` is how long before the instant the order was.
    """

    customer: np.ndarray
    order: np.ndarray
    item: np.ndarray
    days: np.ndarray
    customers: int
    items: int

    def matrix(self, values: np.ndarray, chosen: np.ndarray | slice = slice(None)) -> csr_matrix:
        """Customers x items: the sum of `values` over the chosen lines."""
        from scipy.sparse import coo_matrix

        place = (self.customer[chosen], self.item[chosen])
        return coo_matrix((values[chosen], place), (self.customers, self.items)).tocsr()


@dataclass(frozen=True)
class Ranked:
    """Items for customers, as parallel arrays, the best first within each customer."""

    customer: np.ndarray
    item: np.ndarray
    score: np.ndarray
    rank: np.ndarray


@dataclass(frozen=True)
class Ranker:
    """A trained model of the next items: the trees, and the parameters of the candidates."""

    booster: lgb.Booster
    parameters: Mapping[str, int | float | str]


@dataclass(frozen=True)
class Trial:
    """A trained model of the next items, judged on a later window than it was trained on.

    `sample` holds the `FEATURES` of some candidates of that window.
    """

    ranker: Ranker
    evaluation: Evaluation
    rows: Mapping[str, int]
    sample: np.ndarray


def train_next(
    lines: pa.Table, as_of: datetime, given: Mapping[str, int | float | str], name: str
) -> Trial:
    """Train on `windows` of `within_days`, and judge on a later one, the last before `as_of`.

    In each window those are looked at who had bought before it and bought in it; windows in which
    they are too few are left out.

    Args:
        lines: customer_id, order_id, event_timestamp (UTC) and item (text: a category or product;
            null is left out), one row an order line that was bought.
        as_of: the instant of the training, UTC.
        given: the model's `estimator`, over `DEFAULTS`.
        name: the model's name, for messages.

    Raises:
        ConfigError: if a parameter is unknown or no number.
        NotPromotedError: if too few customers bought something in a window.
    """
    from datetime import timedelta

    import numpy as np

    params = with_defaults(given, DEFAULTS, estimator_of(name))
    window = timedelta(days=float(params["within_days"]))
    names = item_names(lines, as_of)
    starts = [as_of - back * window for back in range(1, int(params["windows"]) + 2)]
    (now, wanted), *earlier = (_window(lines, start, start + window, names) for start in starts)
    known = [one for one in earlier if len(np.unique(one[1][:, 0])) >= FEWEST]
    ranker = fit_ranker(known or earlier[:1], given, name)
    rows = {
        "train_customers": sum(len(np.unique(bought[:, 0])) for _, bought in known),
        "test_customers": len(np.unique(wanted[:, 0])),
        "train_windows": len(known),
        "items": len(names),
    }
    evaluation = judge_next(now, wanted, ranker, name, _list_length(names))
    return Trial(ranker, evaluation, rows, _sample(now, wanted, params))


def _sample(p: Purchases, future: np.ndarray, params: Mapping[str, Any]) -> np.ndarray:
    """Some candidates of some of the customers who bought something."""
    import numpy as np

    random = np.random.default_rng(int(params["seed"]))
    buyers = np.sort(random.permutation(np.unique(future[:, 0]))[:SAMPLE])
    x = candidates(p, params, buyers)[1]
    return np.asarray(x[random.permutation(len(x))[:SAMPLE]])


def _window(
    lines: pa.Table, start: datetime, end: datetime, names: pa.Array
) -> tuple[Purchases, np.ndarray]:
    p, customers, _ = purchases_before(lines, start, names)
    return p, bought_between(lines, start, end, customers, names)


def recommend(lines: pa.Table, ranker: Ranker, as_of: datetime, top: int = TOP) -> pa.Table:
    """The items that each customer most probably buys next.

    Args:
        lines: as for `train_next`; what is not before `as_of` is not looked at.
        ranker: as from `train_next`.
        as_of: the instant, UTC.
        top: items a customer.

    Returns:
        customer_id, item, rank (1 is the best), score (probability to buy it, given that the
        customer buys something) and bought_before, by customer and rank; of all who bought before.
    """
    import numpy as np
    import pyarrow as pa

    names = item_names(lines, as_of)
    p, customers, _ = purchases_before(lines, as_of, names)
    found = rank_items(p, ranker, top)
    before = np.isin(_key(p, found.customer, found.item), _key(p, p.customer, p.item))
    return pa.table(
        {
            "customer_id": customers.take(pa.array(found.customer)),
            "item": names.take(pa.array(found.item)),
            "rank": pa.array(found.rank, pa.int64()),
            "score": pa.array(found.score, pa.float64()),
            "bought_before": pa.array(before, pa.bool_()),
        }
    )


def order_lines(transactions: Table, products: Table, by: str) -> Table:
    """The lines to learn from: what was bought by customers, as categories or products.

    Args:
        transactions: table `transactions` with customer_id, as of an instant (`activity_as_of`);
            returns are left out.
        products: table `products`.
        by: `category` or `product`.

    Returns:
        customer_id, order_id, event_timestamp, item.
    """
    bought = transactions.filter(transactions.quantity > 0)
    if by == "category":
        known = products.select("product_id", item="category")
        return bought.join(known, "product_id").select(*_LINE, "item")
    return bought.select(*_LINE, item="product_id")


def item_names(lines: pa.Table, as_of: datetime) -> pa.Array:
    """What was bought before an instant, each once, in order."""
    import pyarrow.compute as pc

    known = lines.filter(pc.less(lines["event_timestamp"], as_of))
    found = pc.unique(known["item"].cast("string")).drop_null()
    return found.take(pc.array_sort_indices(found))


def purchases_before(
    lines: pa.Table, as_of: datetime, names: pa.Array
) -> tuple[Purchases, pa.Array, pa.Array]:
    """The purchases before an instant, with the ids of customers and the names of items by number.

    Args:
        lines: as for `train_next`.
        as_of: the instant, UTC.
        names: the items; others are left out.
    """
    import numpy as np
    import pyarrow.compute as pc

    known = _of_items(lines.filter(pc.less(lines["event_timestamp"], as_of)), names)
    customers = pc.unique(known["customer_id"])
    customers = customers.take(pc.array_sort_indices(customers))
    customer = pc.index_in(known["customer_id"], customers).to_numpy()
    order_id = known["order_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    item = pc.index_in(known["item"].cast("string"), names).to_numpy()
    days = _days_before(known["event_timestamp"], as_of)
    orders = np.stack([customer, order_id])
    distinct, first, place = np.unique(orders, axis=1, return_index=True, return_inverse=True)
    latest = np.lexsort((distinct[1], days[first], distinct[0]))
    number = np.empty(len(latest), dtype=np.int64)
    number[latest] = _places(distinct[0][latest])
    rows, chosen = np.unique(
        np.stack([customer, number[place.ravel()], item]), axis=1, return_index=True
    )
    p = Purchases(rows[0], rows[1], rows[2], days[chosen], len(customers), len(names))
    return p, customers, names


def bought_between(
    lines: pa.Table, start: datetime, end: datetime, customers: pa.Array, names: pa.Array
) -> np.ndarray:
    """Customer and item, two columns of numbers: what known customers bought in [start, end)."""
    import numpy as np
    import pyarrow.compute as pc

    at = lines["event_timestamp"]
    inside = pc.and_(pc.greater_equal(at, start), pc.less(at, end))
    known = _of_items(lines.filter(inside), names)
    known = known.filter(pc.is_in(known["customer_id"], customers))
    customer = pc.index_in(known["customer_id"], customers).to_numpy()
    item = pc.index_in(known["item"].cast("string"), names).to_numpy()
    return np.unique(np.column_stack([customer, item]), axis=0).astype(np.int64)


def save_ranker(ranker: Ranker, folder: Path) -> None:
    """Write a model without pickle: the trees as LightGBM's text, the parameters as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    ranker.booster.save_model(str(folder / "model.lgb"))
    (folder / "next.json").write_text(json.dumps(dict(ranker.parameters)))


def load_ranker(folder: Path) -> Ranker:
    """Read a model that `save_ranker` wrote."""
    import lightgbm

    booster = lightgbm.Booster(model_file=str(folder / "model.lgb"))
    return Ranker(booster, json.loads((folder / "next.json").read_text()))


def tifu_vectors(p: Purchases, params: Mapping[str, Any]) -> csr_matrix:
    """What each customer bought, later orders counting more (Hu et al. 2020, equations 1 to 3).

    Orders are put in groups of `group`, from the latest back. Within a group an order counts
    `decay_within` as much as the one after it, and a group `decay_between` as much as the one after
    it; both are means.

    Returns:
        customers x items.
    """
    import numpy as np

    size = int(params["group"])
    orders = _orders(p)
    groups = np.ceil(orders / size)
    group, place = p.order // size, p.order % size
    members = np.minimum(size, orders[p.customer] - group * size)
    within = float(params["decay_within"]) ** place / members
    between = float(params["decay_between"]) ** group / groups[p.customer]
    return p.matrix(within * between)


def rank_tifu(
    p: Purchases, params: Mapping[str, Any], top: int, chosen: np.ndarray | None = None
) -> Ranked:
    """The best items by TIFU-kNN: the customer's own vector, and the mean of those most alike."""
    own_share = float(params["own_share"])
    found = (
        (rows, own_share * own + (1 - own_share) * alike)
        for rows, own, alike in _vectors(p, params, chosen)
    )
    return _best(found, top)


def rank_popular(p: Purchases, top: int, own: float = 1.0, all_: float = 1.0) -> Ranked:
    """The best items by how often the customer bought them, and all did: baselines.

    Args:
        p: the purchases.
        top: items a customer.
        own: weight of the customer's own orders; 0 leaves them out.
        all_: weight of everyone's, which is less than one own order's; 0 leaves them out.
    """
    import numpy as np

    counts = p.matrix(np.ones(len(p.item)))
    popular = np.asarray(counts.sum(axis=0)).ravel()
    shared = all_ * popular / (popular.max(initial=0) + 1)
    return _best(((rows, own * counts[rows].toarray() + shared) for rows in _chunks(p)), top)


def candidates(
    p: Purchases, params: Mapping[str, Any], chosen: np.ndarray | None = None
) -> tuple[Ranked, np.ndarray]:
    """The candidates of TIFU-kNN for each customer, filled with what is bought most.

    Returns:
        The candidates, and what is known of each: a matrix candidates x `FEATURES`.
    """
    import numpy as np

    after, beside = _transitions(p, float(params["within_days"]))
    last = p.matrix(np.ones(len(p.item)), p.order == 0)
    vectors, own_share = tifu_vectors(p, params), float(params["own_share"])
    filling = 1e-6 * np.bincount(p.item, minlength=p.items) / max(len(p.item), 1)
    ranked, known = [], []
    for rows, own, alike in _vectors(p, params, chosen):
        score = own_share * own + (1 - own_share) * alike + filling
        best = _best([(rows, score)], int(params["candidates"]))
        at = (np.searchsorted(rows, best.customer), best.item)
        later = (last[rows] @ after, vectors[rows] @ after, vectors[rows] @ beside)
        dense = (own, alike, *(m.toarray() for m in later))
        ranked.append(best)
        known.append(np.column_stack([best.score, best.rank, *(d[at] for d in dense)]))
    found = _joined(ranked)
    tifu = np.concatenate(known) if known else np.zeros((0, 7))
    columns = dict(zip(("tifu", "tifu_rank", "own", "alike", "after_last_order", "after_history",
                        "with_history"), tifu.T, strict=True))  # fmt: skip
    columns |= _pair_features(p, found) | _customer_features(p, found)
    return found, np.column_stack([columns[name] for name in FEATURES])


def fit_ranker(
    windows: Sequence[tuple[Purchases, np.ndarray]],
    given: Mapping[str, int | float | str],
    name: str,
) -> Ranker:
    """Learn to rank candidates from what customers bought next.

    Args:
        windows: purchases before an instant, and what was bought from then on: customer and item,
            two columns.
        given: the model's `estimator`, over `DEFAULTS`.
        name: the model's name, for messages.

    Raises:
        ConfigError: if a parameter is unknown or no number.
        NotPromotedError: if fewer than `FEWEST` customers bought something, or nobody a candidate,
            or all of them.
    """
    import numpy as np

    params = with_defaults(given, DEFAULTS, estimator_of(name))
    xs, ys, customers = [], [], 0
    for p, future in windows:
        _check_enough(p, future, name, "training")
        buyers = np.unique(future[:, 0])
        customers += len(buyers)
        found, x = candidates(p, params, buyers)
        xs.append(x)
        ys.append(np.isin(_key(p, found.customer, found.item), _key(p, *future.T)).astype(float))
    y = np.concatenate(ys)
    if not 0 < y.sum() < len(y):
        raise NotPromotedError(
            f"model '{name}': {int(y.sum())} of {len(y)} candidates were bought: nothing to learn"
        )
    if customers < SMALL and "num_leaves" not in given:
        params["num_leaves"] = 8
    trees = {k: v for k, v in params.items() if k not in _NOT_TREES}
    return Ranker(fit_lightgbm(np.concatenate(xs), y, FEATURES, trees), params)


def rank_items(
    p: Purchases, ranker: Ranker, top: int = TOP, chosen: np.ndarray | None = None
) -> Ranked:
    """The items that each customer most probably buys next; `score` is the probability."""
    import numpy as np

    found, x = candidates(p, ranker.parameters, chosen)
    if not len(x):
        return found
    score = np.asarray(ranker.booster.predict(x))
    order = np.lexsort((-score, found.customer))
    sorted_ = replace(found, customer=found.customer[order], item=found.item[order],
                      score=score[order])  # fmt: skip
    return _first(sorted_, top)


def judge_next(
    p: Purchases, future: np.ndarray, ranker: Ranker, name: str, top: int = TOP
) -> Evaluation:
    """Judge recommendations by what customers bought next, beside baselines.

    Recall is the share of what a customer bought that is among her `top` items, NDCG also counts
    their ranks; means over the customers who bought something, with 95% bootstrap intervals over
    them. The ranking is promoted if its recall exceeds that of the best baseline with the interval
    of the difference above 0 (paired bootstrap).

    Args:
        p: purchases before an instant.
        future: customer and item, two columns: what was bought from then on.
        ranker: trained on an earlier instant.
        name: the model's name.
        top: items a customer.

    Raises:
        NotPromotedError: if fewer than `FEWEST` customers bought something.
    """
    import numpy as np

    _check_enough(p, future, name, "test")
    buyers = np.unique(future[:, 0])
    lists = {
        "model": rank_items(p, ranker, top, buyers),
        "global_top": rank_popular(p, top, own=0.0),
        "personal_top": rank_popular(p, top, all_=0.0),
        "personal_then_global": rank_popular(p, top),
        "tifu_knn": rank_tifu(p, ranker.parameters, top, buyers),
    }
    hits = {kind: _hits(p, one, future, top) for kind, one in lists.items()}
    means = _bootstrap(np.stack([hits[kind] for kind in lists]))  # draws x lists x metrics
    metrics: dict[str, Estimate] = {}
    for number, kind in enumerate(lists):
        prefix = "" if kind == "model" else f"baseline_{kind}/"
        for column, metric in enumerate((f"recall_at_{top}", f"ndcg_at_{top}")):
            metrics[prefix + metric] = _estimate(means[:, number, column])
    best = 1 + int(np.argmax(means[0, 1:, 0]))
    rival, lead = list(lists)[best], _estimate(means[:, 0, 0] - means[:, best, 0])
    metrics["recall_gain"] = lead
    said = (
        f"recall@{top} {metrics[f'recall_at_{top}']}, of the best baseline ({rival}) "
        f"{metrics[f'baseline_{rival}/recall_at_{top}']}, lead {lead}"
    )
    if lead.low > 0:
        return Evaluation(metrics, {}, True, f"{name} is promoted: {said}.")
    said += "; the lead's interval must be above 0"
    return Evaluation(metrics, {}, False, f"{name} is not promoted: {said}.")


# ---- the parts ----------------------------------------------------------------------------------


def _of_items(lines: pa.Table, names: pa.Array) -> pa.Table:
    import pyarrow.compute as pc

    return lines.filter(pc.is_in(lines["item"].cast("string"), names))


def _days_before(at: pa.ChunkedArray, as_of: datetime) -> np.ndarray:
    import numpy as np
    import pyarrow as pa

    stamp = pa.timestamp("us", "UTC")
    past = at.cast(stamp).cast("int64").to_numpy()
    days: np.ndarray = (pa.scalar(as_of, stamp).cast("int64").as_py() - past) / 86_400e6
    return days.astype(np.float64)


def _list_length(names: pa.Array) -> int:
    """How many of the items are offered: of a few categories the first three at most."""
    return min(TOP, max(1, len(names) // 3))


def _places(sorted_: np.ndarray) -> np.ndarray:
    """The place of each value among its equals, from 0."""
    import numpy as np

    position = np.arange(len(sorted_))
    new = np.append(True, sorted_[1:] != sorted_[:-1])[: len(sorted_)]
    found: np.ndarray = position - np.maximum.accumulate(np.where(new, position, 0))
    return found


def _orders(p: Purchases) -> np.ndarray:
    """How many orders each customer has."""
    import numpy as np

    orders = np.zeros(p.customers, dtype=np.int64)
    np.maximum.at(orders, p.customer, p.order + 1)
    return orders


def _chunks(p: Purchases, chosen: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Numbers of all or of chosen customers, so many at once as fit, times items, into memory."""
    import numpy as np

    step = max(1, min(CHUNK, CELLS // max(p.items, 1)))
    numbers = np.arange(p.customers) if chosen is None else chosen
    for start in range(0, len(numbers), step):
        yield numbers[start : start + step]


def _vectors(
    p: Purchases, params: Mapping[str, Any], chosen: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """By chunk of customers: their numbers, their own vectors, and the mean of those alike.

    Alike are the nearest by Euclidean distance, of all or a sample of `POOL` customers.
    """
    import numpy as np
    from scipy.sparse import csr_matrix

    vectors = tifu_vectors(p, params).astype(np.float32)
    random = np.random.default_rng(int(params["seed"]))
    every = np.flatnonzero(_orders(p))
    pool = every if len(every) <= POOL else np.sort(random.choice(every, POOL, replace=False))
    others = vectors[pool]
    length = np.asarray(others.multiply(others).sum(axis=1)).ravel()
    k = min(int(params["neighbors"]), len(pool) - 1)
    transposed = others.T.tocsr()
    for rows in _chunks(p, chosen):
        mine = vectors[rows]
        distance = length - 2 * (mine @ transposed).toarray()
        distance[rows[:, None] == pool] = np.inf
        if k > 0:
            near = np.argpartition(distance, k - 1, axis=1)[:, :k].ravel()
            start = np.arange(len(rows) + 1) * k
            weight = np.full(len(near), 1 / k, dtype=np.float32)
            alike = (csr_matrix((weight, near, start), (len(rows), len(pool))) @ others).toarray()
        else:
            alike = np.zeros(mine.shape, dtype=np.float32)
        yield rows, mine.toarray(), alike


def _best(scored: Iterable[tuple[np.ndarray, np.ndarray]], top: int) -> Ranked:
    """The `top` items with the highest positive scores of each customer."""
    import numpy as np

    found = []
    for rows, score in scored:
        k = min(top, score.shape[1])
        best = np.argpartition(-score, k - 1, axis=1)[:, :k]
        value = np.take_along_axis(score, best, axis=1)
        order = np.lexsort((best, -value), axis=1)
        best, value = (np.take_along_axis(a, order, axis=1) for a in (best, value))
        rank = np.broadcast_to(np.arange(1, k + 1), best.shape)
        kept = value > 0
        customer = np.broadcast_to(rows[:, None], best.shape)
        found.append(Ranked(customer[kept], best[kept], value[kept], rank[kept]))
    return _joined(found)


def _joined(parts: list[Ranked]) -> Ranked:
    import numpy as np

    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return Ranked(none, none, np.zeros(0), none)
    columns = ([getattr(part, n) for part in parts] for n in ("customer", "item", "score", "rank"))
    return Ranked(*(np.concatenate(column) for column in columns))


def _first(ranked: Ranked, top: int) -> Ranked:
    """The first `top` items of each customer, ranked anew; they stand in order already."""
    rank = _places(ranked.customer) + 1
    kept = rank <= top
    return Ranked(ranked.customer[kept], ranked.item[kept], ranked.score[kept], rank[kept])


def _transitions(p: Purchases, within: float) -> tuple[csr_matrix, csr_matrix]:
    """How often an item is in the customer's next order, if within so many days, or in the same.

    Returns:
        items x items, the shares of the row's orders; shrunk towards 0 where these are few.
    """
    import numpy as np
    from scipy.sparse import coo_matrix, diags

    key = p.customer.astype(np.int64) * (int(p.order.max(initial=0)) + 2) + p.order
    orders, number = np.unique(key, return_inverse=True)
    shape = (len(orders), p.items)
    bought = coo_matrix((np.ones(len(number)), (number, p.item)), shape).tocsr()
    days = np.zeros(len(orders))
    days[number] = p.days
    # An order's key is one less than that of the order before it.
    later = np.flatnonzero((np.diff(orders) == 1) & (np.diff(days) <= within))
    after = bought[later + 1].T @ bought[later]
    beside = (bought.T @ bought).tocsr()
    beside.setdiag(0)
    followed = np.asarray(bought[later + 1].sum(axis=0)).ravel()
    times = np.asarray(bought.sum(axis=0)).ravel()
    return (
        (diags(1 / (followed + SHRINK)) @ after).tocsr().astype(np.float32),
        (diags(1 / (times + SHRINK)) @ beside).tocsr().astype(np.float32),
    )


def _pair_features(p: Purchases, found: Ranked) -> dict[str, np.ndarray]:
    """What is known of a customer's own purchases of an item, and of all purchases of it."""
    import numpy as np

    pairs, place = np.unique(_key(p, p.customer, p.item), return_inverse=True)
    times = np.bincount(place, minlength=len(pairs)).astype(float)
    since = {n: _extreme(place, v, len(pairs), np.minimum) for n, v in _since(p).items()}
    first = _extreme(place, p.days, len(pairs), np.maximum)
    item = pairs % p.items
    again = times > 1
    gap = _mean_by(
        item[again], ((first - since["days_since"]) / np.maximum(times - 1, 1))[again], p
    )
    mean = again.mean() if len(again) else 0.0
    wanted = _key(p, found.customer, found.item)
    at = np.minimum(np.searchsorted(pairs, wanted), max(len(pairs) - 1, 0))
    bought = pairs[at] == wanted if len(pairs) else np.zeros(len(wanted), dtype=bool)
    own = {n: np.where(bought, v[at], np.nan) for n, v in since.items()}
    orders = _orders(p)
    latest = np.bincount(p.item[p.order == 0], minlength=p.items)
    number = np.bincount(item, minlength=p.items)
    repeated = np.bincount(item[again], minlength=p.items)
    times_bought = np.where(bought, times[at], 0.0)
    return {
        **own,
        "times_bought": times_bought,
        "share_of_orders": times_bought / np.maximum(orders[found.customer], 1),
        "bought_again": ((repeated + SHRINK * mean) / (number + SHRINK))[found.item],
        "gap": gap[found.item],
        "days_since_by_gap": own["days_since"] / np.maximum(gap[found.item], 1.0),
        "popularity": (np.bincount(p.item, minlength=p.items) / max(orders.sum(), 1))[found.item],
        "recent_popularity": (latest / max((orders > 0).sum(), 1))[found.item],
    }


def _since(p: Purchases) -> dict[str, np.ndarray]:
    return {"orders_since": p.order.astype(float), "days_since": p.days}


def _extreme(place: np.ndarray, values: np.ndarray, size: int, which: np.ufunc) -> np.ndarray:
    """The least or greatest value of each group."""
    import numpy as np

    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(size))
    found: np.ndarray = which.reduceat(values[order], starts) if size else np.zeros(0)
    return found


def _mean_by(item: np.ndarray, values: np.ndarray, p: Purchases) -> np.ndarray:
    """The mean of each item; NaN where there is none."""
    import numpy as np

    total, number = (np.bincount(item, w, minlength=p.items) for w in (values, None))
    mean: np.ndarray = np.divide(total, number, out=np.full(p.items, np.nan), where=number > 0)
    return mean


def _customer_features(p: Purchases, found: Ranked) -> dict[str, np.ndarray]:
    import numpy as np

    orders, lines = _orders(p), np.bincount(p.customer, minlength=p.customers)
    different = np.bincount(
        np.unique(_key(p, p.customer, p.item)) // p.items, minlength=p.customers
    )
    last = np.full(p.customers, np.nan)
    last[p.customer[p.order == 0]] = p.days[p.order == 0]
    by_customer = {
        "orders": orders.astype(float),
        "order_size": lines / np.maximum(orders, 1),
        "share_bought_again": 1 - different / np.maximum(lines, 1),
        "days_since_last_order": last,
    }
    return {name: values[found.customer] for name, values in by_customer.items()}


def _key(p: Purchases, customer: np.ndarray, item: np.ndarray) -> np.ndarray:
    """One number for a customer and an item."""
    import numpy as np

    key: np.ndarray = np.asarray(customer, dtype=np.int64) * p.items + item
    return key


def _hits(p: Purchases, ranked: Ranked, future: np.ndarray, top: int) -> np.ndarray:
    """Recall and NDCG of each customer who bought something, two columns."""
    import numpy as np

    wanted = np.unique(_key(p, *future.T))
    size = np.bincount(wanted // p.items, minlength=p.customers)
    hit = np.isin(_key(p, ranked.customer, ranked.item), wanted)
    found = np.bincount(ranked.customer[hit], minlength=p.customers)
    worth = 1 / np.log2(np.arange(2, top + 2))
    gain = np.bincount(ranked.customer[hit], worth[ranked.rank[hit] - 1], minlength=p.customers)
    buyers = size > 0
    ideal = worth.cumsum()[np.minimum(size[buyers], top) - 1]
    return np.column_stack([found[buyers] / size[buyers], gain[buyers] / ideal])


def _bootstrap(values: np.ndarray) -> np.ndarray:
    """Means over customers (the second axis), of all and then of `DRAWS` draws of them."""
    import numpy as np

    random, rows = np.random.default_rng(1), values.shape[1]
    draws = [np.ones(rows), *(np.bincount(random.integers(0, rows, rows), minlength=rows)
                              for _ in range(DRAWS))]  # fmt: skip
    means: np.ndarray = np.einsum("dn,lnm->dlm", np.array(draws) / rows, values)
    return means


def _estimate(drawn: np.ndarray) -> Estimate:
    import numpy as np

    low, high = np.quantile(drawn[1:], [0.025, 0.975])
    return Estimate(float(drawn[0]), float(low), float(high))


def _check_enough(p: Purchases, future: np.ndarray, name: str, part: str) -> None:
    import numpy as np

    buyers = len(np.unique(future[:, 0]))
    if buyers < FEWEST or p.items < 2 or not len(p.item):
        raise NotPromotedError(
            f"model '{name}': {part} has {buyers} customers who bought something next, of "
            f"{p.items} items; needs at least {FEWEST}, and 2 items: no model this time"
        )

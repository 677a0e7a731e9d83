"""Candidates for what a customer buys next, by TIFU-kNN (Hu, He, Gao, Zhang 2020) or popularity.

TIFU-kNN looks at what the customer bought, later purchases counting more, and at what customers
alike bought.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdp_ml.learn.next_category_purchases import Purchases, places

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_matrix

CHUNK = 1_000
CELLS = 20_000_000
"""Customers looked at in one go: so many, or fewer if they and the items made more cells."""
POOL = 20_000
"""More customers than this are compared with a sample of so many of them."""


@dataclass(frozen=True)
class Ranked:
    """Items for customers, as parallel arrays, the best first within each customer."""

    customer: np.ndarray
    item: np.ndarray
    score: np.ndarray
    rank: np.ndarray

    def first(self, top: int) -> Ranked:
        """The first `top` items of each customer, as they stand, ranked anew."""
        rank = places(self.customer) + 1
        kept = rank <= top
        return Ranked(self.customer[kept], self.item[kept], self.score[kept], rank[kept])


@dataclass(frozen=True)
class Neighborhood:
    """Some customers, `rows`: what each bought (`own`), and those most alike (`alike`).

    Both are dense matrices, rows x items.
    """

    rows: np.ndarray
    own: np.ndarray
    alike: np.ndarray

    def score(self, own_share: float) -> np.ndarray:
        """The score of TIFU-kNN."""
        score: np.ndarray = own_share * self.own + (1 - own_share) * self.alike
        return score


def rank_tifu(
    p: Purchases, params: Mapping[str, Any], top: int, chosen: np.ndarray | None = None
) -> Ranked:
    """The best items by TIFU-kNN: the customer's own vector, and the mean of those most alike."""
    own_share = float(params["own_share"])
    return best(((n.rows, n.score(own_share)) for n in neighborhoods(p, params, chosen)), top)


def rank_popular(p: Purchases, top: int, own: float = 1.0, all_: float = 1.0) -> Ranked:
    """The best items by how often the customer bought them, and all did: baselines.

    Args:
        p: the purchases.
        top: items a customer.
        own: weight of the customer's own orders; 0 leaves them out.
        all_: weight of everyone's, which is less than one own order's; 0 leaves them out.
    """
    import numpy as np

    counts = p.counts()
    popular = np.asarray(counts.sum(axis=0)).ravel()
    shared = all_ * popular / (popular.max(initial=0) + 1)
    return best(((rows, own * counts[rows].toarray() + shared) for rows in _chunks(p)), top)


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
    groups = np.ceil(p.orders / size)
    group, place = p.order // size, p.order % size
    members = np.minimum(size, p.orders[p.customer] - group * size)
    within = float(params["decay_within"]) ** place / members
    between = float(params["decay_between"]) ** group / groups[p.customer]
    return p.matrix(within * between)


def neighborhoods(
    p: Purchases, params: Mapping[str, Any], chosen: np.ndarray | None = None
) -> Iterator[Neighborhood]:
    """Customers by chunks, with their own vectors and the mean of those most alike.

    Alike are the nearest by Euclidean distance, of all or a sample of `POOL` customers.
    """
    import numpy as np

    vectors = tifu_vectors(p, params).astype(np.float32)
    pool = _pool(p, int(params["seed"]))
    others = vectors[pool]
    length = np.asarray(others.multiply(others).sum(axis=1)).ravel()
    k = min(int(params["neighbors"]), len(pool) - 1)
    transposed = others.T.tocsr()
    for rows in _chunks(p, chosen):
        mine = vectors[rows]
        distance = length - 2 * (mine @ transposed).toarray()
        distance[rows[:, None] == pool] = np.inf
        yield Neighborhood(rows, mine.toarray(), _mean_of_nearest(distance, others, k))


def _pool(p: Purchases, seed: int) -> np.ndarray:
    """The customers to compare others with."""
    import numpy as np

    every = np.flatnonzero(p.orders)
    if len(every) <= POOL:
        return every
    return np.sort(np.random.default_rng(seed).choice(every, POOL, replace=False))


def _mean_of_nearest(distance: np.ndarray, others: csr_matrix, k: int) -> np.ndarray:
    """For each row of distances the mean of the `k` nearest others; zeros if there is none."""
    import numpy as np
    from scipy.sparse import csr_matrix

    if k <= 0:
        return np.zeros((len(distance), others.shape[1]), dtype=np.float32)
    near = np.argpartition(distance, k - 1, axis=1)[:, :k].ravel()
    weight = np.full(len(near), 1 / k, dtype=np.float32)
    picked = csr_matrix((weight, near, np.arange(len(distance) + 1) * k), distance.shape)
    mean: np.ndarray = (picked @ others).toarray()
    return mean


def best(scored: Iterable[tuple[np.ndarray, np.ndarray]], top: int) -> Ranked:
    """The `top` items with the highest positive scores of each customer.

    Args:
        scored: numbers of customers, and their scores: customers x items.
        top: items a customer.
    """
    return joined([_best(rows, score, min(top, score.shape[1])) for rows, score in scored])


def _best(rows: np.ndarray, score: np.ndarray, k: int) -> Ranked:
    import numpy as np

    item = np.argpartition(-score, k - 1, axis=1)[:, :k]
    value = np.take_along_axis(score, item, axis=1)
    order = np.lexsort((item, -value), axis=1)
    item, value = (np.take_along_axis(a, order, axis=1) for a in (item, value))
    rank = np.broadcast_to(np.arange(1, k + 1), item.shape)
    customer = np.broadcast_to(rows[:, None], item.shape)
    kept = value > 0
    return Ranked(customer[kept], item[kept], value[kept], rank[kept])


def joined(parts: Sequence[Ranked]) -> Ranked:
    """The items of all the customers."""
    import numpy as np

    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return Ranked(none, none, np.zeros(0), none)
    columns = ([getattr(part, n) for part in parts] for n in ("customer", "item", "score", "rank"))
    return Ranked(*(np.concatenate(column) for column in columns))


def _chunks(p: Purchases, chosen: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Numbers of all or of chosen customers, so many at once as fit, times items, into memory."""
    import numpy as np

    step = max(1, min(CHUNK, CELLS // max(p.items, 1)))
    numbers = np.arange(p.customers) if chosen is None else chosen
    for start in range(0, len(numbers), step):
        yield numbers[start : start + step]

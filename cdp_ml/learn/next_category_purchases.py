"""What customers bought before an instant, as arrays of numbers of customers, orders and items."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np
    import pyarrow as pa
    from ibis.expr.types import Table
    from scipy.sparse import csr_matrix

LINE = ("customer_id", "order_id", "event_timestamp", "item")


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

    @cached_property
    def orders(self) -> np.ndarray:
        """How many orders each customer has."""
        import numpy as np

        orders = np.zeros(self.customers, dtype=np.int64)
        np.maximum.at(orders, self.customer, self.order + 1)
        return orders

    def matrix(self, values: np.ndarray, chosen: np.ndarray | slice = slice(None)) -> csr_matrix:
        """Customers x items: the sum of `values` over the chosen lines."""
        from scipy.sparse import coo_matrix

        place = (self.customer[chosen], self.item[chosen])
        return coo_matrix((values[chosen], place), (self.customers, self.items)).tocsr()

    def pair(self, customer: np.ndarray, item: np.ndarray) -> np.ndarray:
        """One number for a customer and an item."""
        import numpy as np

        number: np.ndarray = np.asarray(customer, dtype=np.int64) * self.items + item
        return number

    def counts(self) -> csr_matrix:
        """Customers x items: how many orders of the customer held the item."""
        import numpy as np

        return self.matrix(np.ones(len(self.item)))


def order_lines(
    transactions: Table, products: Table, by: str, further: tuple[str, ...] = ()
) -> Table:
    """The lines to learn from: what was bought by customers, as categories or products.

    Args:
        transactions: table `transactions` with customer_id, as of an instant (`activity_as_of`);
            returns are left out.
        products: table `products`.
        by: `category` or `product`.
        further: columns of the transactions to be kept.

    Returns:
        The further columns, and those of `LINE`.
    """
    bought = transactions.filter(transactions.quantity > 0)
    if by == "category":
        known = products.select("product_id", item="category")
        return bought.join(known, "product_id").select(*further, *LINE)
    return bought.rename(item="product_id").select(*further, *LINE)


def item_names(lines: pa.Table, as_of: datetime) -> pa.Array:
    """What was bought before an instant, each once, in order."""
    return _distinct(_before(lines, as_of)["item"].cast("string").drop_null())


def purchases_before(
    lines: pa.Table, as_of: datetime, names: pa.Array
) -> tuple[Purchases, pa.Array]:
    """The purchases before an instant, and the ids of their customers by number.

    Args:
        lines: customer_id, order_id, event_timestamp (UTC) and item (text, or null: left out).
        as_of: the instant, UTC.
        names: the items by number; others are left out.
    """
    import numpy as np
    import pyarrow.compute as pc

    known = _of_items(_before(lines, as_of), names)
    customers = _distinct(known["customer_id"])
    customer = pc.index_in(known["customer_id"], customers).to_numpy()
    item = pc.index_in(known["item"].cast("string"), names).to_numpy()
    days = _days_before(known["event_timestamp"], as_of)
    order = _counted_backwards(customer, known["order_id"], days)
    rows, chosen = np.unique(np.stack([customer, order, item]), axis=1, return_index=True)
    return Purchases(rows[0], rows[1], rows[2], days[chosen], len(customers), len(names)), customers


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


def places(sorted_: np.ndarray) -> np.ndarray:
    """The place of each value among its equals, from 0."""
    import numpy as np

    position = np.arange(len(sorted_))
    new = np.append(True, sorted_[1:] != sorted_[:-1])[: len(sorted_)]
    found: np.ndarray = position - np.maximum.accumulate(np.where(new, position, 0))
    return found


def _counted_backwards(
    customer: np.ndarray, order_id: pa.ChunkedArray, days: np.ndarray
) -> np.ndarray:
    """For each line how many orders of the customer came after its own."""
    import numpy as np

    number = order_id.combine_chunks().dictionary_encode().indices.to_numpy()
    pairs = np.stack([customer, number])
    orders, first, place = np.unique(pairs, axis=1, return_index=True, return_inverse=True)
    latest = np.lexsort((orders[1], days[first], orders[0]))
    back = np.empty(len(latest), dtype=np.int64)
    back[latest] = places(orders[0][latest])
    return back[place.ravel()]


def _before(lines: pa.Table, as_of: datetime) -> pa.Table:
    import pyarrow.compute as pc

    return lines.filter(pc.less(lines["event_timestamp"], as_of))


def _of_items(lines: pa.Table, names: pa.Array) -> pa.Table:
    import pyarrow.compute as pc

    return lines.filter(pc.is_in(lines["item"].cast("string"), names))


def _distinct(column: pa.ChunkedArray) -> pa.Array:
    """The values, each once, in order."""
    import pyarrow.compute as pc

    found = pc.unique(column)
    return found.take(pc.array_sort_indices(found))


def _days_before(at: pa.ChunkedArray, as_of: datetime) -> np.ndarray:
    import numpy as np
    import pyarrow as pa

    stamp = pa.timestamp("us", "UTC")
    past = at.cast(stamp).cast("int64").to_numpy()
    days: np.ndarray = (pa.scalar(as_of, stamp).cast("int64").as_py() - past) / 86_400e6
    return days.astype(np.float64)

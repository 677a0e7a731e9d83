"""Outcomes after an instant: what a model learns to predict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdp_ml.errors import NotPromotedError, nearest

if TYPE_CHECKING:
    from ibis.expr.types import Table

    from cdp_ml.config import Label, ModelSpec

KEY = ("customer_id", "event_timestamp")


def facts_table(label: Label) -> str:
    """The table that holds what the label is about: `transactions` or `events`."""
    return "transactions" if label.event == "order" else "events"


def outcomes(facts: Table, products: Table, spec: ModelSpec) -> Table:
    """The facts that count as the outcome.

    An order is a line with positive quantity; a return alone is none. The category of an event is
    its own, that of an order line the product's.

    Args:
        facts: the table of `facts_table`, keyed to customers.
        products: table `products`.
        spec: its `label` tells the type of event, and the category or product.

    Raises:
        NotPromotedError: if no event is of the type, no product of the category, or there is no
            such product: nothing can be learnt of it.
    """
    label, origin = spec.label, f"models/{spec.name}.yaml: label"
    if label.event == "order":
        found = facts.filter(facts.quantity > 0)
    else:
        found = facts.filter(facts.event_type == label.event)
        types = facts.select("event_type")
        _check_known(types, label.event, f"{origin}.event: no event", ("order",))
    if label.product is not None:
        # It need not be listed if somebody bought or looked at it.
        ids = products.select("product_id").union(facts.select("product_id"))
        _check_known(ids, label.product, f"{origin}.product: no product")
        found = found.filter(found.product_id == label.product)
    if label.category is None:
        return found
    categories = products.select("category")
    _check_known(categories, label.category, f"{origin}.category: no product is of")
    if label.event != "order":
        return found.filter(found.category == label.category)
    return found.semi_join(products.filter(products.category == label.category), "product_id")


def build_labels(population: Table, facts: Table, spec: ModelSpec) -> Table:
    """Label each customer at each instant with what followed.

    A fact counts if its `event_timestamp` lies in [instant, instant + horizon). Whose it is was
    decided by the caller, who keys `facts`; the horizon must have passed, see
    `cdp_ml.learn.datasets.time_split`.

    Args:
        population: customer_id, event_timestamp (the instant, UTC); one row each.
        facts: customer_id, event_timestamp of what counts as the outcome, as from `outcomes`; for
            a value also quantity, unit_price and discount. Further columns are ignored.
        spec: its `label` gives the horizon, and whether the fact or its absence is the outcome.

    Returns:
        Table `labels`: customer_id, event_timestamp, label: 1.0 or 0.0, or for a value the spend
        after discount.
    """
    import ibis

    instants = population.select(KEY)
    followed = facts.select(**_followed(facts, spec.task))
    window = instants.event_timestamp + ibis.interval(days=spec.label.within_days)
    found = instants.inner_join(
        followed,
        [
            instants.customer_id == followed.whose,
            followed.happened_at >= instants.event_timestamp,
            followed.happened_at < window,
        ],
    )
    found = found.group_by(KEY).aggregate(worth=found.worth.sum().cast("float64"))
    outcome = instants.left_join(found, KEY).select(*KEY, "worth")
    if spec.task == "value":
        return outcome.select(*KEY, label=outcome.worth.fill_null(0.0))
    happened = outcome.worth.notnull() if spec.label.happens else outcome.worth.isnull()
    return outcome.select(*KEY, label=happened.cast("float64"))


def _followed(facts: Table, task: str) -> dict[str, object]:
    """Whose, when, and what it counts; money in decimals, whose sums have no order."""
    import ibis

    worth = ibis.literal(1)
    if task == "value":
        spend = facts.quantity * facts.unit_price * (1 - facts.discount.fill_null(0.0))
        worth = spend.cast("decimal(18, 4)")
    return {"whose": facts.customer_id, "happened_at": facts.event_timestamp, "worth": worth}


def _check_known(column: Table, value: str, wrong: str, further: tuple[str, ...] = ()) -> None:
    """Refuse a value that a table of one column does not hold; name the nearest that it does."""
    known = column.distinct().to_pyarrow()[0].to_pylist()
    if value not in known:
        hint = nearest(value, [v for v in (*further, *known) if v])
        raise NotPromotedError(f"{wrong} '{value}'; {hint}")

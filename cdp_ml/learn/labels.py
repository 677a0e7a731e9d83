"""Outcomes after an instant: what a model learns to predict."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ibis.expr.types import Table

    from cdp_ml.config import ModelSpec


def build_labels(population: Table, orders: Table, spec: ModelSpec) -> Table:
    """Label each customer at each instant with whether an order followed.

    An order is a line with positive quantity; a return alone is none. It counts if
    `event_timestamp` lies in [instant, instant + horizon). Whose order it is was decided by the
    caller, who keys `orders`; the horizon must have passed, see `cdp_ml.learn.datasets.time_split`.

    Args:
        population: customer_id, event_timestamp (the instant, UTC); one row each.
        orders: customer_id, quantity, event_timestamp; further columns are ignored.
        spec: its `label` gives the horizon, and whether the order or its absence is the outcome.

    Returns:
        Table `labels`: customer_id, event_timestamp, label (1.0 or 0.0).
    """
    import ibis

    key = ["customer_id", "event_timestamp"]
    instants = population.select(key)
    ordered = orders.filter(orders.quantity > 0).select(
        buyer=orders.customer_id, ordered_at=orders.event_timestamp
    )
    window = instants.event_timestamp + ibis.interval(days=spec.label.within_days)
    buyers = instants.semi_join(
        ordered,
        [
            instants.customer_id == ordered.buyer,
            ordered.ordered_at >= instants.event_timestamp,
            ordered.ordered_at < window,
        ],
    ).mutate(ordered=ibis.literal(True))
    outcome = instants.left_join(buyers, key).select(*key, "ordered")
    happened = outcome.ordered.notnull() if spec.label.happens else outcome.ordered.isnull()
    return outcome.select(*key, label=happened.cast("float64"))

"""Relations: what traits aggregate, derived from keyed facts, each row with the instants it counts.

A row counts at the instants from number `since` to before `until`; see
`cdp_ml.activity.activity_at`. Grouping keeps that: `grouped` yields rows of which exactly one a
group counts at an instant, aggregated from just those rows that count then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from cdp_ml.engine import unix_micros
from cdp_ml.traits.definitions import days_between

if TYPE_CHECKING:
    import pyarrow as pa
    from ibis.expr.types import Table, Value

Keep = Callable[[str, "Table | pa.Table"], "Table"]
"""Computes a table at once under a name, and returns the result."""

RELATIONS = ("orders", "lines", "returns", "events")
SPAN = ("since", "until")
EVENING = 18
"""The hour (UTC) at which the evening begins."""


def relations(
    orders: Table, events: Table, products: Table, instants: int, used: Collection[str], keep: Keep
) -> dict[str, Table]:
    """Derive what traits aggregate.

    Args:
        orders: `transactions`, keyed by `cdp_ml.activity.activity_at`.
        events: `events`, keyed likewise.
        products: gives the category of what was bought.
        instants: how many there are.
        used: the names of the relations to derive, as often as they are read.
        keep: as in `cdp_ml.traits.compute.trait_tiles`.

    Returns:
        By name: customer_id, since, until, event_timestamp, day (number of the day, UTC), and the
        columns that `cdp_ml.traits.definitions` lists.
    """
    found = {}
    if "orders" in used or "lines" in used:
        categories = products.select("product_id", "category")
        lines = _lines(orders.filter(orders.quantity > 0)).left_join(categories, "product_id")
        found["lines"] = keep("lines", lines.drop("product_id_right"))
    if "orders" in used:
        found["orders"] = keep("orders", _orders(found["lines"], instants, keep))
    if "returns" in used:
        returns = _lines(orders.filter(orders.quantity < 0))
        found["returns"] = returns.mutate(value=-returns.spend)
    if "events" in used:
        seen = _events(events)
        found["events"] = keep("events", seen) if list(used).count("events") > 1 else seen
    return found


def grouped(
    rows: Table,
    by: Sequence[str],
    values: Callable[[Table], Mapping[str, Value]],
    instants: int,
    keep: Keep,
    name: str,
) -> Table:
    """Group rows so that one row a group counts at each instant at which any of its rows does.

    Nearly always the rows of a group count at the same instants; where not (some became known
    later, or changed owner), the group is computed for each instant.

    Args:
        rows: with since and until.
        by: columns.
        values: the aggregates of a table of such rows.
        instants: how many there are.
        keep: as in `cdp_ml.traits.compute.trait_tiles`.
        name: for `keep`.

    Returns:
        `by`, the values, since and until, for the most part sorted by the first of `by`.
    """
    import ibis

    if instants == 1:
        found = rows.group_by(by).aggregate(**values(rows))
        spans = {c: ibis.literal(i, "int32") for i, c in enumerate(SPAN)}
        return keep(name, found.mutate(**spans).order_by(by[0]))
    # Both ends of a row's span as one number: fewer aggregates, which are most of the cost.
    base = instants + 1
    span = rows.since * base + rows.until
    groups = rows.group_by(by).aggregate(**values(rows), _span=span.min(), _last=span.max())
    first = groups["_span"]
    spans = {"since": (first // base).cast("int32"), "until": (first % base).cast("int32")}
    groups = groups.mutate(**spans, _alike=first == groups["_last"]).drop("_span", "_last")
    groups = keep(name, groups.order_by(by[0]))
    mixed = keep(f"{name}__mixed_keys", groups.filter(~groups["_alike"]).select(*by))
    if not mixed.count().to_pyarrow().as_py():
        return groups.drop("_alike")
    several = keep(f"{name}__mixed_rows", rows.semi_join(mixed, by))
    each = at_each_instant(several, instants)
    again = each.group_by([*by, *SPAN]).aggregate(**values(each))
    once = groups.filter("_alike").drop("_alike")
    return once.union(keep(f"{name}__mixed", again.select(once.columns)))


def at_each_instant(rows: Table, instants: int) -> Table:
    """Each row once for every instant at which it counts, since which it counts until the next."""
    import ibis

    numbers = ibis.array(list(range(instants))).unnest().name("number").as_table()
    found = rows.cross_join(numbers)
    found = found.filter(found.since <= found.number, found.number < found.until)
    number = found.number.cast("int32")
    return found.mutate(since=number, until=(number + 1).cast("int32")).drop("number")


def day_number(when: Value) -> Value:
    """The days from 1970-01-01 to a time's day (UTC)."""
    return (unix_micros(when) // 86_400_000_000).cast("int32")


def _lines(lines: Table) -> Table:
    """Order lines with money in decimals, whose sums do not depend on the order of rows."""
    full = lines.quantity * lines.unit_price
    off = full * lines.discount.fill_null(0.0)
    return lines.select(
        *("customer_id", *SPAN, "event_timestamp", "order_id", "product_id", "channel"),
        day=day_number(lines.event_timestamp),
        quantity=lines.quantity.cast("decimal(18, 4)"),
        spend=(full - off).cast("decimal(18, 4)"),
        discounted=off.cast("decimal(18, 4)"),
    )


def _orders(lines: Table, instants: int, keep: Keep) -> Table:
    """One row an order: when its first line was; `gap_days` since the customer's order before."""

    def totals(rows: Table) -> dict[str, Value]:
        money = ("quantity", "spend", "discounted")
        return {
            "event_timestamp": rows.event_timestamp.min(),
            "channel": rows.channel.min(),
            **{c: rows[c].sum().cast("decimal(18, 4)") for c in money},
        }

    orders = grouped(lines, ("customer_id", "order_id"), totals, instants, keep, "ordered")
    orders = _with_gaps(orders, instants)
    return orders.mutate(**_times(orders.event_timestamp))


def _with_gaps(orders: Table, instants: int) -> Table:
    """Add the days since the order before, and when the last one of an earlier day was.

    As known then; null for the first.

    In order of time, the orders of nearly all customers also became known in that order, so that
    an order's predecessor is the same at all instants. Those of others are told apart by instant.
    """
    import ibis

    ordered = [ibis.asc("event_timestamp"), ibis.asc("order_id")]

    def gaps(rows: Table, by: Sequence[str]) -> Table:
        before = ibis.window(group_by=list(by), order_by=ordered)
        previous = rows.event_timestamp.lag().over(before)
        rows = rows.mutate(day=day_number(rows.event_timestamp))
        earlier = ibis.range_window(group_by=list(by), order_by="day", preceding=(None, 1))
        return rows.mutate(
            gap_days=days_between(previous, rows.event_timestamp),
            earlier_day_at=rows.event_timestamp.max().over(earlier),
        )

    if instants == 1:
        return gaps(orders, ("customer_id",))
    line = ibis.window(group_by="customer_id", order_by=ordered)
    jumps = (orders.since.lag().over(line) > orders.since) | (
        orders.until.lag().over(line) != orders.until
    )
    marked = orders.mutate(_jump=jumps.fill_null(False))
    astray = marked.filter(marked["_jump"]).select("customer_id").distinct()
    each = at_each_instant(orders.semi_join(astray, "customer_id"), instants)
    plain = gaps(orders.anti_join(astray, "customer_id"), ("customer_id",))
    return plain.union(gaps(each, ("customer_id", "since")).select(plain.columns))


def _events(events: Table) -> Table:
    return events.select(
        *("customer_id", *SPAN, "event_timestamp", "event_type", "product_id", "category"),
        *("channel", "campaign"),
        day=day_number(events.event_timestamp),
        on_site=~events.event_type.startswith("email_"),
        **_times(events.event_timestamp),
    )


def _times(when: Value) -> dict[str, Value]:
    """Whether a time is on a Saturday or Sunday, and whether in the evening; UTC."""
    # 1970-01-01 was a Thursday.
    return {
        "weekend": (day_number(when) + 3) % 7 >= 5,
        "evening": (unix_micros(when) // 3_600_000_000) % 24 >= EVENING,
    }

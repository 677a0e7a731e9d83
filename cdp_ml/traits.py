"""Traits: what a customer's activity and profile say about them as of an instant.

`TRAITS` defines each trait once; Feast's views, the documentation, training and serving follow from
it. To add one, add a line to it: either an `Aggregate` over a customer's rows of a relation within
the trait's window, or a function of the aggregates of its group (for profiles: of the golden
record). The relations are what `_relations` derives from the keyed facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ibis.expr.types import Table, Value

Group = Literal["transactional", "behavioral", "profile"]
How = Literal[
    "count", "sum", "mean", "std", "max", "nunique", "days_since_last", "days_since_first"
]

GROUPS: tuple[Group, ...] = ("transactional", "behavioral", "profile")
_ZERO_IF_NONE = ("count", "sum", "nunique")


@dataclass(frozen=True)
class Aggregate:
    """An aggregation of a customer's rows of a relation, those where columns have given values."""

    relation: str
    how: How
    column: str = ""
    where: Mapping[str, str | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Trait:
    """A trait: what it means and how it is computed.

    The window are the `window_days` days that end `until_days` before the instant, which itself is
    outside; without `window_days` it is the customer's lifetime.
    """

    name: str
    group: Group
    type: Literal["int64", "float64"]
    meaning: str
    unit: str
    value: Aggregate | Callable[[Any], Any]
    window_days: int | None = None
    until_days: int = 0


def _windows(
    name: str,
    group: Group,
    type_: Literal["int64", "float64"],
    meaning: str,
    unit: str,
    value: Aggregate,
    days: Sequence[int | None],
) -> tuple[Trait, ...]:
    """The same trait over several windows; None is the lifetime."""
    return tuple(
        Trait(
            f"{name}_{d}d" if d else f"{name}_lifetime",
            group,
            type_,
            f"{meaning} within {d} days" if d else f"{meaning} ever",
            unit,
            value,
            d,
        )
        for d in days
    )


def _ratio(part: Value, whole: Value) -> Value:
    """Null without a denominator: an unknown rate is not zero."""
    return part / whole.nullif(0)


def _event(event_type: str) -> Aggregate:
    return Aggregate("events", "count", where={"event_type": event_type})


_T: Group = "transactional"
_B: Group = "behavioral"
_P: Group = "profile"
_ORDERS = Aggregate("orders", "count")
_STORE_ORDERS = Aggregate("orders", "count", where={"channel": "store"})
_SPEND = Aggregate("lines", "sum", "spend")

TRAITS: tuple[Trait, ...] = (
    *_windows("orders", _T, "int64", "orders", "orders", _ORDERS, (7, 30, 90, 365, None)),
    *_windows("spend", _T, "float64", "spend after discount", "currency", _SPEND,
              (30, 90, 365, None)),
    Trait("spend_previous_90d", _T, "float64", "spend 180 to 90 days ago", "currency", _SPEND,
          90, 90),
    Trait("spend_trend_90d", _T, "float64",
          "share of the last 90 days in the spend of 180 days; 0.5 is level", "0 to 1",
          lambda t: _ratio(t.spend_90d, t.spend_90d + t.spend_previous_90d), 180),
    Trait("items_365d", _T, "float64", "pieces bought within 365 days", "pieces",
          Aggregate("lines", "sum", "quantity"), 365),
    Trait("average_order_value_365d", _T, "float64", "mean spend of an order within 365 days",
          "currency", lambda t: _ratio(t.spend_365d, t.orders_365d), 365),
    Trait("days_since_last_order", _T, "float64", "time since the last order; null: never", "days",
          Aggregate("orders", "days_since_last")),
    Trait("days_since_first_order", _T, "float64", "time since the first order; null: never",
          "days", Aggregate("orders", "days_since_first")),
    Trait("interpurchase_gap_mean_days", _T, "float64", "mean time between orders", "days",
          Aggregate("orders", "mean", "gap_days")),
    Trait("interpurchase_gap_std_days", _T, "float64",
          "standard deviation of the time between orders", "days",
          Aggregate("orders", "std", "gap_days")),
    Trait("recency_over_gap", _T, "float64",
          "time since the last order over the mean time between orders", "gaps",
          lambda t: _ratio(t.days_since_last_order, t.interpurchase_gap_mean_days)),
    Trait("returns_365d", _T, "int64", "lines returned within 365 days", "lines",
          Aggregate("returns", "count"), 365),
    Trait("returned_value_365d", _T, "float64", "value returned within 365 days", "currency",
          Aggregate("returns", "sum", "value"), 365),
    Trait("return_share_365d", _T, "float64", "value returned over spend within 365 days",
          "ratio", lambda t: _ratio(t.returned_value_365d, t.spend_365d), 365),
    Trait("discounts_365d", _T, "float64", "discounts granted within 365 days", "currency",
          Aggregate("lines", "sum", "discounted"), 365),
    Trait("discount_share_365d", _T, "float64", "share of list prices taken off within 365 days",
          "0 to 1", lambda t: _ratio(t.discounts_365d, t.discounts_365d + t.spend_365d), 365),
    Trait("distinct_categories_365d", _T, "int64", "product categories bought within 365 days",
          "categories", Aggregate("lines", "nunique", "category"), 365),
    Trait("distinct_products_365d", _T, "int64", "products bought within 365 days", "products",
          Aggregate("lines", "nunique", "product_id"), 365),
    Trait("top_category_share_365d", _T, "float64",
          "share of the dearest category in the spend within 365 days", "0 to 1",
          Aggregate("bought_categories_365d", "max", "share"), 365),
    Trait("store_orders_365d", _T, "int64", "orders in a store within 365 days", "orders",
          _STORE_ORDERS, 365),
    Trait("store_share_365d", _T, "float64", "share of orders in a store within 365 days",
          "0 to 1", lambda t: _ratio(t.store_orders_365d, t.orders_365d), 365),
    Trait("orders_next_30d_last_year", _T, "int64",
          "orders a year ago in what are now the coming 30 days", "orders", _ORDERS, 30, 335),
    Trait("orders_next_90d_last_year", _T, "int64",
          "orders a year ago in what are now the coming 90 days", "orders", _ORDERS, 90, 275),

    *_windows("visits", _B, "int64", "days with a visit of the site", "days",
              Aggregate("visits", "count"), (7, 30, 90, 365)),
    *_windows("product_views", _B, "int64", "products viewed", "views", _event("product_view"),
              (7, 30, 90)),
    *_windows("cart_adds", _B, "int64", "products put in a cart", "adds", _event("cart_add"),
              (7, 30, 90)),
    *_windows("searches", _B, "int64", "searches", "searches", _event("search"), (30,)),
    *_windows("checkouts", _B, "int64", "checkouts", "checkouts", _event("checkout"), (90,)),
    Trait("cart_visits_90d", _B, "int64", "visits that filled a cart within 90 days", "days",
          Aggregate("visits", "count", where={"filled_cart": True}), 90),
    Trait("abandoned_carts_90d", _B, "int64",
          "visits within 90 days that filled a cart and reached no checkout", "days",
          Aggregate("visits", "count", where={"abandoned_cart": True}), 90),
    Trait("cart_abandonment_share_90d", _B, "float64",
          "share of the visits with a cart that reached no checkout, within 90 days", "0 to 1",
          lambda t: _ratio(t.abandoned_carts_90d, t.cart_visits_90d), 90),
    Trait("days_since_last_visit", _B, "float64", "time since the last visit; null: never", "days",
          Aggregate("visits", "days_since_last")),
    Trait("distinct_categories_viewed_30d", _B, "int64", "categories viewed within 30 days",
          "categories", Aggregate("events", "nunique", "category",
                                  {"event_type": "product_view"}), 30),
    Trait("top_viewed_category_share_90d", _B, "float64",
          "share of the most viewed category in the product views within 90 days", "0 to 1",
          Aggregate("viewed_categories_90d", "max", "share"), 90),
    *_windows("emails_sent", _B, "int64", "e-mails sent", "e-mails", _event("email_sent"),
              (30, 90)),
    *_windows("emails_opened", _B, "int64", "e-mails opened", "e-mails", _event("email_opened"),
              (30, 90)),
    *_windows("emails_clicked", _B, "int64", "e-mails clicked", "e-mails",
              _event("email_clicked"), (30, 90)),
    Trait("email_open_rate_90d", _B, "float64", "opens per e-mail sent within 90 days", "ratio",
          lambda t: _ratio(t.emails_opened_90d, t.emails_sent_90d), 90),
    Trait("email_click_rate_90d", _B, "float64", "clicks per e-mail sent within 90 days", "ratio",
          lambda t: _ratio(t.emails_clicked_90d, t.emails_sent_90d), 90),
    Trait("days_since_last_email_open", _B, "float64",
          "time since an e-mail was opened; null: never", "days",
          Aggregate("events", "days_since_last", where={"event_type": "email_opened"})),

    Trait("age_years", _P, "float64", "age", "years",
          lambda t: t.event_timestamp.date().delta(t.birth_date, unit="day") / 365.2425),
    Trait("tenure_days", _P, "float64",
          "time since the first record of the customer; null: always known", "days",
          lambda t: _days_between(_time_or_null(t.first_seen_at), t.event_timestamp)),
    Trait("linked_records", _P, "int64", "records unified in the customer", "records",
          lambda t: t.records),
    Trait("linked_sources", _P, "int64", "sources that know the customer", "sources",
          lambda t: t.sources.split(",").length()),
    Trait("has_email", _P, "int64", "1 if an e-mail address is known", "0 or 1",
          lambda t: t.email.notnull()),
    Trait("has_phone", _P, "int64", "1 if a phone number is known", "0 or 1",
          lambda t: t.phone.notnull()),
    Trait("identity_confidence", _P, "float64", "weakest link that holds the customer together",
          "probability", lambda t: t.identity_confidence),
)  # fmt: skip
"""All traits, by group."""


def traits_as_of(
    orders: Table, events: Table, customers: Table, products: Table, as_of: datetime
) -> dict[str, Table]:
    """Compute the traits of all customers as of an instant.

    Args:
        orders: table `transactions`, keyed as of the instant by `cdp_ml.activity.activity_as_of`.
        events: table `events`, keyed likewise.
        customers: table `customers` as of the instant; each of its rows gets traits, with or
            without activity.
        products: table `products`; gives the category of what was bought.
        as_of: UTC.

    Returns:
        Tables `traits_transactional`, `traits_behavioral` and `traits_profile` by name:
        customer_id, event_timestamp (the instant) and the group's traits. Counts and sums of
        known customers are 0 where nothing happened; rates without a denominator and times since
        what never happened are null.
    """
    import ibis

    at = customers.mutate(event_timestamp=ibis.literal(as_of, type="timestamp('UTC', 6)"))
    relations = _relations(orders, events, products, as_of)
    return {f"traits_{group}": _build_traits(group, at, relations, as_of) for group in GROUPS}


def _build_traits(
    group: Group, customers: Table, relations: Mapping[str, Table], as_of: datetime
) -> Table:
    """One row a customer: the traits of a group."""
    traits = [t for t in TRAITS if t.group == group]
    names = dict.fromkeys(t.value.relation for t in traits if isinstance(t.value, Aggregate))
    row = customers.select("customer_id", "event_timestamp") if names else customers
    for name in names:
        found = _aggregated(relations[name], name, traits, as_of)
        row = row.left_join(found, row.customer_id == found[f"{name}_customer_id"])
    zeros = {t.name: row[t.name].fill_null(0) for t in traits if _is_zero_if_none(t)}
    row = row.mutate(**zeros)
    derived = {t.name: t.value(row) for t in traits if not isinstance(t.value, Aggregate)}
    row = row.mutate(**derived)
    typed = {t.name: row[t.name].cast(t.type) for t in traits}
    return row.select("customer_id", "event_timestamp", **typed)


def _is_zero_if_none(trait: Trait) -> bool:
    return isinstance(trait.value, Aggregate) and trait.value.how in _ZERO_IF_NONE


def _aggregated(relation: Table, name: str, traits: Sequence[Trait], as_of: datetime) -> Table:
    """One row a customer of the relation: all the traits that aggregate it, in one pass."""
    values = {
        t.name: _aggregate(relation, t, t.value, as_of)
        for t in traits
        if isinstance(t.value, Aggregate) and t.value.relation == name
    }
    return relation.group_by(**{f"{name}_customer_id": relation.customer_id}).aggregate(**values)


def _aggregate(relation: Table, trait: Trait, value: Aggregate, as_of: datetime) -> Value:
    import ibis

    conditions = [
        *_in_window(relation, trait, as_of),
        *(relation[column] == wanted for column, wanted in value.where.items()),
    ]
    where = ibis.and_(*conditions) if conditions else None
    when = relation.event_timestamp
    instant = ibis.literal(as_of, type="timestamp('UTC', 6)")
    if value.how == "count":
        return relation.count(where=where)
    if value.how == "days_since_last":
        return _days_between(when.max(where=where), instant)
    if value.how == "days_since_first":
        return _days_between(when.min(where=where), instant)
    found = getattr(relation[value.column], value.how)(where=where)
    # The last digits of a mean depend on the order in which threads deliver rows.
    return found.round(6) if value.how in ("mean", "std") else found


def _in_window(relation: Table, trait: Trait, as_of: datetime) -> Iterator[Value]:
    import ibis

    end = as_of - timedelta(days=trait.until_days)
    if trait.until_days:
        yield relation.event_timestamp < ibis.literal(end)
    if trait.window_days is not None:
        start = end - timedelta(days=trait.window_days)
        yield relation.event_timestamp >= ibis.literal(start)


def _relations(orders: Table, events: Table, products: Table, as_of: datetime) -> dict[str, Table]:
    """What traits aggregate; each with customer_id and event_timestamp."""
    categories = products.select("product_id", "category")
    lines = _lines(orders.filter(orders.quantity > 0)).left_join(categories, "product_id")
    lines = lines.drop("product_id_right")
    returns = _lines(orders.filter(orders.quantity < 0))
    views = events.filter(events.event_type == "product_view").mutate(views=1)
    return {
        "lines": lines,
        "orders": _orders(lines),
        "returns": returns.mutate(value=-returns.spend),
        "bought_categories_365d": _shares(_last(lines, 365, as_of), "spend"),
        "events": events,
        "visits": _visits(events),
        "viewed_categories_90d": _shares(_last(views, 90, as_of), "views"),
    }


def _last(relation: Table, days: int, as_of: datetime) -> Table:
    import ibis

    return relation.filter(relation.event_timestamp >= ibis.literal(as_of - timedelta(days=days)))


def _lines(lines: Table) -> Table:
    """Order lines with money in decimals, whose sums do not depend on the order of rows."""
    full = lines.quantity * lines.unit_price
    off = full * lines.discount.fill_null(0.0)
    return lines.select(
        *("customer_id", "event_timestamp", "order_id", "product_id", "channel"),
        quantity=lines.quantity.cast("decimal(18, 4)"),
        spend=(full - off).cast("decimal(18, 4)"),
        discounted=off.cast("decimal(18, 4)"),
    )


def _orders(lines: Table) -> Table:
    """One row an order; `gap_days` since the customer's order before, null for the first."""
    import ibis

    orders = lines.group_by(["customer_id", "order_id"]).aggregate(
        event_timestamp=lines.event_timestamp.min(), channel=lines.channel.min()
    )
    before = ibis.window(
        group_by="customer_id", order_by=[ibis.asc("event_timestamp"), ibis.asc("order_id")]
    )
    previous = orders.event_timestamp.lag().over(before)
    return orders.mutate(gap_days=_days_between(previous, orders.event_timestamp))


def _visits(events: Table) -> Table:
    """One row a customer and day (UTC) on the site."""
    on_site = events.filter(~events.event_type.startswith("email_"))
    filled = (on_site.event_type == "cart_add").any()
    bought = (on_site.event_type == "checkout").any()
    days = on_site.mutate(day=on_site.event_timestamp.date()).group_by(["customer_id", "day"])
    return days.aggregate(
        event_timestamp=on_site.event_timestamp.max(),
        filled_cart=filled,
        abandoned_cart=filled & ~bought,
    )


def _shares(rows: Table, weight: str) -> Table:
    """One row a customer and category: its share of the customer's weight, null if that is 0."""
    import ibis

    known = rows.filter(rows.category.notnull())
    by_category = known.group_by(["customer_id", "category"]).aggregate(
        event_timestamp=known.event_timestamp.max(), weight=known[weight].sum()
    )
    total = by_category.weight.sum().over(ibis.window(group_by="customer_id"))
    share = by_category.weight.cast("float64") / total.cast("float64").nullif(0)
    return by_category.mutate(share=share)


def _time_or_null(when: Value) -> Value:
    """Null for 1970-01-01, which stands for records without a time: they are known always."""
    import ibis

    epoch = ibis.literal(datetime(1970, 1, 1, tzinfo=UTC), type="timestamp('UTC', 6)")
    return when.nullif(epoch)


def _days_between(start: Value, end: Value) -> Value:
    # Truncated first: engines differ in whether the epoch keeps fractions of a second.
    return (end.truncate("s").epoch_seconds() - start.truncate("s").epoch_seconds()) / 86400.0

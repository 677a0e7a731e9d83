"""Traits, each defined once: what it means, from which rows it is computed, over which window.

Feast's views, the documentation, training and serving follow from `TRAITS`. To add one, add a line:
an `Aggregate` of a customer's rows of a relation, or a function of traits above it in its group
(for profiles: of the golden record). The relations, made in `cdp_ml.traits.relations`, have these
columns besides the customer and the time:

* `orders`: channel, spend, quantity, discounted, gap_days (since the one before), earlier_day_at
  (when the last one of an earlier day was), weekend, evening,
* `lines` of orders: product_id, category, channel, spend, quantity, discounted,
* `returns`, likewise lines: value,
* `events`: event_type, product_id, category, channel, campaign, on_site, weekend, evening.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from cdp_ml.engine import unix_micros
from cdp_ml.errors import ConfigError, nearest

if TYPE_CHECKING:
    from ibis.expr.types import Value

Group = Literal["transactional", "behavioral", "profile"]
Type = Literal["int64", "float64"]
How = Literal[
    "count",
    "sum",
    "days",
    "days_since_last",
    "days_since_first",
    "mean",
    "std",
    "max",
    "nunique",
    "top_share",
]

GROUPS: tuple[Group, ...] = ("transactional", "behavioral", "profile")
ZERO_IF_NONE = ("count", "sum", "days", "nunique")
"""How a customer without such rows has 0; all else is null then."""

MARKETING = "marketing"
"""The purpose of consent that the trait `marketing_consent` is about."""


@dataclass(frozen=True)
class Aggregate:
    """An aggregation of a customer's rows of a relation, those where columns have given values.

    `days` counts the days (UTC) with such a row and none that has the values of `without`.
    `nunique` counts the values of `column`, and `top_share` is the share that the greatest of them
    has in the sum of `weight`, or in the number of rows.
    """

    relation: str
    how: How
    column: str = ""
    where: Mapping[str, str | bool] = field(default_factory=dict)
    without: Mapping[str, str | bool] = field(default_factory=dict)
    weight: str = ""

    def __str__(self) -> str:
        what = f" {self.column}" if self.column else ""
        return f"{self.how}{what} of {self.relation}" + (
            f" by {self.weight}" if self.weight else ""
        )

    @property
    def filter(self) -> str:
        """Which rows count, in words."""
        parts = [f"{c} = {v}" for c, v in self.where.items()]
        return ", ".join([*parts, *(f"no {c} = {v} that day" for c, v in self.without.items())])


@dataclass(frozen=True)
class Trait:
    """A trait: what it means and how it is computed.

    As of an instant `t` on the day `d` (UTC), the window are the whole days from
    `d - until_days - window_days` on, up to `t` itself, or up to the day `d - until_days` if that
    is not 0: a value changes with a fact or at midnight. Without `window_days` it is the customer's
    lifetime. Times since something are exact to the second.
    """

    name: str
    group: Group
    type: Type
    meaning: str
    unit: str
    value: Aggregate | Callable[[Any], Any]
    window_days: int | None = None
    until_days: int = 0


def find_traits(names: Sequence[str], traits: Sequence[Trait] | None = None) -> tuple[Trait, ...]:
    """The traits of these names, with those that they are computed from, in order of definition.

    Args:
        names: of traits.
        traits: to choose from; `TRAITS` by default.

    Raises:
        ConfigError: if there is no such trait.
    """
    known = {t.name: t for t in (TRAITS if traits is None else traits)}
    for name in names:
        if name not in known:
            raise ConfigError(f"no trait '{name}'; {nearest(name, known)}")
    wanted = set(names)
    for trait in reversed(tuple(known.values())):
        if trait.name in wanted and not isinstance(trait.value, Aggregate):
            wanted |= set(_read_by(trait.value)) & set(known)
    return tuple(t for t in known.values() if t.name in wanted)


def _read_by(value: Callable[[Any], Any]) -> Sequence[str]:
    """The names of attributes that a function reads."""
    code = getattr(value, "__code__", None)
    return code.co_names if code else ()


def _windows(
    name: str,
    group: Group,
    type_: Type,
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


def ratio(part: Value, whole: Value) -> Value:
    """Null without a denominator: an unknown rate is not zero."""
    return part / whole.nullif(0)


def days_between(start: Value, end: Value) -> Value:
    """The days from one time to another, to the second; engines differ in what lies below."""
    seconds = unix_micros(end) // 1_000_000 - unix_micros(start) // 1_000_000
    # Spark divides integers by such a literal in decimals.
    return seconds.cast("float64") / 86400.0


def _days(start: Value, end: Value) -> Value:
    """The whole days from a date to the day of a time."""
    return end.date().delta(start, unit="day").cast("float64")


def _event(event_type: str) -> Aggregate:
    return Aggregate("events", "count", where={"event_type": event_type})


def _visits(**more: bool) -> Aggregate:
    return Aggregate("events", "days", where={"on_site": True, **more})


def _time_or_null(when: Value) -> Value:
    """Null for 1970-01-01, which stands for records without a time: they are known always."""
    import ibis

    epoch = ibis.literal(datetime(1970, 1, 1, tzinfo=UTC), type="timestamp('UTC', 6)")
    return when.nullif(epoch)


_T: Group = "transactional"
_B: Group = "behavioral"
_P: Group = "profile"
_ORDERS = Aggregate("orders", "count")
_STORE_ORDERS = Aggregate("orders", "count", where={"channel": "store"})
_SPEND = Aggregate("orders", "sum", "spend")
_CART = {"event_type": "cart_add"}

TRAITS: tuple[Trait, ...] = (
    *_windows("orders", _T, "int64", "orders", "orders", _ORDERS, (7, 30, 90, 365, None)),
    *_windows("spend", _T, "float64", "spend after discount", "currency", _SPEND,
              (30, 90, 365, None)),
    Trait("spend_previous_90d", _T, "float64", "spend 180 to 90 days ago", "currency", _SPEND,
          90, 90),
    Trait("spend_trend_90d", _T, "float64",
          "share of the last 90 days in the spend of 180 days; 0.5 is level", "0 to 1",
          lambda t: ratio(t.spend_90d, t.spend_90d + t.spend_previous_90d), 180),
    Trait("items_365d", _T, "float64", "pieces bought within 365 days", "pieces",
          Aggregate("orders", "sum", "quantity"), 365),
    Trait("average_order_value_365d", _T, "float64", "mean spend of an order within 365 days",
          "currency", lambda t: ratio(t.spend_365d, t.orders_365d), 365),
    Trait("days_since_last_order", _T, "float64", "time since the last order; null: never", "days",
          Aggregate("orders", "days_since_last")),
    Trait("days_since_earlier_order", _T, "float64",
          "time since the last order on a day before that of the last order; null: none", "days",
          Aggregate("orders", "days_since_last", "earlier_day_at")),
    Trait("order_days_lifetime", _T, "int64", "days with an order ever", "days",
          Aggregate("orders", "days")),
    Trait("days_since_first_order", _T, "float64", "time since the first order; null: never",
          "days", Aggregate("orders", "days_since_first")),
    Trait("interpurchase_gap_mean_days", _T, "float64", "mean time between orders", "days",
          Aggregate("orders", "mean", "gap_days")),
    Trait("interpurchase_gap_std_days", _T, "float64",
          "standard deviation of the time between orders", "days",
          Aggregate("orders", "std", "gap_days")),
    Trait("recency_over_gap", _T, "float64",
          "time since the last order over the mean time between orders", "gaps",
          lambda t: ratio(t.days_since_last_order, t.interpurchase_gap_mean_days)),
    Trait("interpurchase_gap_max_days", _T, "float64", "longest time between orders", "days",
          Aggregate("orders", "max", "gap_days")),
    Trait("recency_over_longest_gap", _T, "float64",
          "time since the last order over the longest time between orders", "gaps",
          lambda t: ratio(t.days_since_last_order, t.interpurchase_gap_max_days)),
    Trait("returns_365d", _T, "int64", "lines returned within 365 days", "lines",
          Aggregate("returns", "count"), 365),
    Trait("returned_value_365d", _T, "float64", "value returned within 365 days", "currency",
          Aggregate("returns", "sum", "value"), 365),
    Trait("return_share_365d", _T, "float64", "value returned over spend within 365 days",
          "ratio", lambda t: ratio(t.returned_value_365d, t.spend_365d), 365),
    Trait("discounts_365d", _T, "float64", "discounts granted within 365 days", "currency",
          Aggregate("orders", "sum", "discounted"), 365),
    Trait("discount_share_365d", _T, "float64", "share of list prices taken off within 365 days",
          "0 to 1", lambda t: ratio(t.discounts_365d, t.discounts_365d + t.spend_365d), 365),
    Trait("distinct_categories_365d", _T, "int64", "product categories bought within 365 days",
          "categories", Aggregate("lines", "nunique", "category"), 365),
    Trait("distinct_products_365d", _T, "int64", "products bought within 365 days", "products",
          Aggregate("lines", "nunique", "product_id"), 365),
    Trait("top_category_share_365d", _T, "float64",
          "share of the dearest category in the spend within 365 days", "0 to 1",
          Aggregate("lines", "top_share", "category", weight="spend"), 365),
    Trait("store_orders_365d", _T, "int64", "orders in a store within 365 days", "orders",
          _STORE_ORDERS, 365),
    Trait("store_share_365d", _T, "float64", "share of orders in a store within 365 days",
          "0 to 1", lambda t: ratio(t.store_orders_365d, t.orders_365d), 365),
    Trait("orders_next_30d_last_year", _T, "int64",
          "orders a year ago in what are now the coming 30 days", "orders", _ORDERS, 30, 335),
    Trait("orders_next_90d_last_year", _T, "int64",
          "orders a year ago in what are now the coming 90 days", "orders", _ORDERS, 90, 275),
    Trait("spend_next_90d_last_year", _T, "float64",
          "spend a year ago in what are now the coming 90 days", "currency", _SPEND, 90, 275),
    Trait("channels_365d", _T, "int64", "channels ordered through within 365 days", "channels",
          Aggregate("orders", "nunique", "channel"), 365),
    Trait("weekend_orders_365d", _T, "int64", "orders on a Saturday or Sunday within 365 days",
          "orders", Aggregate("orders", "count", where={"weekend": True}), 365),
    Trait("weekend_order_share_365d", _T, "float64",
          "share of orders on a Saturday or Sunday within 365 days", "0 to 1",
          lambda t: ratio(t.weekend_orders_365d, t.orders_365d), 365),
    Trait("evening_orders_365d", _T, "int64", "orders from 18:00 UTC on within 365 days",
          "orders", Aggregate("orders", "count", where={"evening": True}), 365),
    Trait("evening_order_share_365d", _T, "float64",
          "share of orders from 18:00 UTC on within 365 days", "0 to 1",
          lambda t: ratio(t.evening_orders_365d, t.orders_365d), 365),

    *_windows("visits", _B, "int64", "days with a visit of the site", "days",
              _visits(), (7, 30, 90, 365)),
    *_windows("product_views", _B, "int64", "products viewed", "views", _event("product_view"),
              (7, 30, 90)),
    *_windows("cart_adds", _B, "int64", "products put in a cart", "adds", _event("cart_add"),
              (7, 30, 90)),
    *_windows("searches", _B, "int64", "searches", "searches", _event("search"), (30,)),
    *_windows("checkouts", _B, "int64", "checkouts", "checkouts", _event("checkout"), (90,)),
    Trait("cart_visits_90d", _B, "int64", "visits that filled a cart within 90 days", "days",
          Aggregate("events", "days", where=_CART), 90),
    Trait("abandoned_carts_90d", _B, "int64",
          "visits within 90 days that filled a cart and reached no checkout", "days",
          Aggregate("events", "days", where=_CART, without={"event_type": "checkout"}), 90),
    Trait("cart_abandonment_share_90d", _B, "float64",
          "share of the visits with a cart that reached no checkout, within 90 days", "0 to 1",
          lambda t: ratio(t.abandoned_carts_90d, t.cart_visits_90d), 90),
    Trait("weekend_visits_90d", _B, "int64",
          "Saturdays and Sundays with a visit within 90 days", "days", _visits(weekend=True), 90),
    Trait("weekend_visit_share_90d", _B, "float64",
          "share of days with a visit that are a Saturday or Sunday, within 90 days", "0 to 1",
          lambda t: ratio(t.weekend_visits_90d, t.visits_90d), 90),
    Trait("evening_visits_90d", _B, "int64",
          "days with a visit from 18:00 UTC on within 90 days", "days", _visits(evening=True), 90),
    Trait("evening_visit_share_90d", _B, "float64",
          "share of days with a visit that have one from 18:00 UTC on, within 90 days", "0 to 1",
          lambda t: ratio(t.evening_visits_90d, t.visits_90d), 90),
    Trait("days_since_last_visit", _B, "float64", "time since the last visit; null: never", "days",
          Aggregate("events", "days_since_last", where={"on_site": True})),
    Trait("distinct_categories_viewed_30d", _B, "int64", "categories viewed within 30 days",
          "categories", Aggregate("events", "nunique", "category",
                                  {"event_type": "product_view"}), 30),
    Trait("top_viewed_category_share_90d", _B, "float64",
          "share of the most viewed category in the product views within 90 days", "0 to 1",
          Aggregate("events", "top_share", "category", {"event_type": "product_view"}), 90),
    *_windows("emails_sent", _B, "int64", "e-mails sent", "e-mails", _event("email_sent"),
              (30, 90)),
    *_windows("emails_opened", _B, "int64", "e-mails opened", "e-mails", _event("email_opened"),
              (30, 90)),
    *_windows("emails_clicked", _B, "int64", "e-mails clicked", "e-mails",
              _event("email_clicked"), (30, 90)),
    Trait("email_open_rate_90d", _B, "float64", "opens per e-mail sent within 90 days", "ratio",
          lambda t: ratio(t.emails_opened_90d, t.emails_sent_90d), 90),
    Trait("email_click_rate_90d", _B, "float64", "clicks per e-mail sent within 90 days", "ratio",
          lambda t: ratio(t.emails_clicked_90d, t.emails_sent_90d), 90),
    Trait("email_click_to_open_rate_90d", _B, "float64", "clicks per e-mail opened within 90 days",
          "ratio", lambda t: ratio(t.emails_clicked_90d, t.emails_opened_90d), 90),
    Trait("days_since_last_email_open", _B, "float64",
          "time since an e-mail was opened; null: never", "days",
          Aggregate("events", "days_since_last", where={"event_type": "email_opened"})),

    Trait("age_years", _P, "float64", "age", "years",
          lambda t: _days(t.birth_date, t.event_timestamp) / 365.2425),
    Trait("tenure_days", _P, "float64",
          "time since the first record of the customer; null: always known", "days",
          lambda t: days_between(_time_or_null(t.first_seen_at), t.event_timestamp)),
    Trait("day_of_year", _P, "int64", "day of the year of the instant: what recurs each season",
          "1 to 366", lambda t: t.event_timestamp.day_of_year()),
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
    Trait("household_size", _P, "int64",
          "customers of the same street and postcode, this one included; null: no address known",
          "customers", lambda t: t.household_size),
    Trait("region_customers", _P, "int64",
          "customers whose postcode begins alike (two characters), this one included; null: none "
          "known", "customers", lambda t: t.region_customers),
    Trait("marketing_consent", _P, "int64",
          "1 if the last word on marketing was a grant, 0 if a withdrawal; null: none given",
          "0 or 1", lambda t: t.marketing_consent),
)  # fmt: skip
"""All traits, by group."""

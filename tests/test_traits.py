import datetime as dt
from pathlib import Path

import pytest
from conftest import rows, traits_by_key, utc

from cdp_ml.engine import hold
from cdp_ml.errors import ConfigError
from cdp_ml.traits import GROUPS, TRAITS, Aggregate, Trait, find_traits
from cdp_ml.traits.reference import reference
from cdp_ml.workspace import traits_as_of

AS_OF = utc(2026, 7, 1)
DAY = dt.timedelta(days=1)
EMAIL, WEB = "email", "web"


def ago(days, customer="c1"):
    """When, so many days before the instant, and whose, by a login long known."""
    when = AS_OF - days * DAY
    return {
        "identifier_type": "login",
        "identifier": customer,
        "event_timestamp": when,
        "ingested_at": when,
    }


def line(order, days, quantity=1.0, price=10.0, discount=0.0, **more):
    return {
        "order_id": order,
        "line_no": 1,
        "product_id": "p1",
        "channel": WEB,
        "quantity": quantity,
        "unit_price": price,
        "discount": discount,
        **ago(days),
        **more,
    }


def event(event_type, days, category=None, **more):
    channel = EMAIL if event_type.startswith("email") else WEB
    return {
        "event_id": f"{event_type}{days}",
        "event_type": event_type,
        "category": category,
        "channel": channel,
        **ago(days),
        **more,
    }


def world(lines=(), events=(), customers=({"customer_id": "c1"},), **more):
    """The tables that traits are computed from; each customer is logged in as themselves."""
    early = utc(2020, 1, 1)
    who = [c["customer_id"] for c in customers]
    logins = [
        {"identifier_type": "login", "identifier": c, "source": "shop", "source_record_id": c}
        | {"event_timestamp": early, "ingested_at": early}
        for c in who
    ]
    links = [
        {"source": "shop", "source_record_id": c, "customer_id": c, "valid_from": early}
        for c in who
    ]
    people = [
        {"source": "shop", "source_record_id": c["customer_id"], "event_timestamp": early}
        | {"ingested_at": early, **{k: v for k, v in c.items() if k != "customer_id"}}
        for c in customers
    ]
    products = [{"product_id": f"p{i}", "category": c} for i, c in enumerate(("tea", "tea", "mug"))]
    given = {
        "records": people,
        "crosswalk": links,
        "identifiers": logins,
        "transactions": lines,
        "events": events,
        "products": products,
        "consents": (),
        **more,
    }
    return {name: rows(name, *found) for name, found in given.items()}


def computed(con, world, instants=(AS_OF,), **more):
    """The rows of all tables of traits, one dictionary a customer and instant."""
    tables = {n: hold(con, f"given_{n}", t) for n, t in world.items()}
    return traits_by_key(con, tables, instants, **more)


def traits(con, *given, customer="c1", as_of=AS_OF, **more):
    """All traits of a customer."""
    return computed(con, world(*given, **more), (as_of,))[customer, as_of]


def pick(found, *names):
    return tuple(found[name] for name in names)


def test_orders_count_in_windows_that_begin_exactly_their_days_before(con):
    found = traits(
        con, [line("a", 1), line("b", 7), line("c", 7.001), line("d", 90), line("e", 400)]
    )
    names = ("orders_7d", "orders_30d", "orders_90d", "orders_365d", "orders_lifetime")
    assert pick(found, *names) == (2, 3, 4, 4, 5)


def test_an_order_of_two_lines_is_one_order_and_a_return_is_none(con):
    lines = [line("a", 3), line("a", 3, line_no=2), line("r", 2, quantity=-1.0)]
    assert traits(con, lines)["orders_30d"] == 1


def test_spend_is_after_discount_and_returns_are_told_apart(con):
    lines = [line("a", 3, 2.0, 10.0, 0.25), line("b", 40, discount=None), line("r", 2, -1.0, 5.0)]
    found = traits(con, lines)
    assert pick(found, "spend_30d", "spend_90d", "items_365d") == (15.0, 25.0, 3.0)
    assert pick(found, "returns_365d", "returned_value_365d") == (1, 5.0)
    assert found["return_share_365d"] == pytest.approx(5 / 25)
    assert found["discount_share_365d"] == pytest.approx(5 / 30)
    assert found["average_order_value_365d"] == 12.5


def test_the_trend_compares_with_the_ninety_days_before(con):
    lines = [line("a", 10, price=30.0), line("b", 91, price=10.0), line("c", 181, price=99.0)]
    found = traits(con, lines)
    assert pick(found, "spend_previous_90d", "spend_trend_90d") == (10.0, 0.75)


def test_times_between_orders_are_in_days(con):
    found = traits(con, [line("a", 40), line("b", 30), line("c", 10.5)])
    assert pick(found, "days_since_last_order", "days_since_first_order") == (10.5, 40.0)
    assert found["interpurchase_gap_mean_days"] == pytest.approx((10 + 19.5) / 2)
    assert found["interpurchase_gap_std_days"] == pytest.approx(6.717514)  # 9.5 / sqrt(2)
    assert found["recency_over_gap"] == pytest.approx(10.5 / 14.75)


def test_the_order_before_the_last_is_of_another_day(con):
    lines = [line("a", 40), line("b", 30.5), line("c", 30.5), line("d", 10.2), line("e", 10.4)]
    found = traits(con, lines)
    assert found["days_since_earlier_order"] == 30.5
    assert found["order_days_lifetime"] == 3
    once = traits(con, [line("a", 10.2), line("b", 10.4)])
    assert pick(once, "days_since_earlier_order", "order_days_lifetime") == (None, 1)


def test_last_years_season_is_what_lay_ahead_a_year_ago(con):
    """Bought 365 days before the instant: 'today' a year ago, so inside; 335 days: outside."""
    found = traits(con, [line("a", 365), line("b", 335), line("c", 300), line("d", 365.01)])
    names = ("orders_next_30d_last_year", "orders_next_90d_last_year")
    assert pick(found, *names) == (1, 3)


def test_variety_is_of_products_and_of_their_categories(con):
    tea, mug = {"product_id": "p1"}, {"product_id": "p2"}
    lines = [line("a", 1, price=60.0, **tea), line("b", 2, price=30.0, **mug)]
    lines += [line("c", 3, price=10.0, product_id="unknown")]
    found = traits(con, lines)
    assert pick(found, "distinct_products_365d", "distinct_categories_365d") == (3, 2)
    assert found["top_category_share_365d"] == pytest.approx(60 / 90)


def test_store_orders_are_a_share_of_all(con):
    lines = [line("a", 1, channel="store"), line("b", 2), line("c", 3), line("d", 4)]
    assert pick(traits(con, lines), "store_orders_365d", "store_share_365d") == (1, 0.25)


def test_visits_are_days_on_the_site(con):
    events = [event(e, d) for e, d in (("page_view", 0.6), ("search", 0.5), ("page_view", 1.5))]
    found = traits(con, (), [*events, event("email_opened", 3)])
    assert pick(found, "visits_7d", "searches_30d", "days_since_last_visit") == (2, 1, 0.5)


def test_a_cart_is_abandoned_when_its_visit_reaches_no_checkout(con):
    events = [event("cart_add", 1.5), event("checkout", 1.4), event("cart_add", 5.5)]
    found = traits(con, (), [*events, event("cart_add", 8.5)])
    assert pick(found, "cart_visits_90d", "abandoned_carts_90d") == (3, 2)
    assert found["cart_abandonment_share_90d"] == pytest.approx(2 / 3)


def test_mail_rates_are_per_mail_sent(con):
    events = [event("email_sent", d) for d in (1, 8, 60, 80)]
    found = traits(con, (), [*events, event("email_opened", 7), event("email_clicked", 7)])
    assert pick(found, "emails_sent_30d", "emails_sent_90d", "emails_opened_30d") == (2, 4, 1)
    assert pick(found, "email_open_rate_90d", "days_since_last_email_open") == (0.25, 7.0)


def test_affinity_is_the_share_of_the_most_viewed_category(con):
    views = [
        event("product_view", d, c) for d, c in ((1, "tea"), (2, "tea"), (3, "mug"), (4, None))
    ]
    found = traits(con, (), [*views, event("product_view", 95, "mug")])
    assert pick(found, "product_views_30d", "distinct_categories_viewed_30d") == (4, 2)
    assert found["top_viewed_category_share_90d"] == pytest.approx(2 / 3)


def person(record="c1", known=AS_OF - 100 * DAY, source="shop", **fields):
    """A person record and the link of its customer, c1, or whom its id names."""
    key = {"source": source, "source_record_id": record}
    link = {"customer_id": fields.pop("customer", record), "valid_from": known, "confidence": 0.97}
    return {**key, "event_timestamp": known, "ingested_at": known, **fields}, {**key, **link}


def profiles(con, *people, consents=(), customer="c1"):
    """The traits of a customer about whom only records say something."""
    records, links = zip(*people, strict=True)
    given = world(records=records, crosswalk=links, identifiers=(), consents=consents)
    return computed(con, given)[customer, AS_OF]


def test_a_profile_is_told_in_numbers(con):
    shop = person(birth_date=dt.date(1986, 7, 1), email="a@example.org")
    found = profiles(con, shop, person("7", AS_OF - DAY, "crm", customer="c1"))
    assert found["age_years"] == pytest.approx(40.0, abs=0.01)
    names = ("tenure_days", "linked_records", "linked_sources", "has_email", "has_phone")
    assert pick(found, *names) == (100.0, 2, 2, 1, 0)
    assert found["identity_confidence"] == 0.97


def test_the_tenure_of_a_customer_known_always_is_unknown_rather_than_decades(con):
    always = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    assert profiles(con, person(known=always))["tenure_days"] is None


def test_a_household_shares_street_and_postcode_and_a_region_how_postcodes_begin(con):
    home = {"street": "1 high st", "postcode": "AB1 2CD"}
    people = [person("c1", **home), person("c2", **home), person("c3", postcode="AB9 9ZZ")]
    people += [person("c4"), person("c5", street="1 high st", postcode="XY1 2CD")]
    names = ("household_size", "region_customers")
    assert pick(profiles(con, *people), *names) == (2, 3)
    assert pick(profiles(con, *people, customer="c3"), *names) == (None, 3)
    assert pick(profiles(con, *people, customer="c4"), *names) == (None, None)


@pytest.mark.parametrize(
    ("words", "consent"),
    [
        ([], None),
        ([(10, True)], 1),
        ([(10, True), (5, False)], 0),
        ([(10, False), (-1, True)], 0),  # what is said after the instant does not count
    ],
)
def test_consent_is_the_last_word_on_marketing(words, consent, con):
    said = [
        {"source": "shop", "source_record_id": "c1", "purpose": "marketing", "granted": granted}
        | {"event_timestamp": AS_OF - days * DAY, "ingested_at": AS_OF - days * DAY}
        for days, granted in words
    ]
    other = [row | {"purpose": "profiling", "granted": not row["granted"]} for row in said]
    assert profiles(con, person(), consents=[*said, *other])["marketing_consent"] == consent


def test_weekends_and_evenings_are_told_apart(con):
    """2026-07-01 is a Wednesday: 3.75 days before is Saturday, 6:00; 3.25 is 18:00 of that day."""
    orders = [line("a", 3.75), line("b", 3.25), line("c", 5.25), line("d", 5.26)]
    found = traits(con, orders, [event("page_view", 3.25), event("page_view", 1.75)])
    assert pick(found, "weekend_order_share_365d", "evening_order_share_365d") == (0.5, 0.5)
    assert pick(found, "weekend_visit_share_90d", "evening_visit_share_90d") == (0.5, 0.5)


def test_a_window_begins_at_midnight_and_ends_at_the_instant(con):
    noon = AS_OF + DAY / 2
    lines = [line("a", 7), line("b", 7.001), line("c", -0.4), line("d", -0.5)]
    found = traits(con, lines, as_of=noon)
    assert pick(found, "orders_7d", "orders_30d", "days_since_last_order") == (2, 3, 0.1)


def test_of_a_customer_who_did_nothing_counts_are_zero_and_the_rest_is_unknown(con):
    busy = [line("a", 1), line("b", 5)]
    found = traits(
        con, busy, customers=[{"customer_id": "c1"}, {"customer_id": "c2"}], customer="c2"
    )
    activity = [t for t in TRAITS if t.group != "profile"]
    counts = {t.name for t in activity if t.unit not in ("0 to 1", "ratio", "gaps")}
    times = {t.name for t in activity if "days_since" in t.name or "gap" in t.name}
    average = {"average_order_value_365d"}
    zero = counts - times - average
    assert {name: found[name] for name in zero} == dict.fromkeys(zero, 0)
    unknown = {t.name for t in activity} - zero
    assert {name: found[name] for name in unknown} == dict.fromkeys(unknown)


def test_each_group_is_a_table_of_its_traits_in_their_types(con):
    held = {n: con.create_table(f"given_{n}", t) for n, t in world().items()}
    (found,) = traits_as_of(con, held, {}, [AS_OF])
    assert list(found) == [f"traits_{group}" for group in GROUPS]
    for group, table in zip(GROUPS, found.values(), strict=True):
        types = {f.name: str(f.type) for f in table.schema}
        key = {"customer_id": "string", "event_timestamp": "timestamp[us, tz=UTC]"}
        named = {t.name: {"float64": "double"}.get(t.type, t.type) for t in TRAITS}
        assert types == key | {t.name: named[t.name] for t in TRAITS if t.group == group}
        assert table["event_timestamp"].to_pylist() == [AS_OF]


def test_instants_without_a_time_zone_are_refused(con):
    with pytest.raises(ConfigError, match="no time zone; write"):
        computed(con, world(), [dt.datetime(2026, 7, 1)])


def test_an_unknown_trait_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no trait 'order_30d'; did you mean 'orders_30d'"):
        find_traits(["order_30d"])


def test_a_trait_brings_along_what_it_is_computed_from(con):
    chosen = find_traits(["spend_trend_90d"])
    assert [t.name for t in chosen] == ["spend_90d", "spend_previous_90d", "spend_trend_90d"]
    found = computed(con, world([line("a", 3)]), traits=chosen)["c1", AS_OF]
    assert found["spend_trend_90d"] == 1.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Aggregate("order", "count"), "no relation 'order'; did you mean 'orders'"),
        (Aggregate("orders", "sum", "spent"), "no column 'spent'; did you mean 'spend'"),
        (Aggregate("events", "count", where={"kind": "x"}), "no column 'kind'"),
    ],
)
def test_a_trait_of_what_there_is_not_says_what_there_is(value, message, con):
    odd = Trait("odd", "transactional", "int64", "odd", "odd", value)
    with pytest.raises(ConfigError, match=f"trait 'odd': {message}"):
        computed(con, world(), traits=[odd])


def test_a_trait_of_ones_own_takes_one_line(con):
    wish = Aggregate("events", "count", where={"event_type": "wish"})
    own = Trait("wishes_30d", "behavioral", "int64", "wishes within 30 days", "wishes", wish, 30)
    events = [event("wish", 3), event("wish", 40)]
    assert computed(con, world((), events), traits=[own])["c1", AS_OF]["wishes_30d"] == 1


def test_the_reference_is_current():
    """Else run: python -m cdp_ml.traits.reference > docs/traits.md."""
    page = Path(__file__).parents[1] / "docs" / "traits.md"
    assert page.read_text() == reference(), (
        "run: python -m cdp_ml.traits.reference > docs/traits.md"
    )


def test_names_are_unique_and_say_their_window():
    names = [t.name for t in TRAITS]
    assert len(names) == len(set(names))
    for trait in TRAITS:
        assert trait.meaning
        assert trait.unit
        last = trait.name.rsplit("_", 1)[-1]
        if last.endswith("d") and last[:-1].isdigit() and not trait.until_days:
            # A trend over two windows is named by the one it is about.
            assert trait.window_days in (int(last[:-1]), 2 * int(last[:-1]))

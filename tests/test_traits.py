import datetime as dt

import ibis
import pytest
from conftest import rows, spark_sql, utc
from hypothesis import given, settings
from hypothesis import strategies as st

from cdp_ml.activity import activity_as_of
from cdp_ml.config import Engine
from cdp_ml.engine import connect
from cdp_ml.traits import GROUPS, TRAITS, traits_as_of

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


def tables(lines=(), events=(), customers=({"customer_id": "c1"},), as_of=AS_OF):
    """Everything that traits are computed from; each customer is logged in as themselves."""
    who = [c["customer_id"] for c in customers]
    early = utc(2020, 1, 1)
    logins = [
        {"identifier_type": "login", "identifier": c, "source": "shop", "source_record_id": c}
        | {"event_timestamp": early, "ingested_at": early}
        for c in who
    ]
    links = [
        {"source": "shop", "source_record_id": c, "customer_id": c, "valid_from": early}
        for c in who
    ]
    products = [{"product_id": f"p{i}", "category": c} for i, c in enumerate(("tea", "tea", "mug"))]
    known = (rows("identifiers", *logins), rows("crosswalk", *links))
    orders = activity_as_of(*map(ibis.memtable, (rows("transactions", *lines), *known)), as_of)
    keyed = activity_as_of(*map(ibis.memtable, (rows("events", *events), *known)), as_of)
    golden = ibis.memtable(rows("customers", *customers))
    return traits_as_of(orders, keyed, golden, ibis.memtable(rows("products", *products)), as_of)


def traits(con, *given, customer="c1", **more):
    """All traits of a customer."""
    found = {}
    for table in tables(*given, **more).values():
        people = {row["customer_id"]: row for row in con.to_pyarrow(table).to_pylist()}
        found |= people[customer]
    return found


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


def test_a_profile_is_told_in_numbers(con):
    golden = {
        "customer_id": "c1",
        "birth_date": dt.date(1986, 7, 1),
        "email": "a@example.org",
        "records": 3,
        "sources": "crm,shop",
        "identity_confidence": 0.97,
        "first_seen_at": AS_OF - 100 * DAY,
    }
    found = traits(con, customers=[golden])
    assert found["age_years"] == pytest.approx(40.0, abs=0.01)
    names = ("tenure_days", "linked_records", "linked_sources", "has_email", "has_phone")
    assert pick(found, *names) == (100.0, 3, 2, 1, 0)
    assert found["identity_confidence"] == 0.97


def test_the_tenure_of_a_customer_known_always_is_unknown_rather_than_decades(con):
    always = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    found = traits(con, customers=[{"customer_id": "c1", "first_seen_at": always}])
    assert found["tenure_days"] is None


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
    for group, table in zip(GROUPS, tables().items(), strict=True):
        name, expression = table
        assert name == f"traits_{group}"
        wanted = {t.name: t.type for t in TRAITS if t.group == group}
        types = {c: str(expression.schema()[c]) for c in expression.columns[2:]}
        assert types == wanted
        (row,) = con.to_pyarrow(expression).to_pylist()
        assert (row["customer_id"], row["event_timestamp"]) == ("c1", AS_OF)


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


people = st.sampled_from(("c1", "c2", "c3"))
days_ago = st.integers(0, 800).map(lambda d: d + 0.25)
lines_drawn = st.lists(
    st.tuples(people, days_ago, st.integers(-2, 3), st.sampled_from("012")), min_size=8, max_size=30
)
kinds = st.sampled_from(("page_view", "product_view", "cart_add", "checkout", "email_opened"))
events_drawn = st.lists(
    st.tuples(people, days_ago, kinds, st.sampled_from("ab")), min_size=8, max_size=30
)
few = settings(max_examples=3, deadline=None, derandomize=True)


def drawn_lines(drawn, later=0, order="o"):
    return [
        line(f"{order}{c}{int(d)}", 0, float(q), line_no=i, product_id=f"p{p}", **ago(d - later, c))
        for i, (c, d, q, p) in enumerate(drawn)
    ]


def drawn_events(drawn, later=0, name="e"):
    return [
        event(k, 0, category, event_id=f"{name}{i}", **ago(d - later, c))
        for i, (c, d, k, category) in enumerate(drawn)
    ]


def everything(lines, events, as_of=AS_OF):
    """All rows of all tables of three customers."""
    con = connect(Engine())
    customers = [{"customer_id": c} for c in ("c1", "c2", "c3")]
    built = tables(lines, events, customers, as_of).values()
    return [row for t in built for row in con.to_pyarrow(t.order_by("customer_id")).to_pylist()]


@few
@given(lines_drawn, events_drawn, lines_drawn, events_drawn)
def test_facts_at_the_instant_or_later_change_nothing(lines, events, more_lines, more_events):
    earliest = 800.25  # moved by so many days, the earliest draws lie at the instant itself
    later_lines = drawn_lines(more_lines, earliest, "later")
    later_events = drawn_events(more_events, earliest, "later")
    given_lines, given_events = drawn_lines(lines), drawn_events(events)
    before = everything(given_lines, given_events)
    assert everything(given_lines + later_lines, given_events + later_events) == before


@few
@given(lines_drawn, events_drawn, st.randoms())
def test_the_order_of_rows_changes_nothing(lines, events, random):
    given_lines, given_events = drawn_lines(lines), drawn_events(events)
    before = everything(given_lines, given_events)
    random.shuffle(given_lines)
    random.shuffle(given_events)
    assert everything(given_lines, given_events) == before


@few
@given(lines_drawn, events_drawn, st.integers(-400, 400))
def test_a_world_shifted_by_days_has_the_same_traits(lines, events, shift):
    before = everything(drawn_lines(lines), drawn_events(events))
    moved = (drawn_lines(lines, shift), drawn_events(events, shift))
    after = everything(*moved, as_of=AS_OF + shift * DAY)
    moved_back = [row | {"event_timestamp": row["event_timestamp"] - shift * DAY} for row in after]
    assert moved_back == before


@pytest.mark.parametrize("group", GROUPS)
def test_each_group_compiles_for_spark(group):
    known = {t: ibis.table(ibis.Schema.from_pyarrow(rows(t).schema), name=t) for t in (
        "transactions", "events", "customers", "products"
    )}  # fmt: skip
    orders, events = (
        known[t].mutate(customer_id=ibis.literal("c1")) for t in ("transactions", "events")
    )
    built = traits_as_of(orders, events, known["customers"], known["products"], AS_OF)
    sql = spark_sql(built[f"traits_{group}"])
    assert all(t.name in sql for t in TRAITS if t.group == group)

import datetime as dt

import ibis
import pyarrow as pa
import pytest
from conftest import spark_sql
from hypothesis import given, settings
from hypothesis import strategies as st
from learn_cases import AS_OF, propensity

from cdp_ml.config import Engine
from cdp_ml.engine import connect
from cdp_ml.errors import NotPromotedError
from cdp_ml.learn.labels import build_labels, facts_table, outcomes

DAY = dt.timedelta(days=1)
INSTANT = AS_OF
MICRO = dt.timedelta(microseconds=1)
PRODUCTS = pa.table({"product_id": ["p1", "p2"], "category": ["cushions", "covers"]})


def spine(*customers, at=INSTANT):
    stamp = pa.timestamp("us", "UTC")
    return pa.table(
        {"customer_id": customers, "event_timestamp": pa.array([at] * len(customers), stamp)}
    )


def lines(*given):
    schema = pa.schema(
        [
            ("customer_id", pa.string()),
            ("quantity", pa.float64()),
            ("event_timestamp", pa.timestamp("us", "UTC")),
        ]
    )
    names = schema.names
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in given], schema)


def labels_of(con, population, facts, spec):
    products = con.create_table("products", PRODUCTS, overwrite=True)
    facts = outcomes(con.create_table("facts", facts, overwrite=True), products, spec)
    population = con.create_table("population", population, overwrite=True)
    return build_labels(population, facts, spec).to_pyarrow()


def by_customer(found):
    return dict(zip(*(found[c].to_pylist() for c in ("customer_id", "label")), strict=True))


@pytest.mark.parametrize(
    ("ordered_at", "expected"),
    [
        (INSTANT - MICRO, 0.0),
        (INSTANT, 1.0),
        (INSTANT + 30 * DAY - MICRO, 1.0),
        (INSTANT + 30 * DAY, 0.0),
    ],
)
def test_the_window_holds_its_first_instant_and_not_its_last(con, ordered_at, expected):
    found = labels_of(con, spine("a"), lines(("a", 1.0, ordered_at)), propensity())
    assert found["label"].to_pylist() == [expected]


def test_a_return_is_no_order_and_two_orders_are_one_outcome(con):
    orders = lines(
        ("returns", -1.0, INSTANT + DAY),
        ("twice", 1.0, INSTANT + DAY),
        ("twice", 2.0, INSTANT + 2 * DAY),
        ("stranger", 1.0, INSTANT + DAY),
    )
    found = labels_of(con, spine("returns", "twice", "silent"), orders, propensity())
    assert by_customer(found) == {"returns": 0.0, "twice": 1.0, "silent": 0.0}


def test_churn_is_the_absence_of_an_order(con):
    spec = propensity(label={"happens": False, "within_days": 90})
    found = labels_of(con, spine("stays", "goes"), lines(("stays", 1.0, INSTANT + 89 * DAY)), spec)
    assert by_customer(found) == {"stays": 0.0, "goes": 1.0}


def test_each_instant_of_a_customer_has_its_own_window(con):
    population = pa.concat_tables([spine("a"), spine("a", at=INSTANT + 30 * DAY)])
    found = labels_of(con, population, lines(("a", 1.0, INSTANT + 31 * DAY)), propensity())
    by_instant = dict(
        zip(*(found[c].to_pylist() for c in ("event_timestamp", "label")), strict=True)
    )
    assert by_instant == {INSTANT: 0.0, INSTANT + 30 * DAY: 1.0}


@given(st.lists(st.integers(-100, 100), max_size=8))
@settings(max_examples=20, deadline=None)
def test_a_label_equals_a_look_at_every_order(hours):
    orders = lines(*(("a", 1.0, INSTANT + dt.timedelta(hours=h)) for h in hours))
    spec = propensity(label={"within_days": 2})
    found = labels_of(connect(Engine()), spine("a"), orders, spec)
    assert found["label"].to_pylist() == [float(any(0 <= h < 48 for h in hours))]


def events(*given):
    names = ("customer_id", "event_type", "product_id", "category", "event_timestamp")
    stamp = pa.timestamp("us", "UTC")
    schema = pa.schema([*((n, pa.string()) for n in names[:4]), (names[4], stamp)])
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in given], schema)


def test_an_event_of_a_type_is_an_outcome_as_an_order_is(con):
    spec = propensity(label={"event": "email_opened", "within_days": 14})
    found = events(
        ("opens", "email_opened", None, None, INSTANT + DAY),
        ("clicks", "email_clicked", None, None, INSTANT + DAY),
        ("opens late", "email_opened", None, None, INSTANT + 14 * DAY),
    )
    made = labels_of(con, spine("opens", "clicks", "opens late"), found, spec)
    assert by_customer(made) == {"opens": 1.0, "clicks": 0.0, "opens late": 0.0}
    assert facts_table(spec.label) == "events"


def bought(*given):
    """Lines of customer, product, pieces, price and discount, a day after the instant."""
    names = ("customer_id", "product_id", "quantity", "unit_price", "discount")
    lines = [dict(zip(names, row, strict=True)) for row in given]
    table = pa.Table.from_pylist(lines)
    stamp = pa.array([INSTANT + DAY] * len(lines), pa.timestamp("us", "UTC"))
    return table.append_column("event_timestamp", stamp)


def test_a_category_is_that_of_the_products_bought(con):
    lines = bought(("a", "p1", 1.0, 5.0, 0.0), ("b", "p2", 1.0, 5.0, 0.0))
    spec = propensity(label={"category": "cushions", "within_days": 60})
    assert by_customer(labels_of(con, spine("a", "b"), lines, spec)) == {"a": 1.0, "b": 0.0}
    spec = propensity(label={"product": "p2", "happens": False})
    assert by_customer(labels_of(con, spine("a", "b"), lines, spec)) == {"a": 1.0, "b": 0.0}


def test_a_product_that_nobody_lists_or_buys_is_named_with_the_nearest(con):
    spec = propensity(label={"product": "p22"})
    with pytest.raises(NotPromotedError, match=r"purchase_30d.yaml: label.product.*'p22'.*'p2'"):
        labels_of(con, spine("a"), bought(("a", "p1", 1.0, 5.0, 0.0)), spec)


def test_a_category_that_no_product_has_is_named_with_the_nearest(con):
    spec = propensity(label={"category": "cushion"})
    with pytest.raises(NotPromotedError, match=r"purchase_30d.yaml: label.category.*'cushions'"):
        labels_of(con, spine("a"), bought(("a", "p1", 1.0, 5.0, 0.0)), spec)


def test_the_value_is_what_is_spent_after_discount_without_returns(con):
    lines = bought(
        ("a", "p1", 2.0, 5.0, 0.1), ("a", "p2", 1.0, 3.0, None), ("a", "p1", -2.0, 5.0, 0.1)
    )
    spec = propensity(name="value", task="value")
    assert by_customer(labels_of(con, spine("a", "b"), lines, spec)) == {"a": 12.0, "b": 0.0}


@pytest.mark.parametrize("task", ["propensity", "value"])
def test_labels_compile_for_spark(task):
    stamp = "timestamp('UTC', 6)"
    population = ibis.table({"customer_id": "string", "event_timestamp": stamp}, "population")
    columns = dict.fromkeys(("quantity", "unit_price", "discount"), "float64")
    orders = ibis.table({"customer_id": "string", "event_timestamp": stamp, **columns}, "orders")
    products = ibis.table({"product_id": "string", "category": "string"}, "products")
    spec = propensity(task=task)
    sql = spark_sql(build_labels(population, outcomes(orders, products, spec), spec))
    assert "GROUP BY" in sql
    assert "INTERVAL" in sql


def test_an_event_that_never_happened_is_named_with_the_nearest(con):
    spec = propensity(label={"event": "email_open"})
    found = events(("a", "email_opened", None, None, INSTANT + DAY))
    with pytest.raises(NotPromotedError, match=r"purchase_30d.yaml: label.event.*'email_opened'"):
        labels_of(con, spine("a"), found, spec)

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
from cdp_ml.learn.labels import build_labels

DAY = dt.timedelta(days=1)
INSTANT = AS_OF
MICRO = dt.timedelta(microseconds=1)


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


def labels_of(con, population, orders, spec):
    made = build_labels(
        con.create_table("population", population, overwrite=True),
        con.create_table("orders", orders, overwrite=True),
        spec,
    )
    return made.to_pyarrow()


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
    by_customer = dict(zip(*(found[c].to_pylist() for c in ("customer_id", "label")), strict=True))
    assert by_customer == {"returns": 0.0, "twice": 1.0, "silent": 0.0}


def test_churn_is_the_absence_of_an_order(con):
    spec = propensity(label={"happens": False, "within_days": 90})
    found = labels_of(con, spine("stays", "goes"), lines(("stays", 1.0, INSTANT + 89 * DAY)), spec)
    by_customer = dict(zip(*(found[c].to_pylist() for c in ("customer_id", "label")), strict=True))
    assert by_customer == {"stays": 0.0, "goes": 1.0}


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


def test_labels_compile_for_spark():
    stamp = "timestamp('UTC', 6)"
    population = ibis.table({"customer_id": "string", "event_timestamp": stamp}, "population")
    orders = ibis.table(
        {"customer_id": "string", "quantity": "float64", "event_timestamp": stamp}, "orders"
    )
    sql = spark_sql(build_labels(population, orders, propensity()))
    assert "SEMI JOIN" in sql
    assert "INTERVAL" in sql

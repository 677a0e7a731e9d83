"""A snapshot is what the as-of join gives for everybody at one instant."""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from feature_lake import JAN, MAR, ROWS, make_settings, publish_traits
from hypothesis import given, settings
from hypothesis import strategies as st

from cdp_ml.errors import ConfigError
from cdp_ml.feast_stores import apply, open_store, training_features
from cdp_ml.feast_stores.snapshot import take_snapshot
from cdp_ml.lake import ROW_GROUP


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_settings(tmp_path_factory.mktemp("snapshot"))


def store_of(workspace, *rows):
    lake = publish_traits(workspace, *rows)
    store = open_store(workspace, lake.versions, workspace.data / "online.db", MAR)
    apply(store)
    return store


def ids(*customers):
    return pa.chunked_array([pa.array(customers, pa.string())])


def everybody(store, service, customers, as_of):
    return pa.concat_tables(take_snapshot(store, service, customers, as_of).blocks())


def joined(store, service, customers, as_of):
    """The same by the as-of join, in the order of the customers."""
    instants = pa.array([as_of] * len(customers), pa.timestamp("us", "UTC"))
    spine = pa.table({"customer_id": customers, "event_timestamp": instants})
    found = training_features(store, service, spine).to_pylist()
    by_customer = {row["customer_id"]: row for row in found}
    return [by_customer[c] for c in customers.to_pylist()]


@pytest.mark.parametrize("as_of", [JAN, MAR, MAR + timedelta(days=35), MAR + timedelta(days=36)])
def test_a_snapshot_equals_the_as_of_join(workspace, as_of):
    store = store_of(workspace, *ROWS)
    customers = ids("c2", "unknown", "c1")
    found = everybody(store, "customer_traits", customers, as_of)
    assert found.to_pylist() == joined(store, "customer_traits", customers, as_of)


@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 60), st.integers(0, 9)),
        max_size=12,
        unique_by=lambda row: row[:2],
    ),
    st.integers(0, 99),
)
def test_whatever_rows_there_are(workspace, drawn, days):
    rows = [
        {"customer_id": c, "event_timestamp": JAN + timedelta(days=d), "orders_30d": n}
        for c, d, n in drawn
    ]
    store, customers, as_of = store_of(workspace, *rows), ids(*"abcd"), JAN + timedelta(days=days)
    found = everybody(store, "clusters", customers, as_of)
    assert found.to_pylist() == joined(store, "clusters", customers, as_of)


def test_an_unknown_service_is_named_with_the_nearest(workspace):
    store = store_of(workspace, *ROWS)
    with pytest.raises(ConfigError, match="did you mean 'clusters'"):
        everybody(store, "cluster", ids("c1"), MAR)


def test_some_features_and_some_customers(workspace):
    snapshot = take_snapshot(store_of(workspace, *ROWS), "customer_traits", ids("c1", "c2"), MAR)
    whole = pa.concat_tables(snapshot.blocks())
    assert snapshot.features == whole.column_names[2:]
    some, none = (pa.concat_tables(snapshot.of(f).blocks()) for f in (["orders_30d"], []))
    assert some == whole.select(["customer_id", "event_timestamp", "orders_30d"])
    assert none == whole.select(["customer_id", "event_timestamp"])
    (second,) = snapshot.blocks(np.array([1]))
    assert second == whole.slice(1)


def test_customers_come_block_by_block_in_the_order_that_was_asked_for(workspace):
    many = [f"c{n:06}" for n in range(ROW_GROUP + 5)]
    rows = [{"customer_id": c, "event_timestamp": JAN, "orders_30d": n} for n, c in enumerate(many)]
    store = store_of(workspace, *rows)
    chosen = np.delete(np.arange(ROW_GROUP + 5), [0, 2])
    blocks = [*take_snapshot(store, "clusters", ids(*many), JAN).blocks(chosen)]
    assert [block.num_rows for block in blocks] == [ROW_GROUP, 3]
    found = pa.concat_tables(blocks)
    assert found["customer_id"].to_pylist() == [many[n] for n in chosen]
    assert found["orders_30d"].to_pylist() == chosen.tolist()
    turned = everybody(store, "clusters", ids("c000003", "c000001"), JAN)
    assert turned["orders_30d"].to_pylist() == [3, 1]


def test_nobody_is_a_table_without_rows(workspace):
    (nobody,) = take_snapshot(store_of(workspace, *ROWS), "clusters", ids(), JAN).blocks()
    assert nobody.num_rows == 0
    assert "orders_30d" in nobody.column_names

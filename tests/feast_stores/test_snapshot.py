"""A snapshot is what the as-of join gives for everybody at one instant."""

from datetime import timedelta

import pyarrow as pa
import pytest
from feature_lake import JAN, MAR, ROWS, make_settings, publish_traits
from hypothesis import given, settings
from hypothesis import strategies as st

from cdp_ml.errors import ConfigError
from cdp_ml.feast_stores import apply, open_store, training_features
from cdp_ml.feast_stores.snapshot import snapshot_features


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
    found = snapshot_features(store, "customer_traits", customers, as_of)
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
    found = snapshot_features(store, "clusters", customers, as_of)
    assert found.to_pylist() == joined(store, "clusters", customers, as_of)


def test_an_unknown_service_is_named_with_the_nearest(workspace):
    store = store_of(workspace, *ROWS)
    with pytest.raises(ConfigError, match="did you mean 'clusters'"):
        snapshot_features(store, "cluster", ids("c1"), MAR)

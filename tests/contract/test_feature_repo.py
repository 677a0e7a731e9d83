import datetime as dt
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from conftest import ROOT
from feature_lake import JAN, MAR, ROWS, make_settings, publish_traits

from cdp_ml import feast_stores
from cdp_ml.config import load_models, shipped
from cdp_ml.contracts import TABLES
from cdp_ml.traits import TRAITS

SERVICES = {"customer_traits", "purchase_30d", "churn_90d", "clusters"}
ON_DEMAND = {"recency_now"}
TTL = dt.timedelta(days=35)
TICK = dt.timedelta(microseconds=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The shipped repository on a lake with traits of two customers, materialized as of March."""
    settings = make_settings(tmp_path_factory.mktemp("workspace"))
    lake = publish_traits(settings, *ROWS)
    store = feast_stores.open_store(settings, lake.versions, settings.data / "online.db", MAR)
    feast_stores.apply(store)
    feast_stores.materialize(store, MAR)
    return store


def spine(*instants, customer="c1"):
    rows = [{"customer_id": customer, "event_timestamp": t} for t in instants]
    schema = pa.schema({"customer_id": pa.string(), "event_timestamp": pa.timestamp("us", "UTC")})
    return pa.Table.from_pylist(rows, schema)


def test_every_trait_is_a_feature_of_exactly_one_view_and_says_what_it_means(store):
    views = [view for view in store.list_feature_views() if view.name != "recency"]
    declared = {f.name: (view.name, f) for view in views for f in view.features}
    assert sorted(f.name for view in views for f in view.features) == sorted(t.name for t in TRAITS)
    for trait in TRAITS:
        view, feature = declared[trait.name]
        assert view == f"traits_{trait.group}"
        assert feature.description == trait.meaning
        assert (
            feature.dtype.to_value_type().name
            == {"int64": "INT64", "float64": "DOUBLE"}[trait.type]
        )
        window = f"{trait.window_days}d" if trait.window_days else "lifetime"
        assert feature.tags == {"unit": trait.unit, "window": window}


def test_every_view_says_what_it_is_whose_it_is_and_how_long_it_holds(store):
    for view in store.list_feature_views():
        assert view.ttl == TTL
        assert view.description
        assert view.owner
        assert set(view.tags) == {"group", "purpose"}
        assert view.entities == ["customer"]
        assert view.batch_source.path in TABLES


def test_the_services_are_those_that_models_name(store):
    services = {s.name: s for s in store.list_feature_services()}
    assert set(services) == SERVICES | ON_DEMAND
    for spec in filter(lambda s: s.features, load_models(make_settings(Path())).values()):
        features = feast_stores.online_features(store, spec.features, ["c1"])[0]
        assert set(spec.inputs) <= set(features)


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_every_service_delivers_offline_and_online(store, service):
    offline = feast_stores.training_features(store, service, spine(MAR))
    (online,) = feast_stores.online_features(store, service, ["c1"])
    assert online == {k: v for k, v in offline.to_pylist()[0].items() if k != "event_timestamp"}


@pytest.mark.parametrize(
    ("instant", "orders"),
    [
        (JAN - TICK, None),  # nothing was known yet
        (JAN, 1),
        (JAN + TTL, 1),
        (JAN + TTL + TICK, None),  # too old to count
        (MAR - TICK, None),
        (MAR, 5),
        (MAR + TTL, 5),
    ],
)
def test_a_training_row_gets_the_newest_traits_at_its_instant_within_their_ttl(
    store, instant, orders
):
    found = feast_stores.training_features(store, "customer_traits", spine(instant)).to_pylist()
    assert [row["orders_30d"] for row in found] == [orders]
    assert found[0]["event_timestamp"] == instant


def test_the_newest_row_counts_as_a_whole_with_its_nulls(store):
    """In March nothing was said of visits; January's must not fill the gap."""
    (row,) = feast_stores.training_features(store, "customer_traits", spine(MAR)).to_pylist()
    assert (row["visits_7d"], row["spend_365d"]) == (None, 9.5)


def test_training_rows_keep_their_columns_types_and_a_fixed_order(store):
    given = pa.concat_tables([spine(MAR, JAN), spine(MAR, customer="c2"), spine(MAR, customer="x")])
    given = given.append_column("label", pa.array([1.0, 0.0, 1.0, 0.0]))
    found = feast_stores.training_features(store, "customer_traits", given)
    again = feast_stores.training_features(store, "customer_traits", given.take([3, 1, 0, 2]))
    assert found.equals(again)
    assert found.column_names == [*given.column_names, *(t.name for t in TRAITS)]
    assert found.schema.field("event_timestamp").type == pa.timestamp("us", "UTC")
    assert found.schema.field("orders_30d").type == pa.int64()
    kept = [(r["customer_id"], r["event_timestamp"], r["label"]) for r in found.to_pylist()]
    assert kept == [("c1", JAN, 0.0), ("c1", MAR, 1.0), ("c2", MAR, 1.0), ("x", MAR, 0.0)]
    assert found["orders_30d"].to_pylist() == [1, 5, 7, None]


def test_an_empty_spine_gives_no_rows_but_all_columns(store):
    found = feast_stores.training_features(store, "clusters", spine())
    assert found.num_rows == 0
    assert found.column_names[2:] == [t.name for t in TRAITS if t.group == "transactional"]


def test_online_features_come_in_the_order_asked_for_and_unknown_customers_have_none(store):
    found = feast_stores.online_features(store, "customer_traits", ["c2", "nobody", "c1"])
    assert [row["orders_30d"] for row in found] == [7, None, 5]
    assert [list(row) for row in found] == [["customer_id", *(t.name for t in TRAITS)]] * 3


def test_feasts_own_commands_apply_and_list_the_repository(tmp_path):
    shutil.copytree(shipped("features"), tmp_path / "features")
    assert feast(tmp_path, "apply").returncode == 0
    listed = feast(tmp_path, "feature-services", "list").stdout
    assert all(name in listed for name in SERVICES)


def feast(folder, *arguments):
    """Run Feast's command in a workspace with the shipped repository."""
    command = [sys.executable, "-m", "feast.cli.cli", "-c", "features", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_pushed_row_is_served_and_an_older_one_is_not(tmp_path):
    settings = make_settings(tmp_path)
    lake = publish_traits(settings, *ROWS)
    store = feast_stores.open_store(settings, lake.versions, settings.data / "online.db", MAR)
    feast_stores.apply(store)
    feast_stores.materialize(store, MAR)
    for orders, instant in ((6, MAR + TICK), (9, MAR - TICK)):
        row = {t.name: 0 for t in TRAITS if t.group == "transactional"} | {"orders_30d": orders}
        frame = pd.DataFrame([{"customer_id": "c1", "event_timestamp": instant, **row}])
        store.push("traits_transactional_push", frame)
    (found,) = feast_stores.online_features(store, "customer_traits", ["c1"])
    assert found["orders_30d"] == 6


def test_what_depends_on_the_request_is_computed_for_its_instant_offline_and_online(tmp_path):
    settings = make_settings(tmp_path)
    lake = publish_traits(settings, {**ROWS[1], "days_since_last_order": 2.5})
    store = feast_stores.open_store(settings, lake.versions, settings.data / "online.db", MAR)
    feast_stores.apply(store)
    feast_stores.materialize(store, MAR)
    later = MAR + dt.timedelta(days=2)
    asked = [{"customer_id": c, "requested_at": later} for c in ("c1", "nobody")]
    service = store.get_feature_service("recency_now")
    online = store.get_online_features(features=service, entity_rows=asked).to_dict()
    assert online["days_since_last_order_now"] == [4.5, None]
    rows = pa.Table.from_pylist([{**row, "event_timestamp": later} for row in asked])
    offline = feast_stores.training_features(store, "recency_now", rows)
    assert offline["days_since_last_order_now"].to_pylist() == [4.5, None]


def test_a_services_version_tells_its_features(store):
    versions = {s.name: s.tags["version"] for s in store.list_feature_services()}
    assert versions["purchase_30d"] == versions["churn_90d"] == versions["customer_traits"]
    assert len(set(versions.values())) == 3


def test_feasts_web_page_shows_the_services(store):
    pytest.importorskip("grpc", reason="the extra is not installed: cdp-ml[feast-ui]")
    from fastapi.testclient import TestClient
    from feast.ui_server import get_app

    with TestClient(get_app(store, store.project, 60)) as client:
        assert client.get("/").status_code == 200
        found = client.get("/api/v1/feature_services", params={"project": store.project}).json()
    assert {s["spec"]["name"] for s in found["featureServices"]} == SERVICES | ON_DEMAND

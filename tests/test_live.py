"""Facts that come between two refreshes: what is served is what a refresh would compute."""

import datetime as dt
import json

import pyarrow as pa
import pytest
from conftest import rows, utc
from test_cli import cdp

import cdp_ml
from cdp_ml.errors import ConfigError, ContractError
from cdp_ml.feast_stores import apply, online_features, open_store
from cdp_ml.live import check_features, open_live


@pytest.fixture(scope="module")
def cdp_open(demo_workspace):
    return cdp_ml.open(demo_workspace)


@pytest.fixture
def live(cdp_open, tmp_path):
    """The published run, whose pushed features go to a store of their own."""
    as_of = cdp_open.as_of + dt.timedelta(days=1)
    store = open_store(cdp_open.settings, cdp_open.lake.versions, tmp_path / "online.db", as_of)
    apply(store)
    return open_live(cdp_open.settings, store, cdp_open.lake)


@pytest.fixture(scope="module")
def buyer(cdp_open):
    """An identifier of the shop, and the customer who is behind it."""
    links = cdp_open.table("crosswalk")
    held = links.filter(links.valid_to.isnull(), links.source == "shop").limit(1)
    (link,) = held.to_pyarrow().to_pylist()
    return link["source_record_id"], link["customer_id"]


def order(identifier, number, when, **changes):
    line = {"source": "shop", "identifier_type": "shop", "identifier": identifier, "line_no": 1}
    line |= {"order_id": f"live-{number}", "product_id": "p1", "quantity": 1, "unit_price": 10.0}
    line |= {"event_timestamp": when, "ingested_at": when, **changes}
    return rows("transactions", line)


def orders_7d(live, customer):
    (found,) = online_features(live.store, "purchase_30d", [customer])
    return found["orders_7d"]


def test_what_is_served_is_what_is_computed_offline(cdp_open):
    found = check_features(cdp_open, customers=15, instants=3, seed=1)
    assert found["different"] == []
    assert found["pushed"] > 0
    assert found["compared"] > 1000


def test_an_order_counts_at_once_and_only_once(live, cdp_open, buyer):
    identifier, customer = buyer
    now = cdp_open.as_of + dt.timedelta(hours=1)
    first, second = (order(identifier, n, now) for n in (1, 2))
    assert live.push({"transactions": first}) == [customer]
    before = orders_7d(live, customer)
    live.push({"transactions": pa.concat_tables([first, second])})
    assert orders_7d(live, customer) == before + 1
    live.push({"transactions": second})
    assert orders_7d(live, customer) == before + 1


def test_a_late_fact_counts_on_its_own_day(live, cdp_open, buyer):
    identifier, customer = buyer
    now = cdp_open.as_of + dt.timedelta(hours=1)
    live.push({"transactions": order(identifier, 1, now)})
    before = orders_7d(live, customer)
    long_ago = order(identifier, 2, now - dt.timedelta(days=20), ingested_at=now)
    live.push({"transactions": long_ago})
    assert orders_7d(live, customer) == before


def test_facts_of_nobody_change_nothing(live, cdp_open):
    assert live.push({"transactions": order("nobody", 1, cdp_open.as_of)}) == []
    assert live.push({}) == []


def test_wrong_input_is_named(live, buyer):
    line = order(buyer[0], 1, utc(2026, 6, 1))
    with pytest.raises(ConfigError, match="no facts 'clicks'; push transactions or events"):
        live.push({"clicks": line})
    with pytest.raises(ContractError, match="column 'order_id' is missing"):
        live.push({"transactions": line.drop(["order_id"])})
    with pytest.raises(ConfigError, match="has no time zone"):
        live.push({"transactions": line}, dt.datetime(2026, 6, 1))


def test_the_command_says_that_online_equals_offline(demo_workspace):
    asked = ("features", "check", "-w", demo_workspace, "--customers", "3", "--instants", "2")
    assert "online equals offline" in " ".join(cdp(*asked).out.split())
    assert json.loads(cdp(*asked, "--json").out)["different"] == []

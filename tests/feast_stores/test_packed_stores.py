"""The packed online stores keep what they are given, as Feast's interface has it."""

import datetime as dt
import shutil
import socket
import subprocess
import time

import pandas as pd
import pyarrow as pa
import pytest
from conftest import utc
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    PushSource,
    RepoConfig,
)
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
from feature_lake import MAR, make_settings, publish_traits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdp_ml.config import shipped
from cdp_ml.errors import ConfigError, ContractError
from cdp_ml.feast_stores import (
    apply,
    drop_online_stores,
    erase_online,
    materialize,
    online_features,
    open_reader,
    open_store,
)
from cdp_ml.feast_stores.packed import Layout, entity_key, entity_keys

NOW = utc(2026, 3, 10)
TTL = dt.timedelta(days=5)
STAMP = pa.timestamp("us", "UTC")
TYPES = {
    "f64": (Float64, pa.float64()),
    "f32": (Float32, pa.float32()),
    "i64": (Int64, pa.int64()),
    "i32": (Int32, pa.int32()),
    "yes": (Bool, pa.bool_()),
    "at": (UnixTimestamp, STAMP),
    "city": (String, pa.string()),
    "street": (String, pa.string()),
}
VALUES = st.fixed_dictionaries(
    {
        "f64": st.none() | st.floats(allow_nan=False),
        "f32": st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False),
        "i64": st.none() | st.integers(-(2**63), 2**63 - 1),
        "i32": st.none() | st.integers(-(2**31), 2**31 - 1),
        "yes": st.none() | st.booleans(),
        "at": st.none() | st.datetimes(dt.datetime(1970, 1, 2), dt.datetime(2100, 1, 1)),
        "city": st.none() | st.text(max_size=4),
        "street": st.none() | st.text(max_size=4),
    }
)


@pytest.fixture(scope="module")
def redis_url():
    """A real Redis server on a free port."""
    pytest.importorskip("redis", reason="the package redis is not installed: cdp-ml[redis]")
    if not shutil.which("redis-server"):
        pytest.skip("no redis-server on this machine; apt-get install redis-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = ["redis-server", "--port", str(port), "--save", "", "--daemonize", "no"]
    server = subprocess.Popen(asked, stdout=subprocess.DEVNULL)
    _wait_for(port)
    yield f"redis://127.0.0.1:{port}/0"
    server.terminate()
    server.wait()


def _wait_for(port):
    for _ in range(100):
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"no Redis on port {port}")


@pytest.fixture(params=["sqlite", "redis"])
def online(request, tmp_path):
    """The configuration of an empty online store of each kind."""
    where = "cdp_ml.feast_stores.online.Packed"
    if request.param == "sqlite":
        path = str(tmp_path / "online.db")
        return {"type": f"{where}SqliteOnlineStore", "path": path, "now": NOW}
    url = request.getfixturevalue("redis_url")
    return {"type": f"{where}RedisOnlineStore", "url": url, "run": tmp_path.name, "now": NOW}


def view(features=tuple(TYPES), name="things"):
    batch = FileSource(
        name="batch",
        path="traits_profile",
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )
    return FeatureView(
        name=name,
        entities=[Entity(name="customer", join_keys=["customer_id"])],
        ttl=TTL,
        schema=[
            Field(name="customer_id", dtype=String),
            *(Field(name=n, dtype=TYPES[n][0]) for n in features),
        ],
        source=PushSource(name="push", batch_source=batch),
    )


@pytest.fixture
def store(online, tmp_path):
    return _open(online, tmp_path, view())


def _open(online, folder, *views):
    config = RepoConfig(
        project="packed",
        provider="local",
        registry={"registry_type": "sql", "path": f"sqlite:///{folder}/registry.db"},
        offline_store={
            "type": "cdp_ml.feast_stores.offline.LakeOfflineStore",
            "lake": str(folder / "lake"),
        },
        online_store=online,
        entity_key_serialization_version=3,
        batch_engine="cdp_ml.feast_stores.engine.PackedEngine",
    )
    config.repo_path = folder
    made = FeatureStore(repo_path=str(folder), config=config)
    service = FeatureService(name="service", features=list(views))
    made.apply([Entity(name="customer", join_keys=["customer_id"]), *views, service])
    return made


def row(customer="c", event=NOW, created=NOW, **values):
    given = {name: values.get(name) for name in TYPES}
    return {"customer_id": customer, "event_timestamp": event, "created": created, **given}


def write(store, *rows):
    """Write as materialization does, in bulk."""
    fields = [("customer_id", pa.string()), ("event_timestamp", STAMP), ("created", STAMP)]
    schema = pa.schema([*fields, *((n, t) for n, (_, t) in TYPES.items())])
    packed = store._get_provider().online_store
    table = pa.Table.from_pylist(list(rows), schema)
    packed.write_table(store.config, view(), table, "event_timestamp", "created")


def push(store, *rows):
    """Write as `store.push` does, a Feast message a value."""
    schema = pa.schema([(n, t) for n, (_, t) in TYPES.items()])
    frame = pd.DataFrame(list(rows))
    for name, type_ in zip(schema.names, schema.types, strict=True):
        frame[name] = pd.Series(
            pa.array(frame[name], type_, from_pandas=True).to_pylist(), dtype=object
        )
    store.push("push", frame)


def read(store, *customers):
    return open_reader(store, "service").read(list(customers))


def i64(store, customer="c"):
    return read(store, customer)["i64"][0]


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(VALUES, min_size=1, max_size=3))
def test_the_fast_read_equals_get_online_features(store, rows):
    write(store, *(row(f"c{i}", **r) for i, r in enumerate(rows)))
    asked = [*(f"c{i}" for i in range(len(rows))), "nobody"]
    fast = read(store, *asked)
    feast = store.get_online_features(
        features=store.get_feature_service("service"),
        entity_rows=[{"customer_id": c} for c in asked],
    ).to_dict()
    assert fast == feast
    for i, r in enumerate(rows):
        at = r["at"] and r["at"].replace(microsecond=0, tzinfo=dt.UTC)
        assert {name: fast[name][i] for name in TYPES} == {**r, "at": at}


@pytest.mark.parametrize("put", [write, push])
def test_an_older_row_never_overwrites_a_newer_one(store, put):
    hour = dt.timedelta(hours=1)
    put(store, row(i64=1))
    put(store, row(event=NOW - hour, created=NOW + hour, i64=2))
    assert i64(store) == 1, "an earlier event, though created later"
    put(store, row(created=NOW - hour, i64=3))
    assert i64(store) == 1, "the same event, created earlier"
    put(store, row(created=NOW + hour, i64=4))
    assert i64(store) == 4, "the same event, created later"
    put(store, row(created=NOW + hour, i64=5))
    assert i64(store) == 5, "equal times: the last written"
    put(store, row(event=NOW + hour, created=None, i64=6))
    assert i64(store) == 6, "a later event, whenever created"


def test_of_rows_pushed_together_the_newest_counts(store):
    hour = dt.timedelta(hours=1)
    push(store, row(i64=2), row(event=NOW - hour, i64=1), row("other", i64=3))
    assert read(store, "c", "other")["i64"] == [2, 3]


@pytest.mark.parametrize(
    ("age", "expected"), [(TTL, 1), (TTL + dt.timedelta(microseconds=1), None)]
)
def test_a_row_older_than_its_ttl_is_not_read(store, age, expected):
    """feast#6821: Feast's own stores go on serving it."""
    write(store, row(event=NOW - age, i64=1))
    assert i64(store) == expected
    feast = store.get_online_features(features=["things:i64"], entity_rows=[{"customer_id": "c"}])
    assert feast.to_dict()["i64"] == [expected]


def test_an_erased_customer_is_gone_and_others_stay(store, online, tmp_path):
    write(store, row("gone", city="Timbuktu"), row("stays", i64=1))
    erase_online(store, ["gone", "nobody"])
    assert read(store, "gone", "stays")["i64"] == [None, 1]
    assert read(store, "gone")["city"] == [None]
    if "path" in online:
        files = [p.read_bytes() for p in tmp_path.glob("online.db*")]
        assert not any(b"Timbuktu" in content for content in files)


def test_values_of_another_definition_of_the_view_are_refused(store, online, tmp_path):
    write(store, row(i64=1))
    changed = _open(online, tmp_path, view(("i64", "f64")))
    with pytest.raises(ContractError, match="another definition of it; run 'cdp-ml refresh'"):
        read(changed, "c")
    with pytest.raises(ContractError, match="another definition"):
        changed.get_online_features(features=["things:i64"], entity_rows=[{"customer_id": "c"}])


def test_a_view_that_is_dropped_takes_its_values_along(store, online, tmp_path):
    write(store, row(i64=1))
    store.apply([], objects_to_delete=[store.get_feature_view("things")], partial=False)
    assert i64(_open(online, tmp_path, view())) is None


def test_a_type_that_cannot_be_packed_is_named(online, tmp_path):
    fields = [Field(name="customer_id", dtype=String), Field(name="v", dtype=Array(Float32))]
    made = view()
    made = FeatureView(
        name="vectors",
        entities=[Entity(name="customer")],
        schema=fields,
        source=made.batch_source,
    )
    with pytest.raises(ContractError, match=r"'vectors:v'.*hold no Array"):
        Layout.of(made)


def test_keys_of_several_ids_do_not_run_together():
    rows = pa.table({"b": ["1", "11"], "a": [11, 1]})
    assert entity_keys(rows, ["b", "a"]).to_pylist() == ["2:11:1:1", "1:1:2:11"]
    assert [entity_key(["11", "1"]), entity_key([1, 11])] == ["2:11:1:1", "1:1:2:11"]


def test_a_run_in_redis_is_published_whole(redis_url, tmp_path):
    """The next run is written beside the published one, under a prefix of its own."""
    made = make_settings(tmp_path)
    shutil.copytree(shipped("features"), made.home / "features")
    config = made.home / "features" / "feature_store.yaml"
    text = config.read_text().replace("PackedSqlite", "PackedRedis")
    config.write_text(text.replace("  path: ../.cdp/feast-online.db", f"  url: {redis_url}"))
    runs = []
    for number in (1, 2):
        traits = {"customer_id": "c1", "event_timestamp": MAR, "orders_30d": number}
        lake = publish_traits(made, traits, run_id=str(number))
        runs.append(open_store(made, lake.versions, made.data / "online" / f"{number}.db", MAR))
        apply(runs[-1])
        assert materialize(runs[-1], MAR) == 4
    served = [online_features(run, "clusters", ["c1"])[0]["orders_30d"] for run in runs]
    assert served == [1, 2]
    drop_online_stores(made, lambda number: number < 2)
    served = [online_features(run, "clusters", ["c1"])[0]["orders_30d"] for run in runs]
    assert served == [None, 2]
    assert [path.name for path in (made.data / "online").glob("*.db")] == ["2.db"]


def test_a_file_that_this_store_did_not_write_is_refused(tmp_path):
    made = make_settings(tmp_path)
    opened = open_store(made, {}, made.data / "online.db", MAR)
    apply(opened)
    store = opened._get_provider().online_store
    store.teardown(opened.config, opened.list_feature_views(), ())
    with pytest.raises(ContractError, match=r"no values of view 'traits_.*run 'cdp-ml refresh'"):
        online_features(opened, "customer_traits", ["c1"])


def test_the_fast_read_leaves_on_demand_features_to_feast(tmp_path):
    made = make_settings(tmp_path)
    opened = open_store(made, {}, made.data / "online.db", MAR)
    apply(opened)
    with pytest.raises(ConfigError, match="computed on demand; ask for it by get_online_features"):
        open_reader(opened, "recency_now")

"""Our offline store gives what Feast's own DuckDB store gives, and says what is wrong."""

import datetime as dt
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pytest
from conftest import utc
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast import ValueType as FeastType
from feast.infra.offline_stores.ibis import get_historical_features_ibis
from feast.types import Float64, Int64, String
from feature_lake import JAN, MAR, ROWS, make_settings, publish_traits, write_traits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdp_ml.errors import ContractError
from cdp_ml.feast_stores import apply, offline, open_store, training_features, training_identity
from cdp_ml.lake import Lake

DAYS = [utc(2026, 1, day) for day in range(1, 11)]
TTL = dt.timedelta(days=3)
STAMP = pa.timestamp("us", "UTC")
SCHEMA = pa.schema(
    [
        *(("customer_id", pa.string()), ("event_timestamp", STAMP), ("made_at", STAMP)),
        *(("spent", pa.float64()), ("visits", pa.int64()), ("city", pa.string())),
    ]
)

rows = st.lists(
    st.fixed_dictionaries(
        {
            "customer_id": st.sampled_from(["a", "b", "c"]),
            "event_timestamp": st.sampled_from(DAYS),
            "made_at": st.sampled_from(DAYS),
            "spent": st.none() | st.sampled_from([0.0, 1.5]),
            "visits": st.none() | st.integers(0, 2),
            "city": st.none() | st.sampled_from(["", "Ulm"]),
        }
    ),
    max_size=15,
    # Of rows that nothing tells apart Feast takes any.
    unique_by=lambda r: (r["customer_id"], r["event_timestamp"], r["made_at"]),
)
spines = st.lists(
    st.tuples(st.sampled_from(["a", "b", "x", None]), st.sampled_from(DAYS)),
    min_size=1,
    max_size=8,
)


def view(name, table, created="", mapping=None, ttl=TTL):
    source = FileSource(
        name=f"{name}_source",
        path=table,
        timestamp_field="event_timestamp",
        created_timestamp_column=created,
        field_mapping=mapping,
    )
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=FeastType.STRING)
    fields = [("customer_id", String), ("money", Float64), ("visits", Int64), ("city", String)]
    return FeatureView(
        name=name,
        entities=[customer],
        ttl=ttl,
        schema=[Field(name=n, dtype=t) for n, t in fields],
        source=source,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A registry with two views of differing sources; its lake is empty yet."""
    home = tmp_path_factory.mktemp("join")
    config = RepoConfig(
        project="join",
        provider="local",
        registry={"registry_type": "sql", "path": f"sqlite:///{home}/registry.db"},
        offline_store={
            "type": "cdp_ml.feast_stores.offline.LakeOfflineStore",
            "lake": str(home / "lake"),
        },
        online_store={"type": "sqlite", "path": str(home / "online.db")},
        entity_key_serialization_version=3,
    )
    config.repo_path = home
    made = FeatureStore(repo_path=str(home), config=config)
    money = {"spent": "money"}
    views = [
        view("first", "traits_transactional", "made_at", money),
        view("second", "traits_behavioral", "", money, dt.timedelta(0)),
    ]
    service = FeatureService(name="both", features=[views[0], views[1][["visits"]]])
    made.apply([Entity(name="customer", join_keys=["customer_id"]), *views, service])
    return made


def write(store, first, second):
    lake = Lake(Path(store.config.offline_store.lake))
    lake.write("traits_transactional", pa.Table.from_pylist(first, SCHEMA))
    lake.write("traits_behavioral", pa.Table.from_pylist(second, SCHEMA))
    store.config.offline_store.versions = dict(lake.versions)


def as_rows(table):
    """Rows in a fixed order, timestamps as instants."""
    return sorted(map(str, table.to_pylist()))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(first=rows, second=rows, spine=spines, full=st.booleans(), by_created=st.booleans())
def test_the_join_equals_feasts_own(store, first, second, spine, full, by_created):
    second = list({(r["customer_id"], r["event_timestamp"]): r for r in second}.values())
    write(store, first, second)
    frame = pd.DataFrame(spine, columns=["customer_id", "event_timestamp"])
    frame["label"] = range(len(frame))
    refs = ["first:money", "first:city", "second:visits"]
    asked = {
        "config": store.config,
        "feature_views": [store.get_feature_view(name) for name in ("first", "second")],
        "feature_refs": refs,
        "registry": store.registry,
        "project": store.project,
        "full_feature_names": full,
        "filter_by_created_timestamp": by_created,
    }
    ours = offline.LakeOfflineStore.get_historical_features(entity_df=frame.copy(), **asked)
    tables = offline._Tables.of(store.config)
    theirs = get_historical_features_ibis(
        entity_df=frame.copy(),
        data_source_reader=partial(offline._read, tables),
        data_source_writer=offline._refuse_to_write,
        **asked,
    )
    names = [*frame.columns, *(r.replace(":", "__") if full else r.split(":")[1] for r in refs)]
    assert ours.to_arrow().column_names == names
    assert ours.to_df()["label"].tolist() == list(range(len(frame)))
    assert as_rows(ours.to_arrow()) == as_rows(theirs.to_arrow().cast(ours.to_arrow().schema))


def row(day, made, money):
    return {
        "customer_id": "a",
        "event_timestamp": DAYS[day],
        "made_at": DAYS[made],
        "spent": money,
        "visits": None,
        "city": None,
    }


@pytest.mark.parametrize(("by_created", "expected"), [(False, 2.0), (True, 1.0)])
def test_a_late_backfill_leaks_only_into_what_does_not_ask_for_what_was_known(
    store, by_created, expected
):
    """feast#6615: on day 2 the correction that was made on day 5 was not known."""
    write(store, [row(1, 1, 1.0), row(1, 5, 2.0)], [])
    frame = pd.DataFrame({"customer_id": ["a"], "event_timestamp": [DAYS[2]]})
    found = store.get_historical_features(
        entity_df=frame, features=["first:money"], filter_by_created_timestamp=by_created
    )
    assert found.to_arrow()["money"].to_pylist() == [expected]


def test_instants_may_be_text_or_lack_a_zone_as_in_feast(store):
    write(store, [row(1, 1, 1.0)], [])
    for when in (["2026-01-03 00:00:00"], [pd.Timestamp("2026-01-03")]):
        frame = pd.DataFrame({"customer_id": ["a"], "event_timestamp": when})
        found = store.get_historical_features(entity_df=frame, features=["first:money"])
        assert found.to_arrow()["money"].to_pylist() == [1.0]


def test_a_dropped_column_is_named(store):
    write(store, [row(1, 1, 1.0)], [])
    lake = Lake(Path(store.config.offline_store.lake))
    lake.renew("traits_transactional")
    lake.write(
        "traits_transactional", pa.Table.from_pylist([row(1, 1, 1.0)], SCHEMA).drop(["city"])
    )
    store.config.offline_store.versions = {
        **store.config.offline_store.versions,
        **lake.versions,
    }
    frame = pd.DataFrame({"customer_id": ["a"], "event_timestamp": [DAYS[2]]})
    with pytest.raises(ContractError, match="'traits_transactional' has no column 'city'"):
        store.get_historical_features(entity_df=frame, features=["first:city"])


def test_sql_as_a_spine_is_refused(store):
    with pytest.raises(ContractError, match="SQL is not supported"):
        store.get_historical_features(entity_df="SELECT 1", features=["first:city"])


@pytest.fixture
def traits(tmp_path):
    """The shipped repository on a lake, and that lake."""
    made = make_settings(tmp_path)
    lake = publish_traits(made, *ROWS)
    opened = open_store(made, lake.versions, made.data / "online.db", MAR)
    apply(opened)
    return SimpleNamespace(settings=made, lake=lake, store=opened)


def spine(*instants, zone="UTC"):
    when = pa.array(instants, pa.timestamp("us", zone))
    return pa.table({"customer_id": ["c1", "c2", "c1"], "event_timestamp": when, "y": [1, None, 2]})


def stream(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    return sink.getvalue().to_pybytes()


def test_a_training_set_is_the_same_to_the_byte_and_says_what_it_was_made_of(traits):
    given = spine(MAR, JAN, MAR)
    once = training_features(traits.store, "customer_traits", given)
    again = training_features(traits.store, "customer_traits", given.take([2, 0, 1]))
    assert stream(once) == stream(again)
    identity = training_identity(traits.store, "customer_traits", given)
    assert identity["tables"] == {
        f"traits_{g}": 0 for g in ("transactional", "behavioral", "profile")
    }
    assert identity["id"].encode() in once.schema.metadata[b"cdp_ml.training_set"]


def test_other_tables_another_spine_or_service_are_another_training_set(traits):
    given = spine(MAR, JAN, MAR)
    ids = {training_identity(traits.store, "customer_traits", given)["id"]}
    ids.add(training_identity(traits.store, "clusters", given)["id"])
    ids.add(training_identity(traits.store, "customer_traits", given.slice(1))["id"])
    write_traits(traits.lake, *ROWS)
    newer = open_store(traits.settings, traits.lake.versions, traits.settings.data / "online.db")
    ids.add(training_identity(newer, "customer_traits", given)["id"])
    assert len(ids) == 4


def test_a_spine_must_say_its_time_zone(traits):
    with pytest.raises(ContractError, match="needs a time zone"):
        training_features(traits.store, "clusters", spine(MAR, JAN, MAR, zone=None))
    with pytest.raises(ContractError, match="needs column 'event_timestamp'"):
        training_features(traits.store, "clusters", pa.table({"customer_id": ["c1"]}))

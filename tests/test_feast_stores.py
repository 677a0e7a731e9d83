import datetime as dt
import os
import shutil
import subprocess
import sys

import pyarrow as pa
import pytest
from conftest import ROOT, utc
from feature_lake import JAN, MAR, ROWS, make_settings, publish_traits, write_traits

from cdp_ml import feast_stores
from cdp_ml.config import shipped
from cdp_ml.errors import ConfigError, ContractError
from cdp_ml.feast_stores import apply, materialize, online_features, open_store, training_features


@pytest.fixture
def settings(tmp_path):
    return make_settings(tmp_path)


def applied(settings, versions, online_store="online.db", now=MAR):
    store = open_store(settings, versions, settings.data / online_store, now)
    apply(store)
    return store


def orders(store, instant=MAR):
    """orders_30d of c1 as of the instant, offline."""
    row = {"customer_id": ["c1"], "event_timestamp": pa.array([instant], pa.timestamp("us", "UTC"))}
    return training_features(store, "clusters", pa.table(row))["orders_30d"].to_pylist()[0]


def online_orders(store):
    """orders_30d of c1, online."""
    return online_features(store, "clusters", ["c1"])[0]["orders_30d"]


def march(n):
    return {"customer_id": "c1", "event_timestamp": MAR, "orders_30d": n}


def test_importing_the_package_does_not_import_feast():
    code = "import sys, cdp_ml.feast_stores; sys.exit('feast' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_offline_features_are_of_the_versions_the_store_was_opened_on(settings):
    lake = publish_traits(settings, march(1))
    old = dict(lake.versions)
    write_traits(lake, march(2))
    assert orders(applied(settings, old, "old.db")) == 1
    assert orders(applied(settings, lake.versions, "new.db")) == 2


def test_without_versions_the_published_ones_are_read(settings):
    lake = publish_traits(settings, march(1))
    store = applied(settings, lake.versions)
    store.config.offline_store.versions = None
    write_traits(lake, march(2))
    assert orders(store) == 1
    publish_traits(settings, march(3), run_id="next")
    assert orders(store) == 3


def test_a_table_that_was_never_written_is_named(settings):
    store = applied(settings, {})
    with pytest.raises(ContractError, match=r"no table 'traits_transactional' .*cdp-ml refresh"):
        orders(store)


def test_an_unknown_service_is_refused_with_the_nearest_name(settings):
    store = applied(settings, {})
    with pytest.raises(
        ConfigError, match=r"no feature service 'churn_30d'.*did you mean 'churn_90d"
    ):
        online_features(store, "churn_30d", ["c1"])
    with pytest.raises(ConfigError, match="no feature service 'churn_30d'"):
        training_features(store, "churn_30d", pa.table({"customer_id": ["c1"]}))


def test_materialization_takes_the_newest_traits_up_to_the_instant(settings):
    lake = publish_traits(settings, *ROWS, {**march(9), "event_timestamp": utc(2026, 3, 2)})
    store = applied(settings, lake.versions)
    assert materialize(store, MAR) == 8  # two customers in four views
    assert online_orders(store) == 5


def test_materialization_leaves_out_what_is_too_old(settings):
    lake = publish_traits(settings, *ROWS)
    store = applied(settings, lake.versions)
    assert materialize(store, JAN + dt.timedelta(days=36)) == 0
    assert online_orders(store) is None


def test_doing_it_again_changes_nothing(settings):
    lake = publish_traits(settings, *ROWS)
    store = applied(settings, lake.versions)
    materialize(store, MAR)
    before = online_features(store, "customer_traits", ["c1", "c2"])
    again = applied(settings, lake.versions)
    assert materialize(again, MAR) == 8
    assert online_features(again, "customer_traits", ["c1", "c2"]) == before


def test_a_published_store_does_not_change_while_the_next_one_is_written(settings):
    lake = publish_traits(settings, march(1))
    materialize(applied(settings, lake.versions, "1.db"), MAR)
    reader = open_store(settings, lake.versions, settings.data / "1.db", MAR)
    assert online_orders(reader) == 1
    write_traits(lake, march(2))
    writer = applied(settings, lake.versions, "partial.db")
    materialize(writer, MAR)
    (settings.data / "partial.db").replace(settings.data / "2.db")
    assert online_orders(reader) == 1
    assert online_orders(open_store(settings, lake.versions, settings.data / "2.db", MAR)) == 2


def test_the_online_file_carries_the_definitions_it_was_written_with(settings):
    """Whoever changes features/ afterwards does not change what a published run serves."""
    lake = publish_traits(settings, march(1))
    materialize(applied(settings, lake.versions), MAR)
    own = _own_repository(settings, "clusters", "renamed")
    assert own == settings.share("features")
    assert online_orders(open_store(settings, lake.versions, settings.data / "online.db", MAR)) == 1


def test_two_workspaces_with_repositories_of_their_own_do_not_clash(tmp_path):
    ours, theirs = make_settings(tmp_path / "ours"), make_settings(tmp_path / "theirs")
    _own_repository(ours, '"clusters"', '"ours_only"')
    _own_repository(theirs, '"clusters"', '"theirs_only"')
    modules, path = set(sys.modules), list(sys.path)
    names = [
        {s.name for s in applied(s, {}).list_feature_services()}
        & {"clusters", "ours_only", "theirs_only"}
        for s in (ours, theirs)
    ]
    assert names == [{"ours_only"}, {"theirs_only"}]
    assert sys.path == path
    assert not {"entities", "sources", "views", "services"} & (set(sys.modules) - modules)


def test_feast_is_kept_off_the_terminal(settings, capfd):
    lake = publish_traits(settings, *ROWS)
    store = applied(settings, lake.versions)
    materialize(store, MAR)
    orders(store)
    assert capfd.readouterr() == ("", "")


def test_a_module_of_the_same_name_survives_reading_the_repository(monkeypatch):
    mine = type(sys)("views")
    monkeypatch.setitem(sys.modules, "views", mine)
    assert feast_stores.repository_objects(shipped("features"))
    assert sys.modules["views"] is mine


def _own_repository(settings, old, new):
    """Give the workspace a repository that differs from the shipped one."""
    folder = settings.home / "features"
    shutil.copytree(shipped("features"), folder)
    services = folder / "services.py"
    services.write_text(services.read_text().replace(old, new))
    return folder

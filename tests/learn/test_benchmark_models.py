"""The benchmark on real data tests the days and horizons that its bars are about."""

import datetime as dt
import importlib.util
import sys

import pytest
from conftest import ROOT

from cdp_ml.config import ModelSpec, load_models, load_settings
from cdp_ml.learn.datasets import time_split

FIRST = {"online_retail": dt.datetime(2010, 12, 1), "cdnow": dt.datetime(1997, 1, 1)}
TESTED = {
    "retail": {"propensity_90d": ("2011-09-10", 15), "value_90d": ("2011-09-10", 15)},
    "cdnow-january": {"propensity_90d": ("1998-01-01", 7), "value_90d": ("1998-01-01", 7)},
    "cdnow-april": {"propensity_90d": ("1998-04-01", 10), "value_180d": ("1998-01-01", 1)},
}


@pytest.fixture(scope="module")
def benchmark():
    found = importlib.util.spec_from_file_location("models", ROOT / "benchmarks" / "models.py")
    module = importlib.util.module_from_spec(found)
    sys.modules["models"] = module
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", list(TESTED))
def test_each_case_tests_its_day_on_closed_snapshots(benchmark, name):
    case = benchmark.CASES[name]
    as_of = dt.datetime.fromisoformat(case.as_of).replace(tzinfo=dt.UTC)
    found = {}
    for given in benchmark.specifications(case):
        spec = ModelSpec(**given)
        split = time_split(spec, as_of, FIRST[case.data].replace(tzinfo=dt.UTC))
        assert all(t + split.horizon <= split.test for t in split.train)
        found[spec.name] = (f"{split.test:%Y-%m-%d}", len(split.train))
    assert found == TESTED[name]


def test_purchases_of_a_day_are_one_and_their_money_is_kept(benchmark, tmp_path):
    file = tmp_path / "cdnow.txt"
    file.write_text(" customer_id date n v\n 00001 19970101 1 11.50\n 00001 19970101 2  6.50\n")
    (row,) = benchmark.read_cdnow(file).to_dict("records")
    assert (row["order"], row["pieces"]) == ("00001-19970101", 3)
    assert row["pieces"] * row["price"] == pytest.approx(18)


def test_a_case_is_a_workspace_like_any_other(benchmark, shared_data, tmp_path, monkeypatch):
    if not (shared_data / "cdnow_master.txt").is_file():
        pytest.skip(f"no cdnow_master.txt in {shared_data}")
    monkeypatch.setattr(benchmark, "DATA", shared_data)
    for name, case in benchmark.CASES.items():
        benchmark.make_workspace(case, tmp_path / name)
        settings = load_settings(tmp_path / name)
        assert set(load_models(settings)) == set(TESTED[name])
        assert str(settings.as_of) == case.as_of

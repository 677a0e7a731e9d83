import datetime as dt
import os
import shutil
from pathlib import Path

import ibis
import pyarrow as pa
import pytest

import cdp_ml
from cdp_ml.config import Engine
from cdp_ml.contracts import arrow_schema
from cdp_ml.engine import connect
from cdp_ml.synthetic import generate
from cdp_ml.workspace import traits_as_of

ROOT = Path(__file__).resolve().parents[1]

PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
if PARALLEL:
    # Workers share the cores: threads of one would wait for those of another in busy loops.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ONLINE_RETAIL_REFUSED = {
    "postage or carriage": 2_110,
    "stock written off": 1_336,
    "stock found or corrected": 1_128,
    "manual entry": 572,
    "discount": 77,
    "fee": 71,
    "samples": 63,
    "gift voucher": 34,
    "charity commission": 16,
    "cushion pads at no real price": 4,
    "adjustment of bad debt": 3,
}
"""Why order lines of Online Retail are refused, and how many."""


def pytest_collection_modifyitems(items):
    """Tests that share what is made once are for one worker of `-n 2 --dist loadgroup`.

    The largest groups come first, so that no worker is left with one while the other is idle.
    """
    if not PARALLEL:
        return
    first = {"demo_workspace": 0, "published": 1}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=lambda item: first.get(_group(item), len(first)))


def _group(item):
    if "demo_workspace" in item.fixturenames:
        return "demo_workspace"
    uses_published = any(
        getattr(value, "__module__", None) == "published" for value in vars(item.module).values()
    )
    return "published" if uses_published else item.path.name


@pytest.fixture
def con():
    """A fresh DuckDB engine."""
    return connect(Engine())


@pytest.fixture(scope="session")
def shared_data():
    """The folder of public data sets; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("CDP_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no public data sets at {folder}; set CDP_SHARED_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def demo_workspace(tmp_path_factory):
    """A refreshed workspace of a small synthetic world; a test that changes it works on a copy."""
    home = tmp_path_factory.mktemp("demo")
    generate(home / "data" / "demo", people=600)
    shutil.copy(ROOT / "cdp.yaml", home)
    assert cdp_ml.refresh(home).published
    return home


def utc(*when: int) -> dt.datetime:
    return dt.datetime(*when, tzinfo=dt.UTC)


def rows(table: str, *given: dict) -> pa.Table:
    """Rows of a contract from dictionaries; columns not given are null."""
    return pa.Table.from_pylist(list(given), arrow_schema(table))


def traits_by_key(con, tables, instants, **more):
    """All traits from tables of an engine: one dictionary by customer and instant."""
    found = {}
    for built in traits_as_of(con, tables, {}, instants, **more):
        for table in built.values():
            for row in table.to_pylist():
                key = (row["customer_id"], row["event_timestamp"])
                found[key] = found.get(key, {}) | row
    return found


def spark_sql(expression: ibis.Expr) -> str:
    """The expression compiled for PySpark, which need not be installed for that."""

    class PySparkOptions(ibis.config.Config):
        """What `ibis.backends.pyspark` registers on import; floats cannot be compiled without."""

        treat_nan_as_null: bool = False

    if ibis.options.pyspark is None:
        ibis.options.pyspark = PySparkOptions()
    return str(ibis.to_sql(expression, dialect="pyspark"))

"""A lake with hand-made traits, for the tests of the feature repository and of its stores."""

import datetime as dt
from pathlib import Path

import pyarrow as pa
from conftest import utc

from cdp_ml.config import Settings
from cdp_ml.contracts import arrow_schema, arrow_type
from cdp_ml.lake import Lake, publish
from cdp_ml.traits import GROUPS, TRAITS

JAN, MAR = utc(2026, 1, 1), utc(2026, 3, 1)

ROWS = (
    {"customer_id": "c1", "event_timestamp": JAN, "orders_30d": 1, "visits_7d": 4, "has_email": 1},
    {"customer_id": "c1", "event_timestamp": MAR, "orders_30d": 5, "spend_365d": 9.5},
    {"customer_id": "c2", "event_timestamp": MAR, "orders_30d": 7, "age_years": 40.5},
)


def make_settings(home: Path) -> Settings:
    """The settings of a workspace without sources."""
    return Settings(home=home, sources={})


def write_traits(lake: Lake, *rows: dict) -> None:
    """Write all traits tables; traits that a row does not name are null."""
    for group in GROUPS:
        table = f"traits_{group}"
        fields = [(t.name, arrow_type(t.type)) for t in TRAITS if t.group == group]
        schema = pa.schema([*arrow_schema(table), *fields])
        lake.write(table, pa.Table.from_pylist(list(rows), schema))


def publish_traits(settings: Settings, *rows: dict, run_id: str = "run") -> Lake:
    """A lake whose published run has these traits."""
    lake = Lake.published(settings.data / "lake")
    write_traits(lake, *rows)
    now = dt.datetime.now(dt.UTC)
    run = {"run_id": run_id, "as_of": MAR, "started_at": now, "published_at": now}
    publish(lake.root, {**run, "versions": lake.versions, "summary": {}})
    return lake

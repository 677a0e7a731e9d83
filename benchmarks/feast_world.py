"""What the feature store benchmarks share: random features in a lake, and stores on it.

Two views of the tables `traits_transactional` and `traits_behavioral`, 20 features each, as of
snapshots 30 days apart.
"""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

START = datetime(2025, 1, 1, tzinfo=UTC)
TABLES = ("traits_transactional", "traits_behavioral")
FEATURES = 20


def names(table: int) -> list[str]:
    """The features of a table."""
    return [f"f{table}_{i:02d}" for i in range(FEATURES)]


def columns(table: int) -> str:
    """The features of a table, for SQL."""
    return ", ".join(names(table))


def make_lake(folder: Path, customers: int, snapshots: int) -> None:
    """Write both tables; the versions of a new lake's tables are 0."""
    import duckdb

    from cdp_ml.lake import Lake

    for table, name in enumerate(TABLES):
        con = duckdb.connect()
        con.execute("SET TimeZone = 'UTC'; SELECT setseed(0.5)").fetchall()
        drawn = ", ".join(f"random() AS {feature}" for feature in names(table))
        rows = con.sql(f"""
            SELECT 'c-' || substr(md5(c::VARCHAR), 1, 16) AS customer_id,
                TIMESTAMPTZ '{START}' + INTERVAL (s * 30) DAY AS event_timestamp, {drawn}
            FROM range({customers}) AS a(c), range({snapshots}) AS b(s) ORDER BY s, c
        """)
        Lake(folder / "lake").write(name, rows.to_arrow_table())


def make_spine(folder: Path, customers: int, rows: int, days: int) -> None:
    """Random customers at random instants."""
    import duckdb

    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'; SELECT setseed(0.1)").fetchall()
    con.execute(f"""
        COPY (
            SELECT 'c-' || substr(md5(floor(random() * {customers})::INT::VARCHAR), 1, 16)
                AS customer_id,
                TIMESTAMPTZ '{START}' + INTERVAL (floor(random() * {days} * 86400)) SECOND
                AS event_timestamp
            FROM range({rows})
        ) TO '{folder}/spine.parquet'
    """)


def make_store(folder: Path, name: str, stock: bool, online: dict[str, Any], ttl: timedelta) -> Any:
    """A Feast store on the lake, with stores of ours or of Feast; applied.

    Args:
        folder: of `make_lake`.
        name: of the registry's file.
        stock: Feast's DuckDB store and materialization engine instead of ours.
        online: the configuration of the online store.
        ttl: of the views.
    """
    from feast import (
        Entity,
        FeatureService,
        FeatureStore,
        FeatureView,
        Field,
        FileSource,
        RepoConfig,
        ValueType,
    )
    from feast.types import Float64, String

    ours = {
        "type": "cdp_ml.feast_stores.offline.LakeOfflineStore",
        "lake": str(folder / "lake"),
        "versions": dict.fromkeys(TABLES, 0),
    }
    engine = {} if stock else {"batch_engine": "cdp_ml.feast_stores.engine.PackedEngine"}
    config = RepoConfig(
        project="bench",
        provider="local",
        registry={"registry_type": "sql", "path": f"sqlite:///{folder}/{name}.registry"},
        offline_store={"type": "duckdb"} if stock else ours,
        online_store=online,
        entity_key_serialization_version=3,
        materialization={"pull_latest_features": True},
        **engine,
    )
    config.repo_path = folder
    store = FeatureStore(repo_path=str(folder), config=config)
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)
    views = []
    for table, path in enumerate(TABLES):
        path = str(folder / "lake" / path / "*.parquet") if stock else path
        source = FileSource(name=f"source_{table}", path=path, timestamp_field="event_timestamp")
        fields = [Field(name="customer_id", dtype=String)]
        fields += [Field(name=feature, dtype=Float64) for feature in names(table)]
        views.append(
            FeatureView(
                name=f"view_{table}", entities=[customer], ttl=ttl, schema=fields, source=source
            )
        )
    store.apply([customer, *views, FeatureService(name="all", features=views)])
    return store


def in_process(call: str, *arguments: Any) -> None:
    """Call a function of this module in a process of its own, whose memory goes with it."""
    code = f"import feast_world; from pathlib import PosixPath; feast_world.{call}{arguments!r}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)

"""What traits as of many instants cost, beside SQL written by hand; `python benchmarks/traits.py`.

For 12 monthly instants, 32 traits over 7, 30, 90 and 365 days (counts of 8 kinds of events) are
computed in four ways, each in a process of its own: by hand with one pass over the facts an instant
(the facts keyed to the customers as known then, windows filtered); by hand with the plan that
cdp-ml follows (facts keyed and summed by customer and day once, sorted, then summed for each
instant); by cdp-ml; and by cdp-ml within a memory limit of 4 GB. There are 20 events a customer, of
two years. CPU seconds are of the process; growth is the exponent by which they grow with events.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from measuring import measured, measuring

SIZES = (100_000, 1_000_000, 10_000_000)
LAST = datetime(2026, 7, 1, tzinfo=UTC)
INSTANTS = [LAST - timedelta(days=30 * k) for k in reversed(range(12))]
KINDS = (
    *("page_view", "product_view", "cart_add", "checkout", "search"),
    *("email_sent", "email_opened", "email_clicked"),
)
DAYS = (7, 30, 90, 365)
NAMES = [(f"{kind}s_{days}d", kind, days) for kind in KINDS for days in DAYS]
LIMIT = "4GB"


def make_world(folder: Path, events: int) -> None:
    """Write the tables: a cookie and a record a customer; the first are busier than the last."""
    import duckdb

    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false; SELECT setseed(0.5)")
    people = events // 20
    early = "TIMESTAMPTZ '2020-01-01 00:00:00+00'"
    kinds = ", ".join(f"'{k}'" for k in KINDS)
    tables = {
        "events": f"""SELECT 'web:' || i AS event_id, 'web' AS source, 'cookie' AS identifier_type,
            md5('k' || floor({people} * power(random(), 1.5))::BIGINT) AS identifier,
            [{kinds}][1 + floor(random() * 8)::BIGINT] AS event_type, NULL::VARCHAR AS product_id,
            NULL::VARCHAR AS category, 'web' AS channel, NULL::VARCHAR AS campaign,
            moment AS event_timestamp, moment AS ingested_at
            FROM (SELECT i, TIMESTAMPTZ '{LAST}'
                - to_microseconds((random() * 730 * 86400e6)::BIGINT) AS moment
                FROM range({events}) t(i))""",
        "identifiers": f"""SELECT 'cookie' AS identifier_type, md5('k' || i) AS identifier,
            'shop' AS source, 'r' || i AS source_record_id, {early} AS event_timestamp,
            {early} AS ingested_at FROM range({people}) t(i)""",
        "crosswalk": f"""SELECT 'shop' AS source, 'r' || i AS source_record_id,
            md5('c' || i) AS customer_id, 1.0 AS confidence, {early} AS valid_from,
            NULL::TIMESTAMPTZ AS valid_to FROM range({people}) t(i)""",
        "records": f"""SELECT 'shop' AS source, 'r' || i AS source_record_id,
            {early} AS event_timestamp, {early} AS ingested_at FROM range({people}) t(i)""",
    }
    for name, query in tables.items():
        db.execute(f"COPY ({query}) TO '{folder / name}.parquet'")


def connection(folder: Path) -> Any:
    """A DuckDB with the tables as views."""
    import duckdb

    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false; SET threads = 2")
    for name in ("events", "identifiers", "crosswalk", "records"):
        db.execute(f"CREATE VIEW {name} AS FROM '{folder / name}.parquet'")
    return db


OWNERS = """SELECT identifier_type, identifier, customer_id FROM (
    SELECT *, row_number() OVER (PARTITION BY identifier_type, identifier
        ORDER BY event_timestamp, source, source_record_id) AS place
    FROM identifiers JOIN crosswalk USING (source, source_record_id)
    WHERE ingested_at < {t} AND valid_from < {t} AND (valid_to IS NULL OR valid_to >= {t})
) WHERE place = 1"""


def by_hand(folder: Path) -> int:
    """One pass over the facts an instant."""
    db, rows = connection(folder), 0
    for instant in INSTANTS:
        t = f"TIMESTAMPTZ '{instant}'"
        sums = ", ".join(
            f"count(*) FILTER (event_type = '{kind}' AND event_timestamp >= "
            f"TIMESTAMPTZ '{instant - timedelta(days=days)}') AS {name}"
            for name, kind, days in NAMES
        )
        zeros = ", ".join(f"coalesce({name}, 0) AS {name}" for name, _, _ in NAMES)
        first = instant - timedelta(days=max(DAYS))
        query = f"""WITH owners AS ({OWNERS.format(t=t)}), sums AS (
                SELECT customer_id, {sums} FROM events
                JOIN owners USING (identifier_type, identifier)
                WHERE event_timestamp < {t} AND ingested_at < {t}
                    AND event_timestamp >= TIMESTAMPTZ '{first}' GROUP BY customer_id)
            SELECT customer_id, {t} AS event_timestamp, {zeros}
            FROM (SELECT DISTINCT customer_id FROM owners) LEFT JOIN sums USING (customer_id)"""
        rows += db.sql(query).to_arrow_table().num_rows
    return rows


def same_plan(folder: Path) -> int:
    """Daily sums once, sorted by customer, then one pass over them an instant."""
    db, rows = connection(folder), 0
    number = "+".join(f"(known >= TIMESTAMPTZ '{t}')::SMALLINT" for t in INSTANTS)
    counts = ", ".join(f"(count(*) FILTER (event_type = '{k}'))::INT AS {k}" for k in KINDS)
    end = OWNERS.format(t=f"TIMESTAMPTZ '{LAST}'")
    db.execute(f"""CREATE TABLE numbers AS SELECT customer_id,
            (row_number() OVER (ORDER BY customer_id))::INT AS number
        FROM (SELECT DISTINCT customer_id FROM crosswalk);
        CREATE TABLE tiles AS WITH owners AS (
            SELECT identifier_type, identifier, number FROM ({end}) JOIN numbers USING (customer_id)
        ), keyed AS (
            SELECT number, event_type, epoch_us(event_timestamp) // 86400000000 AS day,
                greatest(event_timestamp, ingested_at) AS known, ({number})::SMALLINT AS since
            FROM events JOIN owners USING (identifier_type, identifier)
        )
        SELECT number, day::INT AS day, {counts}, min(since) AS since FROM keyed
        GROUP BY number, day HAVING min(since) = max(since) ORDER BY number""")
    for i, instant in enumerate(INSTANTS):
        t, today = f"TIMESTAMPTZ '{instant}'", int(instant.timestamp() // 86400)
        sums = ", ".join(
            f"sum(CASE WHEN age <= {days} THEN {kind} ELSE 0 END) AS {name}"
            for name, kind, days in NAMES
        )
        zeros = ", ".join(f"coalesce({name}::BIGINT, 0) AS {name}" for name, _, _ in NAMES)
        query = f"""SELECT customer_id, TIMESTAMPTZ '{instant}' AS event_timestamp, {zeros}
            FROM (FROM numbers WHERE customer_id IN (SELECT customer_id
                FROM crosswalk JOIN records USING (source, source_record_id)
                WHERE ingested_at < {t} AND valid_from < {t}
                    AND (valid_to IS NULL OR valid_to >= {t})))
            LEFT JOIN (SELECT number, {sums}
                FROM (SELECT *, {today} - day AS age FROM tiles
                    WHERE since <= {i} AND age <= {max(DAYS)})
                GROUP BY number) USING (number)"""
        rows += db.sql(query).to_arrow_table().num_rows
    return rows


def ours(folder: Path, limit: str | None = None) -> int:
    """The same with cdp-ml."""
    import ibis
    import pyarrow as pa

    from cdp_ml.config import Engine
    from cdp_ml.contracts import arrow_schema
    from cdp_ml.engine import connect
    from cdp_ml.traits import Aggregate, Trait
    from cdp_ml.workspace import TRAIT_INPUTS, traits_as_of

    traits = [
        Trait(name, "behavioral", "int64", name, "events",
              Aggregate("events", "count", where={"event_type": kind}), days)
        for name, kind, days in NAMES
    ]  # fmt: skip
    con = connect(Engine(threads=2, memory_limit=limit) if limit else Engine(threads=2))
    tables = {
        name: con.read_parquet(folder / f"{name}.parquet")
        if (folder / f"{name}.parquet").exists()
        else ibis.memtable(pa.Table.from_pylist([], arrow_schema(name)))
        for name in TRAIT_INPUTS
    }
    found = traits_as_of(con, tables, {}, INSTANTS, traits=traits)
    return sum(tables["traits_behavioral"].num_rows for tables in found)


WAYS: dict[str, Callable[[Path], int]] = {
    "by hand, a pass an instant": by_hand,
    "by hand, the same plan": same_plan,
    "cdp-ml": ours,
    f"cdp-ml within {LIMIT}": lambda folder: ours(folder, LIMIT),
}


def run(way: str, folder: Path) -> None:
    """Compute in this process and print what it took."""
    import duckdb

    import cdp_ml.activity
    import cdp_ml.engine  # what is imported once is not the computation's cost
    import cdp_ml.traits
    import cdp_ml.workspace
    from cdp_ml.config import Engine

    cdp_ml.engine.connect(Engine()).raw_sql("SELECT 1")
    duckdb.connect().execute("SELECT 1")
    with measuring() as found:
        found["rows"] = WAYS[way](folder)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events", nargs="*", type=int, default=SIZES)
    parser.add_argument("--way", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        run(arguments.way[0], Path(arguments.way[1]))
        return
    print("| events | way | CPU s | s | GiB | rows | growth |")
    print("|---:|---|---:|---:|---:|---:|---:|", flush=True)
    last: dict[str, tuple[int, float]] = {}
    for events in arguments.events:
        with tempfile.TemporaryDirectory() as folder:
            make_world(Path(folder), events)
            for way in WAYS:
                row, was = measured(__file__, "--way", way, folder), last.get(way)
                growth = math.log(row["cpu"] / was[1]) / math.log(events / was[0]) if was else None
                last[way] = (events, row["cpu"])
                cells = [f"{events:,}", way, *(f"{row[k]:.2f}" for k in ("cpu", "wall", "gib"))]
                cells += [f"{row['rows']:,}", f"{growth:.2f}" if growth else ""]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

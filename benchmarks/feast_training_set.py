"""What a training set through Feast costs, beside the query by hand and Feast's own DuckDB store.

    python benchmarks/feast_training_set.py [ROWS CUSTOMERS SNAPSHOTS]

A spine of ROWS random customers and instants is joined as of with two views, 20 features each, of
CUSTOMERS x SNAPSHOTS rows (by default 1M with two views of 5M). Snapshots are 30 days apart; a TTL
of a year makes most of a customer's rows candidates, one of 35 days one or two. Prints a Markdown
table for each: CPU and wall seconds (without imports and registration) and peak memory, each in a
process of its own.
"""

import sys
import tempfile
from datetime import timedelta
from pathlib import Path

from feast_world import TABLES, columns, in_process, make_store
from measuring import measured, measuring

WAYS = {
    "by hand": "DuckDB: latest time by key, then its row",
    "lake": "Feast, our offline store",
    "training_features": "`training_features`, sorted",
    "stock": "Feast, its DuckDB store",
}


def by_hand(folder: Path, ttl: int) -> None:
    """The as-of query that a careful person would write."""
    import duckdb

    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'; SET memory_limit = '2GB'; SET threads = 2")
    con.execute("SET preserve_insertion_order = false; SET enable_progress_bar = false")
    steps, joins = [], []
    for t, name in enumerate(TABLES):
        rows = f"read_parquet('{folder}/lake/{name}/*.parquet')"
        steps += [
            f"""latest_{t} AS (
                SELECT s.customer_id, s.event_timestamp, max(f.event_timestamp) AS at
                FROM spine AS s JOIN {rows} AS f ON f.customer_id = s.customer_id
                AND f.event_timestamp <= s.event_timestamp
                AND f.event_timestamp >= s.event_timestamp - INTERVAL {ttl} DAY GROUP BY ALL
            )""",
            f"""view_{t} AS (
                SELECT l.customer_id, l.event_timestamp, {columns(t)} FROM latest_{t} AS l
                JOIN {rows} AS f ON f.customer_id = l.customer_id AND f.event_timestamp = l.at
            )""",
        ]
        joins.append(f"LEFT JOIN view_{t} USING (customer_id, event_timestamp)")
    wanted = f"customer_id, event_timestamp, {columns(0)}, {columns(1)}"
    with measuring() as found:
        spine = con.sql(f"FROM '{folder}/spine.parquet'").to_arrow_table()
        con.register("spine", spine)
        query = f"WITH {', '.join(steps)} SELECT {wanted} FROM spine {' '.join(joins)}"
        found["sum"] = checksum(con.sql(query).to_arrow_table())


def through_feast(folder: Path, ttl: int, way: str) -> None:
    """The same through Feast."""
    import pyarrow.parquet as pq

    from cdp_ml.feast_stores import training_features

    online = {"type": "sqlite", "path": str(folder / f"{way}{ttl}.db")}
    store = make_store(folder, f"{way}{ttl}", way == "stock", online, timedelta(days=ttl))
    with measuring() as found:
        spine = pq.read_table(folder / "spine.parquet")
        if way == "training_features":
            rows = training_features(store, "all", spine)
        else:
            asked = store.get_historical_features(
                entity_df=spine.to_pandas(), features=store.get_feature_service("all")
            )
            rows = asked.to_arrow()
        found["sum"] = checksum(rows)


def checksum(rows: object) -> str:
    """A sum over the result, which must be the same by all ways."""
    import pyarrow.compute as pc

    return f"{pc.sum(rows['f0_03']).as_py():.3f} {pc.sum(rows['f1_17']).as_py():.3f}"


def main() -> None:
    """Print the tables."""
    if len(sys.argv) == 5:
        way, folder, ttl = sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
        by_hand(folder, ttl) if way == "by hand" else through_feast(folder, ttl, way)
        return
    rows, customers, snapshots = map(int, sys.argv[1:] or (1_000_000, 500_000, 10))
    with tempfile.TemporaryDirectory() as made:
        in_process("make_lake", Path(made), customers, snapshots)
        in_process("make_spine", Path(made), customers, rows, 30 * snapshots)
        for ttl in (365, 35):
            size = f"two views of {customers * snapshots:,} rows x 20 features"
            print(f"\n{rows:,} rows, {size}, TTL {ttl} days\n")
            print_table(Path(made), ttl)


def print_table(folder: Path, ttl: int) -> None:
    """All ways at one TTL."""
    print("| way | CPU s | s | GiB | x by hand | same |\n|---|---:|---:|---:|---:|---|")
    hand = None
    for way, said in WAYS.items():
        found = measured(__file__, "--way", way, folder, ttl)
        hand = hand or found
        cells = [f"{found[k]:.2f}" for k in ("cpu", "wall", "gib")]
        same = "yes" if found["sum"] == hand["sum"] else "NO"
        ratio = found["cpu"] / hand["cpu"]
        print(f"| {said} | {' | '.join(cells)} | {ratio:.2f} | {same} |", flush=True)


if __name__ == "__main__":
    main()

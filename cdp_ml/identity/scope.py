"""What must be linked again, after what was known before and what is new.

New and changed records are compared with all; what they are in touch with, through old evidence or
new, is clustered again. The rest stays as it was, because nothing that it depends on has changed:
the model and its tables are frozen between trainings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cdp_ml.identity import people
from cdp_ml.identity.people import NUMBER

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

# The last word on a pair counts; what was taken back does not.
_DECIDED = """
CREATE TABLE decided AS
SELECT least(l.unique_id, r.unique_id) AS one, greatest(l.unique_id, r.unique_id) AS other,
    decision, actor, reason, event_timestamp
FROM overrides JOIN {records} l ON record_l = l.record JOIN {records} r ON record_r = r.record
WHERE undone_at IS NULL AND l.unique_id <> r.unique_id
QUALIFY row_number() OVER (PARTITION BY one, other ORDER BY event_timestamp DESC, decision) = 1
"""
# An identifier that only one record bears as its own id joins nothing.
_CERTAIN = """
CREATE TABLE certain AS
WITH joining AS (
    SELECT *, hash(identifier_type, identifier) AS shared FROM identifiers
    WHERE list_contains($types, identifier_type)
       OR (list_contains($types, '*') AND identifier_type IN (SELECT DISTINCT source FROM records))
), noted AS (
    SELECT DISTINCT shared FROM joining
    WHERE identifier_type <> source OR identifier <> source_record_id
), bearers AS (
    SELECT DISTINCT identifier_type, shared, unique_id
    FROM joining SEMI JOIN noted USING (shared) JOIN {records}
), grouped AS (
    SELECT *, count(*) OVER (PARTITION BY shared) AS records FROM bearers
)
SELECT l.unique_id AS one, r.unique_id AS other, min(identifier_type) AS identifier_type
FROM grouped l JOIN grouped r USING (identifier_type, shared)
WHERE l.records <= $most AND l.unique_id < r.unique_id
GROUP BY ALL ORDER BY ALL
"""
_CHANGED = """
CREATE TABLE changed AS SELECT unique_id FROM prints ANTI JOIN former_compared USING (fingerprint)
"""
_OUTDATED = """
CREATE TABLE outdated AS
SELECT source, source_record_id FROM former_compared ANTI JOIN prints USING (fingerprint) {limit}
"""
_GONE_RECORDS = """
CREATE TABLE gone AS
SELECT source, source_record_id, {number} AS unique_id FROM outdated
WHERE {number} NOT IN (FROM changed)
"""
_FORMER = """
CREATE TABLE former AS
SELECT CASE WHEN one NOT IN (SELECT unique_id FROM gone) THEN one END AS one,
    CASE WHEN other NOT IN (SELECT unique_id FROM gone) THEN other END AS other, record_l, record_r,
    kind, known_at
FROM (SELECT *, {one} AS one, {other} AS other FROM former_edges)
"""
# Besides what changed: who lost a partner, and who is joined or told apart otherwise than before.
_SEEDS = """
WITH sure AS (
    SELECT least(one, other) AS one, greatest(one, other) AS other, kind FROM former
    WHERE kind <> 'probabilistic' AND one IS NOT NULL AND other IS NOT NULL
), now AS (
    SELECT one, other, coalesce(decision, 'deterministic') AS kind
    FROM certain FULL JOIN decided USING (one, other)
), otherwise AS (
    (FROM sure EXCEPT FROM now) UNION ALL (FROM now EXCEPT FROM sure)
)
SELECT unique_id FROM changed
UNION SELECT unnest([one, other]) FROM otherwise
UNION SELECT coalesce(one, other) FROM former
    WHERE (one IS NULL) <> (other IS NULL)
"""
_TIES = """
CREATE TABLE ties AS
SELECT one, other FROM former WHERE one IS NOT NULL AND other IS NOT NULL
UNION ALL SELECT one, other FROM certain
UNION ALL SELECT one, other FROM decided WHERE decision = 'must-link'
"""
# What is compared, and whoever may come into its cluster.
_REACHED = """
CREATE TABLE reached AS
SELECT unique_id FROM scope UNION SELECT unnest([join_key_l, join_key_r]) FROM candidates
"""
_NEW_TIES = "INSERT INTO ties SELECT one, other FROM pairs WHERE weight >= $bits"
# Those in touch with `near` that the table does not have yet.
_NEXT = """
CREATE OR REPLACE TABLE near AS
SELECT DISTINCT unique_id FROM (
    SELECT other AS unique_id FROM ties WHERE one IN (FROM near)
    UNION ALL SELECT one FROM ties WHERE other IN (FROM near)
) ANTI JOIN {0} USING (unique_id)
"""
_GONE = {
    "edges": """
SELECT record_l, record_r FROM former
WHERE one IS NULL OR other IS NULL OR one IN (FROM scope) OR other IN (FROM scope)
""",
    "compared": "FROM outdated",
    "reviews": """
WITH ends AS (
    SELECT record_l, record_r, unnest([record_l, record_r]) AS record FROM former_reviews
)
SELECT record_l, record_r FROM (SELECT *, {record} AS unique_id FROM ends)
LEFT JOIN (SELECT unique_id, true AS near FROM scope) USING (unique_id)
LEFT JOIN (SELECT unique_id, true AS again FROM changed) USING (unique_id)
LEFT JOIN (SELECT unique_id, true AS lost FROM gone) USING (unique_id)
GROUP BY ALL HAVING bool_or(again) OR bool_or(lost) OR bool_and(coalesce(near, false))
""",
}
_KEPT = ("edges", "reviews")
"""Tables of pairs, of which most are found again as they were."""
_AGAIN = """
CREATE OR REPLACE TABLE again AS
FROM found INTERSECT
SELECT {columns} FROM former_{table} SEMI JOIN found USING (record_l, record_r)
"""
_ANEW = "FROM found ANTI JOIN again USING (record_l, record_r) ORDER BY record_l, record_r"


def list_overrides(db: DuckDBPyConnection, overrides: pa.Table | None) -> None:
    """Make table `decided`: one, other, decision, actor, reason, event_timestamp."""
    from cdp_ml.contracts import arrow_schema

    given = arrow_schema("overrides").empty_table() if overrides is None else overrides
    db.register("overrides", given)
    some = "delivered" if len(given) else "(FROM delivered LIMIT 0)"  # then it need not be read
    db.execute(_DECIDED.format(records=some))


def list_certain(
    db: DuckDBPyConnection, types: Sequence[str], most: int, part: bool = False
) -> None:
    """Make table `certain` of the records that share an identifier: one, other, identifier_type."""
    number = NUMBER.format("source || ':' || source_record_id")
    known = f"prints ON unique_id = {number}" if part else "nodes USING (source, source_record_id)"
    db.execute(_CERTAIN.format(records=known), {"types": list(types), "most": most})


def begin(db: DuckDBPyConnection, part: bool) -> None:
    """Make tables `changed` and `scope` (unique_id): all records, or for a part what changed.

    Table `former` has the former edges, by the numbers of their records.
    """
    if part:
        db.execute(_CHANGED)
        # Where all former records are found as they were, others need not be looked for.
        found = people.count_rows(db, "prints") - people.count_rows(db, "changed")
        limit = "" if people.count_rows(db, "former_compared") > found else "LIMIT 0"
        db.execute(_OUTDATED.format(limit=limit))
        db.execute(_GONE_RECORDS.format(number=NUMBER.format("source || ':' || source_record_id")))
    else:
        db.execute("CREATE TABLE changed AS SELECT unique_id FROM nodes")
        db.execute("CREATE TABLE gone AS FROM changed LIMIT 0")
    one, other = NUMBER.format("record_l"), NUMBER.format("record_r")
    db.execute(_FORMER.format(one=one, other=other))
    db.execute("CREATE TABLE scope AS FROM changed")


def take_nodes(db: DuckDBPyConnection) -> None:
    """Make table `nodes` of all that may come into scope.

    That is what changed, what table `candidates` compares it with, and what these are in touch
    with through what was known before.
    """
    db.execute(f"CREATE OR REPLACE TABLE scope AS {_SEEDS}")
    db.execute(_TIES)
    db.execute(_REACHED)
    _widen(db, "reached")
    db.execute("DELETE FROM ties WHERE one NOT IN (FROM reached)")
    people.take_nodes(db, "reached")


def widen(db: DuckDBPyConnection, bits: float) -> None:
    """Widen table `scope` to all records in touch with what is new, changed, gone or decided.

    Args:
        db: with table `pairs` of the changed records.
        bits: match weight from which a pair is evidence.
    """
    db.execute(_NEW_TIES, {"bits": bits})
    _widen(db, "scope")


def _widen(db: DuckDBPyConnection, records: str) -> None:
    """Widen a table of unique_id to all that are in touch by table `ties`."""
    db.execute(f"CREATE OR REPLACE TABLE near AS FROM {records}")
    while db.execute(_NEXT.format(records)).fetchall()[0][0]:
        db.execute(f"INSERT INTO {records} FROM near")


def records(db: DuckDBPyConnection) -> Any:
    """The records in scope: their unique_id, ascending."""
    return db.execute("SELECT unique_id FROM scope ORDER BY unique_id").fetchnumpy()["unique_id"]


def pairs(db: DuckDBPyConnection, ids: Any, query: str, **given: float) -> dict[str, Any]:
    """What a query tells of the pairs in scope.

    Args:
        db: the database.
        ids: the `records`.
        query: SQL with columns one and other (unique_id).
        given: its parameters.

    Returns:
        The columns; one and other as places in `records`.
    """
    import numpy as np

    within = f"SELECT * FROM ({query}) WHERE one IN (FROM scope) AND other IN (FROM scope)"
    everything = bool(len(ids)) and ids[-1] == len(ids) - 1
    found: dict[str, Any] = db.execute(query if everything else within, given).fetchnumpy()
    if not everything:
        found |= {side: np.searchsorted(ids, found[side]) for side in ("one", "other")}
    return found


def changes(
    db: DuckDBPyConnection, found: Mapping[str, pa.Table]
) -> tuple[dict[str, pa.Table], dict[str, pa.Table]]:
    """What to put into the former tables and what to take out; what is as it was stays.

    Args:
        db: the database.
        found: by table, the rows found.

    Returns:
        By table, the rows that are new or otherwise than before, and the keys of the former rows
        that are gone or replaced.
    """
    number = NUMBER.format("record")
    rows, gone = dict(found), {}
    for table, asked in _GONE.items():
        query = asked.format(record=number)
        if table in _KEPT:
            db.register("found", found[table])
            db.execute(_AGAIN.format(table=table, columns=", ".join(found[table].column_names)))
            rows[table] = db.sql(_ANEW).to_arrow_table()
            query = f"FROM ({query}) ANTI JOIN again USING (record_l, record_r)"
        gone[table] = db.sql(query).to_arrow_table()
    return rows, gone

"""From clusters to customer ids that stay: who is whom, and since when we know it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import TYPE_CHECKING

from cdp_ml.contracts import arrow_schema
from cdp_ml.engine import lend, private_connection

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Table

_HELD = """
CREATE VIEW held AS
SELECT source, source_record_id, customer_id FROM previous WHERE valid_to IS NULL
"""
_PAST = """
CREATE TABLE past AS FROM previous SEMI JOIN clusters USING (source, source_record_id)
"""
# `place`: of two records the earlier stays so, whatever others there are.
_MEMBERS = """
CREATE TABLE members AS
SELECT m.*, p.customer_id AS before, p.confidence AS confidence_before,
    p.valid_from AS valid_from_before
FROM (SELECT *, row_number() OVER () AS place FROM clusters) m
LEFT JOIN (FROM past WHERE valid_to IS NULL) p USING (source, source_record_id)
"""
# `since` and `first` belong to one record, and a record to one overlap: the order is total.
_OVERLAPS = """
CREATE TABLE common AS
SELECT cluster, before AS customer_id, count(*) AS records, min(ingested_at) AS since,
    min(place) AS first
FROM members WHERE before IS NOT NULL GROUP BY ALL
"""
_KEEP = """
INSERT INTO assigned
SELECT cluster, customer_id, false FROM (
    SELECT *,
        row_number() OVER (PARTITION BY cluster ORDER BY records DESC, since, first) AS of_cluster,
        row_number() OVER (PARTITION BY customer_id ORDER BY records DESC, since, first) AS of_id
    FROM common
    WHERE cluster NOT IN (SELECT cluster FROM assigned)
      AND customer_id NOT IN (SELECT customer_id FROM assigned)
) WHERE of_cluster = 1 AND of_id = 1
"""
# Who bore an id that nobody bears any more gets it back: a merge that was undone.
_RESTORE = """
INSERT INTO assigned
WITH borne AS (
    SELECT cluster, customer_id, place, ingested_at, valid_to
    FROM (FROM members ANTI JOIN assigned USING (cluster))
    JOIN past USING (source, source_record_id)
), free AS (
    SELECT * FROM borne ANTI JOIN assigned USING (customer_id)
    ANTI JOIN (FROM held SEMI JOIN borne USING (customer_id)) USING (customer_id)
)
SELECT cluster, customer_id, false FROM (
    SELECT *,
        row_number() OVER (PARTITION BY cluster ORDER BY records DESC, until DESC, customer_id)
            AS of_cluster,
        row_number() OVER (PARTITION BY customer_id ORDER BY records DESC, since, first) AS of_id
    FROM (
        SELECT cluster, customer_id, count(DISTINCT place) AS records, max(valid_to) AS until,
            min(ingested_at) AS since, min(place) AS first
        FROM free GROUP BY ALL
    )
) WHERE of_cluster = 1 AND of_id = 1
"""
_NEW_IDS = """
INSERT INTO assigned
WITH proposed AS (
    SELECT cluster, 'c' || left(md5(first || $salt), 16) AS customer_id, first FROM (
        SELECT cluster, source || ':' || source_record_id AS first
        FROM members ANTI JOIN assigned USING (cluster)
        QUALIFY row_number() OVER (PARTITION BY cluster ORDER BY ingested_at, first) = 1
    )
), used AS (
    SELECT customer_id FROM previous SEMI JOIN proposed USING (customer_id)
    UNION SELECT customer_id FROM assigned
)
SELECT cluster, customer_id, true FROM proposed ANTI JOIN used USING (customer_id)
QUALIFY row_number() OVER (PARTITION BY customer_id ORDER BY first) = 1
"""
_LINKS = """
CREATE TABLE links AS
SELECT * EXCLUDE (cluster, place, fresh) FROM members JOIN assigned USING (cluster)
"""
# A link from this very instant was never seen: it is replaced, not closed.
_CHANGES = """
SELECT source, source_record_id, customer_id, confidence,
    CASE WHEN before IS NULL THEN ingested_at ELSE greatest(ingested_at, $known_at) END
        AS valid_from,
    NULL AS valid_to
FROM links WHERE before IS NULL OR before <> customer_id
UNION ALL
SELECT source, source_record_id, before, confidence_before, valid_from_before, $known_at
FROM links WHERE before <> customer_id AND valid_from_before < $known_at
UNION ALL
SELECT source, source_record_id, customer_id, confidence, valid_from_before, NULL
FROM links WHERE before = customer_id AND confidence <> confidence_before
ORDER BY source, source_record_id, valid_from
"""
_FORMER = """
SELECT source, source_record_id, valid_from_before AS valid_from
FROM links WHERE before <> customer_id OR confidence <> confidence_before
ORDER BY ALL
"""
# An id lives as long as a record is linked to it, be it one that its source no longer delivers.
_LOG = """
WITH moved AS (
    SELECT before, customer_id, count(*) AS records, min(source || ':' || source_record_id) AS first
    FROM links WHERE before <> customer_id GROUP BY ALL
), alive AS (
    SELECT customer_id FROM links WHERE customer_id IN (SELECT before FROM moved)
    UNION SELECT customer_id
    FROM (FROM held WHERE customer_id IN (SELECT before FROM moved))
    ANTI JOIN links USING (source, source_record_id)
), changes AS (
    SELECT 'created' AS event, customer_id, NULL AS into_customer_id,
        count(*) || ' new records' AS reason
    FROM links WHERE customer_id IN (SELECT customer_id FROM assigned WHERE fresh)
    GROUP BY customer_id HAVING count(before) = 0
    UNION ALL
    SELECT 'split', before, customer_id, records || ' records no longer match the others'
    FROM moved WHERE before IN (SELECT customer_id FROM alive)
    UNION ALL
    SELECT 'merged', before, customer_id, records || ' records match those of the survivor'
    FROM moved WHERE before NOT IN (SELECT customer_id FROM alive)
    QUALIFY row_number() OVER (PARTITION BY before ORDER BY records DESC, first) = 1
)
SELECT left(md5(concat_ws('|', event, customer_id, into_customer_id, $known_at::VARCHAR)), 16)
        AS event_id,
    event, customer_id, into_customer_id, reason, 'refresh' AS actor, $known_at AS event_timestamp
FROM changes ORDER BY event, customer_id, into_customer_id
"""


@dataclass(frozen=True)
class Assignment:
    """What changes in the tables.

    Attributes:
        links: rows of `crosswalk` that are new or changed: new records are linked since they were
            ingested, changed links are closed and opened at the run's instant.
        former: keys of the rows of `crosswalk` that these replace, or that were never seen: links
            from this very instant.
        log: rows to append to `identity_log`: `created`; `merged`, the retired id with its
            survivor; `split`, an id that lives on with the one that a part went to.
        moved: records whose customer id changed.
    """

    links: pa.Table
    former: pa.Table
    log: pa.Table
    moved: int


def assign_customer_ids(
    clusters: pa.Table, previous: Table | pa.Table, known_at: datetime, con: SQLBackend
) -> Assignment:
    """Give every cluster a customer id, the one that most of its records had before.

    Clusters and former ids choose each other by the number of records they share, the greatest
    first; of equal ones, that of the record known longest. What remains gets back an id that its
    records bore and nobody bears any more (a merge was undone), or a new one: a hash of its
    earliest record's key, never one that was used before. Nothing is random, so a rerun after
    a crash ends in the same state, and a rerun on the same data changes nothing. Links of records
    that are not among the clusters stay as they are.

    Args:
        clusters: source, source_record_id, cluster, confidence, ingested_at, as of
            `cdp_ml.identity.linkage.link`.
        previous: table `crosswalk`, its whole history; empty at first.
        known_at: when this run learns of the clusters, UTC.
        con: the engine of the tables.
    """
    db = private_connection(con)
    db.register("clusters", clusters)
    lend(previous, "previous", con, db)
    for statement in (_HELD, _PAST, _MEMBERS, _OVERLAPS):
        db.execute(statement)
    db.execute("CREATE TABLE assigned (cluster BIGINT, customer_id VARCHAR, fresh BOOLEAN)")
    for former in (_KEEP, _RESTORE):
        while _grows(db, former, {}):
            pass
    for salt in count():
        _grows(db, _NEW_IDS, {"salt": f"#{salt}" if salt else ""})
        if _is_complete(db):
            break
    db.execute(_LINKS)
    moved = db.execute("SELECT count(*) FROM links WHERE before <> customer_id").fetchall()[0][0]
    return Assignment(
        links=_asked(db, "crosswalk", _CHANGES, known_at),
        former=db.sql(_FORMER).to_arrow_table(),
        log=_asked(db, "identity_log", _LOG, known_at),
        moved=moved,
    )


def _grows(db: DuckDBPyConnection, insert: str, parameters: dict[str, str]) -> bool:
    """Insert; whether there was something to insert."""
    return bool(db.execute(insert, parameters or None).fetchall()[0][0])


def _is_complete(db: DuckDBPyConnection) -> bool:
    asked = "SELECT (SELECT count(*) FROM assigned) = (SELECT count(DISTINCT cluster) FROM members)"
    return bool(db.execute(asked).fetchall()[0][0])


def _asked(db: DuckDBPyConnection, table: str, query: str, known_at: datetime) -> pa.Table:
    schema = arrow_schema(table)
    rows = db.sql(query, params={"known_at": known_at}).to_arrow_table()
    return rows.select(schema.names).cast(schema)

"""The records as they are compared.

They are numbered, without contacts that identify nobody, and with what the model knows of their
values: aliases of a given name, how frequent a value is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from cdp_ml.identity.model import Model

FIELDS = ("given_name", "surname", "email", "phone", "birth_date", "street", "postcode", "city")
NOBODY = 20
"""An e-mail or phone number on more records than this identifies nobody: info@…, 000000."""
CANDIDATES = """(FROM nodes WHERE unique_id IN
    (SELECT join_key_l FROM candidates UNION SELECT join_key_r FROM candidates))"""
"""SQL: the nodes that occur in table `candidates`."""
COMMON_NAME = 0.001
"""A given name that this share of the records bears, and at least `COMMON_BEARERS` of them, is no
misspelling of another."""
COMMON_BEARERS = 5
LEAST_RECORDS_FOR_TERMS = 200
"""Among fewer records the frequency of a name says nothing about how common it is."""

_KEYED = """
SELECT source || ':' || source_record_id AS record, source, source_record_id, ingested_at, {fields}
FROM records
"""
_SHARED = """
CREATE TABLE shared_{0} AS
SELECT {0} FROM records WHERE {0} <> '' GROUP BY 1 HAVING count(*) > {1}
"""
# Numbered by a narrow sort: the columns of a million records would cost ten times as much.
_NUMBERED = """
CREATE TABLE numbered AS
SELECT rowid AS row, (row_number() OVER (ORDER BY key, record) - 1)::BIGINT AS unique_id
FROM (SELECT rowid, hash(record) AS key, record FROM keyed)
"""
_NODES = """
SELECT *, {fingerprint} AS fingerprint
FROM (
    SELECT k.* EXCLUDE (email, phone),
        CASE WHEN e.email IS NULL THEN k.email END AS email,
        CASE WHEN p.phone IS NULL THEN k.phone END AS phone
    FROM {keyed} k
    LEFT JOIN shared_email e USING (email) LEFT JOIN shared_phone p USING (phone)
)
"""
# In the order in which `number_records` would number them. Of 10 million records two get the same
# number in one case of 200,000.
NUMBER = "(hash({}) >> 1)::BIGINT"
# Two given names are aliases if people of one surname and birth date, or one e-mail, bear them
# more often than chance pairs of differing names would: pointwise mutual information.
_ALIASES = """
WITH same AS (
    SELECT given_name, hash(surname, birth_date) AS who FROM nodes
    WHERE surname IS NOT NULL AND birth_date IS NOT NULL
    UNION SELECT given_name, hash(email) FROM nodes WHERE email IS NOT NULL
), known AS (
    SELECT * FROM same WHERE given_name IS NOT NULL
    QUALIFY count(*) OVER (PARTITION BY who) BETWEEN 2 AND 6
), pairs AS (
    SELECT l.given_name AS one, r.given_name AS other, count(*) AS seen
    FROM known l JOIN known r ON l.who = r.who AND l.given_name <> r.given_name GROUP BY ALL
), rated AS (
    SELECT one, other, seen, seen * sum(seen) OVER ()
        / (sum(seen) OVER (PARTITION BY one) * sum(seen) OVER (PARTITION BY other)) AS lift
    FROM pairs
)
SELECT one AS given_name, list(other ORDER BY other) AS aliases
FROM rated WHERE seen >= 3 AND lift >= 10 GROUP BY ALL ORDER BY ALL
"""
_TERMS = """
SELECT '{0}' AS field, hash({0}) AS term, count(*) / {1} AS tf
FROM nodes WHERE {0} IS NOT NULL GROUP BY ALL HAVING count(*) > 1
"""


def number_records(db: DuckDBPyConnection) -> dict[str, int]:
    """Make table `nodes` from `records`: one row each, numbered from 0 by their keys alone.

    The order of two records is the same whatever other records there are.

    Returns:
        By field, how many records have a value.
    """
    _list_shared(db)
    db.execute(f"CREATE TABLE keyed AS {_keyed()}")
    db.execute(_NUMBERED)
    keyed = "(SELECT unique_id, keyed.* FROM keyed JOIN numbered ON keyed.rowid = row)"
    db.execute(f"CREATE TABLE nodes AS {_nodes(keyed)}")
    db.execute("DROP TABLE keyed; DROP TABLE numbered; CREATE VIEW delivered AS FROM nodes")
    asked = ", ".join(f"count({f})" for f in FIELDS)
    counts = db.execute(f"SELECT {asked} FROM nodes").fetchall()[0]
    return dict(zip(FIELDS, counts, strict=True))


def view_records(db: DuckDBPyConnection) -> None:
    """Make view `delivered` of `records`, with the columns of `nodes`, to take some of them."""
    _list_shared(db)
    number = NUMBER.format("record")
    db.execute(f"CREATE VIEW keyed AS SELECT {number} AS unique_id, * FROM ({_keyed()})")
    db.execute(f"CREATE VIEW delivered AS {_nodes('keyed')}")


def take_nodes(db: DuckDBPyConnection, some: str) -> None:
    """Make table `nodes` of those in view `delivered` whose unique_id a table has."""
    db.execute(f"CREATE TABLE nodes AS {_nodes(f'(FROM keyed WHERE unique_id IN (FROM {some}))')}")


def _list_shared(db: DuckDBPyConnection) -> None:
    for contact in ("email", "phone"):
        db.execute(_SHARED.format(contact, NOBODY))


def _keyed() -> str:
    given = [f if f == "birth_date" else f"nullif({f}, '') AS {f}" for f in FIELDS]
    return _KEYED.format(fields=", ".join(given))


def _nodes(keyed: str) -> str:
    fingerprint = NUMBER.format(", ".join(("record", *FIELDS)))
    return _NODES.format(keyed=keyed, fingerprint=fingerprint)


def learn_aliases(db: DuckDBPyConnection) -> pa.Table:
    """Given names that one person bears: given_name, aliases."""
    return db.sql(_ALIASES).to_arrow_table()


def learn_terms(db: DuckDBPyConnection, filled: Mapping[str, int]) -> pa.Table:
    """How frequent each value is that occurs more than once: field, term (its hash), tf.

    Args:
        db: with table `nodes`.
        filled: the fields asked for, and how many records have a value.
    """
    nothing = "SELECT '' AS field, 0::UBIGINT AS term, 0::DOUBLE AS tf WHERE false"
    found = " UNION ALL ".join([nothing, *(_TERMS.format(f, n) for f, n in filled.items())])
    return db.sql(f"{found} ORDER BY ALL").to_arrow_table()


def make_people(db: DuckDBPyConnection, model: Model, nodes: str = "nodes") -> None:
    """Make table `people`: the nodes with `aliases` and, by field with term frequencies, `tf_`."""
    db.register("alias", model.aliases)
    db.register("terms", model.terms)
    tf, joins = _frequencies(model.rarest)
    db.execute(f"""
        CREATE OR REPLACE TABLE people AS
        SELECT n.* EXCLUDE (record, source, source_record_id, ingested_at, fingerprint),
            coalesce(a.aliases, []) AS aliases{tf}, {_common(model)} AS is_common{_names(model)}
        FROM {nodes} n LEFT JOIN alias a USING (given_name){joins}
    """)


def describe(
    node: Mapping[str, Any], aliases: Sequence[str], tf: Mapping[str, float], model: Model
) -> dict[str, Any]:
    """A row of table `people`, for who cannot wait for `make_people`.

    Args:
        node: unique_id and the fields.
        aliases: of the given name.
        tf: by field, how frequent the value is, if it is listed.
        model: knows how frequent values are that are not listed.
    """
    row = {**node, "aliases": list(aliases), "is_common": False}
    for field, once in model.rarest.items():
        row[f"tf_{field}"] = None if node[field] is None else tf.get(field, once)
    if "given_name" in model.rarest and node["given_name"] is not None:
        row["is_common"] = row["tf_given_name"] >= _common_from(model)
    if _names(model) and node["given_name"] is not None and node["surname"] is not None:
        row["names"] = f"{node['given_name']} {node['surname']}"
        row["tf_names"] = row["tf_given_name"] * row["tf_surname"]
    return row


def _common(model: Model) -> str:
    """SQL: whether many bear the given name, so that it is nobody's misspelling."""
    if "given_name" not in model.rarest:
        return "false"
    return f"coalesce(tf_given_name >= {_common_from(model)}, false)"


def _common_from(model: Model) -> float:
    return max(COMMON_NAME, COMMON_BEARERS * model.rarest["given_name"])


def _names(model: Model) -> str:
    """SQL: both names together and how frequent that is, for names in each other's field."""
    if not {"given_name", "surname"} <= set(model.rarest):
        return ""
    return ", given_name || ' ' || surname AS names, tf_given_name * tf_surname AS tf_names"


def _frequencies(rarest: Mapping[str, float]) -> tuple[str, str]:
    """SQL: columns and joins that look up how frequent the values are; once if not listed."""
    columns, joins = "", ""
    for f, once in rarest.items():
        columns += f", CASE WHEN n.{f} IS NOT NULL THEN coalesce(t_{f}.tf, {once!r}) END AS tf_{f}"
        listed = f"(SELECT term, tf FROM terms WHERE field = '{f}')"
        joins += f" LEFT JOIN {listed} t_{f} ON t_{f}.term = hash(n.{f})"
    return columns, joins


def with_terms(filled: Mapping[str, int], fields: Sequence[str], records: int) -> dict[str, int]:
    """The fields whose values are frequent or rare in a way that says something."""
    many = records >= LEAST_RECORDS_FOR_TERMS
    return {f: filled[f] for f in fields if many and filled[f]}


def count_rows(db: DuckDBPyConnection, table: str) -> int:
    """How many rows a table has."""
    return int(db.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])

"""Which pairs are compared: those that share a block, of blocks that are worth their pairs.

A rule such as `surname, year(birth_date)` puts records into blocks. Small blocks hold many matches
for their pairs, large ones few (block purging: Papadakis et al., 2016), and where to stop depends
on the data: sampled pairs tell, for each rule and size of block, what share of the pairs that no
better rule brings would match. The budget of pairs is spent where that share is greatest.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cdp_ml.errors import LinkageError, nearest
from cdp_ml.identity.model import Block
from cdp_ml.identity.people import FIELDS, count_rows

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

Rules = Mapping[str, tuple[str, ...]]
"""By rule, its SQL expressions."""

SIZES = (5, 10, 20, 50)
"""Block sizes (records) among which the limit of a rule is chosen."""
SAMPLED_RECORDS = 2_000
LEAST_YIELD = 0.0005
"""Blocks with fewer matches for their pairs than this are left out, whatever the budget."""


def usable_rules(rules: Sequence[str], filled: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """The rules whose columns have values: their text and their expressions.

    Raises:
        LinkageError: if a rule is not SQL or names an unknown column.
    """
    parsed = {rule: expressions(rule) for rule in rules}
    return {
        rule: tuple(e for e, _ in parts)
        for rule, parts in parsed.items()
        if all(filled[c] >= 2 for _, columns in parts for c in columns)
    }


def expressions(rule: str) -> list[tuple[str, set[str]]]:
    """The comma-separated SQL expressions of a rule and the columns that each names.

    Raises:
        LinkageError: if it is not SQL or names an unknown column.
    """
    import sqlglot
    from sqlglot import exp

    where = f"models/identity.yaml: rule '{rule}'"
    try:
        parsed = sqlglot.parse_one(f"SELECT {rule}", dialect="duckdb").expressions
    except sqlglot.errors.SqlglotError:
        raise LinkageError(f"{where}: not a list of SQL expressions on a record") from None
    found = [(e.sql("duckdb"), {c.name for c in e.find_all(exp.Column)}) for e in parsed]
    for name in {c for _, columns in found for c in columns} - set(FIELDS):
        raise LinkageError(f"{where}: no field '{name}'; {nearest(name, FIELDS)}")
    return found


def sample_pairs(db: DuckDBPyConnection, rules: Rules) -> float:
    """Make table `candidates` of the pairs in which a sample of the records would be compared.

    Table `brought` tells which rules bring each pair, and in blocks of which size; `blocked` the
    keys of all records by all rules.

    Returns:
        The share of all pairs that the sample has.
    """
    records = count_rows(db, "nodes")
    share = min(1.0, SAMPLED_RECORDS / max(records, 1))
    keys = ", ".join(f"{_key(e)} AS key_{i}" for i, e in enumerate(rules.values()))
    db.execute(f"CREATE OR REPLACE TABLE blocked AS SELECT unique_id, {keys} FROM nodes")
    chosen = f"hash(unique_id) % 1000000 < {int(share * 1_000_000)}"
    db.execute(f"CREATE OR REPLACE TABLE sampled AS SELECT * FROM blocked WHERE {chosen}")
    found = " UNION ALL ".join(_sampled(i) for i in range(len(rules)))
    db.execute(f"CREATE OR REPLACE TABLE brought AS SELECT DISTINCT * FROM ({found})")
    db.execute("CREATE OR REPLACE TABLE candidates AS "
               "SELECT DISTINCT join_key_l, join_key_r, '0' AS match_key FROM brought")  # fmt: skip
    db.execute("DROP TABLE sampled")
    return 1 - (1 - share) ** 2


def _sampled(rule: int) -> str:
    key = f"key_{rule}"
    return f"""
        SELECT least(s.unique_id, r.unique_id) AS join_key_l, {rule} AS rule, size,
            greatest(s.unique_id, r.unique_id) AS join_key_r
        FROM sampled s JOIN (
            SELECT {key}, count(*)::INTEGER AS size FROM blocked
            WHERE {key} IN (SELECT {key} FROM sampled)
            GROUP BY 1 HAVING count(*) BETWEEN 2 AND {SIZES[-1]}
        ) USING ({key}) JOIN blocked r USING ({key}) WHERE s.unique_id <> r.unique_id
    """


def choose_blocks(
    db: DuckDBPyConnection, rules: Rules, share: float, budget: float
) -> tuple[Block, ...]:
    """The rules worth their pairs, the best first, with the size of block up to which they are.

    Args:
        db: with table `brought` of `sample_pairs`, and table `weighed` of its pairs: join_key_l,
            join_key_r, probability.
        rules: the rules that were sampled.
        share: what share of all pairs the sample has.
        budget: pairs that may be compared.
    """
    ranked = """
        WITH pairs AS (SELECT * FROM brought JOIN weighed USING (join_key_l, join_key_r)),
        ranks AS (
            SELECT rule, row_number() OVER (ORDER BY round(avg(probability), 6) DESC, rule) AS place
            FROM pairs GROUP BY rule
        ), own AS (
            SELECT min(place) AS place, arg_min(size, place) AS size, any_value(probability) AS p
            FROM pairs JOIN ranks USING (rule) GROUP BY join_key_l, join_key_r
        )
    """
    steps = " ".join(f"WHEN size <= {s} THEN {s}" for s in SIZES)
    found = db.execute(f"""{ranked}
        SELECT place, CASE {steps} END AS size, count(*) / {share} AS pairs, avg(p) AS matches
        FROM own GROUP BY ALL ORDER BY round(matches, 6) DESC, place, size
    """).fetchall()
    order = [r for (r,) in db.execute(f"{ranked} SELECT rule FROM ranks ORDER BY place").fetchall()]
    spent, limits = 0.0, dict.fromkeys(order, 0)
    for place, size, pairs, matches in found:
        spent += pairs
        if spent > budget or matches < LEAST_YIELD:
            break
        limits[order[place - 1]] = max(limits[order[place - 1]], size)
    # Of rules that bring no pair now, later records may have need.
    limits |= {i: SIZES[0] for i in range(len(rules)) if i not in limits}
    chosen = [i for i, limit in limits.items() if limit]
    log.info("identity: %d of %d blocking rules are worth their pairs", len(chosen), len(rules))
    texts, keys = list(rules), list(rules.values())
    return tuple(Block(texts[i], keys[i], limits[i]) for i in chosen)


def find_large_blocks(db: DuckDBPyConnection, blocks: Sequence[Block], rules: Rules) -> pa.Table:
    """The blocks that are left out: block (number of its rule), key (hash).

    Args:
        db: with table `blocked` of `sample_pairs`.
        blocks: the rules that were chosen.
        rules: the rules that were sampled.
    """
    place = {rule: i for i, rule in enumerate(rules)}
    nothing = "SELECT 0 AS block, 0::UBIGINT AS key WHERE false"
    found = [
        f"SELECT {i} AS block, key_{place[b.rule]} AS key FROM blocked "
        f"WHERE key IS NOT NULL GROUP BY ALL HAVING count(*) > {b.limit}"
        for i, b in enumerate(blocks)
    ]
    return db.sql(f"{' UNION ALL '.join([nothing, *found])} ORDER BY ALL").to_arrow_table()


def make_blocks(db: DuckDBPyConnection, blocks: Sequence[Block], large: pa.Table) -> None:
    """Make table `blocks` of the `nodes`: unique_id and, by rule, `key_0`…: null if left out."""
    db.register("large", large)
    db.execute(f"CREATE TABLE blocks AS {_without_large(blocks, all_keys(blocks, 'nodes'))}")


def make_prints(db: DuckDBPyConnection, blocks: Sequence[Block], large: pa.Table) -> None:
    """Make table `prints` of all records in one pass: unique_id, fingerprint and `all_keys`."""
    db.register("large", large)
    keys = all_keys(blocks, "delivered", "unique_id, fingerprint")
    db.execute(f"CREATE TABLE prints AS {keys}")


def take_blocks(db: DuckDBPyConnection, blocks: Sequence[Block], some: str) -> None:
    """Make table `blocks` as `make_blocks` does, of some of the records in table `prints`.

    Args:
        db: the database.
        blocks: the rules of the model.
        some: what follows FROM prints.
    """
    keys = f"SELECT * EXCLUDE (fingerprint) FROM prints {some}"
    db.execute(f"CREATE OR REPLACE TABLE blocks AS {_without_large(blocks, keys)}")


def add_neighbors(db: DuckDBPyConnection, blocks: Sequence[Block]) -> None:
    """Add the other records that share a block with one in table `blocks`."""
    keys = (f"key_{i}" for i in range(len(blocks)))
    shared = " OR ".join(f"{k} IN (SELECT {k} FROM blocks WHERE {k} IS NOT NULL)" for k in keys)
    db.execute(f"""
        INSERT INTO blocks SELECT * EXCLUDE (fingerprint) FROM prints
        ANTI JOIN blocks USING (unique_id) WHERE {shared}
    """)


def _without_large(blocks: Sequence[Block], keys: str) -> str:
    """SQL: keys, null for the blocks in table `large`."""
    kept = ", ".join(
        f"CASE WHEN key_{i} NOT IN (SELECT key FROM large WHERE block = {i}) THEN key_{i} END"
        f" AS key_{i}"
        for i in range(len(blocks))
    )
    return f"SELECT * REPLACE ({kept}) FROM ({keys})" if blocks else keys


def all_keys(blocks: Sequence[Block], nodes: str, columns: str = "unique_id") -> str:
    """SQL: columns and the keys of all blocks of each node, also of those that are left out."""
    hashed = "".join(f", {_key(b.keys)} AS key_{i}" for i, b in enumerate(blocks))
    return f"SELECT {columns}{hashed} FROM {nodes}"


def begin(db: DuckDBPyConnection) -> None:
    """Make table `candidates`, empty: join_key_l < join_key_r, match_key."""
    db.execute("CREATE OR REPLACE TABLE candidates "
               "(join_key_l BIGINT, join_key_r BIGINT, match_key VARCHAR)")  # fmt: skip


def pair_up(db: DuckDBPyConnection, blocks: Sequence[Block], most: int, among: str = "") -> None:
    """Make table `candidates` of the pairs, each by the first rule that it shares.

    What an identifier joins for certain is weighed as well, that its edge tells what else agrees.

    Args:
        db: with tables `blocks` and `certain`.
        blocks: the rules of the model.
        most: pairs a rule may make.
        among: a table of unique_id; only pairs with one of these. All pairs if empty.

    Raises:
        LinkageError: if a rule would make more than `most` pairs; none is made then.
    """
    begin(db)
    left = f"(SELECT * FROM blocks SEMI JOIN {among} USING (unique_id))" if among else "blocks"
    # Of two changed records each finds the other: once is enough.
    once = f"(l.unique_id < r.unique_id OR r.unique_id NOT IN (SELECT unique_id FROM {among}))"
    for i, block in enumerate(blocks):
        _check_pairs(db, block.rule, f"key_{i}", left, most)
        earlier = "".join(f" AND NOT coalesce(l.key_{j} = r.key_{j}, false)" for j in range(i))
        db.execute(f"""
            INSERT INTO candidates
            SELECT least(l.unique_id, r.unique_id), greatest(l.unique_id, r.unique_id), '{i}'
            FROM {left} l JOIN blocks r ON l.key_{i} = r.key_{i} AND l.unique_id <> r.unique_id
                AND {once if among else "l.unique_id < r.unique_id"}{earlier}
        """)
    known = f"(SELECT unique_id FROM {among or 'blocks'})"
    db.execute(f"""
        INSERT INTO candidates
        SELECT one, other, 'certain' FROM certain
        ANTI JOIN candidates ON one = join_key_l AND other = join_key_r
        WHERE one IN {known} {"OR" if among else "AND"} other IN {known}
    """)


def _check_pairs(db: DuckDBPyConnection, rule: str, key: str, left: str, most: int) -> None:
    """Count the pairs of a rule before they are made."""
    sizes = "SELECT {0} AS key, count(*) AS n FROM {1} WHERE {0} IS NOT NULL GROUP BY 1"
    met = (
        "blocks" if left == "blocks" else f"(FROM blocks WHERE {key} IN (SELECT {key} FROM {left}))"
    )
    found = db.execute(f"""
        SELECT coalesce(sum(l.n * (r.n - 1)), 0) FROM ({sizes.format(key, left)}) l
        JOIN ({sizes.format(key, met)}) r USING (key)
    """).fetchall()[0][0]
    pairs = int(found) // 2 if left == "blocks" else int(found)
    log.debug("identity: rule '%s' brings at most %d pairs", rule, pairs)
    if pairs > most:
        raise LinkageError(
            f"models/identity.yaml: blocking_rules: '{rule}' makes {pairs:,} pairs, more than "
            f"max_pairs ({most:,}); add a field to the rule or raise max_pairs"
        )


def _key(keys: Sequence[str]) -> str:
    """SQL: a number that records of one block share; null if one of the expressions has none."""
    known = " AND ".join(_is_known(k) for k in keys)
    return f"CASE WHEN {known} THEN hash({', '.join(keys)}) END"


def _is_known(key: str) -> str:
    """SQL: whether an expression has a value; a field has none or one that is not empty."""
    empty = "" if key in FIELDS else f" AND CAST(({key}) AS VARCHAR) <> ''"
    return f"({key}) IS NOT NULL{empty}"

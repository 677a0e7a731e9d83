"""Who might a person be: one record against all, in milliseconds, writing nothing.

The record is standardized, its blocks say with which records it is compared, and the weight of each
pair is that of the batch: the same SQL, planned once, reads what is asked now.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cdp_ml.config import IdentitySpec
from cdp_ml.contracts import PERSON_FIELDS
from cdp_ml.engine import lend, private_connection
from cdp_ml.errors import LinkageError, nearest
from cdp_ml.identity import blocking
from cdp_ml.identity.model import Model
from cdp_ml.identity.people import FIELDS, NOBODY, describe, make_people, number_records
from cdp_ml.identity.weighing import evidence, pattern, predict, weight

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Table

    Standardize = Callable[[pa.Table], pa.Table]

NUMBER = -1
"""The number of the record that is asked for: lesser than those of all records."""

# With the record that is asked for, the batch would find one bearer more.
_CROWDED = """
SELECT {0} FROM shared_{0}
UNION ALL SELECT {0} FROM nodes WHERE {0} IS NOT NULL GROUP BY 1 HAVING count(*) >= {1}
"""
_LINKS = """
SELECT source, source_record_id, customer_id FROM nodes
LEFT JOIN (FROM crosswalk WHERE valid_to IS NULL) USING (source, source_record_id)
ORDER BY unique_id
"""
_BLOCKS = """
SELECT key, unique_id::INTEGER AS row FROM (SELECT unique_id, unnest({keys}) AS key FROM blocks)
WHERE key IS NOT NULL ORDER BY key
"""
_TERMS = """
SELECT hash(field, term) AS key, (row_number() OVER () - 1)::INTEGER AS row
FROM terms ORDER BY key
"""
_WEIGHTS = """
SELECT unique_id_r AS row, weight AS match_weight, 1 / (1 + pow(2, -weight)) AS match_probability,
    {evidence} AS evidence
FROM (SELECT unique_id_r, {weight} AS weight, {pattern} AS pattern FROM {predicted})
"""


@dataclass(frozen=True)
class _Index:
    """Which rows have a key: `keys` ascending, the row of each beside it."""

    keys: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.int32]

    @classmethod
    def of(cls, db: DuckDBPyConnection, query: str) -> _Index:
        found = db.execute(query).fetchnumpy()
        return cls(found["key"], found["row"])

    def find(self, keys: Sequence[int | None]) -> npt.NDArray[np.int32]:
        """The rows with any of the keys, ascending."""
        import numpy as np

        sought = np.array([k for k in keys if k is not None], np.uint64)
        first, last = (self.keys.searchsorted(sought, side) for side in ("left", "right"))
        ranges = [self.rows[a:b] for a, b in zip(first, last, strict=True)]
        return np.unique(np.concatenate([self.rows[:0], *ranges]))


@dataclass
class _Given:
    """A table that may be exchanged: DuckDB asks for its content whenever a plan runs."""

    table: pa.Table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


@dataclass(frozen=True)
class _Base:
    """What there is: the records by number, as they are compared and as they are linked."""

    people: pa.Table
    links: pa.Table
    blocks: _Index
    terms: _Index
    aliases: Mapping[str, list[str]]
    crowded: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Resolver:
    """All records, ready to be compared with a new one. Threads may share it."""

    model: Model
    standardize: Standardize
    least: float
    base: _Base
    given: Mapping[str, _Given]
    plans: DuckDBPyConnection
    lock: threading.Lock = field(default_factory=threading.Lock)

    def resolve(
        self, person: Mapping[str, Any], least: float | None = None
    ) -> list[dict[str, Any]]:
        """Find the records that might be the person's.

        Args:
            person: person fields as a source would deliver them; those absent are unknown.
            least: the match probability that a candidate has at least; that of the review queue
                if None.

        Returns:
            `source`, `source_record_id`, `customer_id`, `match_weight` (bits),
            `match_probability` and `evidence` (the levels found) of each, the best first.

        Raises:
            LinkageError: if there is no such person field.
        """
        least = self.least if least is None else least
        with self.lock:
            asked = self._standardized(person)
            rows, described = self._candidates(asked)
            weighed = self._weighed(rows, described) if len(rows) else {}
        likely = {row: w for row, w in weighed.items() if w["match_probability"] >= least}
        links = self.base.links.take(list(likely)).to_pylist() if likely else []
        found = [{**link, **w} for link, w in zip(links, likely.values(), strict=True)]
        return sorted(found, key=lambda c: (-c["match_weight"], c["source"], c["source_record_id"]))

    def _standardized(self, person: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the person as they are compared."""
        import pyarrow as pa

        _check_fields(person)
        now = pa.array([datetime.now(UTC)], pa.timestamp("us", "UTC"))
        texts = {f: pa.array([_text(person.get(f))], pa.string()) for f in PERSON_FIELDS}
        key = dict.fromkeys(("source", "source_record_id"), pa.array([""]))
        times = dict.fromkeys(("event_timestamp", "ingested_at"), now)
        people = pa.table({**key, **texts, **times})
        (node,) = self.standardize(people).select(FIELDS).to_pylist()
        for contact, crowded in self.base.crowded.items():
            node[contact] = None if node[contact] in crowded else node[contact]
        return {"unique_id": NUMBER, **node}

    def _candidates(self, node: Mapping[str, Any]) -> tuple[npt.NDArray[np.int32], pa.Table]:
        """The numbers of the records that share a block with a node, and the node as compared."""
        import pyarrow as pa

        schema = self.base.people.schema
        self.given["asked"].table = pa.Table.from_pylist([node], self.given["asked"].table.schema)
        ((blocks, terms),) = self.plans.execute("EXECUTE keys").fetchall()
        listed = self.model.terms.take(self.base.terms.find(terms)).to_pydict()
        frequencies = dict(zip(listed["field"], listed["tf"], strict=True))
        aliases = self.base.aliases.get(node["given_name"], [])
        described = describe(node, aliases, frequencies, self.model)
        return self.base.blocks.find(blocks), pa.Table.from_pylist([described], schema)

    def _weighed(
        self, rows: npt.NDArray[np.int32], described: pa.Table
    ) -> dict[int, dict[str, Any]]:
        """By row, what speaks for a node's being one with that record."""
        import pyarrow as pa

        self.given["people"].table = pa.concat_tables([described, self.base.people.take(rows)])
        self.given["candidates"].table = _pairs(rows)
        found = self.plans.execute("EXECUTE weights")
        names = [column[0] for column in found.description[1:]]
        return {row: dict(zip(names, said, strict=True)) for row, *said in found.fetchall()}


def open_resolver(
    records: Table | pa.Table,
    crosswalk: Table | pa.Table,
    model: Model,
    spec: IdentitySpec,
    standardize: Standardize,
    con: SQLBackend,
) -> Resolver:
    """Hold in memory what it takes to resolve.

    Args:
        records: table `records`.
        crosswalk: table `crosswalk`.
        model: the trained linkage model.
        spec: its `review` is the probability that a candidate has at least.
        standardize: brings person records as delivered into the contract of `records`, as those
            of the base were; called by one thread at a time.
        con: the engine of the tables; the resolver is independent of it afterwards.
    """
    base = _base(records, crosswalk, model, con)
    given, plans = _plans(base, model, con)
    return Resolver(model, standardize, spec.review, base, given, plans)


def _base(
    records: Table | pa.Table, crosswalk: Table | pa.Table, model: Model, con: SQLBackend
) -> _Base:
    db = private_connection(con)
    keys = ("source", "source_record_id")
    lend(records.select([*keys, "ingested_at", *FIELDS]), "records", con, db)
    links = crosswalk.select([*keys, "customer_id", "valid_to"])
    lend(links, "crosswalk", con, db)
    number_records(db)
    blocking.make_blocks(db, model.blocks, model.large_blocks)
    make_people(db, model)
    return _Base(
        people=db.sql("FROM people ORDER BY unique_id").to_arrow_table().combine_chunks(),
        links=db.sql(_LINKS).to_arrow_table().combine_chunks(),
        blocks=_Index.of(db, _BLOCKS.format(keys=_block_keys(model))),
        terms=_Index.of(db, _TERMS),
        aliases={a["given_name"]: a["aliases"] for a in model.aliases.to_pylist()},
        crowded={contact: _crowded(db, contact) for contact in ("email", "phone")},
    )


def _plans(
    base: _Base, model: Model, con: SQLBackend
) -> tuple[Mapping[str, _Given], DuckDBPyConnection]:
    """Prepare `keys` and `weights`, which read the tables that are given at each request."""
    db = private_connection(con)
    given = {
        "asked": _Given(base.people.select(["unique_id", *FIELDS]).slice(0, 0)),
        "people": _Given(base.people.slice(0, 0)),
        "candidates": _Given(_pairs(base.blocks.rows[:0])),
    }
    for name, table in given.items():
        db.register(name, table)
    # To optimize a plan for a few pairs takes longer than to run it.
    db.execute("SET threads = 1; PRAGMA disable_optimizer")
    blocks = blocking.all_keys(model.blocks, "asked")  # the index has no large ones
    db.execute(f"PREPARE keys AS SELECT {_block_keys(model)}, {_term_keys(model)} "
               f"FROM ({blocks}) JOIN asked USING (unique_id)")  # fmt: skip
    said = {"evidence": evidence(model), "weight": weight(model), "pattern": pattern(model)}
    db.execute(f"PREPARE weights AS {_WEIGHTS.format(**said, predicted=predict(db, model))}")
    return given, db


def _block_keys(model: Model) -> str:
    """SQL: a list of the keys of a record's blocks, each unlike those of other rules."""
    keys = (f"key_{i}" for i in range(len(model.blocks)))
    return _list(f"CASE WHEN {k} IS NOT NULL THEN hash({i}, {k}) END" for i, k in enumerate(keys))


def _term_keys(model: Model) -> str:
    """SQL: a list of the keys of a record's values among the model's terms."""
    return _list(f"CASE WHEN {f} IS NOT NULL THEN hash('{f}', hash({f})) END" for f in model.rarest)


def _list(items: Any) -> str:
    return f"[{', '.join(items)}]::UBIGINT[]"


def _crowded(db: DuckDBPyConnection, contact: str) -> frozenset[str]:
    found = db.execute(_CROWDED.format(contact, NOBODY)).fetchall()
    return frozenset(value for (value,) in found)


def _pairs(rows: npt.NDArray[np.int32]) -> pa.Table:
    """Table `candidates` of the record asked for with these."""
    import numpy as np
    import pyarrow as pa

    return pa.table(
        {
            "join_key_l": np.full(len(rows), NUMBER, np.int64),
            "join_key_r": rows.astype(np.int64),
            "match_key": pa.array(["0"] * len(rows), pa.string()),
        }
    )


def _check_fields(person: Mapping[str, Any]) -> None:
    for name in set(person) - set(PERSON_FIELDS):
        raise LinkageError(f"no person field '{name}'; {nearest(name, PERSON_FIELDS)}")


def _text(value: object) -> str | None:
    return None if value is None else str(value)

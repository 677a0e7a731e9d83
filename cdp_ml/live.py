"""Features that change within a second of an event.

A pushed fact changes the traits of the customer who was behind its identifier. These are computed
anew, by the definitions and the code of the refresh, from all the customer's facts as of the
instant after the push, and written to the online store through Feast's push sources. What is served
is therefore what the refresh would compute for that instant, and facts that come late, twice or in
any order do no harm. Only the facts of the customers concerned are read, and the SQL is compiled
once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cdp_ml.as_of import check_zone
from cdp_ml.config import Settings
from cdp_ml.contracts import TRAIT_TABLES, arrow_schema, contract
from cdp_ml.engine import connect
from cdp_ml.errors import ConfigError
from cdp_ml.lake import Lake
from cdp_ml.workspace import TRAIT_INPUTS, Workspace, traits_as_of

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureStore
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Table, Value

FACTS = ("transactions", "events")
_THEN = datetime(2001, 2, 3, 4, 5, 6, 789123, tzinfo=UTC)
# Who a fact's identifier is known to be says the traits' own code; these are all whom it may be.
_CONCERNED = """
SELECT DISTINCT customer_id
FROM crosswalk JOIN identifiers USING (source, source_record_id)
SEMI JOIN pushed USING (identifier_type, identifier)
"""
_THEIRS = """
CREATE OR REPLACE TEMP TABLE theirs AS
SELECT DISTINCT identifier_type, identifier
FROM crosswalk JOIN identifiers USING (source, source_record_id)
WHERE customer_id IN (SELECT customer_id FROM {asked})
"""
_THEIR_FACTS = """
CREATE OR REPLACE TEMP TABLE live_{name} AS
SELECT * FROM (FROM base_{name} UNION ALL BY NAME FROM pending_{name})
SEMI JOIN theirs USING (identifier_type, identifier)
QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY ingested_at) = 1
"""


@dataclass(frozen=True)
class Live:
    """The facts of a run and those that were pushed since, and the online store they change."""

    store: FeatureStore
    con: SQLBackend
    plan: _Plan

    def push(self, facts: Mapping[str, pa.Table], as_of: datetime | None = None) -> list[str]:
        """Take facts in, and write the features of the customers concerned to the online store.

        Args:
            facts: rows of `events` and `transactions`, by name; those that are known already, by
                their key, are passed over.
            as_of: the instant as of which the features are computed, with a time zone; by default
                just after the newest fact was known.

        Returns:
            The customers whose features were written; facts of nobody known are kept until a
            refresh knows who that is.

        Raises:
            ConfigError: if there is no such table of facts, or `as_of` has no time zone.
            ContractError: if rows do not fit their contract.
        """
        rows = {name: _conforming(name, table) for name, table in facts.items()}
        if not any(table.num_rows for table in rows.values()):
            return []
        if as_of is not None:
            check_zone(as_of, "as_of")
        for name, table in rows.items():
            self.con.con.register("arriving", table)
            self.con.raw_sql(f"INSERT INTO pending_{name} BY NAME FROM arriving")
        customers = _concerned(self.con, rows)
        if customers:
            push_traits(self.store, self.plan.run(self.con, customers, as_of or _after(rows)))
        return customers


def push_traits(store: FeatureStore, traits: Mapping[str, pa.Table]) -> None:
    """Write rows of the traits' tables to the online store, through Feast's push sources."""
    for name, rows in traits.items():
        if rows.num_rows:
            store.push(f"{name}_push", rows.to_pandas())


def open_live(
    settings: Settings, store: FeatureStore, lake: Lake, until: datetime | None = None
) -> Live:
    """Open a run for facts that come after it.

    Args:
        settings: of the workspace.
        store: of `cdp_ml.feast_stores.open_store`, whose online store is written.
        lake: the tables of the run.
        until: leave out the facts that became known from this instant on.
    """
    con = connect(settings.engine.model_copy(update={"backend": "duckdb"}))
    tables = {name: _given(lake, con, name, until) for name in TRAIT_INPUTS}
    return Live(store, con, _Plan.of(con, tables, settings))


def _given(lake: Lake, con: SQLBackend, name: str, until: datetime | None) -> Table:
    """A table that traits are computed from; of facts, those of the customers asked for."""
    import ibis

    rows = lake.read(name, con)
    if name not in FACTS:
        return con.create_table(name, rows, temp=True)
    if until is not None:
        rows = rows.filter(_known_since(rows) < ibis.literal(until))
    con.create_view(f"base_{name}", rows)
    empty = arrow_schema(name).empty_table()
    con.create_table(f"pending_{name}", empty, temp=True)
    return con.create_table(f"live_{name}", empty, temp=True)


def _known_since(facts: Table) -> Value:
    import ibis

    return ibis.greatest(facts.event_timestamp, facts.ingested_at)


def _conforming(name: str, table: pa.Table) -> pa.Table:
    from cdp_ml.lake import conform

    if name not in FACTS:
        raise ConfigError(f"no facts '{name}'; push {' or '.join(FACTS)}")
    return conform(name, table)


def _concerned(con: SQLBackend, rows: Mapping[str, pa.Table]) -> list[str]:
    import pyarrow as pa

    keys = ["identifier_type", "identifier"]
    con.con.register("pushed", pa.concat_tables([t.select(keys) for t in rows.values()]))
    return sorted(c for (c,) in con.raw_sql(_CONCERNED).fetchall())


def _after(rows: Mapping[str, pa.Table]) -> datetime:
    """Just after the newest of the facts was known."""
    import pyarrow.compute as pc

    times = ("event_timestamp", "ingested_at")
    known = [pc.max(t[c]).as_py() for t in rows.values() if t.num_rows for c in times]
    newest: datetime = max(known)
    return newest + timedelta(microseconds=1)


# ---- online equals offline ----------------------------------------------------------------------


def check_features(
    workspace: Workspace, customers: int = 20, instants: int = 4, seed: int = 0
) -> dict[str, Any]:
    """Compare what is served with what is computed offline for the same instants.

    For a sample of customers: the published online store with the run's traits; and a store as of a
    past instant, into which the facts that followed are pushed, with the traits that one call
    computes for all instants.

    Args:
        workspace: a published one.
        customers: how many are sampled.
        instants: how many instants, at random in the last 30 days; at least 2.
        seed: of the samples.

    Returns:
        `customers`, `pushed` (facts) and `compared` (values), how many; `different`, up to ten:
        customer_id, feature, event_timestamp (the instant), online and offline.
    """
    ids, times = _sample(workspace, customers, instants, seed)
    differences, compared = _check_published(workspace, ids)
    pushed = 0
    with TemporaryDirectory() as folder:
        for facts, store, expected in _replay(workspace, ids, times, Path(folder) / "check.db"):
            pushed += facts
            found, values = _compare(store, ids, expected)
            differences, compared = differences + found, compared + values
    return {
        "customers": len(ids),
        "pushed": pushed,
        "compared": compared,
        "different": differences[:10],
    }


def _sample(
    workspace: Workspace, customers: int, instants: int, seed: int
) -> tuple[list[str], list[datetime]]:
    import numpy as np

    random = np.random.default_rng(seed)
    known = workspace.table("customers").customer_id.to_pyarrow().to_pylist()
    ids = random.choice(sorted(known), min(customers, len(known)), replace=False).tolist()
    seconds = np.sort(random.integers(1, 30 * 86400, max(instants, 2)))[::-1]
    return sorted(ids), [workspace.as_of - timedelta(seconds=int(s)) for s in seconds]


Rows = dict[str, dict[str, dict[str, Any]]]
"""By table of traits and customer, the row."""


def _check_published(workspace: Workspace, ids: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    from cdp_ml.feast_stores import open_store

    versions = workspace.lake.versions
    path = workspace.settings.online_store(versions["online_store"])
    store = open_store(workspace.settings, versions, path, workspace.as_of)
    rows = {}
    for name in TRAIT_TABLES:
        table = workspace.table(name)
        rows[name] = table.filter(
            table.event_timestamp == workspace.as_of, table.customer_id.isin(ids)
        ).to_pyarrow()
    return _compare(store, ids, _by_customer(rows))


def _replay(
    workspace: Workspace, ids: Sequence[str], times: Sequence[datetime], path: Path
) -> Iterator[tuple[int, FeatureStore, Rows]]:
    """Push the customers' facts as they came: how many, the store, and what it should hold."""
    from cdp_ml.feast_stores import apply, open_store

    settings, lake, con = workspace.settings, workspace.lake, workspace.con
    inputs = {name: lake.read(name, con) for name in TRAIT_INPUTS}
    first, *later = traits_as_of(con, inputs, settings.profiles, times, ids)
    store = open_store(settings, lake.versions, path, times[-1])
    apply(store)
    push_traits(store, first)
    expected = _by_customer(first)
    yield 0, store, expected
    live = open_live(settings, store, lake, times[0])
    for since, until, offline in zip(times, times[1:], later, strict=False):
        facts = {name: _facts_of(inputs, name, ids, since, until) for name in FACTS}
        changed = set(live.push(facts, until))
        for name, rows in _by_customer(offline).items():
            if name != "traits_profile":
                expected[name] |= {c: row for c, row in rows.items() if c in changed}
        yield sum(rows.num_rows for rows in facts.values()), store, expected


def _facts_of(
    inputs: Mapping[str, Table], name: str, ids: Sequence[str], since: datetime, until: datetime
) -> pa.Table:
    """The facts that became known between two instants, of who was ever one of the customers."""
    import ibis

    facts, links = inputs[name], inputs["crosswalk"]
    records = links.filter(links.customer_id.isin(ids))
    theirs = inputs["identifiers"].semi_join(records, ["source", "source_record_id"])
    known = _known_since(facts)
    arrived = facts.filter(known >= ibis.literal(since), known < ibis.literal(until))
    return arrived.semi_join(theirs, ["identifier_type", "identifier"]).to_pyarrow()


def _by_customer(tables: Mapping[str, pa.Table]) -> Rows:
    return {
        name: {row["customer_id"]: row for row in rows.to_pylist()} for name, rows in tables.items()
    }


def _compare(
    store: FeatureStore, ids: Sequence[str], expected: Rows
) -> tuple[list[dict[str, Any]], int]:
    """The values of the online store that are not those expected, and how many there are."""
    from cdp_ml.feast_stores import online_features

    served = {row["customer_id"]: row for row in online_features(store, "customer_traits", ids)}
    key = ("customer_id", "event_timestamp")
    values = [
        {
            "customer_id": customer,
            "feature": name,
            "event_timestamp": row["event_timestamp"],
            "online": served[customer][name],
            "offline": value,
        }
        for rows in expected.values()
        for customer, row in rows.items()
        for name, value in row.items()
        if name not in key
    ]
    return [v for v in values if not _same(v["online"], v["offline"])], len(values)


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)


# ---- the SQL of the traits, compiled once -------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """The SQL of `traits_as_of`, compiled once, for an instant that others are put in place of."""

    asked: str
    """The table of the customers that are asked for."""
    statements: tuple[str, ...]
    queries: Mapping[str, str]
    then: tuple[str, ...]
    """How they write that instant."""

    @classmethod
    def of(cls, con: SQLBackend, tables: Mapping[str, Table], settings: Settings) -> _Plan:
        from cdp_ml.traits import TRAITS

        recorder: Any = _Recorder(con)
        # Those of profiles change with records and time, not with events.
        wanted = [t for t in TRAITS if t.group != "profile"]
        nobody: list[str] = []
        (found,) = traits_as_of(recorder, tables, settings.profiles, [_THEN], nobody, wanted)
        (asked,) = recorder.given
        queries = dict(zip(found, recorder.queries, strict=True))
        return cls(asked, tuple(recorder.statements), queries, _spellings(con, _THEN))

    def run(
        self, con: SQLBackend, customers: Sequence[str], as_of: datetime
    ) -> dict[str, pa.Table]:
        """The traits of customers as of an instant, by table."""
        import pyarrow as pa

        asked = pa.table({"customer_id": pa.array(customers, pa.string())})
        con.create_table(self.asked, asked, temp=True, overwrite=True)
        con.raw_sql(_THEIRS.format(asked=self.asked))
        for name in FACTS:
            con.raw_sql(_THEIR_FACTS.format(name=name, key=", ".join(contract(name).key)))
        now = dict(zip(self.then, _spellings(con, as_of), strict=True))
        for statement in self.statements:
            con.raw_sql(_replaced(statement, now))
        return {
            name: con.con.sql(_replaced(query, now)).to_arrow_table()
            for name, query in self.queries.items()
        }


class _Recorder:
    """An engine that notes the SQL by which tables are made and rows are asked for."""

    def __init__(self, con: SQLBackend) -> None:
        self._con = con
        self.con = self
        self.given: list[str] = []
        self.statements: list[str] = []
        self.queries: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._con, name)

    def raw_sql(self, sql: str) -> Any:
        if sql.startswith("CREATE") and sql not in self.statements:
            self.statements.append(sql)
        return self._con.raw_sql(sql)

    def sql(self, sql: str) -> Any:
        self.queries.append(sql)
        return self._con.con.sql(sql)

    def create_table(self, name: str, table: Any, **options: Any) -> Any:
        import ibis

        if not isinstance(table, ibis.Table):
            self.given.append(name)
            return self._con.create_table(name, table, **options)
        self.raw_sql(f"CREATE OR REPLACE TEMP TABLE {name} AS {self._con.compile(table)}")
        return self._con.table(name)


def _spellings(con: SQLBackend, instant: datetime) -> tuple[str, str, str]:
    """How the compiled SQL writes an instant: as a literal, as text, and its day's number."""
    import ibis

    literal = str(con.compile(ibis.literal(instant).name("t")))
    day = int(instant.timestamp() // 86400)
    return (
        literal.partition("SELECT ")[2].rpartition(" AS ")[0],
        f"'{instant.isoformat()}'",
        f"'{day}'",
    )


def _replaced(sql: str, spellings: Mapping[str, str]) -> str:
    for then, now in spellings.items():
        sql = sql.replace(then, now)
    return sql

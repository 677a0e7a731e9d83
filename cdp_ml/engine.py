"""The engine that computes: an Ibis connection to DuckDB, embedded; Spark is to follow."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from cdp_ml.config import Engine
from cdp_ml.errors import ConfigError, nearest

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Scalar, Table, Value
    from sqlglot.expressions import Expression


def connect(engine: Engine) -> SQLBackend:
    """Open the engine, in UTC and within its limits.

    Raises:
        ConfigError: if Spark is asked for, or `memory_limit` is no amount.
    """
    import duckdb
    import ibis

    if engine.backend == "spark":
        raise ConfigError("engine.backend: 'spark' does not run a refresh yet; use 'duckdb'")
    # Ibis 12 calls a method that DuckDB 2.0 renames; once a library has asked to see such warnings
    # (Feast does), every user would.
    warnings.filterwarnings("ignore", "fetch_arrow_table", DeprecationWarning)
    try:
        con = ibis.duckdb.connect(threads=engine.threads, memory_limit=engine.memory_limit)
    except duckdb.ProgrammingError:
        raise ConfigError(
            f"engine.memory_limit: not an amount of memory: '{engine.memory_limit}'; "
            "write such as 2GB"
        ) from None
    con.raw_sql("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
    return con


def private_connection(con: SQLBackend) -> DuckDBPyConnection:
    """A DuckDB of its own within the engine's limits, whose tables and caches end with it."""
    import duckdb

    db = duckdb.connect()
    if con.name == "duckdb":
        names = ("threads", "memory_limit")
        asked = ", ".join(f"current_setting('{name}')" for name in names)
        limits = con.raw_sql(f"SELECT {asked}").fetchall()[0]
        for name, value in zip(names, limits, strict=True):
            db.execute(f"SET {name} = '{value}'")
    db.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
    return db


def hold(con: SQLBackend, name: str, table: Table | pa.Table) -> Table:
    """Compute a table once, for all who read it from now on under this name.

    Args:
        con: the engine.
        name: replaces what was held under it.
        table: an expression of the engine, or rows in memory.
    """
    import ibis

    if con.name == "duckdb":
        return con.create_table(name, table, temp=True, overwrite=True)
    if isinstance(table, ibis.Table):
        _hold_in_spark(con, name, str(con.compile(table)))
    else:
        con.raw_sql("SELECT 1").sparkSession.createDataFrame(table).createOrReplaceTempView(name)
    return con.table(name)


def _hold_in_spark(con: SQLBackend, name: str, sql: str) -> None:
    """Not as a cached view, which Spark would resolve anew, with all it reads, at each use."""
    con.raw_sql(sql).localCheckpoint().createOrReplaceTempView(name)


@contextmanager
def holding(con: SQLBackend, *names: str) -> Iterator[Callable[[str, Table | pa.Table], Table]]:
    """Hold tables until the end of the block, by the function that it gives: as `hold`, of `con`.

    Args:
        con: the engine.
        names: held otherwise, to be forgotten at the end as well.
    """
    held = list(names)

    def keep(name: str, table: Table | pa.Table) -> Table:
        held.append(name)
        return hold(con, name, table)

    try:
        yield keep
    finally:
        _forget(con, held)


def _forget(con: SQLBackend, names: Iterable[str]) -> None:
    for name in names:
        if con.name == "duckdb":
            con.raw_sql(f"DROP TABLE IF EXISTS temp.main.{name}")
        else:
            con.raw_sql(f"DROP VIEW IF EXISTS {name}")


def unix_micros(when: Value) -> Value:
    """The microseconds from 1970-01-01 UTC to a time.

    What Ibis offers takes DuckDB ten times as long, as it asks for the time of day somewhere first.
    SQLGlot, by which Ibis writes its SQL, knows this function of Spark's and DuckDB's name for it.
    """
    return _builtin_unix_micros()(when)


@cache
def _builtin_unix_micros() -> Callable[[Value], Value]:
    import ibis

    def unix_micros(when):  # type: ignore[no-untyped-def]
        ...

    types = ((ibis.dtype("timestamp('UTC', 6)"),), ibis.dtype("int64"))
    found: Callable[[Value], Value] = ibis.udf.scalar.builtin(unix_micros, signature=types)
    return found


def blank(name: str, type_: str) -> Scalar:
    """A place in an expression for a value that is only given when the `Compiled` one is run."""
    import ibis

    return ibis.literal(f"@{name}@").cast(type_)


class Compiled:
    """An expression compiled once, to be run with many values in its blanks.

    Ibis takes longer to compile a large expression than an engine to compute it from little data;
    and an engine plans better with values than with parameters.
    """

    def __init__(self, con: SQLBackend, table: Table) -> None:
        self._con, self._sql = con, str(con.compile(table))

    def hold(self, name: str, blanks: Mapping[str, str]) -> None:
        """As `hold`."""
        sql = self._filled(blanks)
        if self._con.name == "duckdb":
            self._con.raw_sql(f"CREATE OR REPLACE TEMP TABLE {name} AS {sql}")
        else:
            _hold_in_spark(self._con, name, sql)

    def rows(self, blanks: Mapping[str, str]) -> pa.Table:
        """The rows in memory."""
        if self._con.name == "duckdb":
            return self._con.con.sql(self._filled(blanks)).to_arrow_table()
        return self._con.raw_sql(self._filled(blanks)).toArrow()

    def _filled(self, blanks: Mapping[str, str]) -> str:
        sql = self._sql
        for name, value in blanks.items():
            sql = sql.replace(f"'@{name}@'", f"'{value}'")
        return sql


def to_arrow(table: Table | pa.Table, con: SQLBackend) -> pa.Table:
    """The rows in memory, be they there already or an expression of the engine."""
    import pyarrow as pa

    return table if isinstance(table, pa.Table) else con.to_pyarrow(table)


def lend(table: Table | pa.Table, name: str, con: SQLBackend, db: DuckDBPyConnection) -> None:
    """Make a table readable in a private database; what lies in files is read there, not copied.

    Args:
        table: an expression of the engine, or rows in memory.
        name: its name in the private database.
        con: the engine.
        db: of `private_connection`.
    """
    import pyarrow as pa

    if isinstance(table, pa.Table) or con.name != "duckdb":
        db.register(name, to_arrow(table, con))
        return
    sql, files = str(con.compile(table)), _views_of_files(con)
    reads = _tables_in(sql)
    if reads - files.keys():
        db.register(name, to_arrow(table, con))
        return
    for view in reads:
        db.execute(files[view].replace("CREATE TEMP VIEW", "CREATE OR REPLACE TEMP VIEW", 1))
    db.execute(f"CREATE VIEW {name} AS {sql}")


def _views_of_files(con: SQLBackend) -> dict[str, str]:
    """By name, the SQL of the engine's views that read nothing but Parquet files."""
    asked = "SELECT view_name, sql FROM duckdb_views() WHERE temporary AND NOT internal"
    views = dict(con.raw_sql(asked).fetchall())
    return {v: sql for v, sql in views.items() if " AS SELECT * FROM read_parquet(" in sql}


def _tables_in(sql: str) -> set[str]:
    import sqlglot
    from sqlglot import exp

    return {t.name for t in sqlglot.parse_one(sql, dialect="duckdb").find_all(exp.Table)}


def where(con: SQLBackend, table: Table, condition: str, origin: str, keep: Sequence[str]) -> Table:
    """Find the rows of `table` that satisfy an SQL condition written by a person.

    The condition is evaluated at once, so that whoever wrote it hears what is wrong with it.

    Args:
        con: the engine that the table belongs to.
        table: any columns.
        condition: SQL in DuckDB's dialect over these columns; translated for Spark.
        origin: where the condition is written, for the message.
        keep: the columns to return.

    Returns:
        A temporary table of these columns.

    Raises:
        ConfigError: if it is not SQL, names a column that the table does not have, or cannot be
            evaluated for some row.
    """
    from ibis.util import gen_name

    checked = check_condition(condition, table.columns, origin, dialect=con.name)
    source, satisfied, kept = (gen_name(n) for n in ("where_source", "where", "kept"))
    con.create_view(source, table)
    with _blaming(origin):
        # Ibis 12's Table.sql calls a method that DuckDB 2.0 no longer has; a view says the same.
        con.raw_sql(f"CREATE VIEW {satisfied} AS SELECT * FROM {source} WHERE {checked}")
        return con.create_table(kept, con.table(satisfied).select(*keep), temp=True)


@contextmanager
def _blaming(origin: str) -> Iterator[None]:
    """Say where the condition is written that the engine cannot evaluate, without any value."""
    import duckdb

    try:
        yield
    except duckdb.DataError:
        raise ConfigError(
            f"{origin}: cannot be evaluated for some rows; write a comparison, and "
            "TRY_CAST(column AS type) where types differ"
        ) from None
    except duckdb.ProgrammingError as error:
        problem = str(error).splitlines()[0].partition(": ")[2]
        raise ConfigError(f"{origin}: {problem}") from None


def check_condition(
    condition: str, columns: tuple[str, ...], origin: str, dialect: str = "duckdb"
) -> str:
    """Return the condition in the engine's SQL after checking its syntax and its column names.

    Raises:
        ConfigError: if it is not one SQL expression, or names a column that is not there.
    """
    dialect = {"pyspark": "spark"}.get(dialect, dialect)
    return str(_parsed(condition, columns, origin).sql(dialect=dialect))


def columns_of(condition: str, columns: tuple[str, ...], origin: str) -> list[str]:
    """The columns that a condition names; it is checked as by `check_condition`."""
    from sqlglot import exp

    parsed = _parsed(condition, columns, origin)
    named = {column.name.lower() for column in parsed.find_all(exp.Column)}
    return [column for column in columns if column.lower() in named]


def _parsed(condition: str, columns: tuple[str, ...], origin: str) -> Expression:
    import sqlglot
    from sqlglot import exp

    refusal = ConfigError(f"{origin}: not an SQL condition: {' '.join(condition.split())}")
    try:
        (parsed,) = sqlglot.parse(f"SELECT 1 WHERE {condition}", dialect="duckdb")
    except (sqlglot.errors.SqlglotError, ValueError):
        raise refusal from None
    clauses = {name for name, value in parsed.args.items() if value}
    if clauses - {"expressions", "where"} or len(list(parsed.find_all(exp.Query))) > 1:
        raise refusal
    known = {c.lower() for c in columns}
    for column in parsed.find_all(exp.Column):
        if column.name.lower() not in known:
            raise ConfigError(
                f"{origin}: no column '{column.name}'; {nearest(column.name, columns)}"
            )
    where: Expression = parsed.args["where"].this
    return where

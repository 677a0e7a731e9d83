"""Files and databases as delivered: every row with its file and position, text kept as text."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.config import Source
from cdp_ml.errors import ConfigError, ContractError, nearest

if TYPE_CHECKING:
    import pyarrow as pa
    from ibis.backends.sql import SQLBackend

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
FILE, POSITION, LINE = "__file", "__position", "__line"
TABLE = "__delivered"
FETCH_ROWS = 100_000


@dataclass(frozen=True)
class Delivery:
    """What a source delivered, as the temporary table `TABLE` of the engine.

    The table has the columns `__file`, `__position` (line of a text file, else row, from 1) and one
    for each field. `fields` maps these to their DuckDB types, `row` is SQL for a row as JSON, and
    `malformed` holds file, position, reason and row of what could not be split into fields.
    """

    fields: dict[str, str]
    row: str
    malformed: pa.Table


@dataclass(frozen=True)
class Place:
    """A file of a source, for messages: the source's name, the file and the name to show for it."""

    source: str
    path: Path
    shown: str

    def error(self, problem: str, line: int | None = None) -> ContractError:
        """The error to raise about this file."""
        where = self.shown if line is None else f"{self.shown}:{line}"
        return ContractError(f"source '{self.source}': {where}: {problem}")


def source_files(name: str, source: Source, home: Path) -> dict[str, str]:
    """What a source consists of, and a cheap fingerprint of each part.

    Args:
        name: the source's name, for messages.
        source: its declaration.
        home: the folder to which relative paths refer.

    Returns:
        For files: path (relative to `home` if declared so) to size and time of change. For a
        database table: its name to a hash of its URL without password, its row count, and for each
        column the number of values, the greatest one and the sum of their lengths; a correction
        that leaves all of these alike goes unnoticed.

    Raises:
        ConfigError: if nothing is there, or the database cannot be reached.
    """
    if source.is_database:
        return {str(source.table): _fingerprint_table(name, source, home)}
    places = find_files(name, source, home)
    stats = {place.shown: place.path.stat() for place in places}
    return {shown: f"{stat.st_size}-{stat.st_mtime_ns}" for shown, stat in stats.items()}


def find_files(name: str, source: Source, home: Path) -> list[Place]:
    """The files of a source in the order of their paths.

    Raises:
        ConfigError: if the path or glob matches none; the message names files nearby.
    """
    pattern = home / source.path
    found = [pattern] if pattern.exists() else [Path(p) for p in _expand(pattern)]
    files = [path for path in found if path.is_file()]
    if not files:
        raise _no_file(name, source, pattern)
    for path in files:
        if not os.access(path, os.R_OK):
            raise ConfigError(f"source '{name}': {path} cannot be read; ask for permission to it")
    relative = not Path(source.path).is_absolute()
    return [Place(name, p, os.path.relpath(p, home) if relative else str(p)) for p in files]


def _expand(pattern: Path) -> list[str]:
    return sorted(glob.glob(str(pattern), recursive=True))


def _no_file(name: str, source: Source, pattern: Path) -> ConfigError:
    if pattern.is_dir():
        return ConfigError(
            f"source '{name}': {source.path} is a folder; name its files, such as "
            f"{source.path.rstrip('/')}/*.csv"
        )
    folder = next(parent for parent in pattern.parents if parent.is_dir())
    there = sorted(path.name for path in folder.iterdir())[:20]
    missing = pattern.relative_to(folder).parts[0]
    return ConfigError(
        f"source '{name}': no file {pattern}; in {folder}: {nearest(missing, there)}; "
        f"correct sources.{name}.path in cdp.yaml or put the file there"
    )


@contextmanager
def delivered(name: str, source: Source, home: Path, con: SQLBackend) -> Iterator[Delivery]:
    """Read a source into the temporary table `TABLE`, which is dropped in the end.

    Raises:
        ConfigError: if it is not there or its format is not known.
        ContractError: if it is empty, damaged, not in the declared encoding or, unless its
            declaration says `malformed: quarantine`, has lines that cannot be split into fields.
    """
    try:
        yield _read(name, source, home, con.con)
    finally:
        con.con.execute(f"DROP TABLE IF EXISTS {TABLE}")


def _read(name: str, source: Source, home: Path, duck: Any) -> Delivery:
    kind = _format(name, source)
    if kind == "sql":
        return _store(duck, _read_table(name, source, home), _no_malformed())
    places = find_files(name, source, home)
    if kind == "parquet":
        return _read_parquet(places, duck)
    return (_read_csv if kind == "csv" else _read_jsonl)(places, source, duck)


def _format(name: str, source: Source) -> str:
    if source.is_database:
        return "sql"
    suffixes = [s for s in Path(source.path).suffixes if s != ".gz"]
    found = source.format or SUFFIXES.get(suffixes[-1].lower() if suffixes else "")
    if found is None or found == "sql":
        raise ConfigError(
            f"source '{name}': cannot tell the format of {source.path}; "
            "give format: csv, jsonl or parquet (a database has a URL as its path)"
        )
    return found


# ---- text files ----


def _read_csv(places: list[Place], source: Source, duck: Any) -> Delivery:
    parts = [_csv_file(place, source) for place in places]
    return _store(duck, _concat([rows for rows, _ in parts]), _concat([bad for _, bad in parts]))


def _csv_file(place: Place, source: Source) -> tuple[pa.Table, pa.Table]:
    names = _header(place, source)
    rows, bad = _parse_lines(place, source, names, source.delimiter, '"')
    if bad and source.malformed == "fail":
        line, row = bad[0]
        raise place.error(
            f"has {row.actual_columns} fields where the header has {len(names)}; mend the line, or "
            "declare 'malformed: quarantine' to set such lines aside",
            line,
        )
    reason = f"not {len(names)} fields"
    return rows, _rejected(place, [line for line, _ in bad], reason, [row.text for _, row in bad])


def _header(place: Place, source: Source) -> list[str]:
    try:
        with _open_text(place, source) as text:
            names = next(csv.reader(text, delimiter=source.delimiter), [])
    except UnicodeError:
        raise _encoding_error(place, source) or place.error("is damaged") from None
    if not names:
        raise place.error("is empty; it needs a header line and rows")
    lower = [name.lower() for name in names]
    for name in names:
        if lower.count(name.lower()) > 1:
            raise place.error(f"column '{name}' stands twice in the header", 1)
    return names


def _open_text(place: Place, source: Source) -> io.TextIOWrapper:
    import pyarrow as pa

    encoding = "utf-8-sig" if source.encoding.lower() in ("utf-8", "utf8") else source.encoding
    stream: Any = pa.input_stream(str(place.path), compression="detect")
    try:
        return io.TextIOWrapper(stream, encoding=encoding, newline="")
    except LookupError:
        raise ConfigError(
            f"source '{place.source}': no encoding '{source.encoding}'; "
            "try utf-8, latin-1, cp1252 or utf-16"
        ) from None


def _parse_lines(
    place: Place, source: Source, names: list[str], delimiter: str, quote: str | bool
) -> tuple[pa.Table, list[tuple[int, Any]]]:
    """The rows of a delimited file as text, with their lines; and the lines of another length.

    Lines without any value are no rows.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    bad: list[Any] = []

    def note(row: Any) -> str:
        bad.append(row)
        return "skip"

    has_header = quote is not False
    try:
        rows = arrow_csv.read_csv(
            pa.input_stream(str(place.path), compression="detect"),
            # One thread, because only then does the parser tell the number of a malformed row.
            read_options=arrow_csv.ReadOptions(
                use_threads=False,
                column_names=None if has_header else names,
                encoding=source.encoding,
                block_size=1 << 22,
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=delimiter,
                quote_char=quote,
                newlines_in_values=has_header,
                ignore_empty_lines=False,
                invalid_row_handler=note,
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    except (pa.ArrowInvalid, UnicodeError) as error:
        rows = _explain_csv(place, source, str(error), names)
    return _number_lines(place, source, rows, bad, first=2 if has_header else 1)


def _explain_csv(place: Place, source: Source, message: str, names: list[str]) -> pa.Table:
    """Raise what the parser's message means; a header without rows is an empty table."""
    import pyarrow as pa

    if "Empty CSV" in message:
        return pa.table({name: pa.array([], pa.string()) for name in names})
    if error := _encoding_error(place, source):
        raise error
    if "straddling" in message:
        raise place.error("a quote is opened and never closed", _last_row_line(place, source))
    raise place.error(f"cannot be read as CSV: {message.splitlines()[0]}")


def _number_lines(
    place: Place, source: Source, rows: pa.Table, bad: list[Any], first: int
) -> tuple[pa.Table, list[tuple[int, Any]]]:
    """Give each row the line on which it begins: line breaks inside quotes count too."""
    import numpy as np
    import pyarrow as pa

    # The parser counts rows from 1, the header among them.
    bad_rows = np.array([row.number for row in bad], dtype=np.int64) - first
    is_bad = np.zeros(rows.num_rows + len(bad), dtype=bool)
    is_bad[bad_rows] = True
    breaks = np.zeros(len(is_bad), dtype=np.int64)
    breaks[~is_bad] = _line_breaks(rows)
    breaks[is_bad] = [row.text.count("\n") for row in bad]
    lines = first + np.arange(len(is_bad)) + np.concatenate(([0], np.cumsum(breaks)[:-1]))
    if len(breaks) and breaks[-1] and _has_open_quote(place):
        raise place.error("a quote is opened and never closed", int(lines[-1]))
    numbered = rows.append_column(POSITION, pa.array(lines[~is_bad], pa.int64()))
    numbered = numbered.append_column(FILE, pa.array([place.shown] * rows.num_rows, pa.string()))
    return numbered.filter(_has_value(rows)), list(zip(lines[is_bad].tolist(), bad, strict=True))


def _line_breaks(rows: pa.Table) -> Any:
    import numpy as np
    import pyarrow.compute as pc

    total = np.zeros(rows.num_rows, dtype=np.int64)
    for column in rows.columns:
        total += pc.fill_null(pc.count_substring(column, "\n"), 0).to_numpy()
    return total


def _has_value(rows: pa.Table) -> Any:
    from functools import reduce

    import pyarrow.compute as pc

    return reduce(pc.or_, (pc.is_valid(column) for column in rows.columns))


def _has_open_quote(place: Place) -> bool:
    import pyarrow as pa

    with pa.input_stream(str(place.path), compression="detect") as stream:
        return bool(stream.read().count(b'"') % 2)


def _last_row_line(place: Place, source: Source) -> int:
    """The line on which the last row begins; used only once the file is known to be broken."""
    start = line = 1
    with _open_text(place, source) as text:
        reader = csv.reader(text, delimiter=source.delimiter)
        try:
            for _ in reader:
                start, line = line, reader.line_num + 1
        except csv.Error:
            return line
    return start


def _encoding_error(place: Place, source: Source) -> ContractError | None:
    """The error about the first byte that is not in the declared encoding, if there is one."""
    import pyarrow as pa

    with pa.input_stream(str(place.path), compression="detect") as stream:
        content = stream.read()
    try:
        content.decode(source.encoding)
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        return place.error(
            f"byte 0x{content[start]:02x} is not {source.encoding}; declare the file's encoding, "
            f"such as 'encoding: cp1252', in sources.{place.source}",
            content.count(b"\n", 0, start) + 1,
        )
    return None


def _read_jsonl(places: list[Place], source: Source, duck: Any) -> Delivery:
    is_object = f"CASE WHEN json_valid({LINE}) THEN json_type({LINE}) = 'OBJECT' ELSE false END"
    # No JSON text holds a raw control character, so the delimiter never splits a line.
    _create(
        duck,
        "__lines",
        _concat([_parse_lines(place, source, [LINE], "\x1f", False)[0] for place in places]),
        f"*, {is_object} AS __is_object",
    )
    try:
        malformed = _malformed_json(places, source, duck)
        paths = _json_paths(duck)
        wanted = ", ".join(literal(path) for path in paths.values())
        fields = [f"__v[{i}] AS {identifier(name)}" for i, name in enumerate(paths, start=1)]
        duck.execute(
            f"""CREATE TEMP TABLE {TABLE} AS SELECT {", ".join([FILE, POSITION, LINE, *fields])}
            FROM (SELECT *, json_extract_string({LINE}, [{wanted or "'$'"}]) AS __v
                FROM __lines WHERE __is_object)"""
        )
    finally:
        duck.execute("DROP TABLE IF EXISTS __lines")
    return Delivery(dict.fromkeys(paths, "VARCHAR"), LINE, malformed)


def _malformed_json(places: list[Place], source: Source, duck: Any) -> pa.Table:
    bad = duck.execute(
        f"""SELECT {FILE}, {POSITION}, {LINE} FROM __lines WHERE NOT __is_object
        ORDER BY {FILE}, {POSITION}"""
    ).fetchall()
    by_name = {place.shown: place for place in places}
    if bad and source.malformed == "fail":
        raise by_name[bad[0][0]].error(
            "not a JSON object; each line must hold one; mend the line, or declare "
            "'malformed: quarantine' to set such lines aside",
            bad[0][1],
        )
    reason = "not a JSON object"
    return _concat([_rejected(by_name[f], [line], reason, [text]) for f, line, text in bad])


def _json_paths(duck: Any) -> dict[str, str]:
    """The fields of all lines by dotted name, each with its JSON path."""
    (found,) = duck.execute(
        f"SELECT json_group_structure({LINE}::JSON)::VARCHAR FROM __lines WHERE __is_object"
    ).fetchall()[0]
    structure = json.loads(found) if found else {}
    paths: dict[str, str] = {}
    for name, path in _leaves(structure if isinstance(structure, dict) else {}, "", "$"):
        if name.lower() not in {known.lower() for known in paths}:
            paths[name] = path
    return paths


def _leaves(structure: dict[str, Any], name: str, path: str) -> Iterator[tuple[str, str]]:
    for key, inner in structure.items():
        dotted, deeper = f"{name}.{key}" if name else key, f'{path}."{key}"'
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, dotted, deeper)
        else:
            yield dotted, deeper


# ---- Parquet ----


def _read_parquet(places: list[Place], duck: Any) -> Delivery:
    import duckdb

    try:
        _load_parquet(places, duck)
    except duckdb.Error as error:
        raise _corrupt(places, error) from None
    fields = _fields_of(duck)
    return Delivery(fields, _row_json(fields), _no_malformed())


def _load_parquet(places: list[Place], duck: Any) -> None:
    files = ", ".join(literal(str(place.path)) for place in places)
    shown = ", ".join(f"{literal(str(p.path))}: {literal(p.shown)}" for p in places)
    duck.execute(
        f"""CREATE TEMP TABLE {TABLE} AS
        SELECT MAP {{{shown}}}["filename"] AS {FILE}, file_row_number + 1 AS {POSITION},
            * EXCLUDE ("filename", file_row_number)
        FROM read_parquet([{files}], union_by_name = true, filename = true, file_row_number = true)
        """
    )


def _corrupt(places: list[Place], error: Exception) -> ContractError:
    import pyarrow.parquet as pq

    for place in places:
        try:
            pq.read_table(place.path)
        except (OSError, ValueError):
            return place.error(
                "not a readable Parquet file: damaged or cut short; have it delivered again"
            )
    return places[0].error(f"cannot be read as Parquet: {str(error).splitlines()[0]}")


# ---- databases ----


def _read_table(name: str, source: Source, home: Path) -> pa.Table:
    import pyarrow as pa

    with _database(name, source, home) as (connection, table):
        from sqlalchemy import select

        query = select(*_texts(table)).order_by(*table.primary_key.columns)
        schema = pa.schema([(column.name, pa.string()) for column in table.columns])
        result = connection.execution_options(stream_results=True).execute(query)
        parts = [_as_arrow(part, schema) for part in result.partitions(FETCH_ROWS)]
    rows = pa.concat_tables(parts or [schema.empty_table()])
    rows = rows.append_column(POSITION, pa.array(range(1, rows.num_rows + 1), pa.int64()))
    return rows.append_column(FILE, pa.array([source.table] * rows.num_rows, pa.string()))


def _texts(table: Any) -> list[Any]:
    """The columns cast to text by the database; whole numbers without a decimal point."""
    from sqlalchemy import BigInteger, Float, Text, case, cast

    def text(column: Any) -> Any:
        if not isinstance(column.type, Float):
            return cast(column, Text)
        whole = cast(column, BigInteger)
        return case((column == whole, cast(whole, Text)), else_=cast(column, Text))

    return [text(column).label(column.name) for column in table.columns]


def _as_arrow(rows: Any, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    return pa.table([pa.array(c, pa.string()) for c in zip(*rows, strict=True)], schema=schema)


def _fingerprint_table(name: str, source: Source, home: Path) -> str:
    with _database(name, source, home) as (connection, table):
        from sqlalchemy import Text, cast, func, select

        texts = [cast(column, Text) for column in table.columns]
        measures = [
            m for t in texts for m in (func.count(t), func.max(t), func.sum(func.length(t)))
        ]
        row = connection.execute(select(func.count(), *measures).select_from(table)).one()
        url = connection.engine.url.render_as_string(hide_password=True)
    return hashlib.sha256(repr((url, source.table, tuple(row))).encode()).hexdigest()[:16]


@contextmanager
def _database(name: str, source: Source, home: Path) -> Iterator[tuple[Any, Any]]:
    """A connection to the source's database and its table; messages never hold the password."""
    import sqlalchemy as sa

    url = _database_url(name, source, home)
    shown = url.render_as_string(hide_password=True)
    try:
        with sa.create_engine(url).connect() as connection:
            yield connection, _reflect(name, source, connection)
    except sa.exc.SQLAlchemyError as error:
        kind = type(getattr(error, "orig", None) or error).__name__
        raise ConfigError(
            f"source '{name}': cannot read {shown}: {kind}; check sources.{name}.path in cdp.yaml "
            "and that the database is up"
        ) from None


def _database_url(name: str, source: Source, home: Path) -> Any:
    import sqlalchemy as sa

    try:
        url = sa.make_url(source.path)
        url.get_dialect()
    except (sa.exc.ArgumentError, ImportError, ValueError):
        raise ConfigError(
            f"source '{name}': not a usable database URL; write dialect://user:password@host/name"
        ) from None
    try:
        url.get_dialect().import_dbapi()
    except ImportError as error:
        raise ConfigError(
            f"source '{name}': '{url.drivername}' needs the Python package '{error.name}'; install "
            "it (for PostgreSQL: pip install 'cdp-ml[postgres]')"
        ) from None
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return url
    path = home / url.database
    if not path.is_file():
        # SQLite itself would make an empty database.
        raise _no_file(name, source, path)
    return url.set(database=str(path))


def _reflect(name: str, source: Source, connection: Any) -> Any:
    import sqlalchemy as sa

    schema, _, table = str(source.table).rpartition(".")
    try:
        return sa.Table(table, sa.MetaData(), schema=schema or None, autoload_with=connection)
    except sa.exc.NoSuchTableError:
        inspector = sa.inspect(connection)
        names = [*inspector.get_table_names(schema or None), *inspector.get_view_names()]
        raise ConfigError(
            f"source '{name}': no table '{source.table}' in the database; {nearest(table, names)}"
        ) from None


# ---- shared ----


def _store(duck: Any, rows: pa.Table, malformed: pa.Table) -> Delivery:
    _create(duck, TABLE, rows)
    fields = _fields_of(duck)
    return Delivery(fields, _row_json(fields), malformed)


def _create(duck: Any, table: str, rows: pa.Table, select: str = "*") -> None:
    duck.register("__arrow", rows)
    try:
        duck.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT {select} FROM __arrow")
    finally:
        duck.unregister("__arrow")


def _fields_of(duck: Any) -> dict[str, str]:
    described = duck.execute(f"DESCRIBE {TABLE}").fetchall()
    return {row[0]: row[1] for row in described if row[0] not in (FILE, POSITION)}


def _row_json(fields: dict[str, str]) -> str:
    content = ", ".join(f"{literal(name)}: {identifier(name)}" for name in fields)
    return f"CAST(to_json({{{content}}}) AS VARCHAR)"


def _rejected(place: Place, lines: list[int], reason: str, texts: list[str]) -> pa.Table:
    import pyarrow as pa

    rows = [
        {"file": place.shown, "position": line, "reason": reason, "row": json.dumps(text)}
        for line, text in zip(lines, texts, strict=True)
    ]
    return pa.Table.from_pylist(rows, _no_malformed().schema)


def _no_malformed() -> pa.Table:
    import pyarrow as pa

    text = pa.string()
    columns = [("file", text), ("position", pa.int64()), ("reason", text), ("row", text)]
    return pa.schema(columns).empty_table()


def _concat(tables: list[pa.Table]) -> pa.Table:
    import pyarrow as pa

    return pa.concat_tables(tables, promote_options="default") if tables else _no_malformed()


def identifier(name: str) -> str:
    """A column's name quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"

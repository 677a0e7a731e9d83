"""Files and databases to rows of the contracts: mapped, typed, checked and accounted for.

Every delivered row ends as one of four: kept, repeated (its key came again, and later), refused
(with a reason, in `rejects`) or filtered (by the source's `where`: not one of its rows).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.config import FieldMap, Source
from cdp_ml.contracts import PERSON_FIELDS, arrow_schema, contract, table_of
from cdp_ml.engine import check_condition
from cdp_ml.errors import ConfigError, ContractError, nearest
from cdp_ml.ingest.readers import (
    FILE,
    POSITION,
    TABLE,
    Delivery,
    delivered,
    identifier,
    literal,
    source_files,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from ibis.backends.sql import SQLBackend

__all__ = ["Batch", "read_source", "source_files"]

log = logging.getLogger(__name__)

ALWAYS = "TIMESTAMPTZ '1970-01-01 00:00:00+00'"
CHECKED, KEPT = "__checked", "__kept"
TIMES = ("event_timestamp", "ingested_at")
NATIVE_TIMES = (
    "DATE",
    "TIMESTAMP",
    "TIMESTAMP_S",
    "TIMESTAMP_MS",
    "TIMESTAMP_NS",
    "TIMESTAMP WITH TIME ZONE",
)
NUMBERS = ("quantity", "unit_price", "discount", "price")
TRUE, FALSE = "('true', 't', 'yes', 'y', '1')", "('false', 'f', 'no', 'n', '0')"
EXPECTED = {
    **dict.fromkeys(NUMBERS, "a number"),
    **dict.fromkeys(TIMES, "a timestamp"),
    "line_no": "a whole number",
    "granted": "true or false",
}

REQUIRED: dict[str, tuple[str, ...]] = {
    "people": ("source_record_id",),
    "events": ("event_type", "event_timestamp"),
    "transactions": ("order_id", "quantity", "unit_price", "event_timestamp"),
    "products": ("product_id",),
    "consents": ("identifier", "purpose", "granted", "event_timestamp"),
    "exposures": ("campaign_id", "identifier", "arm", "event_timestamp"),
}
RANGES = {
    "unit_price": ("< 0", "negative"),
    "price": ("< 0", "negative"),
    "discount": ("NOT BETWEEN 0 AND 1", "not between 0 and 1"),
}
# DuckDB reads 'infinity', 'epoch' and times of day as timestamps too; a date must come first.
ISO_DATE = r"^\d{4}-\d{1,2}-\d{1,2}"
OFFSET = r"\d{1,2}:\d{2}.*(Z|z|[+-]\d{2}(:?\d{2})?)$"


@dataclass(frozen=True)
class Batch:
    """What one source delivered.

    Attributes:
        rows: one row a key. In the contract of the kind's table; for people: source,
            source_record_id, the person fields as delivered, event_timestamp, ingested_at.
        identifiers: in the contract of `identifiers`.
        rejects: in the contract of `rejects`.
        counts: rows `read`, and of these `kept`, `repeated`, `refused` and `filtered`.
    """

    rows: pa.Table
    identifiers: pa.Table
    rejects: pa.Table
    counts: dict[str, int]


def read_source(
    name: str, source: Source, home: Path, con: SQLBackend, known_at: datetime
) -> Batch:
    """Read a source: map its fields, type and check its rows, and keep one row a key.

    Rows that lie in the future of `known_at` are refused. Of rows with one key the later by
    (event_timestamp, ingested_at, file, position) is kept. Without a mapped `ingested_at` a fact is
    known when it happens; people and products without any time are known always (since 1970-01-01
    UTC), so that a history can be trained on. Without a mapped `line_no` an order's lines are
    numbered as they come; without a mapped `event_id` an event is known by a hash of its content.

    Args:
        name: the source's name in cdp.yaml.
        source: its declaration. Conditions are SQL on its own fields; a nested field of JSON lines
            is a quoted name, such as "address.city".
        home: the folder to which relative paths refer.
        con: the engine, DuckDB.
        known_at: when this run learns things.

    Raises:
        ConfigError: if the source is not there, or its declaration does not fit it.
        ContractError: if it is empty, damaged or malformed; the message names file and line.
    """
    _check_mapping(name, source)
    with delivered(name, source, home, con) as delivery:
        _check_has_rows(name, source, con.con)
        _check_fields(name, source, delivery)
        _check_formats(name, source, con.con)
        try:
            _check_rows(name, source, delivery, con, known_at)
            batch = _batch(name, source, delivery, con.con, known_at)
        finally:
            con.con.execute(f"DROP TABLE IF EXISTS {CHECKED}; DROP TABLE IF EXISTS {KEPT}")
    log.info("source %s: %s", name, batch.counts)
    return batch


# ---- the declaration ----


def canonical_fields(kind: str) -> tuple[str, ...]:
    """The canonical fields that a source of this kind may map, in the contract's order."""
    if kind == "people":
        return ("source_record_id", *PERSON_FIELDS, *TIMES)
    derived = ("source", "source_record_id", "identifier_type")
    names = tuple(c for c in contract(kind).column_names if c not in derived)
    return ("identifier", *names) if kind == "consents" else names


def _check_mapping(name: str, source: Source) -> None:
    valid = canonical_fields(source.kind)
    for field in source.fields:
        if field not in valid:
            raise ConfigError(
                f"sources.{name}.fields: no canonical field '{field}' for {source.kind}; "
                f"{nearest(field, valid)}"
            )
    for field in REQUIRED[source.kind]:
        if field not in source.fields:
            raise ConfigError(
                f"sources.{name}.fields: '{field}' is required for {source.kind}; say which field "
                "of the source holds it"
            )
    if "identifier" in source.fields and source.identifier_type is None:
        raise ConfigError(
            f"sources.{name}: 'identifier' is mapped without 'identifier_type'; name the people "
            "source whose id it is, or cookie"
        )


def _check_fields(name: str, source: Source, delivery: Delivery) -> None:
    wanted = {f"fields.{field}": _origin(source, field).field for field in source.fields}
    wanted |= {f"identifiers.{kind}": field for kind, field in source.identifiers.items()}
    wanted |= {"login.field": source.login.field} if source.login else {}
    for place, field in wanted.items():
        if field is not None and field not in delivery.fields:
            raise ConfigError(
                f"sources.{name}.{place}: {source.table or source.path} has no field '{field}'; "
                f"{nearest(field, delivery.fields)}"
            )


def _origin(source: Source, field: str) -> FieldMap:
    return source.mapping(field) or FieldMap(value="")


def _check_has_rows(name: str, source: Source, duck: Any) -> None:
    if not duck.execute(f"SELECT 1 FROM {TABLE} LIMIT 1").fetchall():
        raise ContractError(
            f"source '{name}': {source.table or source.path} has no rows; if that is right, take "
            "the source out of cdp.yaml"
        )


def _check_formats(name: str, source: Source, duck: Any) -> None:
    import duckdb

    for field in source.fields:
        format_ = _origin(source, field).format
        if format_ is not None and field not in (*TIMES, "birth_date"):
            raise ConfigError(
                f"sources.{name}.fields.{field}: 'format' is for dates and timestamps alone"
            )
        try:
            duck.execute(f"SELECT try_strptime('', {literal(format_ or '%Y')})").fetchall()
        except duckdb.Error:
            raise ConfigError(
                f"sources.{name}.fields.{field}: no strptime format: '{format_}'; write such as "
                "'%d/%m/%Y %H:%M'"
            ) from None


# ---- rows ----


def _check_rows(
    name: str, source: Source, delivery: Delivery, con: SQLBackend, known_at: datetime
) -> None:
    """Make the table `CHECKED`: every row, mapped and typed, with the reason to refuse it."""
    import duckdb

    conditions = _conditions(name, source, delivery, con)
    fields = canonical_fields(source.kind)
    texts = ", ".join([_text(source, f, delivery) for f in fields] + _extras(source, delivery))
    values = ", ".join(f'{_value(name, source, f, delivery)} AS "{f}"' for f in fields)
    problems = ", ".join(
        f"CASE WHEN {c} THEN {literal(r)} END" for c, r in _problems(source, known_at)
    )
    try:
        con.con.execute(
            f"""CREATE OR REPLACE TEMP TABLE {CHECKED} AS
            SELECT *, coalesce(__refusal, {problems}) AS __reason FROM (
                SELECT *, {values} FROM (
                    SELECT {FILE}, {POSITION}, {conditions}, {texts} FROM {TABLE}))"""
        )
    except (duckdb.DataError, duckdb.InvalidInputException):
        # Without DuckDB's own words, which quote the row.
        raise ConfigError(
            f"sources.{name}: a condition in 'where' or 'refuse' cannot convert some rows; write "
            "TRY_CAST(field AS type) or try_strptime(field, format) there"
        ) from None


def _conditions(name: str, source: Source, delivery: Delivery, con: SQLBackend) -> str:
    """SQL for whether a row is one of this source's, and for the first rule that refuses it."""
    where = _condition(source.where or "true", f"sources.{name}.where", delivery, con)
    rules = [
        f"WHEN {_condition(rule.where, f'sources.{name}.refuse.{i}', delivery, con)} "
        f"THEN {literal(rule.reason)}"
        for i, rule in enumerate(source.refuse)
    ]
    refusal = f"CASE {' '.join(rules)} END" if rules else "CAST(NULL AS VARCHAR)"
    return f"coalesce({where}, false) AS __accepted, {refusal} AS __refusal"


def _condition(condition: str, origin: str, delivery: Delivery, con: SQLBackend) -> str:
    import duckdb

    checked = check_condition(condition, tuple(delivery.fields), origin)
    try:
        con.con.execute(f"EXPLAIN SELECT 1 FROM {TABLE} WHERE {checked}").fetchall()
    except duckdb.Error as error:
        problem = str(error).splitlines()[0].partition(": ")[2]
        raise ConfigError(
            f"{origin}: {problem} (fields of text files are text: TRY_CAST(field AS DOUBLE))"
        ) from None
    return f"({checked})"


def _text(source: Source, field: str, delivery: Delivery) -> str:
    """SQL for the delivered value of a canonical field: text, or a time if delivered as such."""
    origin = source.mapping(field)
    if origin is None:
        value = "CAST(NULL AS VARCHAR)"
    elif origin.field is None:
        value = literal(str(origin.value))
    elif field in TIMES and delivery.fields[origin.field] in NATIVE_TIMES:
        value = identifier(origin.field)
    else:
        value = _as_text(origin.field, delivery, trim=field not in PERSON_FIELDS)
    return f'{value} AS "{field}__text"'


def _as_text(field: str, delivery: Delivery, trim: bool = True) -> str:
    """SQL for a delivered field as text; empty text is null.

    Integral floating-point numbers lose their decimal point: a column of ids turns into floats as
    soon as one is missing, and must still agree with the same ids elsewhere.
    """
    column, type_ = identifier(field), delivery.fields[field]
    if type_ in ("FLOAT", "DOUBLE"):
        return (
            f"CASE WHEN {column} = trunc({column}) AND abs({column}) < 1e15 "
            f"THEN CAST(CAST({column} AS BIGINT) AS VARCHAR) ELSE CAST({column} AS VARCHAR) END"
        )
    text = column if type_ == "VARCHAR" else f"CAST({column} AS VARCHAR)"
    return f"nullif(trim({text}), '')" if trim else f"CASE WHEN trim({text}) <> '' THEN {text} END"


def _extra_fields(source: Source) -> dict[str, str]:
    """The columns that hold further identifiers, each with its source field."""
    fields = {f"{kind}__identifier": field for kind, field in source.identifiers.items()}
    return fields | ({"__login": source.login.field} if source.login else {})


def _extras(source: Source, delivery: Delivery) -> list[str]:
    fields = _extra_fields(source).items()
    return [f"{_as_text(field, delivery)} AS {identifier(column)}" for column, field in fields]


def _value(name: str, source: Source, field: str, delivery: Delivery) -> str:
    """SQL for the typed value of a canonical field, null where the delivered one is not valid."""
    text = identifier(f"{field}__text")
    if field in TIMES:
        return _time(source, field, delivery)
    if field == "line_no" and source.mapping(field) is None:
        return f'row_number() OVER (PARTITION BY "order_id__text" ORDER BY {FILE}, {POSITION})'
    special = {
        "order_id": f"{literal(name + ':')} || {text}",
        "event_id": f"{literal(name + ':')} || coalesce({text}, {_content_hash(source)})",
        "line_no": f"CASE WHEN {_number(text)} % 1 = 0 THEN CAST({_number(text)} AS BIGINT) END",
        "granted": f"CASE WHEN lower({text}) IN {TRUE} THEN true "
        f"WHEN lower({text}) IN {FALSE} THEN false END",
        "channel": f"coalesce({text}, {literal(name)})",
        "discount": f"CASE WHEN {text} IS NULL THEN 0.0 ELSE {_number(text)} END",
        "birth_date": _date(text, source.mapping(field)),
    }
    return special.get(field, _number(text) if field in NUMBERS else text)


def _number(text: str) -> str:
    number = f"TRY_CAST({text} AS DOUBLE)"
    return f"CASE WHEN isfinite({number}) THEN {number} END"


def _date(text: str, origin: FieldMap | None) -> str:
    """SQL for a date as ISO text; what the declared format does not read stays as delivered."""
    if origin is None or origin.format is None:
        return text
    parsed = f"try_strptime(trim({text}), {literal(origin.format)})"
    return f"coalesce(CAST(CAST({parsed} AS DATE) AS VARCHAR), {text})"


def _time(source: Source, field: str, delivery: Delivery) -> str:
    """SQL for a time in UTC; one without offset is in the source's time zone."""
    text, origin = identifier(f"{field}__text"), source.mapping(field) or FieldMap(value="")
    type_ = delivery.fields.get(origin.field or "", "VARCHAR")
    if type_ == "TIMESTAMP WITH TIME ZONE":
        return text
    zone = literal(source.timezone)
    if type_ in NATIVE_TIMES:
        return f"timezone({zone}, CAST({text} AS TIMESTAMP))"
    if origin.format is not None:
        parsed = f"try_strptime({text}, {literal(origin.format)})"
        has_offset = "%z" in origin.format.lower()
        return parsed if has_offset else f"timezone({zone}, {parsed})"
    return (
        f"CASE WHEN NOT regexp_matches({text}, '{ISO_DATE}') THEN NULL "
        f"WHEN regexp_matches({text}, '{OFFSET}') THEN TRY_CAST({text} AS TIMESTAMPTZ) "
        f"ELSE timezone({zone}, TRY_CAST({text} AS TIMESTAMP)) END"
    )


def _content_hash(source: Source) -> str:
    """SQL for a hash of the mapped content."""
    fields = (identifier(f"{f}__text") for f in canonical_fields(source.kind))
    return f"md5(CAST(to_json([{', '.join(f'CAST({f} AS VARCHAR)' for f in fields)}]) AS VARCHAR))"


def _problems(source: Source, known_at: datetime) -> Iterator[tuple[str, str]]:
    """Conditions under which a row is refused, with the reason, in the order of the fields."""
    for field in canonical_fields(source.kind):
        text, value = identifier(f"{field}__text"), identifier(field)
        if field in REQUIRED[source.kind]:
            yield f"{text} IS NULL", f"{field}: missing"
        if field in EXPECTED:
            yield f"{text} IS NOT NULL AND {value} IS NULL", f"{field}: not {EXPECTED[field]}"
        if field in RANGES:
            condition, reason = RANGES[field]
            yield f"{value} {condition}", f"{field}: {reason}"
        if field in TIMES:
            now = f"TIMESTAMPTZ {literal(known_at.isoformat())}"
            yield f"{value} > {now}", f"{field}: in the future"


# ---- the batch ----


def _batch(name: str, source: Source, delivery: Delivery, duck: Any, known_at: datetime) -> Batch:
    _keep_latest(name, source, duck)
    rows = _conformed(duck, source.kind)
    rejects = _rejects(name, delivery, duck, known_at)
    read, filtered, accepted = duck.execute(
        f"""SELECT count(*), count(*) FILTER (NOT __accepted),
            count(*) FILTER (__accepted AND __reason IS NULL) FROM {CHECKED}"""
    ).fetchall()[0]
    counts = {
        "read": read + delivery.malformed.num_rows,
        "kept": rows.num_rows,
        "repeated": accepted - rows.num_rows,
        "refused": rejects.num_rows,
        "filtered": filtered,
    }
    return Batch(rows, _identifiers(name, source, duck), rejects, counts)


def _keep_latest(name: str, source: Source, duck: Any) -> None:
    """Make the table `KEPT`: of the accepted rows with one key the latest, as the contract says."""
    columns = _columns(name, source)
    selected = [f"{value} AS {identifier(column)}" for column, value in columns.items()]
    extras = [identifier(column) for column in _extra_fields(source)]
    key = ", ".join(contract(table_of(source.kind)).key)
    latest = [f"{c} DESC" for c in (*TIMES, FILE, POSITION) if c in columns or c.startswith("__")]
    duck.execute(
        f"""CREATE OR REPLACE TEMP TABLE {KEPT} AS
        SELECT * EXCLUDE ({FILE}, {POSITION}) FROM (
            SELECT {", ".join([*selected, *extras, FILE, POSITION])}
            FROM {CHECKED} WHERE __accepted AND __reason IS NULL)
        QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {", ".join(latest)}) = 1"""
    )


def _columns(name: str, source: Source) -> dict[str, str]:
    """The columns of the contract, each with its SQL over `CHECKED`."""
    people = ("source", "source_record_id", *PERSON_FIELDS, *TIMES)
    columns = people if source.kind == "people" else contract(source.kind).column_names
    whose = f"CASE WHEN identifier IS NOT NULL THEN {literal(source.identifier_type or '')} END"
    special = {
        "source": literal(name),
        "identifier_type": whose,
        "ingested_at": _ingested_at(source),
    }
    if source.kind == "people":
        special["event_timestamp"] = f"coalesce(event_timestamp, ingested_at, {ALWAYS})"
    if source.kind == "consents":
        special |= {
            "source": literal(str(source.identifier_type)),
            "source_record_id": "identifier",
        }
    return {column: special.get(column, identifier(column)) for column in columns}


def _ingested_at(source: Source) -> str:
    has_event_time = "event_timestamp" in canonical_fields(source.kind)
    return f"coalesce(ingested_at, {'event_timestamp, ' if has_event_time else ''}{ALWAYS})"


def _identifiers(name: str, source: Source, duck: Any) -> pa.Table:
    """Which identifiers belong to which records, each since when it was first seen."""
    record = f"{literal(name)} AS source, source_record_id"
    parts = []
    if source.kind == "people":
        parts.append(
            f"SELECT {literal(name)} AS identifier_type, source_record_id AS identifier, {record}"
        )
        parts += [
            f"SELECT {literal(kind)}, {identifier(f'{kind}__identifier')}, {record}"
            for kind in source.identifiers
        ]
    if source.login:
        owner = f"{literal(source.login.source)} AS source, __login AS source_record_id"
        parts.append(f"SELECT identifier_type, identifier, {owner}")
    schema = arrow_schema("identifiers")
    if not parts:
        return schema.empty_table()
    found = " UNION ALL ".join(
        f"{part}, event_timestamp, ingested_at FROM {KEPT}" for part in parts
    )
    first = duck.sql(
        f"""SELECT identifier_type, identifier, source, source_record_id,
            min(event_timestamp) AS event_timestamp,
            arg_min(ingested_at, event_timestamp) AS ingested_at
        FROM ({found}) WHERE identifier IS NOT NULL AND source_record_id IS NOT NULL
        GROUP BY ALL ORDER BY ALL"""
    )
    return first.to_arrow_table().cast(schema)


def _conformed(duck: Any, kind: str) -> pa.Table:
    """The rows of `KEPT` in the types of the contract, in the order of its key."""
    import pyarrow as pa

    schema = arrow_schema(table_of(kind))
    if kind == "people":
        columns = ("source", "source_record_id", *PERSON_FIELDS)
        schema = pa.schema(
            [*((c, pa.string()) for c in columns), *(schema.field(t) for t in TIMES)]
        )
    key = ", ".join(contract(table_of(kind)).key)
    rows = duck.sql(f"SELECT {', '.join(schema.names)} FROM {KEPT} ORDER BY {key}")
    return rows.to_arrow_table().cast(schema)


def _rejects(name: str, delivery: Delivery, duck: Any, known_at: datetime) -> pa.Table:
    """The refused rows of `CHECKED` and the malformed lines."""
    import pyarrow as pa

    refused = duck.sql(
        f"""SELECT {FILE} AS file, {POSITION} AS position, __reason AS reason, {delivery.row} AS row
        FROM {TABLE} JOIN (
            SELECT {FILE}, {POSITION}, __reason FROM {CHECKED}
            WHERE __accepted AND __reason IS NOT NULL) USING ({FILE}, {POSITION})"""
    ).to_arrow_table()
    schema = arrow_schema("rejects")
    rows = pa.concat_tables([refused.cast(delivery.malformed.schema), delivery.malformed])
    rows = rows.append_column("source", pa.array([name] * rows.num_rows, pa.string()))
    when = pa.array([known_at] * rows.num_rows, schema.field("ingested_at").type)
    rows = rows.append_column("ingested_at", when).select(schema.names).cast(schema)
    return rows.sort_by([("file", "ascending"), ("position", "ascending")])

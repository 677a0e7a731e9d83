"""Delta Lake in and out: the only place where tables are read and written.

A `Lake` sees fixed versions of its tables: those of the last published run (`Lake.published`), or
those that a running refresh has written so far. Readers therefore never see a mixture, and a crash
leaves the published state whole. DuckDB reads a version's Parquet files itself, without the Delta
extension, which would have to be downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from cdp_ml.contracts import arrow_schema, contract
from cdp_ml.errors import ContractError, NothingPublishedError, nearest

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable, WriterProperties
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Table

RUNS = "runs"
ROW_GROUP = 122_880
"""Rows of a group, as many as in DuckDB's own files; it reads a group with each of its threads."""
SAMPLED_ROWS = 10_000
"""Rows that tell whether the values of a column repeat."""


def model_key(model: str) -> str:
    """The name under which a run notes the version of a model that it serves."""
    return f"model/{model}"


@dataclass(frozen=True)
class Lake:
    """The tables under `root`, each at one version; `versions` grows as they are written."""

    root: Path
    versions: dict[str, int] = field(default_factory=dict)

    @classmethod
    def published(cls, root: Path) -> Lake:
        """The lake as the last published run left it; without tables if there was none."""
        run = last_run(root)
        return cls(root, {} if run is None else run["versions"])

    def has(self, name: str) -> bool:
        """Whether the table is there."""
        return name in self.versions and _exists(self.root / name)

    def files(self, name: str) -> list[str]:
        """The Parquet files of the table's version; none if it is absent or empty."""
        if not self.has(name):
            return []
        return _files(_delta(self.root / name, self.versions[name]))

    def read(self, name: str, con: SQLBackend) -> Table:
        """The table as an Ibis expression; an absent one is empty, with its contract's columns.

        Args:
            name: a table of the contracts.
            con: the engine, of `cdp_ml.engine.connect`.

        Raises:
            ContractError: if no contract has this name.
        """
        import ibis

        if not (files := self.files(name)):
            return ibis.memtable(self.arrow(name))
        table = con.read_parquet(files, union_by_name=True)
        declared = ibis.schema(arrow_schema(name))
        # What a former version of cdp-ml wrote may lack a column.
        absent = {c: ibis.null(t) for c, t in declared.items() if c not in table.columns}
        return table.mutate(**absent) if absent else table

    def count(self, name: str) -> int:
        """How many rows the table has."""
        return _delta(self.root / name, self.versions[name]).count() if self.has(name) else 0

    def arrow(self, name: str) -> pa.Table:
        """The table in memory; an absent one is empty, with its contract's columns.

        Raises:
            ContractError: if no contract has this name.
        """
        import pyarrow as pa

        if not self.has(name):
            return arrow_schema(name).empty_table()
        table = _rows(_delta(self.root / name, self.versions[name]))
        for column in arrow_schema(name):
            if column.name not in table.column_names:
                table = table.append_column(column, pa.nulls(table.num_rows, column.type))
        return table

    def write(self, name: str, rows: pa.Table | Table) -> int:
        """Replace the table's content as a new version, and see that version from now on.

        Args:
            name: a table of the contracts.
            rows: columns as the contract says, in any order.

        Returns:
            The version written.

        Raises:
            ContractError: if columns are missing, unknown or of a wrong type, or a key is null.
        """
        return self._commit(name, conform(name, rows), mode="overwrite")

    def append(self, name: str, rows: pa.Table) -> int:
        """Add rows as a new version; otherwise as `write`."""
        self._rewind(name)
        return self._commit(name, conform(name, rows), "append" if self.has(name) else "overwrite")

    def replace(self, name: str, rows: pa.Table, column: str, value: str) -> int:
        """Put rows in the place of those with a value in a column; otherwise as `write`.

        Files without such rows stay as they are: what grows by an instant a run is not written
        again with its history.

        Args:
            name: a table of the contracts.
            rows: all with this value.
            column: such as `as_of`.
            value: as text; of an instant in ISO 8601.
        """
        self._rewind(name)
        predicate = f"{column} = '{value}'" if self.has(name) else None
        return self._commit(name, conform(name, rows), "overwrite", predicate)

    def upsert(self, name: str, rows: pa.Table, con: SQLBackend) -> dict[str, int]:
        """Insert new rows and replace changed ones by key; write nothing if nothing changed.

        What was known first stays: of the columns that the contract calls `first` the earlier value
        is kept, and `ingested_at` alone is no change.

        Args:
            name: a table of the contracts.
            rows: at most one row a key.
            con: the engine.

        Returns:
            How many rows were `new`, `changed` and `same`.
        """
        rows = conform(name, rows)
        fresh, counts = _changed_rows(self.read(name, con), rows, name, con)
        if counts["changed"]:
            kept = self.read(name, con).anti_join(fresh, contract(name).key)
            self.write(name, kept.union(fresh.select(kept.columns)))
        elif counts["new"]:
            self.append(name, fresh.to_pyarrow())
        elif not self.has(name):
            self.write(name, rows)
        return counts

    def amend(
        self, name: str, rows: pa.Table, con: SQLBackend, gone: pa.Table | None = None
    ) -> None:
        """Take rows out and put others in, for who knows what has changed: as `upsert`, at once.

        Args:
            name: a table of the contracts.
            rows: rows that are new, and those that replace others; at most one a key.
            con: the engine.
            gone: keys of the rows to take out, also of those that are replaced.
        """
        import pyarrow as pa

        if gone is not None and gone.num_rows:
            keys = con.create_table(f"_gone_{name}", gone, temp=True, overwrite=True)
            kept = conform(name, self.read(name, con).anti_join(keys, gone.column_names))
            self.write(name, pa.concat_tables([kept, conform(name, rows)]))
        elif rows.num_rows or not self.has(name):
            self.append(name, rows)

    def renew(self, name: str) -> None:
        """See the newest version of a table that others than refreshes write."""
        if _exists(self.root / name):
            self.versions[name] = _delta(self.root / name, None).version()

    def _rewind(self, name: str) -> None:
        """Undo what a crashed run wrote after the version that this lake sees."""
        path = self.root / name
        if self.has(name) and _delta(path, None).version() != self.versions[name]:
            _delta(path, None).restore(self.versions[name])

    def _commit(self, name: str, rows: pa.Table, mode: Any, predicate: str | None = None) -> int:
        from deltalake import write_deltalake

        path = self.root / name
        anew = mode == "overwrite" and predicate is None
        write_deltalake(
            path.absolute().as_uri(),
            rows,
            mode=mode,
            predicate=predicate,
            schema_mode="overwrite" if anew else "merge",
            writer_properties=_encodings(rows),
        )
        self.versions[name] = _delta(path, None).version()
        return self.versions[name]


def conform(name: str, rows: pa.Table | Table) -> pa.Table:
    """Cast rows to their contract: its columns first and in its order, then those of open tables.

    Raises:
        ContractError: if columns are missing, unknown or of a wrong type, or a key is null.
    """
    import pyarrow as pa

    spec, schema = contract(name), arrow_schema(name)
    data = rows if isinstance(rows, pa.Table) else rows.to_pyarrow()
    _check_columns(name, data.column_names, spec.column_names, spec.open)
    extra = [f for f in data.schema if f.name not in schema.names]
    fields = [*schema, *(f.with_metadata({}) for f in extra)]
    columns = [_cast(data[f.name], f, name) for f in fields]
    data = pa.table(columns, pa.schema(fields))
    for key in spec.key:
        if data[key].null_count:
            raise ContractError(f"table '{name}': {data[key].null_count} rows without key '{key}'")
    return data


def _cast(column: pa.ChunkedArray, field: pa.Field, table: str) -> pa.ChunkedArray:
    import pyarrow as pa

    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        # Without Arrow's own words, which quote the value.
        raise ContractError(
            f"table '{table}': column '{field.name}' holds values that are no {field.type}"
        ) from None


def published_run(root: Path) -> dict[str, Any]:
    """As `last_run`, for those who cannot do without.

    Raises:
        NothingPublishedError: before the first publication.
    """
    run = last_run(root)
    if run is None:
        raise NothingPublishedError("nothing published yet; run 'cdp-ml refresh'")
    return run


def last_run(root: Path) -> dict[str, Any] | None:
    """The newest row of `runs`, its JSON columns decoded; None before the first publication."""
    rows = published_runs(root)
    return rows[-1] if rows else None


def published_runs(root: Path) -> list[dict[str, Any]]:
    """All rows of `runs`, oldest first, their JSON columns decoded."""
    if not _exists(root / RUNS):
        return []
    rows = _rows(_delta(root / RUNS, None)).to_pylist()
    decoded = [{**r, **{k: json.loads(r[k]) for k in ("versions", "summary")}} for r in rows]
    return sorted(decoded, key=lambda r: r["published_at"])


def publish(root: Path, run: dict[str, Any]) -> None:
    """Append a row to `runs`: from this instant on, readers see its versions.

    Args:
        root: the lake's folder.
        run: the columns of `runs`; `versions` and `summary` as objects.
    """
    import pyarrow as pa

    row = {**run, **{k: json.dumps(run[k], sort_keys=True) for k in ("versions", "summary")}}
    latest = {RUNS: _delta(root / RUNS, None).version()} if _exists(root / RUNS) else {}
    Lake(root, latest).append(RUNS, pa.Table.from_pylist([row], arrow_schema(RUNS)))


def _changed_rows(
    old: Table, rows: pa.Table, name: str, con: SQLBackend
) -> tuple[Table, dict[str, int]]:
    """The rows whose key is new or whose content differs, and how many of each there are."""
    import ibis

    key = contract(name).key
    content = [c for c in rows.column_names if c not in key and c != "ingested_at"]
    new = con.create_table(f"_upsert_{name}", rows, temp=True, overwrite=True)
    joined = new.left_join(old.mutate(_known=ibis.literal(True)), key)
    values = {c: new[c] for c in rows.column_names}
    values |= {c: ibis.least(new[c], old[c].fill_null(new[c])) for c in contract(name).first}
    differs = ibis.or_(*(~values[c].identical_to(old[c]) for c in content)) if content else False
    marked = joined.select(**values, _known=joined["_known"].notnull(), _differs=differs)
    touched = con.create_table(f"_touched_{name}", marked, temp=True, overwrite=True)
    counts = touched.aggregate(
        new=(~touched["_known"]).sum(), changed=(touched["_known"] & touched["_differs"]).sum()
    )
    found = {k: int(v or 0) for k, v in counts.to_pyarrow().to_pylist()[0].items()}
    fresh = touched.filter(~touched["_known"] | touched["_differs"]).drop("_known", "_differs")
    return fresh, {**found, "same": rows.num_rows - found["new"] - found["changed"]}


def _check_columns(
    name: str, given: Iterable[str], declared: tuple[str, ...], is_open: bool
) -> None:
    given = list(given)
    for column in declared:
        if column not in given:
            raise ContractError(f"table '{name}': column '{column}' is missing")
    for column in () if is_open else given:
        if column not in declared:
            raise ContractError(
                f"table '{name}': no column '{column}'; {nearest(column, declared)}"
            )


def _encodings(rows: pa.Table) -> WriterProperties:
    """Row groups that are read by themselves, without dictionaries of values that hardly repeat.

    A dictionary of ids takes half the time of a write, and is given up only once it is large.
    """
    import pyarrow as pa
    from deltalake import ColumnProperties, WriterProperties

    some = rows.slice(0, SAMPLED_ROWS)
    flat = (f.name for f in rows.schema if not pa.types.is_nested(f.type))
    plain = ColumnProperties(dictionary_enabled=False)
    return WriterProperties(
        max_row_group_size=ROW_GROUP,
        column_properties={n: plain for n in flat if 2 * len(some[n].unique()) > SAMPLED_ROWS},
    )


def _delta(path: Path, version: int | None) -> DeltaTable:
    from deltalake import DeltaTable

    return DeltaTable(path.absolute().as_uri(), version=version)


def _files(table: DeltaTable) -> list[str]:
    return [unquote(uri) for uri in table.file_uris()]


def _rows(table: DeltaTable) -> pa.Table:
    """All rows, null in columns that a file lacks.

    By Arrow itself: where Delta's `to_pyarrow_table` opens the files for it, Arrow's threads let go
    of Python objects late, and abort a process that ends meanwhile (apache/arrow#39862).
    """
    import pyarrow as pa
    import pyarrow.dataset as ds

    return ds.dataset(_files(table), pa.schema(table.schema()), format="parquet").to_table()


def _exists(path: Path) -> bool:
    from deltalake import DeltaTable

    return bool(DeltaTable.is_deltatable(path.absolute().as_uri()))

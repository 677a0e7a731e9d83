"""Feast's offline store on the lake: pinned Delta versions, read by DuckDB without its extension.

Named in features/feature_store.yaml. A data source's path is the name of a table of the lake, so
that the registry knows no machine's paths.

Feast's own DuckDB store carries all features of all rows through its joins and then sorts them;
this one first finds which row holds, looking at keys and times alone, and then takes its features
from their place in the Parquet files. The queries are SQL, as Ibis has no name for that place.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.infra.offline_stores.duckdb import (
    DuckDBOfflineStore,
    DuckDBOfflineStoreConfig,
)
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.ibis import pull_all_from_table_or_query_ibis
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.on_demand_feature_view import OnDemandFeatureView

from cdp_ml.config import Engine
from cdp_ml.contracts import contract
from cdp_ml.engine import connect
from cdp_ml.errors import ContractError, nearest
from cdp_ml.feast_stores.places import PLACE, blocks_at, columns_at
from cdp_ml.lake import Lake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pandas as pd
    from feast import RepoConfig
    from feast.data_source import DataSource
    from feast.feature_view import FeatureView
    from feast.infra.registry.base_registry import BaseRegistry
    from feast.saved_dataset import SavedDatasetStorage
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Table

AS_OF = "as_of"
"""The name under which a row's own instant is a feature."""
_DENSE_BITS = 22
"""Up to how many rows of a spine, as a power of 2, an array of them takes little memory."""


class LakeOfflineStoreConfig(DuckDBOfflineStoreConfig):  # type: ignore[misc]
    """Where the lake is, which versions of its tables are read, and the limits of DuckDB.

    A relative `lake` is relative to the feature repository. Without `versions`, those of the last
    published run are read.
    """

    type: str = "cdp_ml.feast_stores.offline.LakeOfflineStore"
    lake: str
    versions: dict[str, int] | None = None
    memory_limit: str = Engine().memory_limit
    threads: int = Engine().threads


class LakeOfflineStore(DuckDBOfflineStore):  # type: ignore[misc]
    """Feast's DuckDB store, but for where rows come from and how they are joined."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        """Join the features that held at each row's instant, within their views' TTL.

        The rows come back in the order of `entity_df`. Of rows of equal event timestamp the one
        created last holds, and of those the last written. Instants without a time zone are UTC.

        Raises:
            ContractError: if a table or one of its columns is not there, or `entity_df` is SQL.
        """
        if isinstance(entity_df, str):
            raise ContractError("entity_df: SQL is not supported; give a data frame")
        instant = infer_event_timestamp_from_entity_df(dict(entity_df.dtypes))
        tables = _Tables.of(config)
        spine = _hold_spine(tables.con, entity_df, instant)
        parts = [
            _Part.of(view, feature_refs, full_feature_names, filter_by_created_timestamp)
            for view in feature_views
        ]
        wanted = [tables.source(part.source, part.columns) for part in parts]

        def rows() -> pa.Table:
            found = spine
            for part, source in zip(parts, wanted, strict=True):
                for name, column in _features_at(tables, part, source, instant, len(spine)):
                    found = found.append_column(name, column)
            return found

        instants = entity_df[instant]
        metadata = RetrievalMetadata(
            features=feature_refs,
            keys=[c for c in entity_df.columns if c != instant],
            min_event_timestamp=instants.min(),
            max_event_timestamp=instants.max(),
        )
        odfvs = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        return _RowsJob(rows, odfvs, full_feature_names, metadata)

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The newest row of each key within a span of time; materialization asks for it."""
        tables = _Tables.of(config)
        times = [c for c in (timestamp_field, created_timestamp_column) if c]
        columns = list(dict.fromkeys([*join_key_columns, *feature_name_columns, *times]))
        source = tables.source(data_source, columns)
        at = f"{_quoted(timestamp_field)}::TIMESTAMPTZ"
        within = f"{at} BETWEEN {_literal(start_date)} AND {_literal(end_date)}"
        rows = f"({source.rows([*join_key_columns, *times])}) AS f WHERE {within}"
        newest = f"SELECT {_newest(timestamp_field, created_timestamp_column)} AS _row"
        found = f"{newest} FROM {rows} GROUP BY {_listed(join_key_columns)} ORDER BY _row"
        last = f"SELECT _row FROM {rows} AND {at} = (SELECT max({at}) FROM {rows}) ORDER BY _row"

        def places(query: str) -> np.ndarray:
            return tables.columns(query)["_row"] if source.files else np.array([], np.int64)

        return NewestJob(source, columns, partial(places, found), partial(places, last))

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """All rows within a span of time."""
        return pull_all_from_table_or_query_ibis(
            config=config,
            data_source=data_source,
            join_key_columns=join_key_columns,
            feature_name_columns=feature_name_columns,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            start_date=start_date,
            end_date=end_date,
            data_source_reader=partial(_read, _Tables.of(config)),
            data_source_writer=_refuse_to_write,
        )

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Check that the contracts know the table; Feast's own check would look for a file.

        Raises:
            ContractError: if they do not.
        """
        assert isinstance(data_source, FileSource)
        contract(data_source.path)


class _RowsJob(RetrievalJob):  # type: ignore[misc]
    """Rows that are computed when they are asked for."""

    def __init__(
        self,
        rows: Callable[[], pa.Table],
        odfvs: Sequence[OnDemandFeatureView] = (),
        full_feature_names: bool = False,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._rows = rows
        self._odfvs, self._full_feature_names = list(odfvs), full_feature_names
        self._metadata = metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._rows()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._rows().to_pandas()

    @property
    def full_feature_names(self) -> bool:
        """Whether names of features begin with those of their views."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """What is computed from the rows."""
        return self._odfvs

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """What was asked for."""
        return self._metadata

    def persist(
        self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: Any = None
    ) -> None:
        """Refuse: the lake is written by refreshes."""
        _refuse_to_write()


class NewestJob(_RowsJob):
    """The newest row of each key: all of them, or those of some keys, some after the others."""

    def __init__(
        self,
        source: _Source,
        columns: Sequence[str],
        newest: Callable[[], np.ndarray],
        last: Callable[[], np.ndarray],
    ) -> None:
        """`newest` finds the newest row of each key, `last` all rows of the last instant."""
        super().__init__(lambda: self._table(newest(), columns))
        self._source, self._newest, self._last = source, newest, last

    def places_of(self, key: str, wanted: pa.ChunkedArray) -> np.ndarray:
        """Where the row of each key lies, -1 if it has none.

        Args:
            key: the key's column.
            wanted: keys, each once.
        """
        places = self._last()
        if self._keys(key, places, wanted.type).equals(wanted):
            return places  # as after every refresh: all that are wanted have a row of that instant
        places = self._newest()
        keys = self._keys(key, places, wanted.type)
        at = pc.index_in(wanted, value_set=keys).fill_null(-1).to_numpy()
        found: np.ndarray = np.append(places, -1)[at]
        return found

    def rows_at(self, places: np.ndarray, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows at places that `places_of` found; null in all columns where there is none.

        Args:
            places: in any order.
            columns: those to read, each once.

        Yields:
            A row group at a time, if the rows are wanted in the order in which they lie; otherwise
            all rows at once.
        """
        if len(places) and places[0] >= 0 and np.all(np.diff(places) > 0):
            return self._source.blocks(places, columns)
        known = np.unique(places[places >= 0])
        at = pa.array(np.searchsorted(known, places), mask=places < 0)
        return iter([self._table(known, columns).take(at)])

    def _keys(self, key: str, places: np.ndarray, kind: pa.DataType) -> pa.ChunkedArray:
        return self._table(places, [key])[key].cast(kind)

    def _table(self, places: np.ndarray, columns: Sequence[str]) -> pa.Table:
        return pa.table(dict(zip(columns, self._source.at(places, columns), strict=True)))


@dataclass(frozen=True)
class _Source:
    """A table of the lake as a view's source: its files, and the columns that it has.

    A row's own instant is also its column `as_of`, a feature for what depends on the request.
    """

    files: Sequence[str]
    timestamp: str
    schema: pa.Schema

    def rows(self, columns: Sequence[str]) -> str:
        """SQL of some columns, and of `_row`, each row's place."""
        return f"SELECT {_listed(columns)}, {PLACE} AS _row FROM {_read_parquet(self.files)}"

    def at(self, places: np.ndarray, columns: Sequence[str]) -> Iterator[pa.ChunkedArray]:
        """Some columns of the rows that lie at some places, ascending."""
        return columns_at(self.files, places, self._stored(columns))

    def blocks(self, places: np.ndarray, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The same, a row group at a time."""
        for block in blocks_at(self.files, places, self._stored(columns)):
            yield block.rename_columns(columns)

    def _stored(self, columns: Sequence[str]) -> pa.Schema:
        stored = [self.timestamp if c == AS_OF else c for c in columns]
        return pa.schema([self.schema.field(c) for c in stored])


@dataclass(frozen=True)
class _Tables:
    """The lake's tables as DuckDB sees them; all of a query come from one connection."""

    lake: Lake
    con: SQLBackend

    @classmethod
    def of(cls, config: RepoConfig) -> _Tables:
        store: LakeOfflineStoreConfig = config.offline_store
        root = Path(config.repo_path or ".") / store.lake
        lake = Lake.published(root) if store.versions is None else Lake(root, dict(store.versions))
        return cls(lake, connect(Engine(threads=store.threads, memory_limit=store.memory_limit)))

    def files(self, source: DataSource) -> list[str]:
        """The files of a source's table.

        Raises:
            ContractError: if there is no such table.
        """
        assert isinstance(source, FileSource)
        if not self.lake.has(source.path):
            raise ContractError(
                f"no table '{source.path}' in {self.lake.root}; run 'cdp-ml refresh'"
            )
        return self.lake.files(source.path)

    def source(self, source: DataSource, columns: Sequence[str]) -> _Source:
        """A source's table, checked for some columns.

        Raises:
            ContractError: if there is no such table or column.
        """
        files = self.files(source)
        if files:
            query = f"FROM {_read_parquet(files)} LIMIT 0"
            schema = self.con.con.sql(query).to_arrow_table().schema
        else:
            schema = self.lake.arrow(source.path).schema
        known = [*schema.names, AS_OF]
        for column in columns:
            if column not in known:
                raise ContractError(
                    f"table '{source.path}' has no column '{column}', which features/ declares; "
                    f"{nearest(column, known)} Run 'cdp-ml refresh' if it is new"
                )
        return _Source(files, source.timestamp_field, schema)

    def columns(self, query: str) -> dict[str, np.ndarray]:
        """The result of a query, by column."""
        found: dict[str, np.ndarray] = self.con.con.sql(query).fetchnumpy()
        return found


def _read_parquet(files: Sequence[str]) -> str:
    paths = ", ".join(f"'{path.replace(chr(39), chr(39) * 2)}'" for path in files)
    return f"read_parquet([{paths}], union_by_name = true)"


@dataclass(frozen=True)
class _Part:
    """What a training set takes of one feature view.

    `keys` names the entity column by join key, `features` the source's column by name in the
    result. Columns are those of the source.
    """

    source: DataSource
    keys: Mapping[str, str]
    features: Mapping[str, str]
    ttl: timedelta | None
    timestamp: str
    created: str | None
    known_by_then: bool

    @classmethod
    def of(
        cls, view: FeatureView, refs: Sequence[str], full_names: bool, by_created: bool
    ) -> _Part:
        source, name = view.batch_source, view.projection.name_to_use()
        if source is None:
            raise ContractError(f"feature view '{view.name}' has no table to be read from")
        columns = {new: old for old, new in source.field_mapping.items()}
        prefix = f"{view.projection.name_alias or view.name}__" if full_names else ""
        wanted = [ref.partition(":")[2] for ref in refs if ref.startswith(f"{name}:")]
        keys = view.projection.join_key_map or {e.name: e.name for e in view.entity_columns}
        return cls(
            source=source,
            keys={columns.get(k, k): v for k, v in keys.items()},
            features={f"{prefix}{f}": columns.get(f, f) for f in wanted},
            ttl=view.ttl or None,
            timestamp=columns.get(source.timestamp_field, source.timestamp_field),
            created=source.created_timestamp_column or None,
            known_by_then=by_created,
        )

    @property
    def columns(self) -> list[str]:
        """All columns that it takes."""
        return [*self.narrow, *self.features.values()]

    @property
    def narrow(self) -> list[str]:
        """The columns that tell which row holds."""
        return [*self.keys, self.timestamp, *([self.created] if self.created else [])]

    def holds(self, instant: str) -> str:
        """The condition under which row f may hold at row s of the spine."""
        then, at = f"s.{_quoted(instant)}", f"f.{_quoted(self.timestamp)}::TIMESTAMPTZ"
        conditions = [f"f.{_quoted(k)} = s.{_quoted(v)}" for k, v in self.keys.items()]
        conditions.append(f"{at} <= {then}")
        if self.ttl:
            age = f"to_microseconds({self.ttl // timedelta(microseconds=1)})"
            conditions.append(f"{at} >= {then} - {age}")
        if self.known_by_then and self.created:
            conditions.append(f"f.{_quoted(self.created)}::TIMESTAMPTZ <= {then}")
        return " AND ".join(conditions)


def _hold_spine(con: SQLBackend, entity_df: pd.DataFrame, instant: str) -> pa.Table:
    """Table `_spine`: the rows to be filled, numbered, their instants in UTC; returns them too."""
    rows = pa.Table.from_pandas(entity_df, preserve_index=False).replace_schema_metadata()
    con.con.register("_entities", rows.append_column("_spine_row", pa.array(np.arange(len(rows)))))
    at = _quoted(instant)
    con.raw_sql(
        f"CREATE TABLE _spine AS SELECT * REPLACE ({at}::TIMESTAMPTZ AS {at}) FROM _entities"
    )
    query = f"SELECT {at} FROM _spine ORDER BY _spine_row"
    instants = con.con.sql(query).to_arrow_table().column(0)
    # A spine's row numbers are dense: the newest row of each is kept in an array, not a hash table.
    con.raw_sql(f"SET perfect_ht_threshold = {_DENSE_BITS}")
    return rows.set_column(rows.column_names.index(instant), instant, instants)


def _features_at(
    tables: _Tables, part: _Part, source: _Source, instant: str, spine: int
) -> Iterator[tuple[str, pa.Array]]:
    """The features that hold at each row of the spine, by name; null where none does."""
    rows = places = np.array([], np.int64)
    if source.files:
        found = tables.columns(f"""
            SELECT _spine_row, {_newest(part.timestamp, part.created)} AS _row
            FROM _spine AS s JOIN ({source.rows(part.narrow)}) AS f
            ON {part.holds(instant)} GROUP BY _spine_row
        """)
        order = np.argsort(found["_row"])
        rows, places = found["_spine_row"][order], found["_row"][order]
    at = np.full(spine, -1)
    at[rows] = np.arange(len(rows))
    index = pa.array(at, mask=at < 0)
    columns = source.at(places, list(part.features.values()))
    for name, column in zip(part.features, columns, strict=True):
        yield name, column.combine_chunks().take(index)


def _newest(timestamp: str, created: str | None) -> str:
    """The aggregate that finds the row that holds, among rows f."""
    at = f"f.{_quoted(timestamp)}::TIMESTAMPTZ"
    if not created:
        # One number for time and place: half the cost of comparing structs.
        return f"(max((epoch_us({at})::HUGEINT << 64) + _row) & {2**64 - 1})::BIGINT"
    then = f"coalesce(f.{_quoted(created)}::TIMESTAMPTZ, '-infinity')"
    return f"max({{'at': {at}, 'created': {then}, 'row': _row}}).row"


def _read(tables: _Tables, source: DataSource, repo_path: str) -> Table:
    """A data source as an Ibis expression."""
    tables.files(source)
    return tables.lake.read(source.path, tables.con)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _listed(names: Sequence[str]) -> str:
    return ", ".join(_quoted(name) for name in names)


def _literal(instant: datetime) -> str:
    at = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
    return f"TIMESTAMPTZ '{at.astimezone(UTC).isoformat()}'"


def _refuse_to_write(*args: Any) -> None:
    raise NotImplementedError("the lake is written by 'cdp-ml refresh' alone")

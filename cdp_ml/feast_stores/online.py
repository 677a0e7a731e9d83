"""Feast's online stores with one packed value a customer and view: in SQLite and in Redis.

Named in features/feature_store.yaml. What `cdp_ml.feast_stores.packed` makes of a row is written
under the view and the customer. A row never replaces one of a later event, or of the same event
created later; of equal ones the last written holds. A row older than its view's TTL is not read.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel

from cdp_ml.errors import ConfigError, ContractError
from cdp_ml.feast_stores.packed import (
    Layout,
    arrow_schema_of,
    entity_key,
    entity_keys,
    event_time,
    oldest,
)

if TYPE_CHECKING:
    from feast import Entity, RepoConfig
    from feast.feature_view import FeatureView
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from redis import Redis

Row = tuple["EntityKey", dict[str, Value], datetime, datetime | None]

ROWS_AT_ONCE = 50_000
KEYS_AT_ONCE = 1_000
_EVENT, _CREATED = "__event_timestamp", "__created_timestamp"
_PROTO_FIELDS = {
    "Float64": "double_val",
    "Float32": "float_val",
    "Int64": "int64_val",
    "Int32": "int32_val",
    "Bool": "bool_val",
    "UnixTimestamp": "unix_timestamp_val",
    "String": "string_val",
}


class PackedOnlineStore(OnlineStore):  # type: ignore[misc]
    """What both stores have in common: all but where the bytes lie."""

    _versioned_read_supported = False

    @abstractmethod
    def get(self, config: RepoConfig, view: str, keys: Sequence[str]) -> list[bytes | None]:
        """The bytes of each entity of a view; None where there are none."""

    def get_views(
        self, config: RepoConfig, views: Sequence[str], keys: Sequence[str]
    ) -> list[list[bytes | None]]:
        """As `get`, for several views."""
        return [self.get(config, view, keys) for view in views]

    @abstractmethod
    def put(self, config: RepoConfig, view: str, keys: list[str], values: list[bytes]) -> None:
        """Keep bytes by entity, unless newer ones are there; keys in order are quicker."""

    @abstractmethod
    def delete(self, config: RepoConfig, views: Sequence[str], keys: Sequence[str]) -> None:
        """Remove entities from views, beyond recovery."""

    @abstractmethod
    def count(self, config: RepoConfig, view: str) -> int:
        """How many entities a view has."""

    def settle(self, config: RepoConfig) -> None:
        """Bring what was written to where other processes and copies find it."""

    def prepare(self, config: RepoConfig, views: Sequence[str]) -> None:
        """Make room for views, where that is needed before they are written."""

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Check that the views can be packed, make room for them, and remove former ones."""
        for view in tables_to_keep:
            Layout.of(view)
        self.prepare(config, [view.name for view in tables_to_keep])
        self.teardown(config, tables_to_delete, ())

    def write_table(
        self,
        config: RepoConfig,
        view: FeatureView,
        rows: pa.Table,
        event: str,
        created: str | None = None,
    ) -> None:
        """Write rows in bulk, without a protobuf a value.

        Args:
            config: of the Feast repository.
            view: whose features they are.
            rows: join keys, features and timestamps; rows without a key are left out.
            event: the column of the event timestamp; without a time zone it is UTC.
            created: likewise of the created timestamp, if there is one.
        """
        layout, keys = Layout.of(view), entity_keys(rows, view.join_keys)
        order = pa.compute.sort_indices(keys).slice(0, len(keys) - keys.null_count)
        for start in range(0, len(order), ROWS_AT_ONCE):
            at = order.slice(start, ROWS_AT_ONCE)
            packed = layout.pack(rows.take(at), event, created)
            self.put(config, view.name, keys.take(at).to_pylist(), packed)

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows as Feast hands them over; `push` does, materialization uses `write_table`."""
        rows = _as_table(table, data)
        layout = Layout.of(table)
        keys = [_key_of(key) for key, *_ in data]
        # Of several rows of an entity the newest must win, whatever their order.
        packed = sorted(
            zip(keys, layout.pack(rows, _EVENT, _CREATED), strict=True), key=lambda p: p[1][:16]
        )
        newest = dict(packed)
        self.put(config, table.name, list(newest), list(newest.values()))
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Read rows as Feast wants them."""
        found = self.get(config, table.name, [_key_of(key) for key in entity_keys])
        return _as_feast_wants(config, table, found, requested_features)


class PackedSqliteOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """Where the file is, from the repository; TTLs are measured at `now`, else by the clock."""

    type: Literal["cdp_ml.feast_stores.online.PackedSqliteOnlineStore"] = (
        "cdp_ml.feast_stores.online.PackedSqliteOnlineStore"
    )
    path: str
    now: datetime | None = None


class PackedSqliteOnlineStore(PackedOnlineStore):
    """A table a view in a SQLite file, with a write-ahead log: readers and a writer do not wait."""

    def __init__(self) -> None:
        self._local = threading.local()

    def get(self, config: RepoConfig, view: str, keys: Sequence[str]) -> list[bytes | None]:
        """The bytes of each entity of a view; None where there are none.

        Raises:
            ContractError: if the file lacks the view.
        """
        connection, table = self._connection(config), _table(config.project, view)
        with _explained(view):
            if len(keys) == 1:
                query = f"SELECT value FROM {table} WHERE key = ?"
                row = connection.execute(query, keys).fetchone()
                return [row[0] if row else None]
            found: dict[str, bytes] = {}
            for some in _batches(keys):
                marks = ",".join("?" * len(some))
                query = f"SELECT key, value FROM {table} WHERE key IN ({marks})"
                found.update(connection.execute(query, some))
        return [found.get(key) for key in keys]

    def put(self, config: RepoConfig, view: str, keys: list[str], values: list[bytes]) -> None:
        """Keep bytes by entity, unless newer ones are there.

        Raises:
            ContractError: if the file lacks the view.
        """
        with _explained(view), self._connection(config) as connection:
            connection.executemany(
                f"INSERT INTO {_table(config.project, view)} VALUES (?, ?) ON CONFLICT DO UPDATE "
                "SET value = excluded.value "
                "WHERE substr(excluded.value, 1, 16) >= substr(value, 1, 16)",
                zip(keys, values, strict=True),
            )

    def delete(self, config: RepoConfig, views: Sequence[str], keys: Sequence[str]) -> None:
        """Remove entities from views; their bytes are overwritten, in the log too."""
        with self._connection(config) as connection:
            for view in views:
                query = f"DELETE FROM {_table(config.project, view)} WHERE key = ?"
                connection.executemany(query, [(key,) for key in keys])
        self.settle(config)

    def count(self, config: RepoConfig, view: str) -> int:
        """How many entities a view has."""
        query = f"SELECT count(*) FROM {_table(config.project, view)}"
        return int(self._connection(config).execute(query).fetchone()[0])

    def settle(self, config: RepoConfig) -> None:
        """Bring the write-ahead log into the file, which can then be moved."""
        self._connection(config).execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def prepare(self, config: RepoConfig, views: Sequence[str]) -> None:
        """Make the tables of views."""
        connection = self._connection(config)
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        for view in views:
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {_table(config.project, view)} "
                "(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
            )

    def teardown(
        self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]
    ) -> None:
        """Drop the tables of views; the file also holds the registry and stays."""
        for view in tables:
            query = f"DROP TABLE IF EXISTS {_table(config.project, view.name)}"
            self._connection(config).execute(query)

    def _connection(self, config: RepoConfig) -> sqlite3.Connection:
        """The thread's connection to the file."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            path = Path(config.repo_path or ".") / config.online_store.path
            connection = sqlite3.connect(path, timeout=60)
            connection.execute("PRAGMA synchronous = NORMAL")
            # Reads of pages that the system holds need no call of it.
            connection.execute(f"PRAGMA mmap_size = {2**30}").fetchall()
            connection.execute("PRAGMA secure_delete = ON").fetchall()
            self._local.connection = connection
        return connection


class PackedRedisOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """Which Redis; `run` sets the keys of one run apart, `now` is as for SQLite."""

    type: Literal["cdp_ml.feast_stores.online.PackedRedisOnlineStore"] = (
        "cdp_ml.feast_stores.online.PackedRedisOnlineStore"
    )
    url: str = "redis://localhost:6379/0"
    run: str = ""
    now: datetime | None = None


_PUT = """
local function times(value) return {struct.unpack('>I4I4I4I4', value)} end
for i, key in ipairs(KEYS) do
    if redis.call('SETNX', key, ARGV[i]) == 0 then
        local new, old = times(ARGV[i]), times(redis.call('GETRANGE', key, 0, 15))
        local at = 1
        while at < 4 and new[at] == old[at] do at = at + 1 end
        if new[at] >= old[at] then redis.call('SET', key, ARGV[i]) end
    end
end
"""
"""Set values unless newer ones are there, whose first 16 bytes are their times."""


class PackedRedisOnlineStore(PackedOnlineStore):
    """A Redis key an entity and view: project, run, view and entity, joined by colons."""

    _client: Redis | None = None

    def __init__(self) -> None:
        self._local = threading.local()

    def get(self, config: RepoConfig, view: str, keys: Sequence[str]) -> list[bytes | None]:
        """The bytes of each entity of a view; None where there are none."""
        return self.get_views(config, [view], keys)[0]

    def get_views(
        self, config: RepoConfig, views: Sequence[str], keys: Sequence[str]
    ) -> list[list[bytes | None]]:
        """As `get`, in one round trip."""
        asked = [f"{_prefix(config, view)}{key}" for view in views for key in keys]
        found = self._mget(config, asked) if asked else []
        return [found[i * len(keys) : (i + 1) * len(keys)] for i in range(len(views))]

    def _read_features_per_fv(
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[FeatureView, list[str]]],
        join_key_values: dict[str, Any],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: Any,
        *said: bool,
    ) -> None:
        """Feast's hook for stores that read several views in one round trip."""
        from feast import utils

        # By view: the values of its distinct entities, the rows of each, the number of rows.
        asked = [
            utils._get_unique_entities(view, join_key_values, entity_name_to_join_key_map)
            for view, _ in grouped_refs
        ]
        keys = [
            [f"{_prefix(config, view.name)}{_key_of(k)}" for k in utils._get_entity_key_protos(e)]
            for (view, _), (e, _, _) in zip(grouped_refs, asked, strict=True)
        ]
        found = iter(self._mget(config, [key for some in keys for key in some]) if keys else [])
        full_names, with_versions = said
        for (view, names), (_, places, rows), some in zip(grouped_refs, asked, keys, strict=True):
            read = _as_feast_wants(config, view, list(islice(found, len(some))), names)
            utils._populate_response_from_feature_data(
                names, read, places, online_features_response, full_names, view, rows, with_versions
            )

    def put(self, config: RepoConfig, view: str, keys: list[str], values: list[bytes]) -> None:
        """Keep bytes by entity, unless newer ones are there."""
        prefix, script = _prefix(config, view), self.client(config).register_script(_PUT)
        for start in range(0, len(keys), KEYS_AT_ONCE):
            some = slice(start, start + KEYS_AT_ONCE)
            script(keys=[prefix + key for key in keys[some]], args=values[some])

    def delete(self, config: RepoConfig, views: Sequence[str], keys: Sequence[str]) -> None:
        """Remove entities from views."""
        for some in _batches([f"{_prefix(config, view)}{k}" for view in views for k in keys]):
            self.client(config).delete(*some)

    def count(self, config: RepoConfig, view: str) -> int:
        """How many entities a view has."""
        return sum(map(len, _scanned(self.client(config), _prefix(config, view))))

    def teardown(
        self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]
    ) -> None:
        """Remove the run's values of views."""
        _drop(self.client(config), [_prefix(config, view.name) for view in tables])

    def _mget(self, config: RepoConfig, keys: Sequence[str]) -> Any:
        """Get values in one round trip, without what redis-py does around each: a third of it."""
        connection = self._connection(config)
        try:
            connection.send_command("MGET", *keys)
            return connection.read_response()
        except BaseException as error:
            # An answer still under way must not be taken for that to the next question.
            connection.disconnect()
            from redis.exceptions import RedisError

            if not isinstance(error, RedisError):
                raise
        # A connection that was lost; the client tries again, or says what is wrong.
        return self.client(config).mget(keys)

    def _connection(self, config: RepoConfig) -> Any:
        """The thread's own connection; of the process too, as a fork must not share one."""
        process = os.getpid()
        if getattr(self._local, "process", None) != process:
            pool = self.client(config).connection_pool
            self._local.connection = pool.connection_class(**pool.connection_kwargs)
            self._local.process = process
        return self._local.connection

    def client(self, config: RepoConfig) -> Redis:
        """The connections to Redis, safe among threads.

        Raises:
            ConfigError: if the extra 'redis' is not installed.
        """
        if self._client is None:
            self._client = _redis(config.online_store.url)
        return self._client


def drop_from_redis(url: str, prefixes: Iterable[str]) -> None:
    """Remove all keys that begin with one of some texts.

    Args:
        url: of Redis.
        prefixes: such as `project:run:`.

    Raises:
        ConfigError: if the extra 'redis' is not installed.
    """
    _drop(_redis(url), prefixes)


def _redis(url: str) -> Redis:
    try:
        import redis
    except ImportError:
        raise ConfigError(
            "the Redis online store needs the extra: pip install 'cdp-ml[redis]'"
        ) from None
    return redis.Redis.from_url(url)


def _drop(client: Redis, prefixes: Iterable[str]) -> None:
    for prefix in prefixes:
        for some in _scanned(client, prefix):
            client.unlink(*some)


def _scanned(client: Redis, prefix: str) -> Iterable[list[bytes]]:
    literal = "".join(f"[{c}]" if c in "*?[" else c for c in prefix)
    return _batches(client.scan_iter(match=f"{literal}*", count=10_000))


def now_of(config: RepoConfig) -> datetime:
    """The instant at which TTLs are measured."""
    return config.online_store.now or datetime.now(UTC)


def _prefix(config: RepoConfig, view: str) -> str:
    return f"{config.project}:{config.online_store.run}:{view}:"


@cache
def _table(project: str, view: str) -> str:
    return '"' + f"{project}_{view}".replace('"', '""') + '"'


def _batches(items: Iterable[Any]) -> Iterable[list[Any]]:
    rest = iter(items)
    return iter(lambda: list(islice(rest, KEYS_AT_ONCE)), [])


class _explained:  # noqa: N801 reads as a function; a generator would cost a fast read a microsecond
    """Say what is wrong with a file that was not written by this store."""

    def __init__(self, view: str) -> None:
        self._view = view

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, sqlite3.OperationalError) and "no such" in str(error):
            raise ContractError(
                f"the online store has no values of view '{self._view}' that this version reads; "
                "run 'cdp-ml refresh'"
            ) from None


def _as_table(view: FeatureView, data: list[Row]) -> pa.Table:
    """Feast's rows as columns: features, and both timestamps."""
    stamp = pa.timestamp("us", "UTC")
    columns = {
        field.name: pa.array([_plain(row[1].get(field.name)) for row in data], field.type)
        for field in arrow_schema_of(view)
    }
    columns[_EVENT] = pa.array([_aware(row[2]) for row in data], stamp)
    columns[_CREATED] = pa.array([_aware(row[3]) for row in data], stamp)
    return pa.table(columns)


def _aware(when: datetime | None) -> datetime | None:
    if when is None or when != when:  # Feast hands a null over as pandas' NaT
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _plain(value: Value | None) -> Any:
    held = value and value.WhichOneof("val")
    if not held:
        return None
    found = getattr(value, held)
    return datetime.fromtimestamp(found, UTC) if held == "unix_timestamp_val" else found


def _key_of(key: EntityKey) -> str:
    ids = dict(zip(key.join_keys, map(_plain, key.entity_values), strict=True))
    return entity_key([ids[name] for name in sorted(ids)])


def _as_feast_wants(
    config: RepoConfig, view: FeatureView, found: list[bytes | None], names: list[str] | None
) -> list[tuple[datetime | None, dict[str, Value] | None]]:
    """Some features of each entity, or all, and their time; None of what is absent or too old."""
    layout = Layout.of(view)
    wanted = set(layout.names if names is None else names)
    fields = [
        (i, name, _PROTO_FIELDS[layout.types[i]])
        for i, name in enumerate(layout.names)
        if name in wanted
    ]
    since = oldest(view.ttl, now_of(config))
    return [
        (None, None)
        if value is None or value[:8] < since
        else (event_time(value), _protos(layout.unpack(value), fields))
        for value in found
    ]


def _protos(values: list[Any], fields: Sequence[tuple[int, str, str]]) -> dict[str, Value]:
    """The values of some features as Feast's messages."""
    return {
        name: Value() if values[i] is None else Value(**{field: _number(values[i])})
        for i, name, field in fields
    }


def _number(value: Any) -> Any:
    return int(value.timestamp()) if isinstance(value, datetime) else value

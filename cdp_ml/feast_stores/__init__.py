"""Feast: the feature repository opened on the lake, behind its own plug-in interfaces.

Each run has an online store of its own: one SQLite file that also holds the registry with which it
was written, or where the repository names Redis the keys of the run beside that file. A reader of a
published run therefore sees features and values that belong together, whatever a later refresh
writes.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.config import Settings, load_mapping
from cdp_ml.errors import ConfigError, ContractError, nearest

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from feast import FeatureService, FeatureStore

    from cdp_ml.feast_stores.online import PackedOnlineStore
    from cdp_ml.feast_stores.packed import Layout

IDENTITY = b"cdp_ml.training_set"
"""Under which key of its schema's metadata a training set says what it was made of."""


def open_store(
    settings: Settings,
    versions: Mapping[str, int],
    online_store: Path,
    now: datetime | None = None,
) -> FeatureStore:
    """Open the workspace's feature repository on fixed versions of the lake's tables.

    Args:
        settings: of the workspace; its folder `features`, else the shipped one, is the repository.
        versions: of the tables that offline features are read from.
        online_store: the SQLite file of the run's online store and registry; made by `apply`.
            Where the repository names Redis the values are there, under this file's name.
        now: the instant at which online features must hold, by their views' TTL; else the clock's.
    """
    _load_feast()
    from feast import FeatureStore, RepoConfig

    folder = settings.share("features").resolve()
    content = load_mapping(folder / "feature_store.yaml")
    database = online_store.resolve()
    content["registry"] = {
        "registry_type": "sql",
        "path": f"sqlite:///{database}",
        # A store shows one run, whose registry does not change.
        "cache_ttl_seconds": 0,
    }
    where = (
        {"run": str(database.stem)} if "url" in content["online_store"] else {"path": str(database)}
    )
    content["online_store"] = {**content["online_store"], **where, "now": now}
    content["offline_store"] = {
        **content["offline_store"],
        "lake": str(settings.lake.resolve()),
        "versions": dict(versions),
        "memory_limit": settings.engine.memory_limit,
        "threads": settings.engine.threads,
    }
    config = RepoConfig(**content)
    config.repo_path = folder
    return FeatureStore(repo_path=str(folder), config=config)


def apply(store: FeatureStore) -> None:
    """Register what the feature repository declares; doing it again changes nothing.

    Args:
        store: of `open_store`.
    """
    database = Path(store.config.registry.path.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with _silence():
        store.apply(repository_objects(Path(store.repo_path)))


def repository_objects(folder: Path) -> list[Any]:
    """The Feast objects that the modules of a feature repository declare.

    The modules are imported afresh under their own names and forgotten again: another workspace's
    repository has modules of the same names.

    Args:
        folder: the feature repository.

    Raises:
        ConfigError: if a module cannot be imported.
    """
    from feast import Entity, FeatureService
    from feast.base_feature_view import BaseFeatureView
    from feast.data_source import DataSource

    kinds = (DataSource, Entity, BaseFeatureView, FeatureService)
    names = sorted(p.stem for p in folder.glob("*.py"))
    with _importing_from(folder, names):
        try:
            modules = [importlib.import_module(name) for name in names]
        except Exception as error:
            raise ConfigError(_import_problem(folder, error)) from error
    found = [o for m in modules for o in vars(m).values() if isinstance(o, kinds)]
    return list({id(o): o for o in found}.values())


def _import_problem(folder: Path, error: Exception) -> str:
    """What is wrong with a feature repository, with the deepest line of it that was reached."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{f.filename}:{f.lineno}" for f in frames if Path(f.filename).parent == folder]
    place = ours[-1] if ours else str(folder)
    problem = " ".join(str(error).split())
    return f"{place}: cannot be imported: {type(error).__name__}: {problem}"


def feature_schemas(settings: Settings) -> dict[str, pa.Schema]:
    """The columns of `training_features` by feature service, as the repository declares them.

    Args:
        settings: of the workspace.

    Returns:
        customer_id, event_timestamp and the features, for each service.

    Raises:
        ConfigError: if the repository lacks feature_store.yaml or cannot be imported.
    """
    import pyarrow as pa

    _load_feast()
    from feast import FeatureService
    from feast.types import from_feast_to_pyarrow_type

    key = [("customer_id", pa.string()), ("event_timestamp", pa.timestamp("us", "UTC"))]
    folder = settings.share("features").resolve()
    load_mapping(folder / "feature_store.yaml")
    objects = repository_objects(folder)
    return {
        service.name: pa.schema(
            [
                *key,
                *(
                    (f.name, from_feast_to_pyarrow_type(f.dtype))
                    for view in service.feature_view_projections
                    for f in view.features
                ),
            ]
        )
        for service in objects
        if isinstance(service, FeatureService)
    }


def training_features(
    store: FeatureStore, service: str, spine: pa.Table | pd.DataFrame
) -> pa.Table:
    """The features that held at each row's instant, point-in-time correct.

    Args:
        store: of `open_store`, after `apply`.
        service: name of a feature service.
        spine: customer_id, event_timestamp (with a time zone) and any further columns.

    Returns:
        The spine's columns, then the service's features; null where a view has no row of the
        customer within its TTL. Sorted by the spine's columns, customer_id and event_timestamp
        first. The same bytes for the same `training_identity`, which the schema's metadata hold
        under `IDENTITY` as JSON.

    Raises:
        ConfigError: if there is no such service.
        ContractError: if the spine lacks a column, or its instants have no time zone.
    """
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    found = _service(store, service)
    rows = _sorted_spine(spine)
    frame = rows.to_pandas(types_mapper=pd.ArrowDtype)
    with _silence():
        joined = store.get_historical_features(entity_df=frame, features=found).to_arrow()
    features = pa.schema([pa.field(name, joined.schema.field(name).type) for name in _names(found)])
    schema = pa.unify_schemas([rows.schema, features])
    identity = json.dumps(_identity(store, found, rows), sort_keys=True)
    # Taking all rows rewrites them: what lies under a null is arbitrary as DuckDB leaves it.
    canonical = joined.select(schema.names).cast(schema).combine_chunks()
    canonical = canonical.take(pa.array(np.arange(canonical.num_rows)))
    return canonical.replace_schema_metadata({IDENTITY: identity.encode()})


def training_identity(
    store: FeatureStore, service: str, spine: pa.Table | pd.DataFrame
) -> dict[str, Any]:
    """What a training set is made of; where it is the same, so is the training set.

    Args:
        store: as for `training_features`.
        service: likewise.
        spine: likewise.

    Returns:
        `spine` (SHA-256 of its sorted rows), `tables` (version by name), `service`,
        `service_version` and `id` (SHA-256 of these).

    Raises:
        ConfigError: if there is no such service.
        ContractError: if the spine lacks a column, or its instants have no time zone.
    """
    return _identity(store, _service(store, service), _sorted_spine(spine))


def drop_online_stores(settings: Settings, chosen: Callable[[int], bool]) -> None:
    """Remove the online stores of some runs: their files and, where it is named, what Redis holds.

    Args:
        settings: of the workspace.
        chosen: whether a run's number is one of them.
    """
    files = settings.online_store(0).parent.glob("*.db*")
    numbered = [(path.name.partition(".")[0], path) for path in files]
    gone = [(n, path) for n, path in numbered if n.isdigit() and chosen(int(n))]
    content = load_mapping(settings.share("features") / "feature_store.yaml")
    if url := content["online_store"].get("url"):
        from cdp_ml.feast_stores.online import drop_from_redis

        drop_from_redis(url, [f"{content['project']}:{n}:" for n in {n for n, _ in gone}])
    for _, path in gone:
        path.unlink(missing_ok=True)


def materialize(store: FeatureStore, as_of: datetime) -> int:
    """Fill the online store with each customer's newest features at an instant.

    Args:
        store: of `open_store`, after `apply`.
        as_of: UTC; features of this instant are the newest that count.

    Returns:
        How many rows, one a customer and view, the online store then holds.
    """
    views = store.list_feature_views()
    oldest = max((view.ttl for view in views if view.ttl), default=timedelta(days=365))
    with _silence():
        store.materialize(start_date=as_of - oldest, end_date=as_of)
    online = _online(store)
    online.settle(store.config)
    return sum(online.count(store.config, view.name) for view in views)


def erase_online(store: FeatureStore, customer_ids: Sequence[str]) -> None:
    """Remove customers from the online store, beyond recovery.

    Args:
        store: of `open_store`.
        customer_ids: whom; unknown ones are no error.
    """
    views = [view.name for view in store.list_feature_views()]
    _online(store).delete(store.config, views, customer_ids)


@dataclass(frozen=True)
class FeatureReader:
    """Reads a service's features past Feast's messages: of one customer in a tenth of a ms."""

    store: FeatureStore
    names: tuple[str, ...]
    parts: tuple[_ViewPart, ...]

    def read(self, customer_ids: Sequence[str]) -> dict[str, list[Any]]:
        """The newest features of customers, from the online store.

        Args:
            customer_ids: whom.

        Returns:
            By column, customer_id and then the service's features, the values in the given order:
            None where null, of an unknown customer or older than the view's TTL.

        Raises:
            ContractError: if the values were written for another definition of a view.
        """
        from cdp_ml.feast_stores.online import now_of
        from cdp_ml.feast_stores.packed import oldest

        config, now = self.store.config, now_of(self.store.config)
        views = [part.layout.view for part in self.parts]
        packed = _online(self.store).get_views(config, views, customer_ids)
        columns: list[Any] = [list(customer_ids)]
        for part, values in zip(self.parts, packed, strict=True):
            since, nothing = oldest(part.ttl, now), [None] * len(part.layout.names)
            rows = [
                nothing if v is None or v[:8] < since else part.layout.unpack(v) for v in values
            ]
            columns += part.chosen(list(map(list, zip(*rows, strict=True))))
        return dict(zip(("customer_id", *self.names), columns, strict=True))


@dataclass(frozen=True)
class _ViewPart:
    """What a service takes of a view: `chosen` picks its columns among those of the layout."""

    layout: Layout
    ttl: timedelta | None
    places: tuple[int, ...]

    def chosen(self, columns: list[list[Any]]) -> list[list[Any]]:
        return [columns[i] for i in self.places]


def open_reader(store: FeatureStore, service: str) -> FeatureReader:
    """What reads a service's features; open it once, and ask it often.

    Args:
        store: of `open_store` on a materialized store.
        service: name of a feature service without on-demand features.

    Raises:
        ConfigError: if there is no such service, or it has on-demand features.
    """
    from cdp_ml.feast_stores.packed import Layout

    found = _service(store, service)
    views = {view.name: view for view in store.list_feature_views()}
    parts = []
    for projection in found.feature_view_projections:
        if projection.name not in views:
            raise ConfigError(
                f"feature service '{service}': '{projection.name}' is computed on demand; ask for "
                "it by get_online_features"
            )
        layout = Layout.of(views[projection.name])
        places = tuple(layout.names.index(f.name) for f in projection.features)
        parts.append(_ViewPart(layout, views[projection.name].ttl, places))
    return FeatureReader(store, _names(found), tuple(parts))


def online_features(
    store: FeatureStore, service: str, customer_ids: Sequence[str]
) -> list[dict[str, Any]]:
    """The newest features of customers, from the online store.

    Args:
        store: of `open_store` on a materialized store.
        service: name of a feature service.
        customer_ids: whom; features of unknown ones are None.

    Returns:
        One dictionary a customer, in the given order: customer_id and the service's features.

    Raises:
        ConfigError: if there is no such service.
    """
    columns = open_reader(store, service).read(customer_ids)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _online(store: FeatureStore) -> PackedOnlineStore:
    found: PackedOnlineStore = store._get_provider().online_store
    return found


def _sorted_spine(spine: pa.Table | pd.DataFrame) -> pa.Table:
    """The spine in the one order that counts, checked."""
    import pyarrow as pa

    if not isinstance(spine, pa.Table):
        spine = pa.Table.from_pandas(spine, preserve_index=False)
    keys = ("customer_id", "event_timestamp")
    for name in keys:
        if name not in spine.column_names:
            raise ContractError(f"a spine needs column '{name}'; it has {spine.column_names}")
    when = spine.schema.field("event_timestamp").type
    if not pa.types.is_timestamp(when) or when.tz is None:
        raise ContractError(
            f"a spine's event_timestamp needs a time zone, such as UTC; it is {when}"
        )
    at = spine.schema.get_field_index("event_timestamp")
    instants = spine["event_timestamp"].cast(pa.timestamp("us", "UTC"), safe=False)
    spine = spine.set_column(at, "event_timestamp", instants).replace_schema_metadata(None)
    rest = [c for c in spine.column_names if c not in keys]
    return spine.sort_by([(c, "ascending") for c in (*keys, *rest)]).combine_chunks()


def _identity(store: FeatureStore, service: FeatureService, rows: pa.Table) -> dict[str, Any]:
    from cdp_ml.lake import Lake

    config = store.config.offline_store
    versions = config.versions
    if versions is None:
        versions = Lake.published(Path(store.repo_path) / config.lake).versions
    views = {view.name: view for view in store.list_feature_views()}
    demanded = {view.name: view for view in store.list_on_demand_feature_views()}
    used = [projection.name for projection in service.feature_view_projections]
    for name in [name for name in used if name in demanded]:
        used += [p.name for p in demanded[name].source_feature_view_projections.values()]
    tables = {views[name].batch_source.path for name in used if name in views}
    identity = {
        "spine": _digest(rows),
        "tables": {table: versions.get(table) for table in sorted(tables)},
        "service": service.name,
        "service_version": service.tags.get("version"),
    }
    said = json.dumps(identity, sort_keys=True).encode()
    return {**identity, "id": hashlib.sha256(said).hexdigest()}


def _digest(rows: pa.Table) -> str:
    """SHA-256 of a table's rows as Arrow's stream of one batch."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _service(store: FeatureStore, name: str) -> FeatureService:
    from feast.errors import FeatureServiceNotFoundException

    try:
        return store.get_feature_service(name, allow_cache=True)
    except FeatureServiceNotFoundException:
        known = [s.name for s in store.list_feature_services()]
        raise ConfigError(
            f"no feature service '{name}' in {Path(store.repo_path) / 'services.py'}; "
            f"{nearest(name, known)}"
        ) from None


def _names(service: FeatureService) -> tuple[str, ...]:
    """The service's features in the order of their declaration, which Feast does not keep."""
    views = service.feature_view_projections
    return tuple(feature.name for view in views for feature in view.features)


@contextmanager
def _importing_from(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Import modules of these names from a folder, and restore what they were afterwards."""
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = written
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _load_feast() -> None:
    """Import Feast without the filters of warnings that it sets for the whole process."""
    with warnings.catch_warnings():
        import feast  # noqa: F401


@contextmanager
def _silence() -> Iterator[None]:
    """Keep Feast's progress off the terminal."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield

"""Feast: the feature repository opened on the lake, behind its own plug-in interfaces.

Each run has an online store of its own, one SQLite file that also holds the registry with which it
was written. A reader of a published file therefore sees features and values that belong together,
whatever a later refresh writes.
"""

from __future__ import annotations

import importlib
import io
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.config import Settings, load_mapping
from cdp_ml.errors import ConfigError, nearest

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from feast import FeatureService, FeatureStore


def open_store(settings: Settings, versions: Mapping[str, int], online_store: Path) -> FeatureStore:
    """Open the workspace's feature repository on fixed versions of the lake's tables.

    Args:
        settings: of the workspace; its folder `features`, else the shipped one, is the repository.
        versions: of the tables that offline features are read from.
        online_store: the SQLite file of the run's online store and registry; made by `apply`.
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
    content["online_store"] = {**content["online_store"], "path": str(database)}
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
    Path(store.config.online_store.path).parent.mkdir(parents=True, exist_ok=True)
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
        spine: customer_id, event_timestamp (UTC) and any further columns.

    Returns:
        The spine's columns, then the service's features; null where a view has no row of the
        customer within its TTL. Sorted by customer_id and event_timestamp.

    Raises:
        ConfigError: if there is no such service.
    """
    import pyarrow as pa

    frame = spine.to_pandas() if isinstance(spine, pa.Table) else spine
    found = _service(store, service)
    with _silence():
        rows = store.get_historical_features(entity_df=frame, features=found).to_arrow()
    at = rows.schema.get_field_index("event_timestamp")
    instants = rows.column(at).cast(pa.timestamp("us", tz="UTC"))
    rows = rows.set_column(at, "event_timestamp", instants)
    rows = rows.select([*frame.columns, *_feature_names(found)])
    if isinstance(spine, pa.Table):
        # A column of an empty spine has lost its type on the way through pandas.
        types = {f.name: f for f in spine.schema}
        rows = rows.cast(
            pa.schema(
                [types.get(f.name, f) if pa.types.is_null(f.type) else f for f in rows.schema]
            )
        )
    return rows.sort_by([("customer_id", "ascending"), ("event_timestamp", "ascending")])


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
    return _online_rows(store)


def online_features(
    store: FeatureStore, service: str, customer_ids: Sequence[str]
) -> list[dict[str, Any]]:
    """The newest features of customers, from the online store.

    Args:
        store: of `open_store` on a materialized file.
        service: name of a feature service.
        customer_ids: whom; features of unknown ones are None.

    Returns:
        One dictionary a customer, in the given order: customer_id and the service's features.

    Raises:
        ConfigError: if there is no such service.
    """
    found = _service(store, service)
    names = ("customer_id", *_feature_names(found))
    entities = [{"customer_id": c} for c in customer_ids]
    columns = store.get_online_features(features=found, entity_rows=entities).to_dict()
    values = zip(*(columns[name] for name in names), strict=True)
    return [dict(zip(names, row, strict=True)) for row in values]


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


def _feature_names(service: FeatureService) -> tuple[str, ...]:
    """The service's features in the order of their declaration, which Feast does not keep."""
    views = service.feature_view_projections
    return tuple(feature.name for view in views for feature in view.features)


def _online_rows(store: FeatureStore) -> int:
    """How many customers the online store holds, summed over the views."""
    import sqlite3

    path = store.config.online_store.path
    rows = 0
    with sqlite3.connect(path) as database:
        for view in store.list_feature_views():
            table = f"{store.project}_{view.name}"
            query = f'SELECT count(DISTINCT entity_key) FROM "{table}"'
            rows += database.execute(query).fetchone()[0]
    return rows


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

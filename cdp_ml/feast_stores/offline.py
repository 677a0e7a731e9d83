"""Feast's offline store on the lake: pinned Delta versions, read by DuckDB without its extension.

Named in features/feature_store.yaml. A data source's path is the name of a table of the lake, so
that the registry knows no machine's paths.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast.infra.offline_stores.duckdb import (
    DuckDBOfflineStore,
    DuckDBOfflineStoreConfig,
)
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.ibis import (
    get_historical_features_ibis,
    pull_all_from_table_or_query_ibis,
    pull_latest_from_table_or_query_ibis,
)

from cdp_ml.config import Engine
from cdp_ml.contracts import contract
from cdp_ml.engine import connect
from cdp_ml.errors import ContractError
from cdp_ml.lake import Lake

if TYPE_CHECKING:
    import pandas as pd
    from feast import RepoConfig
    from feast.data_source import DataSource
    from feast.feature_view import FeatureView
    from feast.infra.offline_stores.offline_store import RetrievalJob
    from feast.infra.registry.base_registry import BaseRegistry
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Table


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
    """Feast's DuckDB store, but for where a data source's rows come from."""

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
        """Join the features that held at each row's instant, within their views' TTL."""
        return get_historical_features_ibis(
            config=config,
            feature_views=feature_views,
            feature_refs=feature_refs,
            entity_df=entity_df,
            registry=registry,
            project=project,
            data_source_reader=_reader(config),
            data_source_writer=_refuse_to_write,
            full_feature_names=full_feature_names,
            filter_by_created_timestamp=filter_by_created_timestamp,
        )

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
        return pull_latest_from_table_or_query_ibis(
            config=config,
            data_source=data_source,
            join_key_columns=join_key_columns,
            feature_name_columns=feature_name_columns,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            start_date=start_date,
            end_date=end_date,
            data_source_reader=_reader(config),
            data_source_writer=_refuse_to_write,
        )

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
            data_source_reader=_reader(config),
            data_source_writer=_refuse_to_write,
        )

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Check that the contracts know the table; Feast's own check would look for a file.

        Raises:
            ContractError: if they do not.
        """
        assert isinstance(data_source, FileSource)
        contract(data_source.path)


def _reader(config: RepoConfig) -> Callable[[DataSource, str], Table]:
    """What reads a data source's rows; all tables of a query must come from one connection."""
    store: LakeOfflineStoreConfig = config.offline_store
    root = Path(config.repo_path or ".") / store.lake
    lake = Lake.published(root) if store.versions is None else Lake(root, dict(store.versions))
    con = connect(Engine(threads=store.threads, memory_limit=store.memory_limit))
    return partial(_read, lake, con)


def _read(lake: Lake, con: SQLBackend, source: DataSource, repo_path: str) -> Table:
    assert isinstance(source, FileSource)
    if not lake.has(source.path):
        raise ContractError(f"no table '{source.path}' in {lake.root}; run 'cdp-ml refresh'")
    return lake.read(source.path, con)


def _refuse_to_write(*args: Any) -> None:
    raise NotImplementedError("the lake is written by 'cdp-ml refresh' alone")

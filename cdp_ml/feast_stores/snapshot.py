"""Features of all customers at one instant: whole views, each read once.

Feast's `get_historical_features` answers for any keys at any instants. Who wants everybody at one
instant, as batch scoring does, asks the offline store for each view's newest rows, as Feast does
itself to materialize them, and lays the views side by side.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from cdp_ml.feast_stores import _service, _silence, training_features

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureService, FeatureStore
    from feast.data_source import DataSource

KEY = "customer_id"
_FIRST = datetime(1, 1, 1, tzinfo=UTC)


def snapshot_features(
    store: FeatureStore, service: str, customers: pa.ChunkedArray, as_of: datetime
) -> pa.Table:
    """The features that held at one instant, of many customers.

    Args:
        store: of `open_store`, after `apply`.
        service: name of a feature service.
        customers: ids; each once.
        as_of: with time zone.

    Returns:
        What `training_features` returns for these customers at this instant, in any order and
        without an identity: customer_id, event_timestamp and the features.

    Raises:
        ConfigError: if there is no such service.
        ContractError: if a table or one of its columns is not there.
    """
    import pyarrow as pa

    stamp = pa.timestamp("us", "UTC")
    key = {KEY: customers, "event_timestamp": pa.repeat(pa.scalar(as_of, stamp), len(customers))}
    parts = _parts(store, _service(store, service))
    if parts is None:
        return training_features(store, service, pa.table(key))
    with _silence(), ThreadPoolExecutor(store.config.offline_store.threads) as pool:
        views = list(pool.map(lambda part: part.newest(store, as_of), parts))
    columns = dict(key)
    for part, view in zip(parts, views, strict=True):
        columns |= _beside(customers, view, part)
    return pa.table(columns)


@dataclass(frozen=True)
class _Part:
    """What a service takes of a view: the source's column by feature, and how to read them."""

    source: DataSource
    features: dict[str, str]
    key: str
    timestamp: str
    ttl: timedelta | None

    def newest(self, store: FeatureStore, as_of: datetime) -> pa.Table:
        """Each customer's newest row at an instant, within the view's TTL."""
        found: pa.Table = (
            store._get_provider()
            .offline_store.pull_latest_from_table_or_query(
                config=store.config,
                data_source=self.source,
                join_key_columns=[self.key],
                feature_name_columns=list(self.features.values()),
                timestamp_field=self.timestamp,
                created_timestamp_column=self.source.created_timestamp_column or None,
                start_date=as_of - self.ttl if self.ttl else _FIRST,
                end_date=as_of,
            )
            .to_arrow()
        )
        return found


def _parts(store: FeatureStore, service: FeatureService) -> list[_Part] | None:
    """The views of a service; None if one is computed on demand or keyed by more than customers."""
    views: dict[str, Any] = {view.name: view for view in store.list_feature_views()}
    found = []
    for projection in service.feature_view_projections:
        view = views.get(projection.name)
        if view is None or projection.join_key_map:
            return None
        if [e.name for e in view.entity_columns] != [KEY]:
            return None
        source = view.batch_source
        stored = {new: old for old, new in source.field_mapping.items()}
        features = {f.name: stored.get(f.name, f.name) for f in projection.features}
        times = stored.get(source.timestamp_field, source.timestamp_field)
        found.append(_Part(source, features, stored.get(KEY, KEY), times, view.ttl or None))
    return found


def _beside(customers: pa.ChunkedArray, view: pa.Table, part: _Part) -> dict[str, pa.ChunkedArray]:
    """A view's features in the order of customers; null of those whom it does not know."""
    import pyarrow.compute as pc

    ids, found = view[part.key].cast(customers.type), view.select(list(part.features.values()))
    if not ids.equals(customers):
        found = found.take(pc.index_in(customers, value_set=ids))
    return dict(zip(part.features, found.columns, strict=True))

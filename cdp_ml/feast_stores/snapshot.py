"""Features of all customers at one instant, some customers after the others.

Feast's `get_historical_features` answers for any keys at any instants. Who wants everybody at one
instant, as batch scoring does, asks the offline store for each view's newest rows, as Feast does
itself to materialize them, and lays the views side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from cdp_ml.feast_stores import _service, training_features
from cdp_ml.lake import ROW_GROUP

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from feast import FeatureService, FeatureStore, FeatureView

    from cdp_ml.feast_stores.offline import NewestJob

KEY = "customer_id"
_KEYS = (KEY, "event_timestamp")
_FIRST = datetime(1, 1, 1, tzinfo=UTC)


def take_snapshot(
    store: FeatureStore, service: str, customers: pa.ChunkedArray, as_of: datetime
) -> Snapshot:
    """The features that held at one instant, of many customers.

    Args:
        store: of `open_store`, after `apply`.
        service: name of a feature service.
        customers: ids; each once.
        as_of: with time zone.

    Raises:
        ConfigError: if there is no such service.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    instants = pa.repeat(pa.scalar(as_of, pa.timestamp("us", "UTC")), len(customers))
    key = pa.table([customers, instants], _KEYS)
    taken = _taken(store, _service(store, service))
    if taken is None:
        rows = training_features(store, service, key)
        return Snapshot(rows.take(pc.index_in(customers, value_set=rows[KEY])), ())
    return Snapshot(key, [_view(store, part, customers, as_of) for part in taken])


@dataclass(frozen=True)
class Snapshot:
    """The features of many customers at one instant; a view is searched once it is asked for any.

    `known` is what needs no reading: customer_id, event_timestamp, and of a service with features
    that are computed on demand all of them.
    """

    known: pa.Table
    views: Sequence[_View]

    @property
    def features(self) -> list[str]:
        """The names of all features."""
        known = [f for f in self.known.column_names if f not in _KEYS]
        return [*known, *(f for view in self.views for f in view.features)]

    def of(self, features: Collection[str]) -> Snapshot:
        """The same of some features only."""
        known = [f for f in self.known.column_names if f in _KEYS or f in features]
        views = [view.of(features) for view in self.views]
        return Snapshot(self.known.select(known), [view for view in views if view.features])

    def blocks(self, rows: np.ndarray | None = None) -> Iterator[pa.Table]:
        """All features of the customers in some rows, or of all.

        Args:
            rows: their numbers, ascending.

        Yields:
            What `training_features` returns for these customers at this instant, in their order and
            without an identity: customer_id, event_timestamp and the features. `ROW_GROUP`
            customers at a time, and at least one table.

        Raises:
            ContractError: if a table or one of its columns is not there.
        """
        import pyarrow as pa

        known = self.known if rows is None else self.known.take(pa.array(rows))
        with ThreadPoolExecutor(len(self.views) + 1) as pool:
            streams = [iter([known]), *pool.map(lambda view: view.read(rows), self.views)]
        for parts in zip(*(_regrouped(stream) for stream in streams), strict=True):
            yield pa.table({name: part[name] for part in parts for name in part.column_names})


@dataclass(frozen=True)
class _View:
    """What a service takes of a view: its column by feature.

    `found` gives its rows, and where among them each customer's lies.
    """

    features: Mapping[str, str]
    found: Callable[[], tuple[NewestJob, np.ndarray]]

    def of(self, features: Collection[str]) -> _View:
        """The same of some features only."""
        return replace(self, features={f: c for f, c in self.features.items() if f in features})

    def read(self, rows: np.ndarray | None) -> Iterator[pa.Table]:
        """The features, some customers after the others."""
        stored, names = list(self.features.values()), list(self.features)
        job, places = self.found()
        blocks = job.rows_at(places if rows is None else places[rows], list(dict.fromkeys(stored)))
        return (block.select(stored).rename_columns(names) for block in blocks)


def _taken(
    store: FeatureStore, service: FeatureService
) -> list[tuple[FeatureView, list[str]]] | None:
    """The views of a service, each with the features taken of it.

    None if one is computed on demand, or keyed by more than customers.
    """
    views: dict[str, Any] = {view.name: view for view in store.list_feature_views()}
    found = []
    for projection in service.feature_view_projections:
        view = views.get(projection.name)
        if view is None or projection.join_key_map:
            return None
        if [e.name for e in view.entity_columns] != [KEY]:
            return None
        found.append((view, [feature.name for feature in projection.features]))
    return found


def _view(
    store: FeatureStore,
    part: tuple[FeatureView, Sequence[str]],
    customers: pa.ChunkedArray,
    as_of: datetime,
) -> _View:
    """Each customer's newest row at an instant, within the view's TTL."""
    view, names = part
    source = view.batch_source
    stored = {new: old for old, new in source.field_mapping.items()}
    features, key = {name: stored.get(name, name) for name in names}, stored.get(KEY, KEY)

    @cache
    def found() -> tuple[NewestJob, np.ndarray]:
        job = store._get_provider().offline_store.pull_latest_from_table_or_query(
            config=store.config,
            data_source=source,
            join_key_columns=[key],
            feature_name_columns=list(features.values()),
            timestamp_field=stored.get(source.timestamp_field, source.timestamp_field),
            created_timestamp_column=source.created_timestamp_column or None,
            start_date=as_of - view.ttl if view.ttl else _FIRST,
            end_date=as_of,
        )
        return job, job.places_of(key, customers)

    return _View(features, found)


def _regrouped(stream: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The rows of a stream, `ROW_GROUP` at a time."""
    import pyarrow as pa

    held = next(stream)
    for more in stream:
        while held.num_rows >= ROW_GROUP:
            yield held.slice(0, ROW_GROUP)
            held = held.slice(ROW_GROUP)
        held = pa.concat_tables([held, more])
    for at in range(0, max(held.num_rows, 1), ROW_GROUP):
        yield held.slice(at, ROW_GROUP)

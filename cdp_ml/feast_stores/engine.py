"""Feast's materialization with Arrow all the way from the offline store to a packed online store.

Named in features/feature_store.yaml. Feast's own engine makes a protobuf of every value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast.infra.common.materialization_job import MaterializationJobStatus
from feast.infra.compute_engines.local.compute import LocalComputeEngine, LocalComputeEngineConfig
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.utils import _get_column_names

from cdp_ml.feast_stores.online import PackedOnlineStore

if TYPE_CHECKING:
    from feast.infra.common.materialization_job import MaterializationTask
    from feast.infra.registry.base_registry import BaseRegistry


class PackedEngineConfig(LocalComputeEngineConfig):  # type: ignore[misc]
    """As Feast's local engine."""

    type: str = "cdp_ml.feast_stores.engine.PackedEngine"


class PackedEngine(LocalComputeEngine):  # type: ignore[misc]
    """Feast's local engine, but for views that a packed online store takes as they are."""

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        transforms = getattr(task.feature_view, "feature_transformation", None)
        if transforms or not isinstance(self.online_store, PackedOnlineStore):
            return super()._materialize_one(registry, task, **kwargs)
        try:
            self._copy_newest(registry, task)
        except Exception as error:
            return LocalMaterializationJob(
                job_id=task.feature_view.name, status=MaterializationJobStatus.ERROR, error=error
            )
        return LocalMaterializationJob(
            job_id=task.feature_view.name, status=MaterializationJobStatus.SUCCEEDED
        )

    def _copy_newest(self, registry: BaseRegistry, task: MaterializationTask) -> None:
        view = task.feature_view
        entities = [registry.get_entity(name, task.project) for name in view.entities]
        keys, features, event, created = _get_column_names(view, entities)
        rows = self.offline_store.pull_latest_from_table_or_query(
            config=self.repo_config,
            data_source=view.batch_source,
            join_key_columns=keys,
            feature_name_columns=features,
            timestamp_field=event,
            created_timestamp_column=created,
            start_date=task.start_time,
            end_date=task.end_time,
        ).to_arrow()
        renamed = view.batch_source.field_mapping
        rows = rows.rename_columns([renamed.get(c, c) for c in rows.column_names])
        self.online_store.write_table(
            self.repo_config,
            view,
            rows,
            renamed.get(event, event),
            renamed.get(created, created) if created else None,
        )

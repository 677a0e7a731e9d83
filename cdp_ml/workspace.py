"""A workspace in a notebook: its published tables, training sets and models.

Also the compositions of stages that both the refresh and a notebook need: traits as of instants,
and a model's training frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.config import ModelSpec, Settings, environment_home, load_models, load_settings
from cdp_ml.errors import CdpError, ConfigError, nearest
from cdp_ml.lake import Lake, last_run

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Table

    from cdp_ml.learn.datasets import TimeSplit


@dataclass(frozen=True)
class Workspace:
    """The last published state of a workspace.

    What it shows does not change while it is open, even if a refresh publishes meanwhile.
    """

    settings: Settings
    run: dict[str, Any]

    @cached_property
    def lake(self) -> Lake:
        """The tables at the versions of the published run."""
        return Lake(self.settings.data / "lake", dict(self.run["versions"]))

    @cached_property
    def con(self) -> SQLBackend:
        """The engine in which `table` computes."""
        from cdp_ml.engine import connect

        return connect(self.settings.engine)

    @cached_property
    def models(self) -> dict[str, ModelSpec]:
        """The model specifications by name."""
        return load_models(self.settings)

    @property
    def as_of(self) -> datetime:
        """The instant as of which the published run computed."""
        found: datetime = self.run["as_of"]
        return found

    @property
    def tables(self) -> list[str]:
        """The names of the published tables."""
        return sorted(name for name in self.lake.versions if self.lake.has(name))

    def table(self, name: str) -> Table:
        """A published table as an Ibis expression; `.to_pandas()` brings it into memory.

        Raises:
            ConfigError: if the run has no such table; the message names the nearest.
        """
        if not self.lake.has(name):
            raise ConfigError(f"no published table '{name}'; {nearest(name, self.tables)}")
        return self.lake.read(name, self.con)

    def training_set(self, model: str, as_of: datetime | None = None) -> pd.DataFrame:
        """The labeled rows of a model's snapshots, point-in-time correct, as the refresh sees them.

        Args:
            model: a name in models/.
            as_of: the instant at which the training is imagined to happen; the run's by default.
                Its snapshots must be among those that the run computed.

        Returns:
            customer_id, event_timestamp, the model's features, and label (propensities).

        Raises:
            ConfigError: if there is no such model.
            NotPromotedError: if the history is too short for a time split.
        """
        split = self.split(model, as_of)
        instants = split.instants
        return training_frame(
            self.settings, self.lake, self.con, self._spec(model), instants
        ).to_pandas()

    def split(self, model: str, as_of: datetime | None = None) -> TimeSplit:
        """The instants of a model's training and test.

        Args:
            model: a name in models/.
            as_of: the instant at which the training is imagined to happen; the run's by default.

        Raises:
            ConfigError: if there is no such model.
            NotPromotedError: if the history is too short for a time split.
        """
        from cdp_ml.learn.datasets import time_split

        return time_split(self._spec(model), as_of or self.as_of, self._first_fact)

    def _spec(self, model: str) -> ModelSpec:
        if model not in self.models:
            raise ConfigError(f"no model '{model}'; {nearest(model, self.models)}")
        return self.models[model]

    @property
    def _first_fact(self) -> datetime:
        first = self.run["summary"].get("ingest", {}).get("first_fact")
        return datetime.fromisoformat(first) if first else self.as_of


def open_workspace(home: Path | str | None = None) -> Workspace:
    """Open the published state of a workspace.

    Args:
        home: the workspace folder; `CDP_WORKSPACE` or the current folder by default.

    Raises:
        ConfigError: if the folder has no valid cdp.yaml.
        CdpError: if nothing has been published yet.
    """
    settings = load_settings(environment_home() if home is None else Path(home))
    run = last_run(settings.data / "lake")
    if run is None:
        raise CdpError(f"{settings.home}: nothing published yet; run 'cdp-ml refresh'")
    return Workspace(settings, run)


def instants_of(
    models: Mapping[str, ModelSpec], as_of: datetime, first_fact: datetime
) -> tuple[datetime, ...]:
    """The instants at which traits are needed: now, and the snapshots of the models.

    Models whose history is too short add none.
    """
    from cdp_ml.errors import NotPromotedError
    from cdp_ml.learn.datasets import time_split

    instants = {as_of}
    for spec in models.values():
        try:
            instants.update(time_split(spec, as_of, first_fact).instants)
        except NotPromotedError:
            continue
    return tuple(sorted(instants))


def build_traits_at(
    lake: Lake, con: SQLBackend, settings: Settings, instants: Sequence[datetime]
) -> dict[str, pa.Table]:
    """Compute the traits of all customers as of each instant, one pass an instant.

    Returns:
        The rows of each traits table.
    """
    raise NotImplementedError


def training_frame(
    settings: Settings,
    lake: Lake,
    con: SQLBackend,
    spec: ModelSpec,
    instants: Sequence[datetime],
) -> pa.Table:
    """The rows from which a model is trained and tested."""
    raise NotImplementedError


def labeled_test_frame(workspace: Workspace, spec: ModelSpec, as_of: datetime) -> pd.DataFrame:
    """The labeled rows of the test instant of a training that happened at `as_of`."""
    frame = workspace.training_set(spec.name, as_of)
    return frame[frame["event_timestamp"] == workspace.split(spec.name, as_of).test].copy()

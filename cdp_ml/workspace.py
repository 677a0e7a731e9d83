"""A workspace in a notebook: its published tables, training sets and models.

Also the compositions of stages that both the refresh and a notebook need: traits as of instants,
and a model's training frame.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.as_of import check_zone, links_as_of
from cdp_ml.config import (
    IdentitySpec,
    ModelSpec,
    Settings,
    Survivorship,
    environment_home,
    load_model_spec,
    load_models,
    load_settings,
    load_spec,
    located,
)
from cdp_ml.contracts import TRAIT_TABLES
from cdp_ml.errors import CdpError, ConfigError, LinkageError, NotPromotedError, nearest
from cdp_ml.lake import Lake, model_key, published_run

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from feast import FeatureStore
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Table

    from cdp_ml.identity.review import Identity
    from cdp_ml.learn.datasets import TimeSplit
    from cdp_ml.learn.score import Predictor
    from cdp_ml.learn.training import Trained
    from cdp_ml.online import Online
    from cdp_ml.traits import Keep, Trait


KEY = ("customer_id", "event_timestamp")


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
        return Lake(self.settings.lake, dict(self.run["versions"]))

    @cached_property
    def con(self) -> SQLBackend:
        """The engine in which `table` computes."""
        from cdp_ml.engine import connect

        return connect(self.settings.engine)

    @cached_property
    def models(self) -> dict[str, ModelSpec]:
        """The model specifications by name."""
        return load_models(self.settings)

    @cached_property
    def identity(self) -> Identity:
        """Who is whom, for the functions of `cdp_ml.identity.review` and `explain`.

        Raises:
            LinkageError: if the model with which the run linked is gone.
        """
        from cdp_ml.identity.model import Model
        from cdp_ml.identity.review import Identity

        spec = load_spec(self.settings.share("models") / "identity.yaml", IdentitySpec)
        trained = self.run["summary"].get("identity", {}).get("model")
        folder = self.settings.linkage_model(trained["version"]) if trained else None
        if folder and not folder.is_dir():
            raise LinkageError(
                f"{folder}: the published run's linkage model is gone; run 'cdp-ml refresh --force'"
            )
        return Identity(self.lake, self.con, spec, Model.load(folder) if folder else None)

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

    def traits(self, *instants: datetime, customers: Sequence[str] | None = None) -> pd.DataFrame:
        """Traits as they were known at instants, computed now from the published facts.

        Args:
            instants: with time zone; the run's by default.
            customers: whose; by default all who were known then.

        Returns:
            customer_id, event_timestamp (the instant) and all traits.

        Raises:
            ConfigError: if an instant has no time zone.
        """
        asked = (self.lake, self.con, self.settings, instants or (self.as_of,), customers)
        first, *others = (t.to_pandas() for t in build_traits_at(*asked).values())
        for other in others:
            first = first.merge(other, on=["customer_id", "event_timestamp"])
        return first

    def explain(self, one: str, other: str) -> dict[str, Any]:
        """What speaks for and against two records, or customers, being one person, in bits.

        `cdp_ml.identity.explain.explain` tells what is returned and raised.
        """
        from cdp_ml.identity.explain import explain

        return explain(self.identity, one, other)

    def why(self, customer: str) -> dict[str, Any]:
        """What holds the records of a customer together, the weakest link first.

        `cdp_ml.identity.explain.why` tells what is returned and raised.
        """
        from cdp_ml.identity.explain import why

        return why(self.identity, customer)

    @cached_property
    def online(self) -> Online:
        """The run as the API serves it, for the functions of `cdp_ml.online`; opens in a second."""
        from cdp_ml.online import open_online

        return open_online(self.settings)

    def score(self, customer_id: str, model: str) -> dict[str, Any]:
        """Score a customer online, as the API does, with the reasons.

        `cdp_ml.online.score` tells what is returned and raised.
        """
        from cdp_ml.online import score

        return score(self.online, customer_id, model)

    def training_set(self, model: str, as_of: datetime | None = None) -> pd.DataFrame:
        """The labeled rows of a model's snapshots, point-in-time correct, as the refresh sees them.

        Args:
            model: a name in models/.
            as_of: the instant at which the training is imagined to happen; the run's by default.
                Its snapshots must be among those that the run computed.

        Returns:
            customer_id, event_timestamp, the model's features, and label (propensities); for
            uplift also arm; for next_category the order lines of each window instead, with as_of,
            the instant at which the window begins.

        Raises:
            ConfigError: if there is no such model, or its specification is wrong.
            NotPromotedError: if the history is too short for a time split.
        """
        spec = self._checked(model)
        split = self._known_split(spec, as_of)
        return training_frame(self.settings, self.lake, self.con, spec, split).to_pandas()

    def train(
        self,
        model: str,
        as_of: datetime | None = None,
        estimator: Mapping[str, int | float | str] | None = None,
        register: bool = False,
    ) -> Trained:
        """Train a model on the published snapshots and judge it, as the refresh does.

        Its `metrics`, `verdict` and `evaluation.tables` tell how good it is beside the baselines
        and the champion; its `predictor` scores frames.

        Args:
            model: a name in models/.
            as_of: the instant at which the training is imagined to happen; the run's by default.
            estimator: parameters in place of those of the specification.
            register: whether to record it in MLflow as the next version, and, if its gate lets
                it, make it the champion, with which the next refresh scores.

        Raises:
            ConfigError: if there is no such model, its specification is wrong, or a parameter is
                unknown.
            NotPromotedError: if there is too little data to learn or to judge.
        """
        from cdp_ml.learn import registry
        from cdp_ml.learn.training import train

        spec = self._checked(model, estimator)
        split = self._known_split(spec, as_of)
        frame = training_frame(self.settings, self.lake, self.con, spec, split)
        serving = registry.champion_version(self.settings, model)
        champion = registry.load_champion(self.settings, spec, serving)
        trained = train(spec, frame, split, champion)
        if not register:
            return trained
        versions = {t: v for t, v in self.lake.versions.items() if self.lake.has(t)}
        run_id = f"by-hand-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        version = registry.log_run(self.settings, trained, versions, run_id)
        if trained.promoted:
            registry.promote(self.settings, model, version)
        return replace(trained, predictor=replace(trained.predictor, version=version))

    def promote(self, model: str, version: int) -> None:
        """Make a registered version the champion, with which the next refresh scores.

        Raises:
            ConfigError: if there is no such model.
            NotPromotedError: if there is no such version.
        """
        from cdp_ml.learn.registry import promote

        promote(self.settings, self._spec(model).name, version)

    def rollback(self, model: str) -> int:
        """Make the champion before the present one champion again; returns its version.

        Raises:
            ConfigError: if there is no such model.
            NotPromotedError: if there was none before.
        """
        from cdp_ml.learn.registry import rollback

        return rollback(self.settings, self._spec(model).name)

    def split(self, model: str, as_of: datetime | None = None) -> TimeSplit:
        """The instants of a model's training and test.

        Args:
            model: a name in models/.
            as_of: the instant at which the training is imagined to happen; the run's by default.

        Raises:
            ConfigError: if there is no such model, or `as_of` has no time zone or lies after the
                run's.
            NotPromotedError: if the history is too short for a time split, or for uplift if there
                is no such campaign, or its outcomes are not known yet.
        """
        return self._split(self._spec(model), as_of)

    def _split(self, spec: ModelSpec, as_of: datetime | None) -> TimeSplit:
        from cdp_ml.learn.datasets import time_split

        as_of = self.as_of if as_of is None else as_of
        check_zone(as_of, "as_of")
        if as_of > self.as_of:
            raise ConfigError(
                f"as_of: {as_of:%Y-%m-%d %H:%M} is after the published run's, "
                f"{self.as_of:%Y-%m-%d %H:%M}: what comes of it is not known yet; "
                "run 'cdp-ml refresh' first"
            )
        return time_split(spec, as_of, self._first_fact, self._campaigns)

    def _known_split(self, spec: ModelSpec, as_of: datetime | None) -> TimeSplit:
        """The same, if the run computed features as of its test."""
        split = self._split(spec, as_of)
        known = sorted(map(datetime.fromisoformat, self.run["summary"]["traits"]["instants"]))
        if spec.task != "next_category" and split.test not in known:
            there = ", ".join(f"{t:%Y-%m-%d}" for t in known)
            raise NotPromotedError(
                f"model '{spec.name}': the run has no features as of {split.test:%Y-%m-%d %H:%M}, "
                f"on which it would be tested; it has those as of {there}"
            )
        return split

    def model(self, name: str) -> Predictor:
        """A model's champion: the version with which the published run scored.

        Its `predict` takes the frame of `training_set`, or any other with the model's features;
        `reasons` tells which features moved each score most, and `assign` names clusters.

        Args:
            name: a name in models/.

        Raises:
            ConfigError: if there is no such model.
            NotPromotedError: if it has no champion.
        """
        from cdp_ml.learn.registry import load_model

        version = self.lake.versions.get(model_key(self._spec(name).name))
        if version is None:
            raise NotPromotedError(f"model '{name}' has no champion; 'cdp-ml status' says why")
        return load_model(self.settings, name, version)

    def _spec(self, model: str) -> ModelSpec:
        return load_model_spec(self.settings, model)

    def _checked(
        self, model: str, estimator: Mapping[str, int | float | str] | None = None
    ) -> ModelSpec:
        """The specification, with other parameters if given, after a refresh's checks of it."""
        from cdp_ml.feast_stores import feature_schemas

        spec = self._spec(model)
        if estimator is not None:
            spec = spec.model_copy(update={"estimator": dict(estimator)})
        try:
            services = feature_schemas(self.settings) if spec.features else {}
            check_model(self.con, spec, services)
        except CdpError as error:
            error.args = (located(str(error), self.settings),)
            raise
        return spec

    @property
    def _first_fact(self) -> datetime:
        first = self.run["summary"].get("ingest", {}).get("first_fact")
        return datetime.fromisoformat(first) if first else self.as_of

    @property
    def _campaigns(self) -> dict[str, datetime]:
        return campaigns_of(self.run["summary"].get("ingest", {}))


def open_workspace(home: Path | str | None = None) -> Workspace:
    """Open the published state of a workspace.

    Args:
        home: the workspace folder; `CDP_WORKSPACE` or the current folder by default.

    Raises:
        ConfigError: if the folder has no valid cdp.yaml.
        NothingPublishedError: if no refresh has published yet.
    """
    settings = load_settings(environment_home() if home is None else Path(home))
    return Workspace(settings, published_run(settings.lake))


def campaigns_of(ingested: Mapping[str, Any]) -> dict[str, datetime]:
    """When each campaign began, from the report of the step `ingest`."""
    return {c: datetime.fromisoformat(t) for c, t in ingested.get("campaigns", {}).items()}


def instants_of(
    models: Mapping[str, ModelSpec],
    as_of: datetime,
    first_fact: datetime,
    campaigns: Mapping[str, datetime],
) -> tuple[datetime, ...]:
    """The instants at which traits are needed: now, and the snapshots of the models.

    Models without features, and those whose history is too short, add none.
    """
    from cdp_ml.learn.datasets import time_split

    instants = {as_of}
    for spec in models.values():
        if not spec.features:
            continue
        try:
            instants.update(time_split(spec, as_of, first_fact, campaigns).instants)
        except NotPromotedError:
            continue
    return tuple(sorted(instants))


def build_traits_at(
    lake: Lake,
    con: SQLBackend,
    settings: Settings,
    instants: Sequence[datetime],
    customers: Sequence[str] | None = None,
) -> dict[str, pa.Table]:
    """Compute the traits of all or given customers as of each instant.

    Returns:
        The rows of each traits table.
    """
    import pyarrow as pa

    tables = {name: lake.read(name, con) for name in TRAIT_INPUTS}
    passes = list(traits_as_of(con, tables, settings.profiles, instants, customers))
    return {name: pa.concat_tables([found[name] for found in passes]) for name in passes[0]}


TRAIT_INPUTS = (
    *("records", "crosswalk", "identifiers"),
    *("transactions", "events", "products", "consents"),
)
"""The tables that traits are computed from."""


def traits_as_of(
    con: SQLBackend,
    tables: Mapping[str, Table],
    profiles: Mapping[str, Survivorship],
    instants: Sequence[datetime],
    customers: Sequence[str] | None = None,
    traits: Sequence[Trait] | None = None,
) -> Iterator[dict[str, pa.Table]]:
    """Compute traits as of many instants: facts are read once, then summed for each instant.

    Args:
        con: the engine that the tables belong to.
        tables: those of `TRAIT_INPUTS`.
        profiles: survivorship by person field.
        instants: with time zone; in any order, which is ascending in the result.
        customers: whose; by default all who are known at the instant.
        traits: which; `cdp_ml.traits.TRAITS` by default.

    Yields:
        For each instant the tables `traits_<group>`: customer_id, event_timestamp (the instant) and
        the traits; no row for a customer who is not known then.

    Raises:
        ConfigError: if an instant has no time zone, or a trait names what there is not.
    """
    from cdp_ml.engine import Compiled, holding
    from cdp_ml.traits import TRAITS, traits_at

    wanted, times = traits or TRAITS, _ascending(instants)
    with holding(con, _PEOPLE) as keep:
        given = _in_engine(tables, keep)
        # Numbers are compared and sorted faster than the ids.
        numbers = _numbered(given["crosswalk"], customers, keep)
        tiles = _tiles(given, numbers, times, wanted, keep)
        golden = None
        people = _ids(given, numbers)
        if any(t.group == "profile" for t in wanted):
            golden = Compiled(con, _people(given, profiles, numbers))
            golden.hold(_PEOPLE, _blanks(0, times[0]))
            people = con.table(_PEOPLE)
        found = traits_at(tiles, people, wanted)
        queries = {name: Compiled(con, table) for name, table in found.items()}
        for number, instant in enumerate(times):
            blanks = _blanks(number, instant)
            if golden and number:
                golden.hold(_PEOPLE, blanks)
            yield {name: query.rows(blanks) for name, query in queries.items()}


_PEOPLE = "_traits_people"


def _ascending(instants: Sequence[datetime]) -> list[datetime]:
    for instant in instants:
        check_zone(instant, "instants")
    if not instants:
        raise ConfigError("instants: name at least one")
    return sorted({t.astimezone(UTC) for t in instants})


def _numbered(crosswalk: Table, customers: Sequence[str] | None, keep: Keep) -> Table:
    """One row a customer: customer_id and its number."""
    import ibis
    import pyarrow as pa

    ids = crosswalk.select("customer_id").distinct()
    if customers is not None:
        asked = pa.table({"customer_id": pa.array(customers, pa.string())})
        ids = ids.semi_join(keep("_traits_asked", asked), "customer_id")
    number = ibis.row_number().over(ibis.window(order_by=ibis.asc("customer_id")))
    return keep("_traits_numbers", ids.mutate(number=number.cast("int32")))


def _tiles(
    tables: Mapping[str, Table],
    numbers: Table,
    instants: Sequence[datetime],
    traits: Sequence[Trait],
    keep: Keep,
) -> dict[str, Table]:
    """Key the facts and sum them by customer and day, sorted by customer."""
    from cdp_ml.activity import activity_at
    from cdp_ml.traits import trait_tiles

    links = tables["crosswalk"].left_join(numbers, "customer_id").drop("customer_id_right")
    links = links.drop("customer_id").rename(customer_id="number")
    keyed = []
    for name in ("transactions", "events"):
        facts = activity_at(tables[name], tables["identifiers"], links, instants)
        keyed.append(facts.filter(facts.customer_id.notnull()))
    orders, events = keyed
    products, count = tables["products"], len(instants)
    return trait_tiles(
        orders, events, products, count, traits, lambda name, t: keep(f"_traits_{name}", t)
    )


def _blanks(number: int, instant: datetime) -> dict[str, str]:
    """What tells the queries, which are the same for all, which instant it is."""
    day = int(instant.timestamp() // 86400)
    return {"number": str(number), "day": str(day), "as_of": instant.isoformat()}


def _in_engine(tables: Mapping[str, Table], keep: Keep) -> dict[str, Table]:
    """The tables, those in memory brought into the engine, where compiled queries find them."""
    from ibis.expr.operations import InMemoryTable

    return {
        name: keep(f"_traits_of_{name}", t) if isinstance(t.op(), InMemoryTable) else t
        for name, t in tables.items()
    }


def _ids(tables: Mapping[str, Table], numbers: Table) -> Table:
    """The customers known at the instant, where no more is asked of them."""
    from cdp_ml.engine import blank
    from cdp_ml.profiles import known_members

    as_of = blank("as_of", "timestamp('UTC', 6)")
    members = known_members(tables["records"], tables["crosswalk"], as_of)
    return numbers.semi_join(members, "customer_id")


def _people(
    tables: Mapping[str, Table], profiles: Mapping[str, Survivorship], numbers: Table
) -> Table:
    """The golden records as of the instant, and what else profiles are told from."""
    from cdp_ml.engine import blank
    from cdp_ml.profiles import build_customers, latest_word
    from cdp_ml.traits import MARKETING

    as_of, crosswalk = blank("as_of", "timestamp('UTC', 6)"), tables["crosswalk"]
    golden = build_customers(tables["records"], crosswalk, profiles, as_of)
    said = latest_word(tables["consents"], crosswalk, MARKETING, as_of)
    said = said.select("customer_id", marketing_consent=said.granted.cast("int64"))
    people = golden.left_join(said, "customer_id").drop("customer_id_right")
    return people.left_join(numbers, "customer_id").drop("customer_id_right")


def _keyed(lake: Lake, con: SQLBackend, facts: str, as_of: datetime) -> Table:
    """The facts known at an instant, with the customer each belonged to then."""
    from cdp_ml.activity import activity_as_of

    identifiers, crosswalk = lake.read("identifiers", con), lake.read("crosswalk", con)
    return activity_as_of(lake.read(facts, con), identifiers, crosswalk, as_of)


def people_at(lake: Lake, con: SQLBackend, as_of: datetime) -> Table:
    """One row a customer: the golden record and the traits as of an instant."""
    people = lake.read("customers", con)
    for name in TRAIT_TABLES:
        traits = lake.read(name, con).filter(lambda t: t.event_timestamp == as_of)
        fresh = [c for c in traits.columns if c not in people.columns]
        people = people.left_join(traits.select("customer_id", *fresh), "customer_id")
        people = people.drop("customer_id_right")
    return people.drop("event_timestamp")


def eligible_features(
    settings: Settings,
    lake: Lake,
    con: SQLBackend,
    spec: ModelSpec,
    instants: Sequence[datetime],
) -> pa.Table:
    """The features of the customers whom a model is about, at each instant, through Feast.

    Returns:
        customer_id, event_timestamp and the features of the model's service; of more than one
        instant sorted by event_timestamp and customer_id.
    """
    import pyarrow as pa

    from cdp_ml.feast_stores import training_features
    from cdp_ml.learn.datasets import order_of

    if len(instants) == 1:
        return pa.concat_tables(eligible_blocks(settings, lake, con, spec, instants[0]))
    spine = _spine(lake, con, instants)
    frame = training_features(_feature_store(settings, lake), spec.features, spine)
    chosen = _eligible_rows(con, spec, frame)
    chosen = chosen.take(order_of(frame.select(KEY).take(chosen)))
    names, columns = frame.column_names, frame.columns[::-1]
    del frame  # each column goes as its copy comes
    return pa.table({name: columns.pop().take(chosen) for name in names})


def eligible_blocks(
    settings: Settings,
    lake: Lake,
    con: SQLBackend,
    spec: ModelSpec,
    as_of: datetime,
    features: Collection[str] | None = None,
) -> Iterator[pa.Table]:
    """As `eligible_features` at one instant, some customers after the others.

    Nobody's features need be held once they are used: the memory that they take does not grow with
    the number of customers.

    Args:
        settings: of the workspace.
        lake: the tables.
        con: the engine.
        spec: the model.
        as_of: the instant, UTC.
        features: those wanted; by default all of the model's service.

    Yields:
        customer_id, event_timestamp and the features; at least one table.
    """
    import pyarrow as pa

    from cdp_ml.feast_stores.snapshot import take_snapshot
    from cdp_ml.learn.datasets import population_columns

    everybody = _spine(lake, con, [as_of])["customer_id"]
    snapshot = take_snapshot(_feature_store(settings, lake), spec.features, everybody, as_of)
    asked = snapshot.of(population_columns(spec, snapshot.features)).blocks()
    chosen = _eligible_rows(con, spec, pa.concat_tables(asked)).to_numpy()
    wanted = snapshot if features is None else snapshot.of(features)
    yield from wanted.blocks(None if len(chosen) == len(everybody) else chosen)


def _eligible_rows(con: SQLBackend, spec: ModelSpec, frame: pa.Table) -> pa.Array:
    """The numbers of a frame's rows that the model is about, ascending.

    Only numbers go through the engine: to copy all features costs as much as to score.
    """
    import ibis
    import numpy as np
    import pyarrow as pa

    from cdp_ml.learn.datasets import eligible

    numbered = frame.append_column("_row", pa.array(np.arange(frame.num_rows)))
    chosen = con.to_pyarrow(eligible(con, ibis.memtable(numbered), spec, ("_row",)))["_row"]
    return chosen.combine_chunks().sort()


def _spine(lake: Lake, con: SQLBackend, instants: Sequence[datetime]) -> pa.Table:
    """Who is known at each instant: customer_id, event_timestamp."""
    known = lake.read("traits_transactional", con).select(KEY)
    return con.to_pyarrow(known.filter(known.event_timestamp.isin(list(instants))))


def _feature_store(settings: Settings, lake: Lake) -> FeatureStore:
    """The feature store as of the lake's versions."""
    from cdp_ml.feast_stores import open_store

    path = settings.online_store(lake.versions["online_store"])
    if not path.is_file():
        raise CdpError("this run's features were replaced by later ones; open the workspace again")
    return open_store(settings, lake.versions, path)


def training_frame(
    settings: Settings,
    lake: Lake,
    con: SQLBackend,
    spec: ModelSpec,
    split: TimeSplit,
) -> pa.Table:
    """The rows from which a model is trained and tested.

    Outcomes are those that are known at the split's `as_of`: a fact counts for the customer that
    was then known to be behind it, under whatever ids the customer's records had before.

    Returns:
        customer_id, event_timestamp, the features, and label (all tasks but clustering); for uplift
        also `arm`, of those in the campaign. For next_category the lines of `purchase_windows`.
    """
    if spec.task == "next_category":
        return purchase_windows(lake, con, spec, split)
    rows = eligible_features(settings, lake, con, spec, split.instants)
    if spec.task == "clustering":
        return rows
    if spec.task == "uplift":
        rows = _of_campaign(lake, con, spec, rows, split.as_of)
    return with_labels(lake, con, spec, rows, split.as_of)


def purchase_lines(lake: Lake, con: SQLBackend, spec: ModelSpec, as_of: datetime) -> pa.Table:
    """What customers bought before an instant, as the items of a next_category model.

    Returns:
        customer_id, order_id, event_timestamp, item; in a fixed order.
    """
    from cdp_ml.learn.next_category_purchases import order_lines

    orders = _keyed(lake, con, "transactions", as_of)
    lines = order_lines(orders, lake.read("products", con), spec.item)
    return con.to_pyarrow(lines.order_by(lines.columns))


def purchases_from(
    lake: Lake, con: SQLBackend, spec: ModelSpec, start: datetime, days: float, as_of: datetime
) -> pa.Table:
    """What customers bought within so many days from an instant, as outcomes are known at `as_of`.

    Returns:
        The columns of `purchase_lines`; a line stands under each id that its customer ever had
        (`training_frame`).
    """
    lines = _bought_ahead(lake, con, spec, [start], days, as_of).drop("as_of")
    return con.to_pyarrow(lines.order_by(lines.columns))


def purchase_windows(lake: Lake, con: SQLBackend, spec: ModelSpec, split: TimeSplit) -> pa.Table:
    """What customers had bought at each instant, and what they bought within the horizon from it.

    Returns:
        as_of (the instant), and the columns of `purchase_lines`: those as of the instant, and those
        of `purchases_from` it; in no order.
    """
    from cdp_ml.learn.next_category_purchases import order_lines

    days = split.horizon / timedelta(days=1)
    past = _keyed_at(lake, con, "transactions", split.instants)
    lines = order_lines(past, lake.read("products", con), spec.item, ("as_of",))
    ahead = _bought_ahead(lake, con, spec, split.instants, days, split.as_of)
    return con.to_pyarrow(lines.union(ahead.select(lines.columns)))


def _bought_ahead(
    lake: Lake,
    con: SQLBackend,
    spec: ModelSpec,
    instants: Sequence[datetime],
    days: float,
    as_of: datetime,
) -> Table:
    """The lines within so many days from each instant, `as_of`, by what is known at another."""
    import ibis

    from cdp_ml.learn.next_category_purchases import order_lines

    orders = _keyed(lake, con, "transactions", as_of)
    orders = _under_former_ids(orders, lake.read("crosswalk", con), as_of)
    begins = _instants(instants)
    window = ibis.interval(seconds=round(days * 86400))
    at = orders.event_timestamp
    ahead = orders.join(begins, [at >= begins.as_of, at < begins.as_of + window])
    return order_lines(ahead, lake.read("products", con), spec.item, ("as_of",))


def _keyed_at(lake: Lake, con: SQLBackend, facts: str, instants: Sequence[datetime]) -> Table:
    """As `_keyed` at each of the instants, ascending, with the instant as `as_of`."""
    import ibis

    from cdp_ml.activity import activity_at

    identifiers, crosswalk = lake.read("identifiers", con), lake.read("crosswalk", con)
    keyed = activity_at(lake.read(facts, con), identifiers, crosswalk, instants)
    each = keyed.mutate(number=ibis.range(keyed.since, keyed.until).unnest())
    return each.join(_instants(instants), "number").drop("since", "until", "number")


def _instants(instants: Sequence[datetime]) -> Table:
    """The instants as a table: number, from 0, and as_of."""
    import ibis
    import pyarrow as pa

    stamps = pa.array(instants, pa.timestamp("us", "UTC"))
    numbers = pa.array(range(len(instants)), pa.int32())
    return ibis.memtable(pa.table({"number": numbers, "as_of": stamps}))


def _of_campaign(
    lake: Lake, con: SQLBackend, spec: ModelSpec, rows: pa.Table, as_of: datetime
) -> pa.Table:
    """The rows of customers who were in one arm of the model's campaign, with that arm.

    Exposures count under former ids too, as outcomes do: else whoever bought, and was merged with
    another for what became known thereby, would be missing.
    """
    from cdp_ml.learn.uplift_experiment import campaign_customers

    held = con.create_table("_before_campaign", rows, temp=True, overwrite=True)
    exposures = _keyed(lake, con, "exposures", as_of)
    exposures = _under_former_ids(exposures, lake.read("crosswalk", con), as_of)
    arms = campaign_customers(exposures, spec.campaign or "").select("customer_id", "arm")
    return con.to_pyarrow(held.inner_join(arms, "customer_id"))


def with_labels(
    lake: Lake, con: SQLBackend, spec: ModelSpec, rows: pa.Table, as_of: datetime
) -> pa.Table:
    """The rows of customers at instants with a model's label, by what is known at `as_of`.

    Args:
        lake: the tables.
        con: the engine.
        spec: the model.
        rows: customer_id, event_timestamp and any further columns.
        as_of: UTC; the rows' label windows must have closed by then.

    Returns:
        The rows with the column `label`.

    Raises:
        NotPromotedError: if the label is about an event, a category or a product that there is not.
    """
    import numpy as np
    import pyarrow as pa

    from cdp_ml.learn.labels import build_labels, facts_table, outcomes

    # Keys alone go through the engine, as in `eligible_features`.
    numbered = rows.select(KEY).append_column("_row", pa.array(np.arange(rows.num_rows)))
    held = con.create_table("_eligible", numbered, temp=True, overwrite=True)
    facts = _keyed(lake, con, facts_table(spec.label), as_of)
    facts = outcomes(facts, lake.read("products", con), spec)
    facts = _under_former_ids(facts, lake.read("crosswalk", con), as_of)
    labels = held.join(build_labels(held, facts, spec), KEY).select("_row", "label")
    found = con.to_pyarrow(labels.order_by("_row"))
    return rows.append_column("label", found["label"].combine_chunks())


def _under_former_ids(facts: Table, crosswalk: Table, as_of: datetime) -> Table:
    """The facts once for each id that the customer's records ever had."""
    record = ["source", "source_record_id"]
    current = links_as_of(crosswalk, as_of).select(*record, now="customer_id")
    ids = crosswalk.select(*record, "customer_id").join(current, record)
    lineage = ids.select("customer_id", "now").distinct()
    return facts.rename(now="customer_id").join(lineage, "now")


def check_model(con: SQLBackend, spec: ModelSpec, services: Mapping[str, pa.Schema]) -> None:
    """Find what is wrong with a model's specification before any work, by a trial without rows.

    Args:
        con: the engine.
        spec: the model.
        services: the columns by feature service, of `cdp_ml.feast_stores.feature_schemas`.

    Raises:
        ConfigError: if it names a parameter or service that there is not, or its population is a
            condition that cannot be evaluated.
        ContractError: if it names an input that there is not.
    """
    from cdp_ml.learn.datasets import eligible, feature_names
    from cdp_ml.learn.training import check_parameters

    check_parameters(spec)
    if not spec.features:
        return
    if spec.features not in services:
        hint = nearest(spec.features, services)
        raise ConfigError(f"models/{spec.name}.yaml: features: no '{spec.features}'; {hint}")
    nobody = services[spec.features].empty_table()
    eligible(con, con.create_table(f"_nobody_{spec.name}", nobody, temp=True, overwrite=True), spec)
    feature_names(spec, nobody)


def labeled_test_frame(workspace: Workspace, spec: ModelSpec, as_of: datetime) -> pd.DataFrame:
    """The labeled rows of the test instant of a training that happened at `as_of`."""
    frame = workspace.training_set(spec.name, as_of)
    return frame[frame["event_timestamp"] == workspace.split(spec.name, as_of).test].copy()


def make_workspace(folder: Path) -> None:
    """Copy the starter workspace: a commented cdp.yaml and a handful of sample rows.

    Raises:
        ConfigError: if the folder has a cdp.yaml already, or is no folder.
    """
    import shutil

    if (folder / "cdp.yaml").exists():
        raise ConfigError(f"{folder / 'cdp.yaml'} exists already; choose another folder")
    try:
        shutil.copytree(Path(__file__).parent / "starter", folder, dirs_exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{folder}: is not a folder; choose another one") from None

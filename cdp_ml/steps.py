"""The steps of a refresh: each calls a stage on tables of the run and writes what comes out.

Their order and what makes them due stand in `cdp_ml.refresh`.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.config import IdentitySpec, ModelSpec, Settings, as_of_instant
from cdp_ml.contracts import PERSON_FIELDS, TRAIT_TABLES, table_of
from cdp_ml.errors import ConfigError, LeakageError, NotPromotedError, nearest
from cdp_ml.journal import Journal
from cdp_ml.lake import Lake, last_run, model_key
from cdp_ml.workspace import (
    build_traits_at,
    campaigns_of,
    check_model,
    eligible_blocks,
    instants_of,
    people_at,
    purchase_lines,
    purchases_from,
    training_frame,
    with_labels,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Table

    from cdp_ml.identity.crosswalk import Assignment
    from cdp_ml.identity.linkage import Linkage
    from cdp_ml.identity.model import Model
    from cdp_ml.learn.score import Predictor

log = logging.getLogger(__name__)

Report = dict[str, Any]
INGESTED = (
    "records",
    "identifiers",
    "events",
    "transactions",
    "products",
    "consents",
    "exposures",
    "rejects",
)
LINKED = ("edges", "compared", "reviews")
IDENTITY = ("records", "identifiers", "edges", "crosswalk")


@dataclass(frozen=True)
class Run:
    """What the steps of one refresh share."""

    settings: Settings
    models: dict[str, ModelSpec]
    identity: IdentitySpec
    journal: Journal
    lake: Lake
    force: bool = False

    @cached_property
    def con(self) -> SQLBackend:
        """The engine, opened when the first step needs it."""
        from cdp_ml.engine import connect

        return connect(self.settings.engine)

    @cached_property
    def published(self) -> dict[str, Any] | None:
        """The last published run, which stays so until this one publishes."""
        return last_run(self.lake.root)

    @property
    def run_id(self) -> str:
        """The run's id; a resumed run keeps the one it began with."""
        return self.journal.run["run_id"]

    @property
    def known_at(self) -> datetime:
        """When this run learns what it learns; kept when a run is resumed."""
        return datetime.fromisoformat(self.journal.run["known_at"])

    @property
    def as_of(self) -> datetime:
        """The instant as of which the run computes."""
        return as_of_instant(self.settings, _instant(self.report("ingest").get("last_fact")))

    @property
    def first_fact(self) -> datetime:
        """When the history begins."""
        return _instant(self.report("ingest").get("first_fact")) or self.as_of

    @property
    def campaigns(self) -> dict[str, datetime]:
        """When each campaign began."""
        return campaigns_of(self.report("ingest"))

    @property
    def instants(self) -> tuple[datetime, ...]:
        """The instants at which traits are needed."""
        return instants_of(self.models, self.as_of, self.first_fact, self.campaigns)

    def report(self, step: str) -> Report:
        """What a step reported when it last ran; empty if it never did."""
        return dict(self.journal.steps.get(step, {}).get("report", {}))

    def read(self, table: str) -> Table:
        """A table as this run sees it."""
        return self.lake.read(table, self.con)


def check_specifications(run: Run) -> None:
    """Find what is wrong with the specifications before any work, by a trial without rows.

    Raises:
        ConfigError: if one names a field, trait, feature or parameter that there is not, or holds
            a condition that cannot be evaluated.
        LinkageError: if models/identity.yaml does.
    """
    from cdp_ml.identity.linkage import check_specification

    if not run.settings.sources:
        raise ConfigError("sources: name at least one; 'cdp-ml init DIR' makes an example")
    for field in run.settings.profiles:
        if field not in PERSON_FIELDS:
            hint = nearest(field, PERSON_FIELDS)
            raise ConfigError(f"profiles.{field}: no field of a person; {hint}")
    check_specification(run.identity)
    _check_segments(run)
    _check_models(run)


def _check_segments(run: Run) -> None:
    from cdp_ml.segments import rule_members

    nobody = run.con.create_table("_nobody", people_schema().empty_table(), temp=True)
    rule_members(run.con, nobody, run.settings.segments)
    owners = dict.fromkeys(run.settings.segments, "cdp.yaml")
    for spec in run.models.values():
        for name in spec.segments:
            if name in owners:
                raise ConfigError(
                    f"models/{spec.name}.yaml: segments.{name}: {owners[name]} has a segment of "
                    "this name too; rename one"
                )
            owners[name] = f"models/{spec.name}.yaml"


def people_schema() -> pa.Schema:
    """The columns of `people_at`."""
    import pyarrow as pa

    from cdp_ml.contracts import arrow_schema
    from cdp_ml.traits import TRAITS

    golden = arrow_schema("customers")
    traits = [(t.name, pa.type_for_alias(t.type)) for t in TRAITS if t.name not in golden.names]
    return pa.schema([*golden, *(pa.field(*t) for t in traits)])


def _check_models(run: Run) -> None:
    from cdp_ml.feast_stores import feature_schemas

    services = feature_schemas(run.settings) if run.models else {}
    for spec in run.models.values():
        check_model(run.con, spec, services)


def ingest(run: Run) -> Report:
    """Read the sources that changed; nothing is written before all of them have been read."""
    from cdp_ml.ingest.batch import read_source

    before = run.report("ingest").get("sources", {})
    signatures = source_signatures(run)
    changed = [n for n in signatures if before.get(n, {}).get("signature") != signatures[n]]
    declared = run.settings.sources
    batches = {
        # Not the run's own time: a resumed run may find rows that came after it began.
        n: read_source(n, declared[n], run.settings.home, run.con, datetime.now(UTC))
        for n in changed
    }
    for name in before:
        if name not in signatures or _is_redeclared(before[name]["signature"], signatures[name]):
            _forget(run, name)
    sources = {
        n: _store_source(run, n, batches[n], signature) if n in batches else before[n]
        for n, signature in signatures.items()
    }
    _store_rejects(run, {name: batch.rejects for name, batch in batches.items()})
    counted = {n: {k: v for k, v in s.items() if isinstance(v, int)} for n, s in sources.items()}
    return {
        "sources": sources,
        "metrics": counted,
        **_span_of_facts(run),
        "campaigns": _campaign_starts(run),
    }


def _store_source(run: Run, name: str, batch: Any, signature: list[Any]) -> dict[str, Any]:
    kind = run.settings.sources[name].kind
    counts = {**batch.counts, **_store_batch(run, kind, batch)}
    return {"signature": signature, "kind": kind, "reasons": _reasons(batch.rejects), **counts}


def source_signatures(run: Run) -> dict[str, list[Any]]:
    """What tells whether a source has changed: its declaration, its files, and our code."""
    from cdp_ml.ingest.batch import source_files

    home, region = run.settings.home, run.settings.region
    return {
        name: [code_fingerprint(), source.fingerprint(), region, source_files(name, source, home)]
        for name, source in run.settings.sources.items()
    }


def _is_redeclared(before: list[Any], now: list[Any]) -> bool:
    """Whether the same files are to be read otherwise: what they said so far is void."""
    return before[-1] == now[-1] and before[1:-1] != now[1:-1]


def _forget(run: Run, source: str) -> None:
    """Take out what a source has said: it was removed from cdp.yaml, or declared otherwise.

    Products, consents and exposures stay: their rows do not say from which source they are.
    """
    for table in ("records", "identifiers", "events", "transactions", "rejects"):
        if run.lake.has(table):
            rows = run.read(table)
            run.lake.write(table, rows.filter(rows.source != source))


def _store_batch(run: Run, kind: str, batch: Any) -> dict[str, int]:
    from cdp_ml.standardize import standardize_people

    rows = batch.rows
    if kind == "people":
        rows = standardize_people(rows, run.settings.region, run.con)
    if batch.identifiers.num_rows:
        run.lake.upsert("identifiers", batch.identifiers, run.con)
    return run.lake.upsert(table_of(kind), rows, run.con)


def _store_rejects(run: Run, rejects: dict[str, pa.Table]) -> None:
    """Replace the rejects of the sources that were read."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not rejects:
        return
    old = run.lake.arrow("rejects")
    others = old.filter(pc.invert(pc.is_in(old["source"], pa.array(list(rejects), pa.string()))))
    run.lake.write("rejects", pa.concat_tables([others, *rejects.values()]))


def _reasons(rejects: pa.Table) -> dict[str, int]:
    """How many rows were refused for each reason, the most frequent first."""
    import pyarrow.compute as pc

    counted = pc.value_counts(rejects["reason"]).to_pylist()
    ordered = sorted(counted, key=lambda r: (-r["counts"], r["values"]))
    return {r["values"]: r["counts"] for r in ordered}


def _span_of_facts(run: Run) -> dict[str, str | None]:
    """The times of the first and last transaction or event."""
    facts = run.read("events").select("event_timestamp")
    facts = facts.union(run.read("transactions").select("event_timestamp"))
    span = facts.aggregate(
        first_fact=facts.event_timestamp.min(), last_fact=facts.event_timestamp.max()
    )
    (row,) = run.con.to_pyarrow(span).to_pylist()
    return {k: v.isoformat() if v else None for k, v in row.items()}


def _campaign_starts(run: Run) -> dict[str, str]:
    """The time of each campaign's first exposure."""
    exposures = run.read("exposures")
    starts = exposures.group_by("campaign_id").aggregate(start=exposures.event_timestamp.min())
    rows = run.con.to_pyarrow(starts.order_by("campaign_id")).to_pylist()
    return {r["campaign_id"]: r["start"].isoformat() for r in rows}


def identity(run: Run) -> Report:
    """Link the records and give every cluster of them its customer id."""
    from cdp_ml.identity.crosswalk import assign_customer_ids
    from cdp_ml.identity.linkage import link

    model = _linkage_model(run)
    # A run as of a past instant teaches what holds as of that instant.
    learned_at = min(run.known_at, run.as_of - timedelta(microseconds=1))
    linkage = link(
        run.read("records"),
        run.read("identifiers"),
        run.identity,
        run.con,
        model=model,
        overrides=run.lake.arrow("overrides"),
        former={t: run.read(t) for t in LINKED} if model and run.lake.has("compared") else None,
        known_at=learned_at,
    )
    assigned = assign_customer_ids(linkage.clusters, run.read("crosswalk"), learned_at, run.con)
    for table in LINKED:
        _store_linked(run, table, linkage)
    run.lake.amend("crosswalk", assigned.links, run.con, assigned.former)
    run.lake.amend("identity_log", assigned.log, run.con)
    metrics = _identity_metrics(run, linkage, assigned)
    if model:
        kept = run.report("identity")["model"]
    else:
        kept = _keep_linkage_model(run, linkage.model, metrics)
    return {"model": kept, "metrics": {"identity": metrics}}


def linkage_inputs(run: Run) -> object:
    """What decides whether linking is due, besides its tables: specification and cadence."""
    return [_linkage_specification(run), None if _is_linkage_fresh(run) else run.as_of]


def _linkage_specification(run: Run) -> list[str]:
    """What a linkage model was made to be: hashes in it are DuckDB's."""
    import duckdb

    code = hash_of(Path(__file__).parent / "identity")
    return [run.identity.fingerprint(), code, duckdb.__version__]


def _is_linkage_fresh(run: Run) -> bool:
    """Whether the last training still holds: same specification, within its cadence."""
    trained = run.report("identity").get("model")
    if run.force or not trained or trained["specification"] != _linkage_specification(run):
        return False
    age = run.as_of - datetime.fromisoformat(trained["as_of"])
    return timedelta(0) <= age < timedelta(days=run.identity.cadence_days)


def _linkage_model(run: Run) -> Model | None:
    """The trained linkage model, unless a new one is due."""
    from cdp_ml.identity.model import Model

    if not _is_linkage_fresh(run):
        return None
    folder = run.settings.linkage_model(run.report("identity")["model"]["version"])
    return Model.load(folder) if folder.is_dir() else None


def _keep_linkage_model(run: Run, model: Model | None, metrics: dict[str, float]) -> Report | None:
    """Write a newly trained model beside the former ones; returns what to remember of it."""
    if model is None:
        return None
    model.save(run.settings.linkage_model(model.version))
    _log_linkage_model(run, model, metrics)
    return {
        "version": model.version,
        "as_of": run.as_of.isoformat(),
        "specification": _linkage_specification(run),
        "records": model.records,
    }


def _log_linkage_model(run: Run, model: Model, metrics: dict[str, float]) -> None:
    """Record the training in MLflow, with charts and a report."""
    from cdp_ml.identity.report import facts, summary, write_report
    from cdp_ml.learn.registry import log_linkage

    parameters, learned = facts(model)
    parameters["threshold"] = f"{run.identity.threshold:g}"
    write = partial(write_report, model, metrics)
    known = (parameters, {**learned, **metrics})
    log_linkage(run.settings, model.version, run.run_id, known, write, summary(model))


def _store_linked(run: Run, table: str, linkage: Linkage) -> None:
    rows = getattr(linkage, table)
    if linkage.gone is None:
        run.lake.write(table, rows)
    else:
        run.lake.amend(table, rows, run.con, linkage.gone[table])


def _identity_metrics(run: Run, linkage: Linkage, assigned: Assignment) -> dict[str, float]:
    """How many there are, and how stable the ids were."""
    import pyarrow.compute as pc

    held = run.read("crosswalk").filter(lambda t: t.valid_to.isnull())
    records = run.lake.count("records")
    linked, customers = _counted(run, held)
    if linked != records:  # some are not delivered any more
        delivered = held.semi_join(run.read("records"), ["source", "source_record_id"])
        _, customers = _counted(run, delivered)
    events = pc.value_counts(assigned.log["event"]).to_pylist()
    return {
        "records": records,
        "customers": customers,
        "edges": run.lake.count("edges"),
        "reviews": run.lake.count("reviews"),
        "linked_again": linkage.clusters.num_rows,
        "moved": assigned.moved,
        "moved_share": assigned.moved / max(records, 1),
        **dict.fromkeys(("created", "merged", "split"), 0),
        **{e["values"]: e["counts"] for e in events},
    }


def _counted(run: Run, links: Table) -> tuple[int, int]:
    """How many links and customers there are."""
    # Hashes: numbers are counted in half the time that words take.
    asked = links.aggregate(links=links.count(), customers=links.customer_id.hash().nunique())
    found = run.con.to_pyarrow(asked).to_pylist()[0]
    return found["links"], found["customers"]


def profiles(run: Run) -> Report:
    """Build the golden records of all customers."""
    from cdp_ml.profiles import build_customers

    records, crosswalk = run.read("records"), run.read("crosswalk")
    customers = run.con.to_pyarrow(
        build_customers(records, crosswalk, run.settings.profiles, run.as_of)
    )
    run.lake.write("customers", customers)
    return {"metrics": {"customers": {"rows": customers.num_rows}}}


def traits(run: Run) -> Report:
    """Compute the traits as of now and as of the snapshots of the models."""
    instants = run.instants
    built = build_traits_at(run.lake, run.con, run.settings, instants)
    for table, rows in built.items():
        run.lake.write(table, rows)
    return {
        "instants": [t.isoformat() for t in instants],
        "metrics": {
            **{t: {"rows": rows.num_rows} for t, rows in built.items()},
            **{facts: _attributed(run, facts) for facts in ("transactions", "events")},
        },
    }


def _attributed(run: Run, facts: str) -> dict[str, int]:
    """How many facts there are, and how many of them are a known customer's."""
    rows, links = run.read(facts), run.read("crosswalk")
    linked = run.read("identifiers").semi_join(links, ["source", "source_record_id"])
    theirs = rows.semi_join(linked, ["identifier_type", "identifier"])
    return {
        "rows": int(rows.count().to_pyarrow().as_py()),
        "attributed": int(theirs.count().to_pyarrow().as_py()),
    }


def features(run: Run) -> Report:
    """Fill a new online store; readers go on with the former one until publication."""
    from cdp_ml.feast_stores import apply, drop_online_stores, materialize, open_store

    number = _published_number(run) + 1
    path = run.settings.online_store(number)
    path.parent.mkdir(exist_ok=True)
    drop_online_stores(run.settings, lambda leftover: leftover == number)
    store = open_store(run.settings, run.lake.versions, path)
    apply(store)
    rows = materialize(store, run.as_of)
    run.lake.versions["online_store"] = number
    return {"metrics": {"online_store": {"rows": rows}}}


def _published_number(run: Run) -> int:
    last = run.published
    return int(last["versions"].get("online_store", 0)) if last else 0


def train(run: Run) -> Report:
    """Train the models that are due by their cadence; the others keep their version."""
    models = {
        name: {
            **(_kept_model(run, name) if _is_fresh(run, name) else _train_model(run, spec)),
            # With which the run is served, whatever models/ holds by then.
            **spec.model_dump(include={"task", "description", "features"}),
        }
        for name, spec in run.models.items()
    }
    for name in model_versions(run):
        del run.lake.versions[model_key(name)]
    labels = {f"labels_{name}" for name in run.models}
    for table in [t for t in run.lake.versions if t.startswith("labels_") and t not in labels]:
        del run.lake.versions[table]
    served = {n: m["version"] for n, m in models.items() if m["version"] is not None}
    run.lake.versions.update({model_key(name): version for name, version in served.items()})
    return {"models": models, "metrics": {n: m["metrics"] for n, m in models.items()}}


def _is_fresh(run: Run, name: str) -> bool:
    """Whether a model's last training still holds: same specification, within its cadence."""
    trained = run.report("train").get("models", {}).get(name)
    # What had too little data is tried each time; what was refused waits, or chance would decide.
    if run.force or trained is None or not trained.get("trained"):
        return False
    if trained["specification"] != _specification(run, name):
        return False
    age = run.as_of - datetime.fromisoformat(trained["as_of"])
    return timedelta(0) <= age < timedelta(days=run.models[name].cadence_days)


def _kept_model(run: Run, name: str) -> dict[str, Any]:
    """What the last training reported, or the version that was promoted by hand since."""
    from cdp_ml.learn.registry import load_champion

    kept = dict(run.report("train")["models"][name])
    chosen = load_champion(run.settings, run.models[name], _promoted_by_hand(run, name))
    if chosen is None:
        return kept
    verdict = f"{name} {chosen.version} was promoted by hand; 'cdp-ml ui' shows its report."
    return {**kept, "version": chosen.version, "metrics": {}, "verdict": verdict}


def _promoted_by_hand(run: Run, name: str) -> int | None:
    """The champion that people chose since the last publication, if they did."""
    from cdp_ml.learn.registry import champion_version

    champion, published = champion_version(run.settings, name), run.published
    served = published["versions"].get(model_key(name)) if published else None
    reported = run.report("train").get("models", {}).get(name, {}).get("version")
    return None if champion in (served, reported) else champion


def training_inputs(run: Run) -> object:
    """What decides whether training is due: specification and cadence, else the data itself.

    And a champion that was promoted by hand, which is to serve from now on.
    """
    # Whatever changes orders, events or whose they are changes the traits' tables too.
    data = [run.as_of, {t: run.lake.versions.get(t) for t in (*TRAIT_TABLES, "exposures")}]
    return {
        name: [
            _specification(run, name),
            None if _is_fresh(run, name) else data,
            _promoted_by_hand(run, name),
        ]
        for name in run.models
    }


def _train_model(run: Run, spec: ModelSpec) -> dict[str, Any]:
    """Train a model and register it; the champion stays if the new one is not promoted."""
    from cdp_ml.learn import registry
    from cdp_ml.learn.datasets import time_split
    from cdp_ml.learn.training import train

    served = _promoted_by_hand(run, spec.name) or run.lake.versions.get(model_key(spec.name))
    champion = registry.load_champion(run.settings, spec, served)
    base: dict[str, Any] = {
        "specification": _specification(run, spec.name),
        "as_of": run.as_of.isoformat(),
        "version": champion.version if champion else None,
    }
    try:
        split = time_split(spec, run.as_of, run.first_fact, run.campaigns)
        frame = training_frame(run.settings, run.lake, run.con, spec, split)
        if champion and spec.features and set(champion.features) - set(frame.column_names):
            base["version"] = None  # its features are gone
        if "label" in frame.column_names:
            labels = frame.select(["customer_id", "event_timestamp", "label"])
            run.lake.write(f"labels_{spec.name}", labels)
        trained = train(spec, frame, split, champion)
    except (NotPromotedError, LeakageError) as refusal:
        return {**base, "trained": False, "metrics": {}, "verdict": str(refusal)}
    read = {t: v for t, v in run.lake.versions.items() if run.lake.has(t)}
    version = registry.log_run(run.settings, trained, read, run.run_id)
    return {
        **base,
        "trained": True,
        "version": version if trained.promoted else base["version"],
        "metrics": trained.metrics,
        "verdict": trained.verdict,
    }


def _specification(run: Run, model: str) -> list[str]:
    """What a model was made to be: its specification, and the features there are."""
    return [run.models[model].fingerprint(), hash_of(run.settings.share("features"))]


def model_versions(run: Run) -> dict[str, int]:
    """The version of each model that the run serves."""
    prefix, versions = model_key(""), run.lake.versions
    return {k.removeprefix(prefix): v for k, v in versions.items() if k.startswith(prefix)}


def score(run: Run) -> Report:
    """Score the eligible customers with each served model; scores of former instants stay.

    And watch the models: how far customers and scores have drifted from those of the test, and
    what earlier scores turned out to be worth once their label windows had closed.
    """
    from cdp_ml.learn.registry import load_model
    from cdp_ml.learn.score import recommend_items

    found: dict[str, list[pa.Table]] = {"scores": [], "recommendations": []}
    metrics: dict[str, dict[str, float]] = {}
    for name, version in model_versions(run).items():
        spec, predictor = run.models[name], load_model(run.settings, name, version)
        if spec.task == "next_category":
            lines = purchase_lines(run.lake, run.con, spec, run.as_of)
            rows = recommend_items(predictor, lines, run.as_of, spec.top)
            found["recommendations"].append(rows)
            metrics[name] = {"rows": rows.num_rows, **_realized(run, spec, predictor)}
        else:
            rows, metrics[name] = _score_model(run, spec, predictor)
            found["scores"].append(rows)
    for table, parts in found.items():
        _write_of_instant(run, table, parts)
    return {"metrics": {name: measured for name, measured in metrics.items() if measured}}


def _score_model(
    run: Run, spec: ModelSpec, predictor: Predictor
) -> tuple[pa.Table, dict[str, float]]:
    """A model's rows of `scores`, and how they drift and what earlier ones were worth."""
    from cdp_ml.learn.drift import SCORE, Drift
    from cdp_ml.learn.registry import log_monitoring
    from cdp_ml.learn.score import score_customers

    drift = Drift(predictor.profile)
    blocks = eligible_blocks(run.settings, run.lake, run.con, spec, run.as_of, predictor.features)
    scores = score_customers(predictor, drift.passing(blocks), run.as_of)
    if not scores.num_rows:
        return scores, {}
    drift.count(scores.select([SCORE]))
    moved = drift.metrics()
    shown = {name: value for name, value in moved.items() if "/" not in name}
    log_monitoring(run.settings, spec.name, predictor.version, shown, run.as_of)
    return scores, {"rows": scores.num_rows, **moved, **_realized(run, spec, predictor)}


def _write_of_instant(run: Run, table: str, parts: list[pa.Table]) -> None:
    """Replace a table's rows of this instant; those of others stay."""
    import pyarrow as pa

    from cdp_ml.contracts import arrow_schema

    rows = pa.concat_tables([arrow_schema(table).empty_table(), *parts])
    run.lake.replace(table, rows, "as_of", run.as_of.isoformat())


def _realized(run: Run, spec: ModelSpec, predictor: Predictor) -> dict[str, float]:
    """What the newest scores whose label windows have closed turned out to be worth.

    Nothing, if they were given for another question than the specification asks by now.
    """
    from cdp_ml.learn.registry import load_model, log_monitoring

    if spec.task in ("uplift", "clustering"):
        return {}
    ahead = _days_ahead(spec, predictor)
    given = _given_by(run, spec, run.as_of - timedelta(days=ahead))
    if not given.num_rows:
        return {}
    version, instant = given["model_version"][0].as_py(), given["event_timestamp"][0].as_py()
    try:
        is_served = version == predictor.version
        gave = predictor if is_served else load_model(run.settings, spec.name, version)
        same = gave.answers(spec) and ahead == _days_ahead(spec, gave)
        found = _worth(run, spec, given, ahead) if same else {}
    except NotPromotedError as error:  # the model's files are gone, or what its label is about
        log.warning("%s", error)
        return {}
    log_monitoring(run.settings, spec.name, version, found, instant)
    return found


def _days_ahead(spec: ModelSpec, predictor: Predictor) -> float:
    if spec.task == "next_category":
        return float(predictor.model.parameters["within_days"])
    return spec.label.within_days


def _given_by(run: Run, spec: ModelSpec, closed: datetime) -> pa.Table:
    """A model's newest scores, or recommendations, of no later than an instant."""
    given = run.read("recommendations" if spec.task == "next_category" else "scores")
    mature = given.filter(given.model == spec.name, given.as_of <= closed)
    newest = mature.filter(mature.as_of == mature.as_of.max())
    return run.con.to_pyarrow(newest.rename(event_timestamp="as_of"))


def _worth(run: Run, spec: ModelSpec, given: pa.Table, ahead: float) -> dict[str, float]:
    """What scores or recommendations were worth, by what is known by now of so many days."""
    from cdp_ml.learn.evaluate import realized_metrics
    from cdp_ml.learn.next_category_training import realized_recall

    if spec.task == "next_category":
        start = given["event_timestamp"][0].as_py()
        lines = purchases_from(run.lake, run.con, spec, start, ahead, run.as_of)
        return realized_recall(given, lines)
    known = with_labels(run.lake, run.con, spec, given, run.as_of)
    outcome, score = (known[c].to_numpy() for c in ("label", "score"))
    return realized_metrics(outcome, score, spec.task)


def segments(run: Run) -> Report:
    """Decide who is in which segment, against the membership that was last published."""
    from cdp_ml.segments import predicted_members, rule_members, update_membership

    people = people_at(run.lake, run.con, run.as_of)
    scores = run.read("scores").filter(lambda t: t.as_of == run.as_of)
    members = [
        *rule_members(run.con, people, run.settings.segments),
        *predicted_members(scores, {n: run.models[n] for n in model_versions(run)}),
    ]
    former = Lake.published(run.lake.root).read("segment_membership", run.con)
    inside = _consenting(run, members)
    run.lake.write("segment_membership", update_membership(former, inside, run.as_of))
    return {"metrics": _segment_counts(run)}


def _consenting(run: Run, members: list[Table]) -> Table:
    """Keep in the segments that ask for a consent those who gave it."""
    from cdp_ml.privacy.consent import consented_customers
    from cdp_ml.segments import keep_consenting

    purposes = {n: s.consent for n, s in run.settings.segments.items() if s.consent}
    for spec in run.models.values():
        purposes |= {n: cut.consent for n, cut in spec.segments.items() if cut.consent}
    consents, crosswalk = run.read("consents"), run.read("crosswalk")
    known = run.con.to_pyarrow(consents.select("purpose").distinct())["purpose"].to_pylist()
    for segment, purpose in purposes.items():
        if purpose not in known:
            hint = nearest(purpose, known)
            log.warning("segment '%s': nobody consents to '%s'; %s", segment, purpose, hint)
    allowed = {
        purpose: consented_customers(consents, crosswalk, purpose, run.as_of)
        for purpose in set(purposes.values())
    }
    return keep_consenting(members, purposes, allowed)


def _segment_counts(run: Run) -> dict[str, dict[str, int]]:
    m = run.read("segment_membership")
    inside = m.exited_at.isnull()
    counts = m.group_by("segment").aggregate(
        customers=inside.sum(),
        entered=(inside & (m.entered_at == run.as_of)).sum(),
        left=(m.exited_at == run.as_of).sum(),
    )
    rows = run.con.to_pyarrow(counts).to_pylist()
    cuts = (run.models[name].segments for name in model_versions(run))
    names = [*run.settings.segments, *(segment for cut in cuts for segment in cut)]
    empty = {name: dict.fromkeys(("customers", "entered", "left"), 0) for name in names}
    return empty | {r.pop("segment"): {k: int(v or 0) for k, v in r.items()} for r in rows}


@cache
def code_fingerprint() -> str:
    """A hash of the package: other code may compute something else from the same tables."""
    return hash_of(Path(__file__).parent)


def hash_of(folder: Path) -> str:
    """A hash of the Python files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)

"""The refresh: the only place that knows the order of the stages.

Each step reads tables at fixed versions and writes new versions. A journal notes after each step
what it was made from and which versions it wrote, so an interrupted refresh goes on where it was
and a step whose inputs are unchanged is skipped. The last act appends one row to `runs`; until
then readers see the former run, from then on this one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.config import (
    IdentitySpec,
    ModelSpec,
    Settings,
    as_of_instant,
    load_models,
    load_settings,
    load_spec,
)
from cdp_ml.errors import CdpError, NotPromotedError
from cdp_ml.lake import Lake, last_run, publish
from cdp_ml.workspace import (
    build_traits_at,
    eligible_features,
    instants_of,
    online_path,
    people_at,
    training_frame,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Table

log = logging.getLogger(__name__)

Report = dict[str, Any]
KIND_TABLES = {"people": "records"}
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
TRAITS = ("traits_transactional", "traits_behavioral", "traits_profile")
IDENTITY = ("records", "identifiers", "edges", "crosswalk")


@dataclass
class Journal:
    """What the steps have done so far, on disk after each of them."""

    path: Path
    run: dict[str, str] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, published: dict[str, int]) -> Journal:
        """Read the journal; without one, start from the published versions."""
        if path.is_file():
            return cls(path, **json.loads(path.read_text(encoding="utf-8")))
        return cls(path, versions=published)

    def save(self) -> None:
        """Write the journal in one atomic replacement."""
        content = {"run": self.run, "versions": self.versions, "steps": self.steps}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(partial, self.path)


@dataclass(frozen=True)
class Run:
    """What the steps of one refresh share."""

    settings: Settings
    models: dict[str, ModelSpec]
    identity: IdentitySpec
    journal: Journal
    lake: Lake

    @cached_property
    def con(self) -> SQLBackend:
        """The engine, opened when the first step needs it."""
        from cdp_ml.engine import connect

        return connect(self.settings.engine)

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

    def report(self, step: str) -> Report:
        """What a step reported when it last ran; empty if it never did."""
        return dict(self.journal.steps.get(step, {}).get("report", {}))

    def read(self, table: str) -> Table:
        """A table as this run sees it."""
        return self.lake.read(table, self.con)


@dataclass(frozen=True)
class Step:
    """A step: what it does, what it reads and writes, and what else decides whether it is due."""

    name: str
    run: Callable[[Run], Report]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    inputs: Callable[[Run], object]


@dataclass(frozen=True)
class Outcome:
    """What a refresh did: seconds by step that ran, the steps' reports, and the published run."""

    run_id: str
    as_of: datetime
    seconds: dict[str, float]
    reports: dict[str, Report]
    published: bool


def refresh(
    home: Path | str = ".", force: bool = False, tell: Callable[[str, str], None] | None = None
) -> Outcome:
    """Bring a workspace up to date: ingest, unify, compute, train, score, segment and publish.

    Args:
        home: the workspace folder.
        force: run every step, due or not.
        tell: called with (step, "run" | "done" | "skip") as the refresh goes on.

    Raises:
        CdpError: for whatever the user can mend; the published state is as before.
    """
    settings = load_settings(Path(home))
    settings.data.mkdir(parents=True, exist_ok=True)
    with _only_refresh(settings.data):
        run = _begin(settings)
        seconds = dict(_run_steps(run, force, tell or (lambda step, what: None)))
        published = bool(seconds) or not _is_published(run)
        if published:
            _publish(run)
        reports = {step.name: run.report(step.name) for step in STEPS}
        return Outcome(_last_run_id(run), run.as_of, seconds, reports, published)


def _begin(settings: Settings) -> Run:
    last = last_run(settings.data / "lake")
    journal = Journal.load(settings.data / "journal.json", last["versions"] if last else {})
    if last and journal.run.get("run_id") == last["run_id"]:
        # The former refresh was killed after publishing and before it could note that.
        journal.run, journal.versions = {}, last["versions"]
    if not journal.run:
        now = datetime.now(UTC)
        journal.run = {"run_id": f"{now:%Y%m%dT%H%M%S%f}", "known_at": now.isoformat()}
    identity = load_spec(settings.share("models") / "identity.yaml", IdentitySpec)
    lake = Lake(settings.data / "lake", journal.versions)
    return Run(settings, load_models(settings), identity, journal, lake)


def _run_steps(
    run: Run, force: bool, tell: Callable[[str, str], None]
) -> Iterator[tuple[str, float]]:
    """Run the steps that are due, noting each in the journal; yields their names and seconds."""
    for step in STEPS:
        known = run.journal.steps.get(step.name, {}).get("fingerprint")
        if not force and known == _fingerprint(step, run):
            tell(step.name, "skip")
            continue
        tell(step.name, "run")
        started = time.perf_counter()
        run.journal.steps[step.name] = {"report": step.run(run)}
        # Computed anew: whether training is due depends on what training has just reported.
        run.journal.steps[step.name]["fingerprint"] = _fingerprint(step, run)
        run.journal.save()
        tell(step.name, "done")
        yield step.name, time.perf_counter() - started


def _fingerprint(step: Step, run: Run) -> str:
    """What the step would be made from: the versions it reads and its other inputs."""
    versions = {name: run.lake.versions.get(name) for name in step.reads}
    content = json.dumps([_code(), versions, step.inputs(run)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@cache
def _code() -> str:
    """A hash of the package: other code may compute something else from the same tables."""
    return _hash_of(Path(__file__).parent)


def _hash_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _is_published(run: Run) -> bool:
    last = last_run(run.lake.root)
    return last is not None and last["versions"] == run.lake.versions


def _last_run_id(run: Run) -> str:
    last = last_run(run.lake.root)
    return str(last["run_id"]) if last else ""


def _publish(run: Run) -> None:
    """Make this run the one that readers see, by one atomic append to `runs`."""
    import pyarrow as pa

    from cdp_ml.contracts import arrow_schema
    from cdp_ml.learn.registry import promote

    for name, version in _model_versions(run).items():
        promote(run.settings, name, version)
    measured = pa.Table.from_pylist(list(_metrics(run)), arrow_schema("metrics"))
    run.lake.append("metrics", measured)
    publish(
        run.lake.root,
        {
            "run_id": run.run_id,
            "as_of": run.as_of,
            "started_at": run.known_at,
            "published_at": datetime.now(UTC),
            "versions": run.lake.versions,
            "summary": {step.name: run.report(step.name) for step in STEPS},
        },
    )
    run.journal.run = {}
    run.journal.save()
    _drop_old_online_stores(run)


def _metrics(run: Run) -> Iterator[dict[str, Any]]:
    """The numbers that the steps reported, as rows of `metrics`."""
    for step in STEPS:
        for subject, values in run.report(step.name).get("metrics", {}).items():
            for name, value in values.items():
                key = {"run_id": run.run_id, "step": step.name, "name": name, "subject": subject}
                yield {**key, "value": float(value), "event_timestamp": run.as_of}


def _ingest(run: Run) -> Report:
    """Read the sources that changed; nothing is written before all of them have been read."""
    from cdp_ml.ingest.batch import read_source

    before = run.report("ingest").get("sources", {})
    signatures = _source_signatures(run)
    changed = [n for n in signatures if before.get(n, {}).get("signature") != signatures[n]]
    sources = {n: before[n] for n in signatures if n not in changed}
    declared = run.settings.sources
    batches = {
        n: read_source(n, declared[n], run.settings.home, run.con, run.known_at) for n in changed
    }
    for name, batch in batches.items():
        counts = {**batch.counts, **_store_batch(run, declared[name].kind, batch)}
        sources[name] = {"signature": signatures[name], "kind": declared[name].kind, **counts}
    _store_rejects(run, {name: batch.rejects for name, batch in batches.items()})
    counted = {n: {k: v for k, v in s.items() if isinstance(v, int)} for n, s in sources.items()}
    ordered = {n: sources[n] for n in signatures}
    return {"sources": ordered, "metrics": counted, **_span_of_facts(run)}


def _source_signatures(run: Run) -> dict[str, list[Any]]:
    from cdp_ml.ingest.batch import source_files

    home, region = run.settings.home, run.settings.region
    return {
        name: [_code(), source.fingerprint(), region, source_files(name, source, home)]
        for name, source in run.settings.sources.items()
    }


def _store_batch(run: Run, kind: str, batch: Any) -> dict[str, int]:
    from cdp_ml.standardize import standardize_people

    rows = batch.rows
    if kind == "people":
        rows = standardize_people(rows, run.settings.region, run.con)
    if batch.identifiers.num_rows:
        run.lake.upsert("identifiers", batch.identifiers, run.con)
    return run.lake.upsert(KIND_TABLES.get(kind, kind), rows, run.con)


def _store_rejects(run: Run, rejects: dict[str, pa.Table]) -> None:
    """Replace the rejects of the sources that were read."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not rejects:
        return
    old = run.lake.arrow("rejects")
    others = old.filter(pc.invert(pc.is_in(old["source"], pa.array(list(rejects), pa.string()))))
    run.lake.write("rejects", pa.concat_tables([others, *rejects.values()]))


def _span_of_facts(run: Run) -> dict[str, str | None]:
    """The times of the first and last transaction or event."""
    facts = run.read("events").select("event_timestamp")
    facts = facts.union(run.read("transactions").select("event_timestamp"))
    span = facts.aggregate(
        first_fact=facts.event_timestamp.min(), last_fact=facts.event_timestamp.max()
    )
    (row,) = run.con.to_pyarrow(span).to_pylist()
    return {k: v.isoformat() if v else None for k, v in row.items()}


def _identity(run: Run) -> Report:
    from cdp_ml.identity.crosswalk import assign_customer_ids
    from cdp_ml.identity.linkage import link

    records = run.read("records")
    linkage = link(records, run.read("identifiers"), run.identity, run.con)
    crosswalk, changes = assign_customer_ids(
        linkage.clusters, records, run.read("crosswalk"), run.known_at, run.con
    )
    run.lake.write("edges", linkage.edges)
    run.lake.write("crosswalk", crosswalk)
    run.lake.append("identity_log", changes)
    _keep_linkage_model(run, linkage.model)
    return _identity_report(crosswalk, changes, linkage.edges)


def _keep_linkage_model(run: Run, model: dict[str, Any]) -> None:
    folder = run.settings.data / "identity"
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text(json.dumps(model, indent=1, default=str), encoding="utf-8")


def _identity_report(crosswalk: pa.Table, changes: pa.Table, edges: pa.Table) -> Report:
    import pyarrow.compute as pc

    current = crosswalk.filter(pc.is_null(crosswalk["valid_to"]))
    events = {r["values"]: r["counts"] for r in pc.value_counts(changes["event"]).to_pylist()}
    counts = {
        "records": current.num_rows,
        "customers": len(current["customer_id"].unique()),
        "edges": edges.num_rows,
        **events,
    }
    return {"metrics": {"identity": counts}}


def _profiles(run: Run) -> Report:
    from cdp_ml.profiles import build_customers

    records, crosswalk, edges = (run.read(t) for t in ("records", "crosswalk", "edges"))
    customers = build_customers(records, crosswalk, edges, run.settings.profiles, run.as_of)
    run.lake.write("customers", customers)
    return {"metrics": {"customers": {"rows": run.lake.arrow("customers").num_rows}}}


def _traits(run: Run) -> Report:
    instants = instants_of(run.models, run.as_of, run.first_fact)
    built = build_traits_at(run.lake, run.con, run.settings, instants)
    for table, rows in built.items():
        run.lake.write(table, rows)
    return {
        "instants": [t.isoformat() for t in instants],
        "metrics": {t: {"rows": rows.num_rows} for t, rows in built.items()},
    }


def _features(run: Run) -> Report:
    """Fill a new online store; readers go on with the former one until publication."""
    from cdp_ml.feast_stores import apply, materialize, open_store

    number = _published_number(run) + 1
    path = online_path(run.settings, number)
    path.parent.mkdir(exist_ok=True)
    for leftover in path.parent.glob(f"{path.name}*"):
        leftover.unlink()
    store = open_store(run.settings, run.lake.versions, path)
    apply(store)
    rows = materialize(store, run.as_of)
    run.lake.versions["online_store"] = number
    return {"metrics": {"online_store": {"rows": rows}}}


def _published_number(run: Run) -> int:
    last = last_run(run.lake.root)
    return int(last["versions"].get("online_store", 0)) if last else 0


def _drop_old_online_stores(run: Run) -> None:
    """Keep the published store and the one before, which a service may still be reading."""
    newest = run.lake.versions.get("online_store", 0)
    for path in (run.settings.data / "online").glob("*.db"):
        if path.stem.isdigit() and int(path.stem) < newest - 1:
            path.unlink()


def _train(run: Run) -> Report:
    """Train the models that are due by their cadence; the others keep their version."""
    before = run.report("train").get("models", {})
    models = {
        name: before[name] if _is_fresh(run, name) else _train_model(run, spec)
        for name, spec in run.models.items()
    }
    for name in _model_versions(run):
        del run.lake.versions[_served(name)]
    served = {n: m["version"] for n, m in models.items() if m["version"] is not None}
    run.lake.versions.update({_served(name): version for name, version in served.items()})
    return {"models": models, "metrics": {n: m["metrics"] for n, m in models.items()}}


def _is_fresh(run: Run, name: str) -> bool:
    """Whether a model's last training still holds: same specification, within its cadence."""
    trained = run.report("train").get("models", {}).get(name)
    if trained is None or trained["specification"] != run.models[name].fingerprint():
        return False
    if trained["version"] is None:
        return False
    age = run.as_of - datetime.fromisoformat(trained["as_of"])
    return timedelta(0) <= age < timedelta(days=run.models[name].cadence_days)


def _training_inputs(run: Run) -> object:
    """What decides whether training is due: specification and cadence, else the data itself."""
    data = [run.as_of, {t: run.lake.versions.get(t) for t in TRAITS}]
    return {
        name: [spec.fingerprint(), None if _is_fresh(run, name) else data]
        for name, spec in run.models.items()
    }


def _train_model(run: Run, spec: ModelSpec) -> dict[str, Any]:
    """Train a model and register it; the champion stays if the new one is not promoted."""
    from cdp_ml.learn import registry
    from cdp_ml.learn.datasets import time_split
    from cdp_ml.learn.training import train

    served = run.lake.versions.get(_served(spec.name))
    base = {"specification": spec.fingerprint(), "as_of": run.as_of.isoformat(), "version": served}
    try:
        split = time_split(spec, run.as_of, run.first_fact)
        frame = training_frame(run.settings, run.lake, run.con, spec, split)
        champion = registry.load_model(run.settings, spec.name, served) if served else None
        trained = train(spec, frame, split, champion)
    except NotPromotedError as refusal:
        return {**base, "metrics": {}, "verdict": str(refusal)}
    read = {t: v for t, v in run.lake.versions.items() if run.lake.has(t)}
    version = registry.log_run(run.settings, trained, read, run.run_id)
    judged = trained.evaluation
    return {
        **base,
        "version": version if judged.promoted else served,
        "metrics": {name: e.value for name, e in judged.metrics.items()},
        "verdict": judged.verdict,
    }


def _served(model: str) -> str:
    """The name under which a run notes the version of a model that it serves."""
    return f"model/{model}"


def _model_versions(run: Run) -> dict[str, int]:
    prefix, versions = _served(""), run.lake.versions
    return {k.removeprefix(prefix): v for k, v in versions.items() if k.startswith(prefix)}


def _score(run: Run) -> Report:
    """Score the eligible customers with each served model; scores of former instants stay."""
    import pyarrow as pa

    from cdp_ml.contracts import arrow_schema
    from cdp_ml.learn.registry import load_model
    from cdp_ml.learn.score import score_customers

    scored = []
    for name, version in _model_versions(run).items():
        spec = run.models[name]
        frame = eligible_features(run.settings, run.lake, run.con, spec, [run.as_of])
        scored.append(score_customers(load_model(run.settings, name, version), frame, run.as_of))
    former = run.read("scores")
    kept = run.con.to_pyarrow(former.filter(former.as_of != run.as_of))
    rows = pa.concat_tables([arrow_schema("scores").empty_table(), *scored])
    run.lake.write("scores", pa.concat_tables([kept.cast(rows.schema), rows]))
    return {"metrics": {t["model"][0].as_py(): {"rows": t.num_rows} for t in scored if t.num_rows}}


def _segments(run: Run) -> Report:
    """Decide who is in which segment, against the membership that was last published."""
    from cdp_ml.segments import predicted_members, rule_members, update_membership

    people = people_at(run.lake, run.con, run.as_of)
    origin = str(run.settings.home / "cdp.yaml")
    scores = run.read("scores").filter(lambda t: t.as_of == run.as_of)
    members = [
        *rule_members(run.con, people, run.settings.segments, origin),
        *predicted_members(scores, {n: run.models[n] for n in _model_versions(run)}),
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
    return {r.pop("segment"): {k: int(v or 0) for k, v in r.items()} for r in rows}


STEPS: tuple[Step, ...] = (
    Step("ingest", _ingest, (), INGESTED, _source_signatures),
    Step(
        "identity",
        _identity,
        ("records", "identifiers"),
        ("edges", "crosswalk", "identity_log"),
        lambda run: run.identity.fingerprint(),
    ),
    Step(
        "profiles",
        _profiles,
        ("records", "edges", "crosswalk"),
        ("customers",),
        lambda run: [run.as_of, {k: v.fingerprint() for k, v in run.settings.profiles.items()}],
    ),
    Step(
        "traits",
        _traits,
        (*IDENTITY, "events", "transactions", "products"),
        TRAITS,
        lambda run: instants_of(run.models, run.as_of, run.first_fact),
    ),
    Step(
        "features",
        _features,
        TRAITS,
        (),
        lambda run: [run.as_of, _hash_of(run.settings.share("features"))],
    ),
    Step("train", _train, (), (), _training_inputs),
    Step("score", _score, TRAITS, ("scores",), lambda run: [run.as_of, _model_versions(run)]),
    Step(
        "segments",
        _segments,
        ("customers", *TRAITS, "scores", "consents", "crosswalk"),
        ("segment_membership",),
        lambda run: [
            run.as_of,
            {n: s.fingerprint() for n, s in (run.settings.segments | run.models).items()},
        ],
    ),
)
"""The steps in their order."""


@contextmanager
def _only_refresh(data: Path) -> Iterator[None]:
    """Let one refresh at a time work on a workspace."""
    import fcntl

    with (data / "refresh.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CdpError(f"another refresh is at work on {data}; wait until it ends") from None
        yield


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)

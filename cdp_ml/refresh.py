"""The refresh: the only place that knows the order of the stages.

Each step reads tables at fixed versions and writes new versions. A journal notes after each step
what it was made from and which versions it wrote, so an interrupted refresh goes on where it was
and a step whose inputs are unchanged is skipped. The last act appends one row to `runs`; until
then readers see the former run, from then on this one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cdp_ml import steps
from cdp_ml.config import (
    IdentitySpec,
    Settings,
    Spec,
    load_models,
    load_settings,
    load_spec,
    located,
)
from cdp_ml.contracts import TRAIT_TABLES
from cdp_ml.errors import CdpError, ConfigError
from cdp_ml.journal import Journal
from cdp_ml.lake import Lake, last_run, model_key, publish
from cdp_ml.steps import Report, Run


@dataclass(frozen=True)
class Step:
    """A step: what it does, what it reads and writes, and what else decides whether it is due.

    A step `settles` if what is due is decided by what it last reported, as the cadence of training.
    """

    name: str
    run: Callable[[Run], Report]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    inputs: Callable[[Run], object]
    settles: bool = False


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
    try:
        _make_folder(settings.data)
        with _only_refresh(settings.data):
            return _refresh(_begin(settings, force), tell or (lambda step, what: None))
    except CdpError as error:
        error.args = (located(str(error), settings),)
        raise


def _make_folder(data: Path) -> None:
    if set("[]*") & set(str(data)):
        raise ConfigError(f"{data}: a workspace's path must not hold [, ] or *; choose another one")
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"data_dir: cannot make the folder {data}: {error.strerror}; choose another one"
        ) from None


def _refresh(run: Run, tell: Callable[[str, str], None]) -> Outcome:
    seconds = dict(_run_steps(run, tell))
    published = bool(seconds) or not _is_published(run)
    if published:
        _publish(run)
    reports = {step.name: run.report(step.name) for step in STEPS}
    return Outcome(_last_run_id(run), run.as_of, seconds, reports, published)


def _begin(settings: Settings, force: bool) -> Run:
    last = last_run(settings.lake)
    journal = Journal.load(settings.data / "journal.json", last["versions"] if last else {})
    if last and journal.run.get("run_id") == last["run_id"]:
        # The former refresh was killed after publishing and before it could note that.
        journal.run, journal.versions = {}, last["versions"]
    if not journal.run:
        now = datetime.now(UTC)
        journal.run = {"run_id": f"{now:%Y%m%dT%H%M%S%f}", "known_at": now.isoformat()}
    identity = load_spec(settings.share("models") / "identity.yaml", IdentitySpec)
    lake = Lake(settings.lake, journal.versions)
    lake.renew("overrides")
    return Run(settings, load_models(settings), identity, journal, lake, force)


def _run_steps(run: Run, tell: Callable[[str, str], None]) -> Iterator[tuple[str, float]]:
    """Run the steps that are due, noting each in the journal; yields their names and seconds."""
    is_checked = False
    for step in STEPS:
        # Taken before the step reads: what changes while it does is found by the next refresh.
        fingerprint = _fingerprint(step, run)
        known = run.journal.steps.get(step.name, {}).get("fingerprint")
        if not run.force and known == fingerprint:
            tell(step.name, "skip")
            continue
        if not is_checked:
            steps.check_specifications(run)
            is_checked = True
        tell(step.name, "run")
        started = time.perf_counter()
        run.journal.steps[step.name] = {"report": step.run(run)}
        if step.settles:
            fingerprint = _fingerprint(step, run)
        run.journal.steps[step.name]["fingerprint"] = fingerprint
        run.journal.save()
        tell(step.name, "done")
        yield step.name, time.perf_counter() - started


def _fingerprint(step: Step, run: Run) -> str:
    """What the step would be made from: the versions it reads and its other inputs."""
    versions = {name: run.lake.versions.get(name) for name in step.reads}
    content = json.dumps(
        [steps.code_fingerprint(), versions, step.inputs(run)], sort_keys=True, default=str
    )
    return hashlib.sha256(content.encode()).hexdigest()[:16]


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

    last = last_run(run.lake.root)
    served = last["versions"] if last else {}
    for name, version in steps.model_versions(run).items():
        if version != served.get(model_key(name)):
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


def _drop_old_online_stores(run: Run) -> None:
    """Keep the published store and the one before, which a service may still be reading."""
    from cdp_ml.feast_stores import drop_online_stores

    newest = run.lake.versions.get("online_store", 0)
    drop_online_stores(run.settings, lambda number: number < newest - 1)


def _fingerprints(specs: Mapping[str, Spec]) -> dict[str, str]:
    return {name: spec.fingerprint() for name, spec in specs.items()}


STEPS: tuple[Step, ...] = (
    Step("ingest", steps.ingest, (), steps.INGESTED, steps.source_signatures),
    Step(
        "identity",
        steps.identity,
        ("records", "identifiers", "overrides"),
        ("edges", "compared", "reviews", "crosswalk", "identity_log"),
        steps.linkage_inputs,
        settles=True,
    ),
    Step(
        "profiles",
        steps.profiles,
        ("records", "crosswalk"),
        ("customers",),
        lambda run: [run.as_of, _fingerprints(run.settings.profiles)],
    ),
    Step(
        "traits",
        steps.traits,
        (*steps.IDENTITY, "events", "transactions", "products"),
        TRAIT_TABLES,
        lambda run: [
            run.instants,
            _fingerprints(run.settings.profiles),
        ],
    ),
    Step(
        "features",
        steps.features,
        TRAIT_TABLES,
        (),
        lambda run: [run.as_of, steps.hash_of(run.settings.share("features"))],
    ),
    Step("train", steps.train, (), (), steps.training_inputs, settles=True),
    Step(
        "score",
        steps.score,
        (*TRAIT_TABLES, "transactions", "identifiers", "crosswalk", "products"),
        ("scores", "recommendations"),
        lambda run: [
            run.as_of,
            steps.model_versions(run),
            _fingerprints(run.models),
            steps.hash_of(run.settings.share("features")),
        ],
    ),
    Step(
        "segments",
        steps.segments,
        ("customers", *TRAIT_TABLES, "scores", "consents", "crosswalk"),
        ("segment_membership",),
        lambda run: [
            run.as_of,
            _fingerprints(run.settings.segments),
            _fingerprints(run.models),
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

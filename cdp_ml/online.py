"""Answers about one customer in milliseconds, all from one published run.

`open_online` brings a run's champions, its online store and an index of its customers, segments and
scores into memory; `score`, `profile`, `segments`, `resolve` and `models` ask it. Since an `Online`
never changes, an answer cannot mix two runs: `Latest` swaps the whole object after a new
publication. An id that was merged into another customer's is answered for with the survivor.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cdp_ml.config import Engine, IdentitySpec, Settings, load_spec
from cdp_ml.contracts import PERSON_FIELDS
from cdp_ml.errors import (
    CdpError,
    ConfigError,
    NothingPublishedError,
    NotPromotedError,
    nearest,
)

if TYPE_CHECKING:
    from datetime import datetime

    import duckdb
    import numpy as np

    from cdp_ml.feast_stores import FeatureReader
    from cdp_ml.identity.resolve import Resolver
    from cdp_ml.lake import Lake
    from cdp_ml.learn.score import Predictor

logger = logging.getLogger(__name__)


class UnknownCustomerError(CdpError):
    """The published run has no such customer."""


class _Resolving:
    """The run's resolver, opened by who asks first: it takes seconds."""

    def __init__(self, opened: Callable[[], Resolver]) -> None:
        self._opened = opened
        self._lock = threading.Lock()
        self._resolver: Resolver | None = None

    def resolver(self) -> Resolver:
        with self._lock:
            if self._resolver is None:
                self._resolver = self._opened()
        return self._resolver


@dataclass(frozen=True)
class Online:
    """A published run, ready to answer.

    `specs` tells each model's `task`, `description` and `features` (its service) as the run knew
    them, `champions` holds the models that may be served, `ranks` the sorted scores of the run's
    batch by model, `meanings` what each feature says, `readers` the online features by service, and
    `index` the tables `customers`, `segments` (present stays) and `scores` in memory, indexed by
    customer_id: a lookup takes half a millisecond there, and fifty in the Parquet files.
    `survivors` names the customer that stands for each id retired by a merge.
    """

    run_id: str
    as_of: datetime
    published_at: datetime
    specs: dict[str, dict[str, Any]]
    champions: dict[str, Predictor]
    ranks: dict[str, np.ndarray]
    meanings: dict[str, str]
    readers: dict[str, FeatureReader]
    index: duckdb.DuckDBPyConnection
    survivors: Mapping[str, str]
    resolving: _Resolving


def open_online(settings: Settings) -> Online:
    """Open the last published run for lookups.

    Args:
        settings: of the workspace.

    Returns:
        The run, its models loaded and warm.

    Raises:
        NothingPublishedError: if no refresh has published yet.
    """
    from cdp_ml.lake import Lake, published_run

    root = settings.lake
    run = published_run(root)
    versions = run["versions"]
    specs = models_of(run)
    lake = Lake(root, versions)
    index = _index(lake, settings, run["as_of"])
    online = Online(
        run_id=run["run_id"],
        as_of=run["as_of"],
        published_at=run["published_at"],
        specs=specs,
        champions=_champions(settings, specs, versions),
        ranks=_ranks(index),
        meanings=_meanings(),
        readers=_readers(settings, specs, run),
        index=index,
        survivors=_survivors(index),
        resolving=_Resolving(partial(_open_resolver, lake, settings, run["summary"])),
    )
    _warm(online)
    return online


def models_of(run: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Task, description and feature service of each model as a published run knew them.

    Not from models/: what somebody writes there counts, and can be wrong, in the next refresh.

    Raises:
        CdpError: if an older version of cdp-ml published the run, without these.
    """
    found: dict[str, dict[str, Any]] = run["summary"]["train"]["models"]
    if any("features" not in model for model in found.values()):
        raise CdpError(
            "an older version of cdp-ml published the last run; run 'cdp-ml refresh' to serve it"
        )
    return found


def score(online: Online, customer_id: str, model: str, reasons: bool = True) -> dict[str, Any]:
    """Score a customer with a model's champion, on the features of the run's online store.

    Args:
        online: the run to ask.
        customer_id: whom; also an id that was merged away.
        model: name of a model with a champion.
        reasons: also say which features moved the score most.

    Returns:
        `customer_id` (the survivor's), `model`, `model_version`, `as_of` (UTC), `score` (as in
        table `scores`),
        `percentile` (share of the run's scored customers with a lower score, 0 to 1), `cluster`
        (its name; None unless the model clusters), `in_population` (whether the run's batch scored
        the customer: the model was not made for others) and `reasons`: per feature its `value`, its
        `contribution` and its `meaning`, the weightiest first.

    Raises:
        UnknownCustomerError: if the run has no such customer.
        ConfigError: if there is no such model.
        NotPromotedError: if the model has no champion.
    """
    champion = _champion(online, model)
    customer_id = current_id(online, customer_id)
    in_population = _is_scored(online, customer_id, model)
    frame = _features(online, customer_id, model)
    value = float(champion.predict(frame)[0])
    return {
        "customer_id": customer_id,
        "model": model,
        "model_version": champion.version,
        "as_of": online.as_of,
        "score": value,
        "percentile": _percentile(online.ranks.get(model), value),
        "cluster": str(champion.assign(frame)[0]) if champion.clusters else None,
        "in_population": in_population,
        "reasons": _reasons(online, champion, frame) if reasons else [],
    }


def profile(online: Online, customer_id: str) -> dict[str, Any]:
    """A customer's golden record.

    Returns:
        `customer_id`, `as_of`, `fields` (by name the `value` and the `source` it was taken from;
        fields that no source knows are left out), `records` (how many were unified), `sources`,
        `identity_confidence` (probability of the weakest link), `first_seen_at`, `last_seen_at`.

    Raises:
        UnknownCustomerError: if the run has no such customer.
    """
    customer_id = current_id(online, customer_id)
    row = _customer(online, customer_id)
    rest = ("records", "identity_confidence", "first_seen_at", "last_seen_at")
    return {
        "customer_id": customer_id,
        "as_of": online.as_of,
        "fields": {
            name: {"value": row[name], "source": row[f"{name}_source"]}
            for name in PERSON_FIELDS
            if row[name] is not None
        },
        "sources": row["sources"].split(",") if row["sources"] else [],
        **{name: row[name] for name in rest},
    }


def segments(online: Online, customer_id: str) -> list[dict[str, Any]]:
    """The segments that a customer is in: `segment` and `entered_at` (UTC), by name.

    Raises:
        UnknownCustomerError: if the run has no such customer.
    """
    customer_id = current_id(online, customer_id)
    _customer(online, customer_id, "customer_id")
    query = "SELECT segment, entered_at FROM segments WHERE customer_id = ? ORDER BY segment"
    return _rows(online, query, [customer_id])


def current_id(online: Online, customer_id: str) -> str:
    """The id that stands for the customer now: another one if this was merged away."""
    return online.survivors.get(customer_id, customer_id)


def resolve(online: Online, person: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Find the records that might be a person's; nothing of the person is kept.

    The first call of a run takes seconds: it brings the records into memory.

    Args:
        online: the run to ask.
        person: person fields as a source would deliver them; those absent are unknown.

    Returns:
        `source`, `source_record_id`, `customer_id`, `match_weight` (bits), `match_probability` and
        `evidence` (the levels found) of each record that people would have to review or that would
        be linked, the best first.

    Raises:
        LinkageError: if there is no such person field.
        NotPromotedError: if the run has no linkage model.
    """
    return online.resolving.resolver().resolve(person)


def models(online: Online) -> list[dict[str, Any]]:
    """What can be asked: `model`, `task`, `description` and `version`, None without champion."""
    return [
        {
            "model": name,
            "task": spec["task"],
            "description": spec["description"],
            "version": online.champions[name].version if name in online.champions else None,
        }
        for name, spec in online.specs.items()
    ]


class Latest:
    """The last published run, opened; a newer one takes its place while the old one answers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._online: Online | None = None
        self._seen: str | None = None

    def online(self) -> Online:
        """The run to ask.

        Raises:
            NothingPublishedError: if no refresh has published yet.
        """
        if self._online is None:
            raise NothingPublishedError("nothing published yet; run 'cdp-ml refresh'")
        return self._online

    @property
    def ready(self) -> bool:
        """Whether there is a run to ask."""
        return self._online is not None

    def update(self) -> bool:
        """Open a newer publication if there is one; say whether there was.

        Raises:
            CdpError: if it cannot be opened; the former run then stays in use.
        """
        published = self._publications()
        if published is None or published == self._seen:
            return False
        self._online = open_online(self._settings)
        self._seen = published
        logger.info("serving run %s", self._online.run_id)
        return True

    def watch(self, every: float = 2.0) -> None:
        """Look for a newer publication every so many seconds, in the background."""
        threading.Thread(target=self._watch, args=(every,), daemon=True).start()

    def _watch(self, every: float) -> None:
        pause = threading.Event()
        while True:
            try:
                if self.update():
                    # Seconds that the first who resolves somebody need not wait.
                    self.online().resolving.resolver()
                pause.wait(every)
            except NotPromotedError as error:
                logger.info("no online resolve: %s", error)
                pause.wait(every)
            except Exception as error:
                # Whatever is wrong with the new run, the former one goes on answering.
                logger.error("cannot open the newest run: %s", _one_line(error))
                pause.wait(15 * every)

    def _publications(self) -> str | None:
        """The newest commit of `runs`: cheaper than to read it, however many runs there are."""
        log = self._settings.lake / "runs" / "_delta_log"
        return max((p.name for p in log.glob("*.json")), default=None)


def _readers(
    settings: Settings, specs: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]
) -> dict[str, FeatureReader]:
    """What reads the features of each service that a model names."""
    from cdp_ml.feast_stores import open_reader, open_store
    from cdp_ml.lake import model_key

    versions = run["versions"]
    # Where time stands still between facts, features do not age either.
    now = None if settings.as_of == "now" else run["as_of"]
    store = open_store(settings, versions, settings.online_store(versions["online_store"]), now)
    services = {spec["features"] for name, spec in specs.items() if model_key(name) in versions}
    return {service: open_reader(store, service) for service in services if service}


def _champions(
    settings: Settings, specs: Mapping[str, Mapping[str, Any]], versions: dict[str, int]
) -> dict[str, Predictor]:
    from cdp_ml.lake import model_key
    from cdp_ml.learn.registry import load_model

    return {
        name: load_model(settings, name, versions[model_key(name)])
        for name, spec in specs.items()
        if model_key(name) in versions and spec["features"]
    }


def _index(lake: Lake, settings: Settings, as_of: datetime) -> duckdb.DuckDBPyConnection:
    """Customers, present segments and scored customers in memory, indexed by customer_id."""
    from cdp_ml.engine import connect

    # Embedded also where Spark computes: an answer cannot wait for a cluster.
    con = connect(settings.engine.model_copy(update={"backend": "duckdb"}))
    stays, scores = lake.read("segment_membership", con), lake.read("scores", con)
    log = lake.read("identity_log", con)
    tables = {
        "customers": lake.read("customers", con),
        "segments": stays.filter(stays.exited_at.isnull()),
        "scores": scores.filter(scores.as_of == as_of).select("customer_id", "model", "score"),
        "merged": log.filter(log.event == "merged").select("customer_id", "into_customer_id"),
    }
    for name, table in tables.items():
        con.create_table(name, table)
        con.raw_sql(f"CREATE INDEX {name}_by_customer ON {name} (customer_id)")
    connection: duckdb.DuckDBPyConnection = con.con
    return connection


def _survivors(index: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """By id that was merged away, the customer that it lives on in, however many merges later."""
    found = index.execute("""
        WITH RECURSIVE chain AS (
            SELECT customer_id, into_customer_id AS survivor FROM merged
            UNION
            SELECT chain.customer_id, into_customer_id
            FROM chain JOIN merged ON survivor = merged.customer_id
        )
        SELECT chain.customer_id, survivor
        FROM chain SEMI JOIN customers ON survivor = customers.customer_id
        ANTI JOIN customers ON chain.customer_id = customers.customer_id
    """)
    return dict(found.fetchall())


def _open_resolver(lake: Lake, settings: Settings, summary: Mapping[str, Any]) -> Resolver:
    from cdp_ml.engine import connect
    from cdp_ml.identity.model import Model
    from cdp_ml.identity.resolve import open_resolver
    from cdp_ml.standardize import standardize_people

    trained = summary.get("identity", {}).get("model")
    if trained is None or not (folder := settings.linkage_model(trained["version"])).is_dir():
        raise NotPromotedError(
            "the published run has no linkage model; 'cdp-ml refresh --force' trains one if the "
            "records have something to compare"
        )
    con = connect(settings.engine.model_copy(update={"backend": "duckdb"}))
    return open_resolver(
        lake.read("records", con),
        lake.read("crosswalk", con),
        Model.load(folder),
        load_spec(settings.share("models") / "identity.yaml", IdentitySpec),
        partial(standardize_people, region=settings.region, con=connect(Engine(threads=1))),
        con,
    )


def _ranks(index: duckdb.DuckDBPyConnection) -> dict[str, np.ndarray]:
    """The scores of the run's batch, sorted, by model."""
    index.execute("SELECT DISTINCT model FROM scores")
    names = [name for (name,) in index.fetchall()]
    query = "SELECT score FROM scores WHERE model = ? ORDER BY score"
    return {name: index.execute(query, [name]).fetchnumpy()["score"] for name in names}


def _warm(online: Online) -> None:
    """Answer once by every model, so that the first caller does not wait, nor find it broken."""
    for (customer_id,) in online.index.execute(
        "SELECT customer_id FROM customers LIMIT 1"
    ).fetchall():
        for model in online.champions:
            score(online, customer_id, model)


def _champion(online: Online, model: str) -> Predictor:
    if model not in online.specs:
        raise ConfigError(f"no model '{model}'; {nearest(model, online.specs)}")
    if not online.specs[model]["features"]:
        raise ConfigError(f"model '{model}' gives no scores: read the table 'recommendations'")
    if model not in online.champions:
        raise NotPromotedError(
            f"model '{model}' has no champion yet; 'cdp-ml refresh' says what its training lacks"
        )
    return online.champions[model]


def _is_scored(online: Online, customer_id: str, model: str) -> bool:
    """Whether the run's batch scored the customer."""
    scored = "EXISTS (FROM scores WHERE customer_id = $1 AND model = $2) AS scored"
    return bool(_customer(online, customer_id, scored, model)["scored"])


def _customer(online: Online, customer_id: str, columns: str = "*", *values: str) -> dict[str, Any]:
    """Columns of the customer's row of `customers`; $1 is the customer, $2 the first value."""
    query = f"SELECT {columns} FROM customers WHERE customer_id = $1"
    found = _rows(online, query, [customer_id, *values])
    if not found:
        raise UnknownCustomerError(
            f"no customer with this id in run {online.run_id}; ids may change when records are "
            "unified: take them from the tables 'customers' or 'scores'"
        )
    return found[0]


def _rows(online: Online, query: str, values: list[str]) -> list[dict[str, Any]]:
    # A cursor a call: threads must not share one.
    cursor = online.index.cursor().execute(query, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _features(online: Online, customer_id: str, model: str) -> dict[str, list[Any]]:
    return online.readers[online.specs[model]["features"]].read([customer_id])


def _percentile(ranks: np.ndarray | None, value: float) -> float | None:
    return None if ranks is None else float(ranks.searchsorted(value)) / len(ranks)


def _reasons(
    online: Online, champion: Predictor, frame: dict[str, list[Any]]
) -> list[dict[str, Any]]:
    return [
        {
            "feature": reason.feature,
            "value": frame[reason.feature][0],
            "contribution": reason.contribution,
            "meaning": online.meanings.get(reason.feature, ""),
        }
        for reason in champion.reasons(frame)[0]
    ]


def _meanings() -> dict[str, str]:
    """What each trait says, with its unit."""
    from cdp_ml.traits import TRAITS

    return {t.name: f"{t.meaning} [{t.unit}]" if t.unit else t.meaning for t in TRAITS}


def _one_line(error: Exception) -> str:
    """The message of an error of ours; of others only kind and place, as they may quote data."""
    if isinstance(error, CdpError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {place.filename}:{place.lineno}"

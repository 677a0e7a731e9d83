"""A small published workspace for tests: real models, a real online store, no refresh."""

import atexit
import datetime as dt
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cdp_ml.config import (
    Engine,
    IdentitySpec,
    Settings,
    load_models,
    load_settings,
    load_spec,
    shipped,
)
from cdp_ml.contracts import PERSON_FIELDS, arrow_schema
from cdp_ml.engine import connect
from cdp_ml.feast_stores import apply, materialize, open_store
from cdp_ml.identity.linkage import link
from cdp_ml.lake import Lake, publish
from cdp_ml.learn.datasets import time_split
from cdp_ml.learn.registry import load_model, log_run, promote
from cdp_ml.learn.score import score_customers
from cdp_ml.learn.training import train
from cdp_ml.standardize import standardize_people
from cdp_ml.synthetic import generate_records
from cdp_ml.traits import TRAITS

AS_OF = dt.datetime(2026, 7, 1, tzinfo=dt.UTC)
FIRST_FACT = dt.datetime(2025, 7, 1, tzinfo=dt.UTC)
CUSTOMERS = 300
SCORED = 250
"""The models' population: the others have customers' ids, but no scores."""

_PROPENSITY = """
name: {name}
task: propensity
description: Buys within 30 days.
features: customer_traits
snapshots: {{count: 2}}
estimator: {{n_estimators: 20}}
inputs: [orders_90d, spend_365d, days_since_last_order]
"""
_CLUSTERS = """
name: clusters
task: clustering
description: Groups of customers.
features: customer_traits
estimator: {max_clusters: 4, min_stability: 0, min_share: 0}
inputs: [orders_90d, spend_365d]
"""


@dataclass
class Published:
    """A workspace whose runs a test publishes one by one."""

    settings: Settings
    lake: Lake
    run: int = 0
    models: dict[str, int] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    """What the runs note of their steps."""

    def publish(self, **changes: Any) -> None:
        """Publish what the lake holds as the next run; `changes` replace its versions."""
        self.run += 1
        now = dt.datetime.now(dt.UTC)
        publish(
            self.lake.root,
            {
                "run_id": f"run-{self.run}",
                "as_of": AS_OF,
                "started_at": now,
                "published_at": now,
                "versions": {**self.lake.versions, **self.models, **changes},
                "summary": {**self.summary, "train": {"models": self._described()}},
            },
        )

    def _described(self) -> dict[str, Any]:
        told = {"task", "description", "features"}
        return {n: s.model_dump(include=told) for n, s in load_models(self.settings).items()}

    def train(self, name: str, seed: int = 0) -> int:
        """Train, register and promote a model, and score with it."""
        spec = load_models(self.settings)[name]
        split = time_split(spec, AS_OF, FIRST_FACT)
        frame = pa.concat_tables([_labeled(t, seed) for t in split.instants])
        version = log_run(self.settings, train(spec, frame, split), {}, f"run-{self.run}")
        promote(self.settings, name, version)
        self.models[f"model/{name}"] = version
        return version

    def score(self) -> None:
        """Score the population with all champions."""
        population = traits(AS_OF).slice(0, SCORED)
        scores = [
            score_customers(
                load_model(self.settings, n.removeprefix("model/"), v), [population], AS_OF
            )
            for n, v in self.models.items()
        ]
        self.lake.write("scores", pa.concat_tables(scores))


def make_workspace(home: Path) -> Published:
    """A workspace with customers, traits, segments and trained models; nothing published yet.

    `churn_90d` has a specification but no champion. Made once, then copied: MLflow takes seconds.
    """
    template = _template()
    shutil.copytree(template.settings.home, home)
    settings = load_settings(home)
    lake = Lake(settings.data / "lake", dict(template.lake.versions))
    return Published(settings, lake, models=dict(template.models), summary=dict(template.summary))


@cache
def _template() -> Published:
    parent = Path(tempfile.mkdtemp(prefix="cdp-ml-tests-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    home = parent / "workspace"
    (home / "models").mkdir(parents=True)
    (home / "cdp.yaml").write_text("name: test\nsources: {}\n")
    for name in ("purchase_30d", "churn_90d"):
        (home / "models" / f"{name}.yaml").write_text(_PROPENSITY.format(name=name))
    (home / "models" / "clusters.yaml").write_text(_CLUSTERS)
    shutil.copy(shipped("models") / "identity.yaml", home / "models")
    settings = load_settings(home)
    made = Published(settings, Lake(settings.data / "lake"))
    made.lake.root.mkdir(parents=True)
    made.lake.write("customers", _customers())
    made.lake.write("segment_membership", _stays())
    made.lake.write("identity_log", _merges())
    _write_records(made)
    _write_traits(made.lake)
    made.lake.versions["online_store"] = fill_online_store(made, 1)
    for name in ("purchase_30d", "clusters"):
        made.train(name)
    made.score()
    return made


def fill_online_store(made: Published, number: int) -> int:
    """Bring the traits into a new online store, as a refresh does."""
    folder = made.settings.data / "online"
    folder.mkdir(exist_ok=True)
    store = open_store(made.settings, made.lake.versions, folder / "partial.db")
    apply(store)
    materialize(store, AS_OF)
    os.replace(folder / "partial.db", folder / f"{number}.db")
    return number


def traits(instant: dt.datetime) -> pa.Table:
    """Every trait for every customer, drawn at random; the same for the same instant."""
    random = np.random.default_rng(int(instant.timestamp()))
    drawn = {t.name: _draw(t.type, random) for t in TRAITS}
    return pa.table({**_key(instant), **drawn})


def _labeled(instant: dt.datetime, seed: int) -> pa.Table:
    frame = traits(instant)
    random = np.random.default_rng(seed)
    chance = np.where(frame["orders_90d"].to_numpy() > 4, 0.8, 0.1)
    return frame.append_column("label", pa.array((random.random(CUSTOMERS) < chance) * 1.0))


def _key(instant: dt.datetime) -> dict[str, pa.Array]:
    return {
        "customer_id": pa.array([f"c{i}" for i in range(CUSTOMERS)]),
        "event_timestamp": pa.array([instant] * CUSTOMERS, pa.timestamp("us", "UTC")),
    }


def _draw(type_: str, random: np.random.Generator) -> pa.Array:
    numbers = random.integers(0, 10, CUSTOMERS)
    if type_ == "string":
        return pa.array([f"kind {n}" for n in numbers])
    if type_ == "boolean":
        return pa.array(numbers > 4)
    return pa.array(numbers, pa.int64() if type_ == "int64" else pa.float64())


def _write_traits(lake: Lake) -> None:
    frame = traits(AS_OF)
    for group in ("transactional", "behavioral", "profile"):
        names = [t.name for t in TRAITS if t.group == group]
        lake.write(f"traits_{group}", frame.select([*_key(AS_OF), *names]))


def _customers() -> pa.Table:
    seen = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return pa.Table.from_pylist(
        [
            {
                "customer_id": f"c{i}",
                "given_name": "zuzana",
                "given_name_source": "shop",
                "email": f"zuzana{i}@example.org",
                "email_source": "crm",
                "birth_date": dt.date(1980, 2, 29),
                "birth_date_source": "crm",
                "records": 2,
                "sources": "crm,shop",
                "identity_confidence": 0.99,
                "first_seen_at": seen,
                "last_seen_at": seen,
            }
            for i in range(CUSTOMERS)
        ],
        arrow_schema("customers"),
    )


def delivered(row: int) -> dict[str, Any]:
    """The fields of a record as its source delivered it; it is of customer `c{row % CUSTOMERS}`."""
    return _delivered().select(list(PERSON_FIELDS)).slice(row, 1).to_pylist()[0]


@cache
def _delivered() -> pa.Table:
    return generate_records(400)[0]


def _write_records(made: Published) -> None:
    """Records of the customers, and the linkage model that they teach."""
    con = connect(Engine())
    records = standardize_people(_delivered(), "GB", con)
    keys = records.select(["source", "source_record_id"])
    ids = pa.array([f"c{i % CUSTOMERS}" for i in range(len(keys))])
    since = pa.array([FIRST_FACT] * len(keys), pa.timestamp("us", "UTC"))
    links = keys.append_column("customer_id", ids).append_column("valid_from", since)
    never, sure = pa.nulls(len(keys), since.type), pa.array([1.0] * len(keys))
    links = links.append_column("valid_to", never).append_column("confidence", sure)
    made.lake.write("records", records)
    made.lake.write("crosswalk", links)
    spec = load_spec(made.settings.share("models") / "identity.yaml", IdentitySpec)
    model = link(records, arrow_schema("identifiers").empty_table(), spec, con).model
    assert model is not None
    model.save(made.settings.linkage_model(model.version))
    made.summary["identity"] = {"model": {"version": model.version}}


def _merges() -> pa.Table:
    """c5 has taken up `young`, which had taken up `old`; the survivor of `lost` is gone too."""
    into = {"old": "young", "young": "c5", "lost": "nobody", "c6": "c5"}
    merges = [
        {"event_id": old, "event": "merged", "customer_id": old, "into_customer_id": new}
        for old, new in into.items()
    ]
    split = {"event_id": "split", "event": "split", "customer_id": "c9", "into_customer_id": "c8"}
    now = {"event_timestamp": FIRST_FACT, "actor": "refresh", "reason": ""}
    return pa.Table.from_pylist(
        [{**e, **now} for e in (*merges, split)], arrow_schema("identity_log")
    )


def _stays() -> pa.Table:
    may, june = (dt.datetime(2026, m, 1, tzinfo=dt.UTC) for m in (5, 6))
    stays = [
        {"segment": "lapsing", "customer_id": "c1", "entered_at": june},
        {"segment": "big_spenders", "customer_id": "c1", "entered_at": may},
        {"segment": "engaged", "customer_id": "c1", "entered_at": may, "exited_at": june},
        {"segment": "engaged", "customer_id": "c2", "entered_at": june},
    ]
    return pa.Table.from_pylist(stays, arrow_schema("segment_membership"))

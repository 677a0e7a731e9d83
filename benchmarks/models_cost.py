"""What models cost: to build a training set and train, to record it in MLflow, and to score.

    python benchmarks/models_cost.py [--features 40] [CUSTOMERS ...]

Each size is a lake with customers who have all traits of `cdp_ml.traits` as of four instants, and
five order lines each; three instants are trained from and tested on, so 33,334 customers are
100,000 rows. A model takes all traits, or the first so many. Then, each in a process of its own, as
a refresh does it:

- `training set`: features through Feast and labels, of two training instants and the test;
- `training`: leaves tried, trees fitted, baselines, intervals, judgement;
- `first MLflow`: plots, report and model recorded and registered, also as a share of the training;
- `MLflow`: the same once more, as for the next model of a refresh: MLflow looks only once in a
  process what is installed;
- `first scoring`: from the feature tables to the table `scores`, of customers of one instant, as
  the first thing that a process does;
- `scoring`: the same later, the best of three; beside it `predict`, `Booster.predict` alone on the
  same rows in memory, with as many threads, the best of three as well.

Prints a Markdown table with wall and CPU seconds and peak memory of the process, and the exponent
with which the CPU seconds of training set and training grew from the size before (1 is linear).
"""

import argparse
import json
import math
import os
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from measuring import measured, taking

SIZES = (10_000, 33_334, 100_000, 1_000_000)
AS_OF = datetime(2026, 7, 1, tzinfo=UTC)
FIRST = AS_OF - timedelta(days=400)
STEPS = (
    "training set",
    "training",
    "first MLflow",
    "MLflow",
    "first scoring",
    "scoring",
    "predict",
)
SPEC = """
name: purchase_30d
task: propensity
description: Buys within 30 days.
features: customer_traits
snapshots: {count: 2, every_days: 30}
"""


def make_lake(home: Path, customers: int, features: int | None) -> None:
    """A workspace whose lake has customers, traits and orders, ready to train from."""
    import numpy as np
    import pyarrow as pa

    from cdp_ml.config import load_models, load_settings
    from cdp_ml.contracts import arrow_schema
    from cdp_ml.feast_stores import apply, materialize, open_store
    from cdp_ml.lake import Lake
    from cdp_ml.learn.datasets import time_split
    from cdp_ml.traits import TRAITS

    (home / "models").mkdir(parents=True)
    inputs = json.dumps([trait.name for trait in TRAITS][:features])
    (home / "models" / "purchase_30d.yaml").write_text(f"{SPEC}inputs: {inputs}\n")
    (home / "cdp.yaml").write_text("name: cost\nsources: {}\nengine: {memory_limit: 6GB}\n")
    settings = load_settings(home)
    lake = Lake(settings.lake)
    random = np.random.default_rng(1)
    ids = np.char.add("c", np.arange(customers).astype(str))
    instants = (*time_split(load_models(settings)["purchase_30d"], AS_OF, FIRST).instants, AS_OF)
    activity = random.gamma(1, 1, customers)
    write_traits(lake, ids, instants, activity)
    write_orders(lake, ids, activity, random)
    stamp = pa.timestamp("us", "UTC")
    records = {"source": pa.array(["shop"] * customers), "source_record_id": ids}
    since = pa.array([FIRST] * customers, stamp)
    known = {"identifier_type": records["source"], "identifier": ids}
    times = {"event_timestamp": since, "ingested_at": since}
    links = {"customer_id": ids, "valid_from": since, "valid_to": pa.nulls(customers, stamp)}
    links["confidence"] = pa.array(np.ones(customers))
    for name, columns in (
        ("identifiers", {**records, **known, **times}),
        ("crosswalk", {**records, **links}),
    ):
        schema = arrow_schema(name)
        lake.write(name, pa.table({f.name: columns[f.name] for f in schema}, schema=schema))
    for name in ("products", "scores"):
        lake.write(name, arrow_schema(name).empty_table())
    store_file = settings.online_store(1)
    store_file.parent.mkdir(parents=True)
    store = open_store(settings, lake.versions, store_file)
    apply(store)
    materialize(store, FIRST)  # nothing: the benchmark scores in batch
    lake.versions["online_store"] = 1
    (home / "versions.json").write_text(json.dumps(lake.versions))


def write_traits(lake: Any, ids: Any, instants: Any, activity: Any) -> None:
    """All traits, noise around each customer's activity."""
    import numpy as np
    import pyarrow as pa

    from cdp_ml.traits import GROUPS, TRAITS

    def drawn(trait: Any, seed: int) -> pa.Array:
        random = np.random.default_rng(seed)
        values = activity * random.gamma(2, 1, len(ids))
        return pa.array(np.round(values).astype(int) if trait.type == "int64" else values)

    for group in GROUPS:
        traits = [t for t in TRAITS if t.group == group]
        parts = []
        for at, instant in enumerate(instants):
            key = {"customer_id": ids}
            key["event_timestamp"] = pa.array([instant] * len(ids), pa.timestamp("us", "UTC"))
            named = {t.name: drawn(t, 1_000 * at + n) for n, t in enumerate(traits)}
            if "orders_lifetime" in named:
                named["orders_lifetime"] = pa.array(np.maximum(named["orders_lifetime"], 1))
            parts.append(pa.table({**key, **named}))
        lake.write(f"traits_{group}", pa.concat_tables(parts))


def write_orders(lake: Any, ids: Any, activity: Any, random: Any) -> None:
    """Five order lines a customer on average, the active ones' more."""
    import numpy as np
    import pyarrow as pa

    from cdp_ml.contracts import arrow_schema

    lines = 5 * len(ids)
    who = random.choice(len(ids), lines, p=activity / activity.sum())
    when = random.integers(int(FIRST.timestamp()), int(AS_OF.timestamp()), lines) * 1_000_000
    stamp, words = pa.timestamp("us", "UTC"), pa.string()
    columns = {
        "order_id": pa.array(np.arange(lines).astype(str)),
        "line_no": pa.array(np.ones(lines, dtype=int)),
        "identifier": pa.array(ids[who]),
        "quantity": pa.array(np.ones(lines)),
        "unit_price": pa.array(random.gamma(4, 5, lines)),
        "discount": pa.array(np.zeros(lines)),
        "event_timestamp": pa.array(when).cast(stamp),
        "ingested_at": pa.array(when).cast(stamp),
    }
    constant = {"source": "shop", "identifier_type": "shop", "product_id": "p", "channel": "web"}
    columns |= {k: pa.array([v] * lines, words) for k, v in constant.items()}
    schema = arrow_schema("transactions")
    lake.write("transactions", pa.table({f.name: columns[f.name] for f in schema}, schema=schema))


def opened(home: Path) -> tuple[Any, Any, Any, Any]:
    """Settings, lake, engine and specification of the workspace."""
    from cdp_ml.config import load_models, load_settings
    from cdp_ml.engine import connect
    from cdp_ml.lake import Lake

    settings = load_settings(home)
    lake = Lake(settings.lake, json.loads((home / "versions.json").read_text()))
    return settings, lake, connect(settings.engine), load_models(settings)["purchase_30d"]


@contextmanager
def timed(found: dict[str, Any], name: str) -> Any:
    with taking() as took:
        yield
    found[name] = [took[what] for what in ("wall", "cpu", "gib")]


def train_step(home: Path) -> dict[str, Any]:
    """Build the training set, train, record."""
    import feast  # noqa: F401 what is imported once is not the step's cost
    import markdown_it  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import mlflow.lightgbm  # noqa: F401
    import sklearn.linear_model
    import sklearn.metrics  # noqa: F401
    from mlflow import MlflowClient

    from cdp_ml.learn import registry
    from cdp_ml.learn.datasets import time_split
    from cdp_ml.learn.training import train
    from cdp_ml.workspace import training_frame

    settings, lake, con, spec = opened(home)
    split = time_split(spec, AS_OF, FIRST)
    found: dict[str, Any] = {}
    with timed(found, "training set"):
        frame = training_frame(settings, lake, con, spec, split)
    found["rows"], found["columns"] = frame.num_rows, frame.num_columns - 3
    with timed(found, "training"):
        trained = train(spec, frame, split)
    (settings.data / "mlflow").mkdir(exist_ok=True)
    MlflowClient(registry.tracking_uri(settings)).search_experiments()  # a store is made but once
    for name in ("first MLflow", "MLflow"):
        with timed(found, name):
            registry.log_run(settings, trained, {}, name)
    return found


def score_step(home: Path) -> dict[str, Any]:
    """Score from feature tables to `scores`; then predict alone, from a matrix in memory."""
    import feast  # noqa: F401
    import lightgbm  # noqa: F401
    import mlflow  # noqa: F401

    from cdp_ml.learn.datasets import matrix
    from cdp_ml.learn.registry import load_model
    from cdp_ml.learn.score import score_customers
    from cdp_ml.workspace import eligible_blocks, eligible_features

    settings, lake, con, spec = opened(home)
    own = load_model(settings, spec.name, 1)
    found: dict[str, Any] = {"trees": own.model.num_trees()}

    def score() -> None:
        blocks = eligible_blocks(settings, lake, con, spec, AS_OF, own.features)
        lake.write("scores", score_customers(own, blocks, AS_OF))

    with timed(found, "first scoring"):
        score()
    best_of_three(found, "scoring", score)
    x = matrix(eligible_features(settings, lake, con, spec, [AS_OF]), own.features)
    threads = os.cpu_count()
    best_of_three(found, "predict", lambda: own.model.predict(x, num_threads=threads))
    return found


def best_of_three(found: dict[str, Any], name: str, work: Callable[[], Any]) -> None:
    """Note the fastest of three times."""
    times = []
    for _ in range(3):
        with timed(found, name):
            work()
        times.append(found[name])
    found[name] = min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("customers", nargs="*", type=int, default=SIZES)
    parser.add_argument("--features", type=int, help="the first so many; all by default")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        step, home = asked.step
        print(json.dumps((train_step if step == "train" else score_step)(Path(home))))
        return
    heads = ("customers", "step", "wall s", "CPU s", "GiB", "growth", "of")
    print(f"| {' | '.join(heads)} |\n|---:|---|---:|---:|---:|---:|---|")
    before: tuple[int, float] | None = None
    for customers in asked.customers:
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder) / "workspace"
            make_lake(home, customers, asked.features)
            found = measured(__file__, "--step", "train", home)
            found |= measured(__file__, "--step", "score", home)
        cpu = found["training set"][1] + found["training"][1]
        growth = ""
        if before:
            growth = f"{math.log(cpu / before[1]) / math.log(customers / before[0]):.2f}"
        before = customers, cpu
        notes = {
            "training set": f"{found['rows']:,} rows of {found['columns']} features",
        }
        for step in ("first MLflow", "MLflow"):
            notes[step] = f"{found[step][0] / found['training'][0]:.0%} of the training"
        for step in ("first scoring", "scoring"):
            share = found["predict"][0] / found[step][0]
            notes[step] = f"{share:.0%} of predict's throughput"
        notes["predict"] = f"{found['trees']} trees"
        for step in STEPS:
            wall, used, gib = found[step]
            grown = growth if step == "training" else ""
            cells = (f"{wall:.1f}", f"{used:.1f}", f"{gib:.1f}", grown, notes.get(step, ""))
            print(f"| {customers:,} | {step} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

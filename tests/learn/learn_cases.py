import datetime as dt
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdp_ml.config import ModelSpec
from cdp_ml.learn.datasets import time_split
from cdp_ml.learn.training import Trained, train

AS_OF = dt.datetime(2026, 7, 1, tzinfo=dt.UTC)
FIRST_FACT = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)


def propensity(**changes) -> ModelSpec:
    given = {
        "name": "purchase_30d",
        "task": "propensity",
        "description": "Buys within 30 days.",
        "features": "customer_traits",
        "snapshots": {"count": 3, "every_days": 30},
        "estimator": {"n_estimators": 40},
    }
    return ModelSpec(**{**given, **changes})


def uplift(**changes) -> ModelSpec:
    given = {
        "name": "spring",
        "task": "uplift",
        "description": "Buys within 30 days because of the campaign.",
        "features": "customer_traits",
        "campaign": "spring",
    }
    return ModelSpec(**{**given, **changes})


def clustering(**changes) -> ModelSpec:
    given = {
        "name": "clusters",
        "task": "clustering",
        "description": "Groups of customers.",
        "features": "customer_traits",
        "inputs": ("days_since_last_order", "orders_365d", "spend_365d"),
        "estimator": {"max_clusters": 4},
    }
    return ModelSpec(**{**given, **changes})


def split_of(spec):
    return time_split(spec, AS_OF, FIRST_FACT)


def customers_at(instant, rows=400, seed=0, learnable=True) -> pa.Table:
    """Customers whose outcome depends on an interaction that no single rank or line can see."""
    random = np.random.default_rng([seed, int(instant.timestamp())])
    days, orders = random.integers(0, 180, rows), random.poisson(3, rows)
    visits = random.normal(size=rows)
    logit = np.where(visits * (orders - 3) > 0, 2.0, -2.0) - days / 180
    chance = 1 / (1 + np.exp(-logit)) if learnable else np.full(rows, 0.4)
    return pa.table(
        {
            "customer_id": [f"c{i}" for i in range(rows)],
            "event_timestamp": pa.array([instant] * rows, pa.timestamp("us", "UTC")),
            "days_since_last_order": days,
            "orders_365d": orders,
            "visits_30d": visits,
            "spend_365d": orders * 20.0 + random.normal(size=rows),
            "never_filled": pa.nulls(rows, pa.float64()),
            "always_the_same": pa.array([1.0] * rows),
            "label": (random.random(rows) < chance).astype(float),
        }
    )


def training_frame(spec, **how) -> pa.Table:
    return pa.concat_tables([customers_at(t, **how) for t in split_of(spec).instants])


def three_kinds_of_customers(rows=300) -> pa.Table:
    """Three well separated groups: frequent buyers, occasional ones, and those long gone."""
    random = np.random.default_rng(1)
    group = np.arange(rows) % 3
    days = np.array([10, 60, 300])[group] * random.lognormal(0, 0.2, rows)
    orders = np.array([20, 5, 1])[group] + random.integers(0, 2, rows)
    spend = np.array([900, 150, 20])[group] * random.lognormal(0, 0.2, rows)
    return pa.table(
        {
            "customer_id": [f"c{i}" for i in range(rows)],
            "event_timestamp": pa.array([AS_OF] * rows, pa.timestamp("us", "UTC")),
            "days_since_last_order": days,
            "orders_365d": orders,
            "spend_365d": spend,
        }
    )


@cache
def fitted() -> Trained:
    """A propensity that learns the interaction; fitted once for all tests."""
    spec = propensity()
    return train(spec, training_frame(spec), split_of(spec))


@cache
def fitted_uplift() -> Trained:
    """A campaign whose treatment changes who visits often; fitted once for all tests."""
    estimator = {"folds": 2, "repeats": 1, "n_estimators": 30, "learning_rate": 0.1}
    spec = uplift(estimator=estimator)
    start = AS_OF - dt.timedelta(days=60)
    return train(spec, campaign_at(start), time_split(spec, AS_OF, FIRST_FACT, {"spring": start}))


def campaign_at(start, rows=4_000) -> pa.Table:
    """Customers in two arms by chance: whoever visits often buys if treated."""
    random, frame = np.random.default_rng(3), customers_at(start, rows, learnable=False)
    treated = random.random(rows) < 0.5
    chance = 0.2 + 0.5 * treated * (frame["visits_30d"].to_numpy() > 0)
    frame = frame.append_column("arm", pa.array(np.where(treated, "treatment", "control")))
    label = pa.array((random.random(rows) < chance).astype(float))
    return frame.set_column(frame.column_names.index("label"), "label", label)


def order_lines(customers=600) -> pa.Table:
    """Cushions and lamps are bought once, and covers and bulbs twenty days later."""
    rows = []
    for number in range(customers):
        first = 21 + 37 * number % 100
        for days, items in ((first, ("cushions", "lamps")), (first - 20, ("covers", "bulbs"))):
            when = AS_OF - dt.timedelta(days=days)
            rows.append((f"c{number:03}", f"{number}/{days}", when, items[number % 2]))
    names = ("customer_id", "order_id", "event_timestamp", "item")
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    return table.set_column(2, names[2], table[names[2]].cast(pa.timestamp("us", "UTC")))


def windows_of(lines: pa.Table, split) -> pa.Table:
    """What a training is given of lines that were known at once: each instant's past and window."""
    parts = []
    for instant in split.instants:
        seen = lines.filter(pc.less(lines["event_timestamp"], instant + split.horizon))
        stamp = pa.array([instant] * seen.num_rows, pa.timestamp("us", "UTC"))
        parts.append(seen.append_column("as_of", stamp))
    return pa.concat_tables(parts)


@cache
def fitted_next() -> Trained:
    """What is bought after what; fitted once for all tests."""
    estimator = {"n_estimators": 30, "min_child_samples": 20, "neighbors": 20, "windows": 4}
    changed = {"name": "next_category", "task": "next_category", "top": 1, "estimator": estimator}
    spec = ModelSpec(description="What is bought next.", **changed)
    split = time_split(spec, AS_OF, FIRST_FACT)
    return train(spec, windows_of(order_lines(), split), split)


@cache
def fitted_clusters() -> Trained:
    """The three groups, found; fitted once for all tests."""
    spec = clustering()
    return train(spec, three_kinds_of_customers(), split_of(spec))

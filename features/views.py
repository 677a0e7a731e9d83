"""The feature views: one a group of traits, its fields those of `cdp_ml.traits.TRAITS`.

`recency` holds what `on_demand` needs beside a request: times since, and as of when they are.
"""

from datetime import timedelta

from entities import customer
from feast import FeatureView, Field, PushSource
from feast.types import Float64, Int64, String, UnixTimestamp
from sources import behavioral_source, profile_source, transactional_source

from cdp_ml.contracts import contract
from cdp_ml.traits import TRAITS, Group, Trait

OWNER = "customer-data"
TTL = timedelta(days=35)
"""How old traits may be and still count: a month, the distance of snapshots, with leeway."""

TYPES = {"int64": Int64, "float64": Float64}


def field(trait: Trait) -> Field:
    """A trait as a feature."""
    window = f"{trait.window_days}d" if trait.window_days else "lifetime"
    return Field(
        name=trait.name,
        dtype=TYPES[trait.type],
        description=trait.meaning,
        tags={"unit": trait.unit, "window": window},
    )


def view(group: Group, source: PushSource) -> FeatureView:
    """The view of a group of traits."""
    table = contract(f"traits_{group}")
    traits = [field(t) for t in TRAITS if t.group == group]
    return FeatureView(
        name=table.name,
        entities=[customer],
        ttl=TTL,
        schema=[Field(name="customer_id", dtype=String), *traits],
        source=source,
        online=True,
        description=table.row,
        tags={"group": group, "purpose": table.purpose},
        owner=OWNER,
    )


transactional = view("transactional", transactional_source)
behavioral = view("behavioral", behavioral_source)
profile = view("profile", profile_source)
recency = FeatureView(
    name="recency",
    entities=[customer],
    ttl=TTL,
    schema=[
        Field(name="customer_id", dtype=String),
        *(field(t) for t in TRAITS if t.name == "days_since_last_order"),
        Field(name="as_of", dtype=UnixTimestamp, description="the instant of the traits"),
    ],
    source=transactional_source.batch_source,
    online=True,
    description="when a customer was last seen, as of an instant",
    tags={"group": "transactional", "purpose": "profiling"},
    owner=OWNER,
)

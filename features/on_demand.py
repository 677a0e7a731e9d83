"""What depends on the instant of a request: computed when it is asked for, offline and online."""

from typing import Any

from feast import Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, UnixTimestamp
from views import OWNER, recency

request = RequestSource(
    name="request",
    schema=[Field(name="requested_at", dtype=UnixTimestamp)],
    description="the instant of the request, with a time zone",
)


@on_demand_feature_view(
    sources=[recency, request],
    # Feast 0.67 infers the fields and refuses those that say more than name and type.
    schema=[Field(name="days_since_last_order_now", dtype=Float64)],
    mode="python",
    description="days since the last order known to the last refresh; null: never",
    owner=OWNER,
)
def recency_now(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The time since the last order as of the traits, and what passed from then to the request."""
    found = zip(
        inputs["days_since_last_order"], inputs["as_of"], inputs["requested_at"], strict=True
    )
    return {
        "days_since_last_order_now": [
            None if days is None or as_of is None else days + (now - as_of).total_seconds() / 86400
            for days, as_of, now in found
        ]
    }

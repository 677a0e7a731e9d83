"""The feature services: what each shipped model reads, and all traits for models to come.

A service's tag `version` is a hash of its features and their types: it changes when they do, and is
part of a training set's identity.
"""

import hashlib

from feast import FeatureService, FeatureView, OnDemandFeatureView
from on_demand import recency_now
from views import OWNER, behavioral, profile, transactional


def service(
    name: str, description: str, *views: FeatureView | OnDemandFeatureView
) -> FeatureService:
    """A service of whole views."""
    said = "\n".join(f"{v.name}:{f.name}:{f.dtype}" for v in views for f in v.features)
    return FeatureService(
        name=name,
        features=list(views),
        description=description,
        owner=OWNER,
        tags={"version": hashlib.sha256(said.encode()).hexdigest()[:12]},
    )


customer_traits = service("customer_traits", "All traits", transactional, behavioral, profile)
purchase_30d = service(
    "purchase_30d",
    "What tells whether a customer buys within 30 days",
    transactional,
    behavioral,
    profile,
)
churn_90d = service(
    "churn_90d",
    "What tells whether a customer stays away for 90 days",
    transactional,
    behavioral,
    profile,
)
clusters = service("clusters", "What groups customers by how they buy", transactional)
recency = service("recency_now", "Times since, at the instant of a request", recency_now)

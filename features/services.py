"""The feature services: what each shipped model reads, and all traits for models to come."""

from feast import FeatureService, FeatureView
from views import OWNER, behavioral, profile, transactional


def service(name: str, description: str, *views: FeatureView) -> FeatureService:
    """A service of whole views."""
    return FeatureService(name=name, features=list(views), description=description, owner=OWNER)


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

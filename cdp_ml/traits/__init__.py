"""Traits: what a customer's activity and profile say about them as of any instants.

`definitions` says what the traits are, `relations` what facts become, `compute` how traits come of
them.
"""

from cdp_ml.traits.compute import trait_tiles, traits_at
from cdp_ml.traits.definitions import (
    GROUPS,
    MARKETING,
    TRAITS,
    Aggregate,
    Group,
    Trait,
    find_traits,
)
from cdp_ml.traits.relations import Keep

__all__ = [
    "GROUPS",
    "MARKETING",
    "TRAITS",
    "Aggregate",
    "Group",
    "Keep",
    "Trait",
    "find_traits",
    "trait_tiles",
    "traits_at",
]

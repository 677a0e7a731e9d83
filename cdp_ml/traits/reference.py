"""The reference of all traits, for people to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cdp_ml.traits.definitions import GROUPS, TRAITS, Aggregate, Trait

_HEAD = """# Traits

Generated from `cdp_ml.traits.TRAITS` by `python -m cdp_ml.traits.reference > docs/traits.md`.

A window of N days are the N whole days (UTC) before the day of the instant, and that day up to the
instant: a value changes with a fact, or at midnight. Times since something are exact to the second.
Counts and sums are 0 where nothing happened; rates without a denominator and times since what never
happened are null. What counts is what was known at the instant, of the customer as known then.
"""


def reference(traits: Sequence[Trait] = TRAITS) -> str:
    """The traits as Markdown tables, one a group."""
    return "\n".join([_HEAD, *(line for g in GROUPS for line in _table(g, traits))]) + "\n"


def _table(group: str, traits: Sequence[Trait]) -> Iterator[str]:
    members = [t for t in traits if t.group == group]
    yield f"## {group.capitalize()} ({len(members)})\n"
    yield "| trait | meaning | unit | type | window | computed from | where |"
    yield "|---|---|---|---|---|---|---|"
    for t in members:
        is_aggregate = isinstance(t.value, Aggregate)
        origin = str(t.value) if is_aggregate else "traits" if group != "profile" else "profile"
        where = t.value.filter if isinstance(t.value, Aggregate) else ""
        cells = (f"`{t.name}`", t.meaning, t.unit, t.type, _window(t), origin, where)
        yield f"| {' | '.join(cells)} |"
    yield ""


def _window(trait: Trait) -> str:
    if trait.group == "profile":
        return "now"
    if trait.window_days is None:
        return "lifetime"
    if trait.until_days:
        return f"{trait.until_days + trait.window_days} to {trait.until_days} days ago"
    return f"{trait.window_days} days"


if __name__ == "__main__":
    print(reference(), end="")

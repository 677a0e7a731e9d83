"""Segments: who satisfies a rule, lies in a cluster or is predicted; with entry and exit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from cdp_ml.config import Cut, ModelSpec, Segment
from cdp_ml.engine import where

if TYPE_CHECKING:
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Table


_MEMBERS = {"segment": "string", "customer_id": "string"}
_MEMBER = ("customer_id",)


def rule_members(con: SQLBackend, people: Table, segments: Mapping[str, Segment]) -> list[Table]:
    """The members of each rule-based segment.

    Args:
        con: the engine.
        people: one row a customer: golden record and current traits.
        segments: the rules by segment name.

    Returns:
        Tables of segment, customer_id.

    Raises:
        ConfigError: if a rule is not SQL over the columns of `people`.
    """
    return [
        _named(where(con, people, s.where, f"segments.{name}.where", _MEMBER), name)
        for name, s in segments.items()
    ]


def predicted_members(scores: Table, specs: Mapping[str, ModelSpec]) -> list[Table]:
    """The members of the segments that models predict, and of their clusters.

    Args:
        scores: table `scores` of the current instant.
        specs: the models by name; a propensity's `segments` cut its scores, and each cluster of a
            clustering model is a segment `<model>: <cluster>`.

    Returns:
        Tables of segment, customer_id.
    """
    cuts = [
        _named(_cut(scores.filter(scores.model == name), cut), segment)
        for name, spec in specs.items()
        for segment, cut in spec.segments.items()
    ]
    clusters = scores.filter(scores.cluster.notnull()).select(
        "customer_id", segment=scores.model + ": " + scores.cluster
    )
    return [*cuts, clusters.select("segment", "customer_id")]


def keep_consenting(
    members: Sequence[Table], purposes: Mapping[str, str], allowed: Mapping[str, Table]
) -> Table:
    """Leave out those who do not consent to what a segment is for.

    Args:
        members: tables of segment, customer_id.
        purposes: the purpose of each segment that needs a consent.
        allowed: column customer_id of those who consent, by purpose.

    Returns:
        segment, customer_id of all segments together.
    """
    import ibis

    none = ibis.memtable({"segment": [], "customer_id": []}, schema=_MEMBERS)
    everyone = ibis.union(none, *members, distinct=True)
    kept = [everyone.filter(everyone.segment.notin(list(purposes)))] if purposes else [everyone]
    for segment, purpose in purposes.items():
        inside = everyone.filter(everyone.segment == segment)
        kept.append(inside.semi_join(allowed[purpose], "customer_id"))
    return ibis.union(*kept) if len(kept) > 1 else kept[0]


def update_membership(previous: Table, current: Table, as_of: datetime) -> Table:
    """Carry the membership on: who is still in, who entered, who left.

    Args:
        previous: table `segment_membership` as last published.
        current: segment, customer_id of those who are in now; one row each.
        as_of: the instant of entries and exits, UTC.

    Returns:
        Table `segment_membership`. What was decided at this instant or later is decided anew, so an
        instant may be computed again, and an earlier one after a later one.
    """
    import ibis

    now, never = ibis.literal(as_of).cast("timestamp('UTC', 6)"), ibis.null("timestamp('UTC', 6)")
    before = previous.filter(previous.entered_at < now)
    previous = before.mutate(exited_at=ibis.ifelse(before.exited_at < now, before.exited_at, never))
    staying = current.mutate(inside=ibis.literal(True))
    followed = previous.left_join(staying, ["segment", "customer_id"])
    open_and_gone = followed.exited_at.isnull() & followed.inside.isnull()
    kept = followed.mutate(exited_at=ibis.ifelse(open_and_gone, now, followed.exited_at)).select(
        "segment", "customer_id", "entered_at", "exited_at"
    )
    still_open = previous.filter(previous.exited_at.isnull())
    entered = current.anti_join(still_open, ["segment", "customer_id"]).mutate(
        entered_at=now, exited_at=never
    )
    return kept.union(entered.select(kept.columns))


def _named(members: Table, segment: str) -> Table:
    import ibis

    return members.select(segment=ibis.literal(segment), customer_id=members.customer_id)


def _cut(scores: Table, cut: Cut) -> Table:
    """The customers of one model above a score, or the share of them with the highest.

    Of equal scores, as a rule gives to many, those come first whose ids do: the same every day.
    """
    import ibis

    if cut.top is not None:
        place = ibis.row_number().over(order_by=[scores.score.desc(), scores.customer_id])
        return scores.mutate(place=place, all=scores.count().over()).filter(
            lambda t: t.place < (cut.top * t["all"]).round()
        )
    return scores.filter(scores.score > cut.above)

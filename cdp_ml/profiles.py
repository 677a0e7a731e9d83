"""The golden record: one row a customer, each field with the source it was taken from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from cdp_ml.as_of import links_as_of
from cdp_ml.config import Survivorship
from cdp_ml.contracts import PERSON_FIELDS

if TYPE_CHECKING:
    from ibis.expr.types import Table, TimestampScalar, Value

_LATEST = Survivorship()


def build_customers(
    records: Table,
    crosswalk: Table,
    rules: Mapping[str, Survivorship],
    as_of: datetime | TimestampScalar,
) -> Table:
    """Build the golden records as of an instant.

    Only records known then (`ingested_at < as_of`) and links valid then count. For each field the
    survivorship rule decides among the records that have a value; ties go to the later record,
    then to the source and id that sort first, so that the result does not depend on row order.

    Args:
        records: table `records`.
        crosswalk: table `crosswalk`.
        rules: survivorship by person field; the latest value wins where there is none.
        as_of: UTC, or an expression of it.

    Returns:
        Table `customers`.
    """
    members = known_members(records, crosswalk, as_of)
    chosen = _chosen_values(members, rules)
    counted = members.group_by("customer_id").aggregate(
        records=members.count(),
        first_seen_at=members.ingested_at.min(),
        last_seen_at=members.event_timestamp.max(),
        identity_confidence=members.confidence.min(),
    )
    return (
        counted.left_join(_pivot(chosen), "customer_id")
        .drop("customer_id_right")
        .left_join(_sources(members), "customer_id")
        .drop("customer_id_right")
    )


def latest_word(
    consents: Table, crosswalk: Table, purpose: str, as_of: datetime | TimestampScalar
) -> Table:
    """What each customer last said about a purpose, as known at an instant.

    Of words at the same time a withdrawal counts.

    Args:
        consents: table `consents`.
        crosswalk: table `crosswalk`.
        purpose: such as marketing.
        as_of: UTC, or an expression of it.

    Returns:
        customer_id and granted, one row a customer who said anything.
    """
    import ibis

    said = consents.filter(
        consents.purpose == purpose, consents.event_timestamp < as_of, consents.ingested_at < as_of
    )
    words = said.join(links_as_of(crosswalk, as_of), ["source", "source_record_id"])
    latest = ibis.window(
        group_by="customer_id", order_by=[ibis.desc("event_timestamp"), ibis.asc("granted")]
    )
    ranked = words.mutate(place=ibis.row_number().over(latest))
    return ranked.filter(ranked.place == 0).select("customer_id", "granted")


def known_members(records: Table, crosswalk: Table, as_of: datetime | TimestampScalar) -> Table:
    """The records known at an instant, with the customer they belonged to then."""
    known = records.filter(records.ingested_at < as_of)
    return known.join(links_as_of(crosswalk, as_of), ["source", "source_record_id"])


def _chosen_values(members: Table, rules: Mapping[str, Survivorship]) -> Table:
    """One row a customer and field: the surviving value and its source."""
    import ibis

    candidates = ibis.union(
        *(_candidates(members, field, rules.get(field, _LATEST)) for field in PERSON_FIELDS)
    )
    frequency = ibis.window(group_by=["customer_id", "field", "value"])
    counted = candidates.mutate(
        preference=ibis.ifelse(
            candidates.by_frequency, -candidates.count().over(frequency), candidates.preference
        )
    )
    order = [ibis.asc("preference"), ibis.desc("event_timestamp"), ibis.asc("trust")]
    best = ibis.window(
        group_by=["customer_id", "field"],
        order_by=[*order, ibis.asc("source"), ibis.asc("source_record_id")],
    )
    ranked = counted.mutate(place=ibis.row_number().over(best))
    return ranked.filter(ranked.place == 0)


def _candidates(members: Table, field: str, rule: Survivorship) -> Table:
    import ibis

    trust = _trust(members.source, rule.trust)
    return members.select(
        "customer_id",
        "source",
        "source_record_id",
        "event_timestamp",
        field=ibis.literal(field),
        value=members[field].cast("string"),
        trust=trust,
        by_frequency=ibis.literal(rule.rule == "most_frequent"),
        preference=(trust if rule.rule == "trust" else ibis.literal(0)).cast("int64"),
    ).filter(lambda t: t.value.notnull())


def _trust(source: Value, trusted: tuple[str, ...]) -> Value:
    """The place of a source in the order of trust; those not named come last."""
    import ibis

    last = ibis.literal(len(trusted)).cast("int64")
    ranks = [(source == name, ibis.literal(i).cast("int64")) for i, name in enumerate(trusted)]
    return ibis.cases(*ranks, else_=last) if ranks else last


def _pivot(chosen: Table) -> Table:
    columns = {}
    for field in PERSON_FIELDS:
        is_field = chosen.field == field
        value = chosen.value.max(where=is_field)
        columns[field] = value.cast("date") if field == "birth_date" else value
        columns[f"{field}_source"] = chosen.source.max(where=is_field)
    return chosen.group_by("customer_id").aggregate(**columns)


def _sources(members: Table) -> Table:
    names = members.source.collect(distinct=True).sort()
    return members.group_by("customer_id").aggregate(sources=names.join(","))

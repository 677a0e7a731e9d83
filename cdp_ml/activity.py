"""Activity: facts keyed to customers as of instants.

Facts carry the identifier under which they were observed; who that is depends on the links known
at the instant. Keying late, and never in place, keeps tomorrow's merges out of yesterday's traits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ibis.expr.types import Table, Value

_IDENTIFIER = ("identifier_type", "identifier")


def activity_as_of(facts: Table, identifiers: Table, crosswalk: Table, as_of: datetime) -> Table:
    """Key facts to the customers that they were known to belong to at an instant.

    Args:
        facts: as for `activity_at`.
        identifiers: table `identifiers`.
        crosswalk: table `crosswalk`.
        as_of: UTC.

    Returns:
        `customer_id`, then the facts' columns; as many rows a fact as in `facts`, or none.
    """
    keyed = activity_at(facts, identifiers, crosswalk, [as_of])
    return keyed.filter(keyed.since < keyed.until).drop("since", "until")


def activity_at(
    facts: Table, identifiers: Table, crosswalk: Table, instants: Sequence[datetime]
) -> Table:
    """Key facts to the customers that they were known to belong to at each of many instants.

    Only what was true and known strictly before an instant counts: facts with `event_timestamp`
    and `ingested_at` before it, identifiers with `ingested_at` before it, links with `valid_from`
    before it and `valid_to` not before it. A link that is replaced at the instant itself therefore
    still holds, as its successor is not known yet. Facts of nobody known are left out; they stay
    in the lake and count as soon as somebody is behind their identifier.

    Args:
        facts: `transactions`, `events` or `exposures`; or any table with `identifier_type`,
            `identifier`, `event_timestamp` and `ingested_at`.
        identifiers: table `identifiers`.
        crosswalk: table `crosswalk`; its `customer_id` may be of any type.
        instants: UTC, ascending.

    Returns:
        `customer_id`, `since`, `until`, then the facts' columns: the fact counts for the customer
        at the instants from number `since` (of the first, 0) to before `until`. A fact has several
        rows if its customer changed between instants, never two for one instant; a row whose
        `since` is not before its `until` counts at none.
    """
    import ibis

    known = facts.filter(facts.event_timestamp < instants[-1], facts.ingested_at < instants[-1])
    at = _number(ibis.greatest(known.event_timestamp, known.ingested_at), instants)
    keyed = known.mutate(_known=at).inner_join(
        _owners(identifiers, crosswalk, instants), _IDENTIFIER
    )
    span = {"since": ibis.greatest(keyed["_known"], keyed.since), "until": keyed.until}
    return keyed.select("customer_id", **span, **{c: keyed[c] for c in facts.columns})


def _number(when: Value, instants: Sequence[datetime]) -> Value:
    """How many instants are not after a time: the number of the first that is."""
    import ibis

    passed = [(when >= ibis.literal(t)).cast("int32") for t in instants]
    total = passed[0]
    for one in passed[1:]:
        total = total + one
    return total.cast("int32")


def _owners(identifiers: Table, crosswalk: Table, instants: Sequence[datetime]) -> Table:
    """Whose an identifier is, and at which instants; at each at most one customer's.

    A record's own id is its own before all else. Of several users the first keeps the identifier,
    so that a visitor who borrows a browser does not take its past along.
    """
    import ibis

    users = _users(identifiers, crosswalk, instants)
    alone = users.count().over(ibis.window(group_by=list(_IDENTIFIER))) == 1
    columns = (*_IDENTIFIER, "customer_id", "since", "until")
    marked = users.mutate(_alone=alone)
    contested = marked.filter(~marked["_alone"])
    return (
        marked.filter(marked["_alone"])
        .select(*columns)
        .union(_spans(_winners(contested, len(instants))).select(*columns))
    )


def _users(identifiers: Table, crosswalk: Table, instants: Sequence[datetime]) -> Table:
    """The records behind each identifier with their links, and from when to when both are known."""
    import ibis

    users = identifiers.inner_join(
        crosswalk.select("source", "source_record_id", "customer_id", "valid_from", "valid_to"),
        ["source", "source_record_id"],
    )
    # A link ceases to hold at the first instant after its end: `valid_to` < instant.
    last, ended = ibis.literal(len(instants), "int32"), _number(users.valid_to, instants)
    own = (users.identifier_type == users.source) & (users.identifier == users.source_record_id)
    found = users.select(
        *_IDENTIFIER,
        *("source", "source_record_id", "event_timestamp", "customer_id"),
        own=own.cast("int32"),
        since=_number(ibis.greatest(users.ingested_at, users.valid_from), instants),
        until=ibis.ifelse(users.valid_to.isnull(), last, ended),
    )
    return found.filter(found.since < found.until)


def _winners(users: Table, instants: int) -> Table:
    """The one user of each identifier at each instant at which there is any."""
    import ibis

    numbers = ibis.array(list(range(instants))).unnest().name("number").as_table()
    each = users.cross_join(numbers)
    each = each.filter(each.since <= each.number, each.number < each.until)
    first = ibis.window(
        group_by=[*_IDENTIFIER, "number"],
        order_by=[
            ibis.desc("own"),
            *(ibis.asc(c) for c in ("event_timestamp", "source", "source_record_id")),
        ],
    )
    ranked = each.mutate(place=ibis.row_number().over(first))
    return ranked.filter(ranked.place == 0).select(*_IDENTIFIER, "customer_id", "number")


def _spans(winners: Table) -> Table:
    """Join the instants that follow one another under the same customer."""
    import ibis

    by = (*_IDENTIFIER, "customer_id")
    line = ibis.window(group_by=list(by), order_by=ibis.asc("number"))
    ranked = winners.mutate(place=ibis.row_number().over(line))
    runs = ranked.mutate(run=ranked.number - ranked.place)
    spans = runs.group_by([*by, "run"]).aggregate(
        since=runs.number.min().cast("int32"), until=(runs.number.max() + 1).cast("int32")
    )
    return spans.drop("run")

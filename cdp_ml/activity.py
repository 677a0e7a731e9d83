"""Activity: facts keyed to customers as of an instant.

Facts carry the identifier under which they were observed; who that is depends on the links known
at the instant. Keying late, and never in place, keeps tomorrow's merges out of yesterday's traits.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from cdp_ml.as_of import links_as_of

if TYPE_CHECKING:
    from ibis.expr.types import Table


def activity_as_of(facts: Table, identifiers: Table, crosswalk: Table, as_of: datetime) -> Table:
    """Key facts to the customers that they were known to belong to at an instant.

    Only what was true and known strictly before the instant counts: facts with `event_timestamp`
    and `ingested_at` before it, identifiers with `ingested_at` before it, links with `valid_from`
    before it and `valid_to` not before it. A link that is replaced at the instant itself therefore
    still holds, as its successor is not known yet. Facts of nobody known are left out; they stay
    in the lake and count as soon as somebody is behind their identifier.

    Args:
        facts: `transactions`, `events` or `exposures`; or any table with `identifier_type`,
            `identifier`, `event_timestamp` and `ingested_at`.
        identifiers: table `identifiers`.
        crosswalk: table `crosswalk`.
        as_of: UTC.

    Returns:
        `customer_id`, then the facts' columns; as many rows a fact as in `facts`, or none.
    """
    import ibis

    instant = ibis.literal(as_of)
    known = facts.filter(facts.event_timestamp < instant, facts.ingested_at < instant)
    owners = _owners(identifiers, crosswalk, as_of)
    keyed = known.inner_join(owners, ["identifier_type", "identifier"])
    return keyed.select("customer_id", *facts.columns)


def _owners(identifiers: Table, crosswalk: Table, as_of: datetime) -> Table:
    """One row an identifier: the customer it belongs to at the instant.

    A record's own id is its own before all else. Of several users the first keeps the identifier,
    so that a visitor who borrows a browser does not take its past along.
    """
    import ibis

    instant = ibis.literal(as_of)
    links = links_as_of(crosswalk, as_of)
    users = identifiers.filter(identifiers.ingested_at < instant).inner_join(
        links, ["source", "source_record_id"]
    )
    own = (users.identifier_type == users.source) & (users.identifier == users.source_record_id)
    first = ibis.window(
        group_by=["identifier_type", "identifier"],
        order_by=[
            ibis.desc("own"),
            *(ibis.asc(c) for c in ("event_timestamp", "source", "source_record_id")),
        ],
    )
    ranked = users.mutate(own=own.cast("int64")).mutate(place=ibis.row_number().over(first))
    return ranked.filter(ranked.place == 0).select("identifier_type", "identifier", "customer_id")

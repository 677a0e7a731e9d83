"""Who allows what: the latest word of a customer on a purpose."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from cdp_ml.as_of import links_as_of

if TYPE_CHECKING:
    from ibis.expr.types import Table


def consented_customers(consents: Table, crosswalk: Table, purpose: str, as_of: datetime) -> Table:
    """The customers whose latest word on a purpose, as of an instant, is a grant.

    A customer speaks through any record; the latest grant or withdrawal counts, and at equal times
    the withdrawal. Silence is no consent.

    Args:
        consents: table `consents`.
        crosswalk: table `crosswalk`.
        purpose: such as 'marketing'.
        as_of: UTC; later words do not count.

    Returns:
        Column customer_id, one row a customer.
    """
    import ibis

    said = consents.filter(consents.purpose == purpose, consents.event_timestamp < as_of)
    words = said.join(links_as_of(crosswalk, as_of), ["source", "source_record_id"])
    latest = ibis.window(
        group_by="customer_id", order_by=[ibis.desc("event_timestamp"), ibis.asc("granted")]
    )
    ranked = words.mutate(place=ibis.row_number().over(latest))
    return ranked.filter(ranked.place == 0, ranked.granted).select("customer_id")

"""What was known at an instant: the one rule that keeps tomorrow out of yesterday."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ibis.expr.types import Table, TimestampScalar


def links_as_of(crosswalk: Table, as_of: datetime | TimestampScalar) -> Table:
    """The links that held at an instant: one row a record.

    A link that is replaced at the instant itself still holds, as its successor, known from then on,
    is not known before.

    Args:
        crosswalk: table `crosswalk`.
        as_of: UTC, or an expression of it.

    Returns:
        source, source_record_id, customer_id, confidence.
    """
    ended = crosswalk.valid_to < as_of
    held = crosswalk.filter(crosswalk.valid_from < as_of, ~ended.fill_null(False))
    return held.select("source", "source_record_id", "customer_id", "confidence")

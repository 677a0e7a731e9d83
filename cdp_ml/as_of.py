"""What was known at an instant: the one rule that keeps tomorrow out of yesterday."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from cdp_ml.errors import ConfigError

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


def check_zone(instant: datetime, name: str) -> None:
    """Refuse an instant without a time zone: nobody can say when it is.

    Args:
        instant: a datetime; a date has no time zone either.
        name: of the argument, for the message.

    Raises:
        ConfigError: if it has none.
    """
    if getattr(instant, "tzinfo", None) is None:
        raise ConfigError(
            f"{name}: {instant} has no time zone; write such as datetime(2026, 7, 1, tzinfo=UTC)"
        )

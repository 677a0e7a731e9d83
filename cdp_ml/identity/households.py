"""What tells members of a household apart: expectation maximisation among those who share a home.

Partners and siblings share surname, address, phone and e-mail. A model that has learned from
random pairs how rare such agreement is among strangers takes them for one person. Among people of
one surname and postcode the same agreements are common, so `u` must be learned there; Splink's own
EM is not used because it fails when a level's `u` underflows, which certain matches make it do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Counts = npt.NDArray[np.int64]

log = logging.getLogger(__name__)

LEAST_PAIRS = 200
"""With fewer pairs than this there is nothing to be learned."""
PSEUDO_COUNT = 1.0
"""Pairs added to each level in both classes: what was never seen is rare, not impossible."""
ITERATIONS = 100
CONVERGED = 1e-5
PERSONAL = ("given_name", "birth_date")
"""What other people of a household mostly do not share."""

Start = Mapping[str, tuple[list[float], list[float]]]
"""By field: typical `m`, and `u` among strangers, of the levels, the best first."""


def train_household(levels: Mapping[str, Counts], pairs: Counts, start: Start) -> Any:
    """Fit matches and non-matches among pairs of one household (Fellegi and Sunter, 1969).

    Args:
        levels: by field, the level of each pattern of agreement: 0 is the best, -1 is missing.
        pairs: how many pairs show each pattern.
        start: where to begin. Only what is personal tells the classes apart at first.

    Returns:
        `share` (of matches) and `fields` (by field, `m` and `u` of its levels); None if there are
        too few pairs, or if the non-matches are no other people.
    """
    if not set(levels) & set(PERSONAL) or pairs.sum() < LEAST_PAIRS:
        return None
    fitted = _fit(levels, pairs, start)
    if not _tells_people_apart(fitted["fields"]):
        log.info("identity: no household model: who shares an address seems to be one person")
        return None
    return fitted


def household_bits(model: dict[str, Any]) -> tuple[float, dict[str, list[float]]]:
    """Match weights in bits: that of sharing a home, and by field those of its levels."""
    share = model["share"]
    fields = {
        field: [math.log2(m / u) for m, u in zip(x["m"], x["u"], strict=True)]
        for field, x in model["fields"].items()
    }
    return math.log2(share / (1 - share)), fields


def _fit(levels: Mapping[str, Counts], pairs: Counts, start: Start) -> dict[str, Any]:
    import numpy as np

    share, before = 0.5, 0.0
    m = {f: np.array(start[f][0]) for f in levels}
    u = {f: np.array(start[f][1 if f in PERSONAL else 0]) for f in levels}
    for _ in range(ITERATIONS):
        if abs(share - before) < CONVERGED:
            break
        before = share
        odds = np.full(len(pairs), math.log(share / (1 - share)))
        for field, level in levels.items():
            odds += np.where(level >= 0, np.log(m[field] / u[field])[level], 0.0)
        match = 1 / (1 + np.exp(-odds))
        for field, level in levels.items():
            m[field] = _proportions(level, match * pairs, len(m[field]))
            u[field] = _proportions(level, (1 - match) * pairs, len(u[field]))
        share = float(np.clip((match * pairs).sum() / pairs.sum(), 0.001, 0.999))
    fields = {f: {"m": _rounded(m[f]), "u": _rounded(u[f])} for f in levels}
    return {"share": round(share, 6), "fields": fields}


def _proportions(level: Counts, weight: Any, size: int) -> Any:
    import numpy as np

    seen = level >= 0
    counts = np.bincount(level[seen], weight[seen], minlength=size) + PSEUDO_COUNT
    return counts / counts.sum()


def _rounded(values: Any) -> list[float]:
    return [float(f"{v:.6g}") for v in values]


def _tells_people_apart(fields: dict[str, dict[str, list[float]]]) -> bool:
    """Whether the non-matches that EM found are other people, not misspelled matches.

    Other people of a household mostly bear other given names and were born in other years. Where
    there are no households, EM finds the misspelled records of single persons instead.
    """
    return min(x["u"][-1] for f, x in fields.items() if f in PERSONAL) >= 0.5

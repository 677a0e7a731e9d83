"""What agreement is worth among those who share something anyway.

Fellegi and Sunter's model takes the fields for independent. They are not: partners and siblings
share surname, address, phone and e-mail, and two people of one name have e-mail addresses that are
made of it. A model that has learned from random pairs how rare such agreement is among strangers
takes them for one person. So among those who share one thing, `m` and `u` of the other fields are
learned again, by expectation maximisation, and the lesser of the two weights is believed. Splink's
own EM is not used because it fails when a `u` underflows, which certain matches make it do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
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
LEAST_STRANGE = 0.5
"""How often other people of a context must differ in a personal field, compared with strangers."""
ITERATIONS = 100
CONVERGED = 1e-5

Start = Mapping[str, tuple[list[float], list[float]]]
"""By field: typical `m`, and `u` among strangers, of the levels, the best first."""


@dataclass(frozen=True)
class Context:
    """Those who share something: pairs at a comparison level that is marked with the name.

    Attributes:
        name: the mark of the levels (`cdp_ml.identity.comparisons.Level.shared_by`).
        rules: training looks among the pairs that agree on the expressions of one of these.
        kinds: the kinds of comparison that are weighed anew.
        personal: those of them in which other people of the context mostly differ.
    """

    name: str
    rules: tuple[tuple[str, ...], ...]
    kinds: tuple[str, ...]
    personal: tuple[str, ...]


HOUSEHOLD = Context(
    "household",
    (("surname", "postcode"),),
    ("given_name", "birth_date", "email", "phone"),
    ("given_name", "birth_date"),
)
NAMESAKES = Context(
    "namesakes",
    (("split_part(email, '@', 1)",), ("given_name", "surname")),
    ("given_name", "surname", "email", "birth_date", "phone", "street", "locality"),
    ("birth_date", "phone", "street", "locality"),
)
CONTEXTS = (HOUSEHOLD, NAMESAKES)


def train_context(
    levels: Mapping[str, Counts], pairs: Counts, start: Start, personal: tuple[str, ...]
) -> tuple[dict[str, Any] | None, bool]:
    """Fit matches and non-matches among the pairs of a context (Fellegi and Sunter, 1969).

    Args:
        levels: by field, the level of each pattern of agreement: 0 is the best, -1 is missing.
        pairs: how many pairs show each pattern.
        start: where to begin. Only what is personal tells the classes apart at first.
        personal: the fields in which other people mostly differ.

    Returns:
        The model: `share` (of matches) and `fields` (by field, `m` and `u` of its levels); None if
        there are too few pairs, or if the non-matches are no other people. And whether other people
        may be in the context: not if the records show that who is in it is one person.
    """
    personal = tuple(f for f in personal if f in levels)
    if not personal or pairs.sum() < LEAST_PAIRS:
        return None, True
    fitted = _fit(levels, pairs, start, personal)
    # Other people differ in what is personal about as often as strangers do. Where there are none,
    # EM finds the misspelled records of single persons instead, which do not.
    others = all(fitted["fields"][f]["u"][-1] >= LEAST_STRANGE * start[f][1][-1] for f in personal)
    return (fitted if others else None), others


def context_bits(model: Mapping[str, Any]) -> tuple[float, dict[str, list[float]]]:
    """Match weights in bits: that of being in the context, and by field those of its levels."""
    share = model["share"]
    fields = {
        field: [math.log2(m / u) for m, u in zip(x["m"], x["u"], strict=True)]
        for field, x in model["fields"].items()
    }
    return math.log2(share / (1 - share)), fields


def _fit(
    levels: Mapping[str, Counts], pairs: Counts, start: Start, personal: tuple[str, ...]
) -> dict[str, Any]:
    import numpy as np

    share, before = 0.5, 0.0
    m = {f: np.array(start[f][0]) for f in levels}
    u = {f: np.array(start[f][1 if f in personal else 0]) for f in levels}
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

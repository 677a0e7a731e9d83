"""How two values of a field are compared: the levels of each kind of comparison, best first.

A level is an SQL condition on the two records' columns, in Splink's notation (`email_l`,
`email_r`). `m` is the level's share among true matches as far as experience goes; it is where
expectation maximisation starts, and what stays where the data have nothing to teach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cdp_ml.config import IdentitySpec
from cdp_ml.errors import LinkageError, nearest


@dataclass(frozen=True)
class Level:
    """A comparison level.

    `shared_by` marks agreement on what other people may share too: those of a `household`, or
    `namesakes`, whose e-mail is made of the same names. `term` names the column whose rarity makes
    the agreement stronger.
    """

    label: str
    sql: str
    m: float
    shared_by: str = ""
    term: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of comparison: the columns it needs, when it says nothing, its levels."""

    columns: tuple[str, ...]
    null: str
    levels: tuple[Level, ...]
    typical_share: float = 0.0
    """Share of matches among pairs that agree exactly, where nothing else tells: a belief."""

    def uses(self, column: str) -> bool:
        """Whether a condition names the column; training within it then teaches nothing here."""
        return any(f"{column}_l" in sql for sql in (self.null, *(x.sql for x in self.levels)))


def _missing(column: str) -> str:
    return f"({column}_l IS NULL OR {column}_r IS NULL)"


_SWAPPED = (
    "(jaro_winkler_similarity(given_name_l, surname_r) >= 0.88"
    " AND jaro_winkler_similarity(surname_l, given_name_r) >= 0.88)"
)
_ASTRAY = (
    "(jaro_winkler_similarity(given_name_l, surname_r) >= 0.92"
    " OR jaro_winkler_similarity(surname_l, given_name_r) >= 0.92)"
)
_ONE_SLIP = "levenshtein(CAST(birth_date_l AS VARCHAR), CAST(birth_date_r AS VARCHAR)) <= 1"
_SWAPPED_DAY = (
    "(year(birth_date_l) = year(birth_date_r) AND month(birth_date_l) = day(birth_date_r)"
    " AND day(birth_date_l) = month(birth_date_r))"
)

_AREA = (
    "((length(postcode_l) >= 5 AND left(postcode_l, -3) = left(postcode_r, -3))"
    " OR damerau_levenshtein(postcode_l, postcode_r) <= 1)"
)
_NEAR = f"(postcode_l = postcode_r OR city_l = city_r OR {_AREA})"

# Names that many bear are no misspellings of each other: charles is not charlotte.
_SLIP = "NOT (is_common_l AND is_common_r)"

KINDS: dict[str, Kind] = {
    "given_name": Kind(
        ("given_name",),
        _missing("given_name"),
        (
            Level("exact", "given_name_l = given_name_r", 0.75, term="given_name"),
            Level("alias", "list_contains(aliases_l, given_name_r)", 0.06),
            Level("swapped with surname", _SWAPPED, 0.01, term="names"),
            Level(
                "similar",
                f"{_SLIP} AND jaro_winkler_similarity(given_name_l, given_name_r) >= 0.92"
                " OR (length(given_name_l) >= 3 AND starts_with(given_name_r, given_name_l))"
                " OR (length(given_name_r) >= 3 AND starts_with(given_name_l, given_name_r))",
                0.08,
            ),
            Level("in the other field", _ASTRAY, 0.01),
            Level(
                "close",
                f"{_SLIP} AND jaro_winkler_similarity(given_name_l, given_name_r) >= 0.85",
                0.03,
            ),
            Level(
                "related",
                f"{_SLIP} AND jaro_winkler_similarity(given_name_l, given_name_r) >= 0.75",
                0.02,
            ),
            Level("different", "ELSE", 0.10),
        ),
    ),
    "surname": Kind(
        ("surname",),
        # Swapped names are counted once, by the given name's comparison.
        f"{_missing('surname')} OR {_SWAPPED}",
        (
            Level("exact", "surname_l = surname_r", 0.80, term="surname"),
            Level("similar", "jaro_winkler_similarity(surname_l, surname_r) >= 0.92", 0.09),
            Level("related", "jaro_winkler_similarity(surname_l, surname_r) >= 0.80", 0.04),
            Level("different", "ELSE", 0.07),
        ),
    ),
    "email": Kind(
        ("email",),
        _missing("email"),
        (
            Level("exact", "email_l = email_r", 0.80, shared_by="household"),
            Level(
                "same user, other domain",
                "split_part(email_l, '@', 1) = split_part(email_r, '@', 1)",
                0.03,
                shared_by="namesakes",
            ),
            Level("similar", "levenshtein(email_l, email_r) <= 2", 0.05, shared_by="namesakes"),
            Level(
                "related",
                "jaro_winkler_similarity(email_l, email_r) >= 0.88",
                0.03,
                shared_by="namesakes",
            ),
            Level("different", "ELSE", 0.12),
        ),
        typical_share=0.9,
    ),
    "phone": Kind(
        ("phone",),
        _missing("phone"),
        (
            Level("exact", "phone_l = phone_r", 0.75, shared_by="household"),
            Level("similar", "levenshtein(phone_l, phone_r) <= 1", 0.03),
            Level("different", "ELSE", 0.22),
        ),
        typical_share=0.8,
    ),
    "birth_date": Kind(
        ("birth_date",),
        _missing("birth_date"),
        (
            Level("exact", "birth_date_l = birth_date_r", 0.85, term="birth_date"),
            Level("one slip", f"{_ONE_SLIP} OR {_SWAPPED_DAY}", 0.08),
            Level("within a month", "abs(birth_date_l - birth_date_r) <= 31", 0.02),
            Level("within a year", "abs(birth_date_l - birth_date_r) <= 366", 0.02),
            Level("within ten years", "abs(birth_date_l - birth_date_r) <= 3653", 0.02),
            Level("different", "ELSE", 0.04),
        ),
    ),
    "street": Kind(
        ("street",),
        _missing("street"),
        (
            Level("exact", "street_l = street_r", 0.60, shared_by="household", term="street"),
            Level("similar", "jaro_winkler_similarity(street_l, street_r) >= 0.92", 0.15),
            Level("related", "jaro_winkler_similarity(street_l, street_r) >= 0.80", 0.05),
            Level("different", "ELSE", 0.20),
        ),
    ),
    "locality": Kind(
        ("postcode", "city"),
        f"{_missing('postcode')} AND {_missing('city')}",
        (
            Level(
                "same postcode and city",
                "postcode_l = postcode_r AND city_l = city_r",
                0.40,
                shared_by="household",
            ),
            Level(
                "same postcode",
                "postcode_l = postcode_r",
                0.20,
                shared_by="household",
                term="postcode",
            ),
            Level("similar postcode", _AREA, 0.05),
            Level("same city", "city_l = city_r", 0.15, term="city"),
            Level("similar city", "jaro_winkler_similarity(city_l, city_r) >= 0.90", 0.02),
            Level("different", "ELSE", 0.10),
        ),
    ),
}


def usable(spec: IdentitySpec, filled: Mapping[str, int]) -> dict[str, Kind]:
    """The specification's comparisons for which there are values to compare, by field.

    Args:
        spec: its comparisons.
        filled: by column, how many records have a value.

    Raises:
        LinkageError: if a comparison is of an unknown kind, or of a field that its kind does not
            compare.
    """
    for comparison in spec.comparisons:
        if comparison.kind not in KINDS:
            raise LinkageError(
                f"models/identity.yaml: comparisons: no kind '{comparison.kind}'; "
                f"{nearest(comparison.kind, KINDS)}"
            )
        compared = (comparison.kind, *KINDS[comparison.kind].columns)
        if comparison.field not in compared:
            raise LinkageError(
                f"models/identity.yaml: comparisons: kind '{comparison.kind}' does not compare "
                f"'{comparison.field}'; {nearest(comparison.field, compared)}"
            )
    kinds = {c.field: KINDS[c.kind] for c in spec.comparisons}
    return {f: kind for f, kind in kinds.items() if any(filled[c] >= 2 for c in kind.columns)}


def splink_comparison(field: str, kind: Kind) -> dict[str, Any]:
    """A comparison as Splink's settings want it; without term frequencies, as it is trained."""
    null = {"sql_condition": kind.null, "label_for_charts": "missing", "is_null_level": True}
    levels = [
        {"sql_condition": x.sql, "label_for_charts": x.label, "m_probability": x.m}
        for x in kind.levels
    ]
    return {"output_column_name": field, "comparison_levels": [null, *levels]}

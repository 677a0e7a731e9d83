"""Names, e-mails, phones, birth dates and addresses in one form each: pure and idempotent.

Values that cannot be believed become null and leave a flag; what was delivered stays beside them.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from cdp_ml.contracts import PERSON_FIELDS, arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from ibis.backends.sql import SQLBackend

    Standardized = tuple[pa.Array, pa.Array]
    """The standardized values, and the finding about each value that is not taken over."""

PLACEHOLDERS = (
    "anonymous|n/a|n.a|nan|nil|no name|none|not applicable|not given|not known|not provided|null|"
    "tbc|tbd|test|undefined|unknown|x|xx|xxx|xxxx"
)
TITLES = "mr|mrs|ms|miss|mx|dr|prof|professor|sir|dame|rev|reverend"
# Punctuation and spaces that say nothing at either end of a name.
EDGE = r"""[\s.,;:'"`_*?/\\-]"""
APOSTROPHES = "`\u2018\u2019\u00b4"
EMAIL = (
    r"^[^\s@\"(),:;<>\[\]\\.]+(\.[^\s@\"(),:;<>\[\]\\.]+)*"
    r"@([\p{L}\p{N}-]+\.)+[\p{L}][\p{L}\p{N}-]+$"
)
EMAIL_PLACEHOLDER = (
    r"^(test|tests|testing|no[._-]?reply|do[._-]?not[._-]?reply|none|null|nobody|no[._-]?e?mail|"
    r"na|n/a|unknown|anonymous|asdf|xxx+)(@.*)?$"
)
NOT_DIGIT = re.compile(r"\D")
PHONE_PLACEHOLDER = re.compile(r"^(\d)\1{4,}$|(\d)\2{6,}$|^0?12345678?9?0?$")
STREET_WORDS = {
    "street": "st",
    "saint": "st",
    "road": "rd",
    "avenue": "ave",
    "av": "ave",
    "lane": "ln",
    "drive": "dr",
    "close": "cl",
    "court": "ct",
    "place": "pl",
    "square": "sq",
    "terrace": "ter",
    "terr": "ter",
    "crescent": "cres",
    "gardens": "gdns",
    "grove": "gr",
    "boulevard": "blvd",
    "apartment": "apt",
    "number": "no",
}
"""Words of a street and the short form that stands for them; short, because `st` may be a saint."""

DAY_FIRST = ("%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y", "%d %b %Y", "%d %B %Y")
MONTH_FIRST = ("%m/%d/%Y", "%m.%d.%Y", "%m-%d-%Y", "%b %d %Y", "%B %d %Y", "%d %b %Y")
YEAR_FIRST = ("%Y-%m-%d", "%Y/%m/%d", "%Y%m%d")
MONTH_FIRST_REGIONS = ("US",)
# Records without a time (1970-01-01) may be about people of any age, such as historical ones.
IMPLAUSIBLE = """(born > current_date OR born = DATE '1900-01-01' OR (
    today > DATE '1970-01-01' AND (born > today OR born < today - INTERVAL 120 YEAR)))"""


def standardize_people(people: pa.Table, region: str, con: SQLBackend) -> pa.Table:
    """Standardize person records and flag what cannot be believed.

    Args:
        people: source, source_record_id, the person fields as text, event_timestamp, ingested_at.
        region: ISO country code of phone numbers without a country code, and whether dates such
            as 01/02/1980 begin with the day (all regions but US).
        con: the engine, DuckDB; today, for birth dates in the future, is its `current_date`.

    Returns:
        The contract of `records`: names, streets and cities in lower case, postcodes in upper case
        without spaces, e-mails in lower case, phones as E.164; `<field>_raw` as delivered; `flags`
        comma-separated, empty without findings: `<field>_placeholder` (something that only says
        that there is nothing), `email_invalid`, `phone_invalid`, `birth_date_invalid` (no date),
        `birth_date_implausible` (in the future, 1900-01-01, or at the time of the record older
        than 120 years; records without a time, as of historical people, may be of any age).
    """
    import pyarrow as pa

    raw = {field: people[field].cast(pa.string()).combine_chunks() for field in PERSON_FIELDS}
    found = {
        "given_name": standardize_names(raw["given_name"]),
        "surname": standardize_names(raw["surname"]),
        "email": standardize_emails(raw["email"]),
        "phone": standardize_phones(raw["phone"], region),
        "birth_date": standardize_birth_dates(
            raw["birth_date"], people["event_timestamp"], region, con
        ),
        "street": standardize_streets(raw["street"]),
        "postcode": standardize_postcodes(raw["postcode"]),
        "city": standardize_cities(raw["city"]),
        "country": (_clean(raw["country"]), pa.nulls(len(people), pa.string())),
    }
    content = {
        **{name: people[name] for name in people.column_names},
        **{field: values for field, (values, _) in found.items()},
        **{f"{field}_raw": raw[field] for field in PERSON_FIELDS},
        "flags": _joined({field: findings for field, (_, findings) in found.items()}),
    }
    schema = arrow_schema("records")
    return pa.table({name: content[name] for name in schema.names}).cast(schema)


def standardize_names(names: pa.Array) -> Standardized:
    """Lower case, NFKC, single spaces; without titles; placeholders are null."""
    import pyarrow.compute as pc

    bare = _edges(_lower(names))
    bare = pc.replace_substring_regex(bare, rf"^(?:(?:{TITLES}){EDGE}+)+", "")
    return _unless_placeholder(names, bare, rf"^({PLACEHOLDERS}|{TITLES})?$")


def standardize_cities(cities: pa.Array) -> Standardized:
    """Lower case, NFKC, single spaces; placeholders are null."""
    return _unless_placeholder(cities, _edges(_lower(cities)), rf"^({PLACEHOLDERS})?$")


def standardize_streets(streets: pa.Array) -> Standardized:
    """Lower case without punctuation, the usual words in their short form (`STREET_WORDS`)."""
    import pyarrow.compute as pc

    bare = pc.replace_substring_regex(_lower(streets), f"['{APOSTROPHES}]", "")
    bare = _edges(_clean(pc.replace_substring_regex(bare, "[.,;:]", " ")))
    for word, short in STREET_WORDS.items():
        bare = pc.replace_substring_regex(bare, rf"\b{word}\b", short)
    return _unless_placeholder(streets, bare, rf"^({PLACEHOLDERS})?$")


def standardize_postcodes(postcodes: pa.Array) -> Standardized:
    """Upper case, letters and digits alone; such as 00000 and XXXXX are null."""
    import pyarrow.compute as pc

    upper = _nfkc(pc.utf8_upper(_lower(postcodes)))
    bare = pc.replace_substring_regex(upper, _classes(r"[^\p{L}\p{N}]+", upper), "")
    return _unless_placeholder(postcodes, bare, rf"^(0*|X*|{PLACEHOLDERS.upper()}|NA)$")


def standardize_emails(emails: pa.Array) -> Standardized:
    """Lower case, trimmed; null if it is no address or a placeholder such as noreply@."""
    import pyarrow.compute as pc

    bare = pc.replace_substring_regex(_lower(emails), r"^(mailto:|<|\s)+|[>\s]+$", "")
    values, placeholders = _unless_placeholder(emails, bare, EMAIL_PLACEHOLDER)
    invalid = pc.invert(pc.match_substring_regex(values, _classes(EMAIL, values)))
    return (
        pc.if_else(invalid, None, values),
        pc.coalesce(placeholders, pc.if_else(invalid, "invalid", None)),
    )


def standardize_phones(phones: pa.Array, region: str) -> Standardized:
    """E.164 by libphonenumber; null if no valid number. Each distinct value is parsed once."""
    import pyarrow as pa
    import pyarrow.compute as pc

    distinct = pc.drop_null(_clean(phones).unique())
    parsed = [_parse_phone(text, region) for text in distinct.to_pylist()]
    row = pc.index_in(_clean(phones), value_set=distinct)
    numbers, findings = (pa.array([p[i] for p in parsed], pa.string()).take(row) for i in (0, 1))
    return numbers, findings


def _parse_phone(text: str, region: str) -> tuple[str | None, str | None]:
    import phonenumbers

    if PHONE_PLACEHOLDER.search(NOT_DIGIT.sub("", text)):
        return None, "placeholder"
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return None, "invalid"
    if not phonenumbers.is_valid_number(number):
        return None, "invalid"
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164), None


def standardize_birth_dates(
    births: pa.Array, when: pa.ChunkedArray, region: str, con: SQLBackend
) -> Standardized:
    """Dates as such; null if they are none or implausible at the time `when` of the record."""
    import pyarrow as pa
    import pyarrow.compute as pc

    order = MONTH_FIRST if region in MONTH_FIRST_REGIONS else DAY_FIRST
    texts = pc.replace_substring_regex(_clean(births), r"[T ]\d{2}:\d{2}.*$", "")
    table = pa.table({"birth_date": texts, "changed_at": when, "row": range(len(texts))})
    con.con.register("__births", table)
    try:
        found = con.con.sql(
            f"""SELECT CASE WHEN {IMPLAUSIBLE} THEN NULL ELSE born END AS born,
                CASE WHEN birth_date IS NULL THEN NULL WHEN born IS NULL THEN 'invalid'
                WHEN {IMPLAUSIBLE} THEN 'implausible' END AS finding
            FROM (SELECT *, CAST(try_strptime(birth_date, {[*YEAR_FIRST, *order]}) AS DATE) AS born,
                CAST(changed_at AS DATE) AS today FROM __births) ORDER BY row"""
        ).to_arrow_table()
    finally:
        con.con.unregister("__births")
    return found["born"].combine_chunks(), found["finding"].combine_chunks()


def _clean(texts: pa.Array) -> pa.Array:
    """NFKC with single spaces and none at the ends; empty text is null."""
    import pyarrow.compute as pc

    texts = pc.replace_substring_regex(_nfkc(texts), r"[\s\p{Z}\p{Cc}\p{Cf}]+", " ")
    return _drop(pc.utf8_trim(texts, " "), "^$")


def _classes(pattern: str, texts: pa.Array) -> str:
    """The pattern with the letters and numbers that the texts can have.

    Those of Unicode take two milliseconds to compile, at each call.
    """
    import pyarrow.compute as pc

    if not pc.all(pc.string_is_ascii(texts), min_count=0).as_py():
        return pattern
    return pattern.replace(r"\p{L}", "A-Za-z").replace(r"\p{N}", "0-9")


def _nfkc(texts: pa.Array) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    # Arrow's own utf8_normalize leaves NFKC decomposed until after 25.0 (apache/arrow#51225).
    plain = pc.fill_null(pc.string_is_ascii(texts), True)
    others = texts.filter(pc.invert(plain)).to_pylist()
    composed = pa.array([unicodedata.normalize("NFKC", text) for text in others], pa.string())
    return pc.replace_with_mask(texts, pc.invert(plain), composed)


def _lower(texts: pa.Array) -> pa.Array:
    import pyarrow.compute as pc

    # Lower case may leave combining characters that NFKC composes.
    return _nfkc(pc.utf8_lower(_clean(texts)))


def _edges(texts: pa.Array) -> pa.Array:
    """Strip what says nothing at either end, in typographic apostrophes' plain form."""
    import pyarrow.compute as pc

    plain = pc.replace_substring_regex(texts, f"[{APOSTROPHES}]", "'")
    return pc.replace_substring_regex(plain, rf"^{EDGE}+|{EDGE}+$", "")


def _drop(texts: pa.Array, pattern: str) -> pa.Array:
    """Null instead of what matches."""
    import pyarrow.compute as pc

    return pc.if_else(pc.match_substring_regex(texts, pattern), None, texts)


def _unless_placeholder(raw: pa.Array, texts: pa.Array, pattern: str) -> Standardized:
    """The texts, null where they match; and that, where something had been delivered."""
    import pyarrow.compute as pc

    values = _drop(texts, pattern)
    lost = pc.and_(pc.is_valid(_clean(raw)), pc.is_null(values))
    return values, pc.if_else(lost, "placeholder", None)


def _joined(findings: dict[str, pa.Array]) -> pa.Array:
    """`field_finding` of all fields, separated by commas."""
    import pyarrow.compute as pc

    # Not null_handling="skip": Arrow 25 then drops the rows in which all are null.
    parts = [pc.binary_join_element_wise(f"{f}_", found, ",", "") for f, found in findings.items()]
    joined = pc.binary_join_element_wise(*parts, "", null_handling="replace", null_replacement="")
    return pc.utf8_rtrim(joined, ",")

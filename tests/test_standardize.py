import datetime as dt

import pyarrow as pa
import pytest
from conftest import utc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdp_ml.contracts import PERSON_FIELDS, arrow_schema
from cdp_ml.standardize import standardize_emails, standardize_people, standardize_postcodes

ALWAYS = utc(1970, 1, 1)
THIS_YEAR = utc(2026, 1, 1)
TIME = pa.timestamp("us", "UTC")
PEOPLE = pa.schema(
    [
        *((name, pa.string()) for name in ("source", "source_record_id", *PERSON_FIELDS)),
        ("event_timestamp", TIME),
        ("ingested_at", TIME),
    ]
)


def people(*given: dict, at: dt.datetime = THIS_YEAR) -> pa.Table:
    key = {"source": "crm", "event_timestamp": at, "ingested_at": at}
    rows = [{"source_record_id": str(i), **key, **row} for i, row in enumerate(given)]
    return pa.Table.from_pylist(rows, PEOPLE)


@pytest.fixture
def standardized(con):
    """The value and the flags of one field of one person."""

    def standardized(field, value, at=THIS_YEAR, region="GB"):
        (row,) = standardize_people(people({field: value}, at=at), region, con).to_pylist()
        assert row[f"{field}_raw"] == value
        return row[field], row["flags"]

    return standardized


def test_records_have_their_contract_and_their_order(con):
    records = standardize_people(people({"surname": "B"}, {}, {"surname": "A"}), "GB", con)
    assert records.schema == arrow_schema("records")
    assert records["source_record_id"].to_pylist() == ["0", "1", "2"]
    assert records["surname"].to_pylist() == ["b", None, "a"]
    assert records["flags"].to_pylist() == ["", "", ""]
    assert standardize_people(people(), "GB", con).num_rows == 0


@pytest.mark.parametrize(
    ("field", "delivered", "expected"),
    [
        ("given_name", "  José\u00a0 María ", "josé maría"),
        ("given_name", "Jose\u0301", "josé"),
        ("given_name", "Prof. Dr. Ann", "ann"),
        ("given_name", "Drew", "drew"),
        ("surname", "O\u2019Brien-Smith.", "o'brien-smith"),
        ("city", "LONDON", "london"),
        ("email", " <Ann.Lee+news@Mail.Example.CO.UK> ", "ann.lee+news@mail.example.co.uk"),
        ("email", "mailto:ann@x.uk", "ann@x.uk"),
        ("phone", "(020) 7946-0001", "+442079460001"),
        ("phone", "0044 20 7946 0001", "+442079460001"),
        ("phone", "+33 1 42 68 53 00", "+33142685300"),
        ("street", "12a, St. John's  Street", "12a st johns st"),
        ("street", "1 Saint Johns St", "1 st johns st"),
        ("street", "Flat 2, Park Road", "flat 2 park rd"),
        ("postcode", "sw1a 1aa", "SW1A1AA"),
        ("postcode", "1234-567", "1234567"),
        ("country", " United  Kingdom", "United Kingdom"),
    ],
)
def test_a_value_in_its_one_form(standardized, field, delivered, expected):
    assert standardized(field, delivered) == (expected, "")


@pytest.mark.parametrize(
    ("field", "delivered", "flags"),
    [
        ("given_name", "Unknown", "given_name_placeholder"),
        ("given_name", "Mr.", "given_name_placeholder"),
        ("surname", "N/A", "surname_placeholder"),
        ("surname", " - ", "surname_placeholder"),
        ("city", "none", "city_placeholder"),
        ("street", "unknown", "street_placeholder"),
        ("postcode", "00000", "postcode_placeholder"),
        ("email", "ann@", "email_invalid"),
        ("email", "ann lee@x.uk", "email_invalid"),
        ("email", "ann@x..uk", "email_invalid"),
        ("email", "ann@x.uk, bob@x.uk", "email_invalid"),
        ("email", "No-Reply@shop.uk", "email_placeholder"),
        ("email", "test@x.uk", "email_placeholder"),
        ("email", "none", "email_placeholder"),
        ("phone", "12", "phone_invalid"),
        ("phone", "ask Ann", "phone_invalid"),
        ("phone", "0000000000", "phone_placeholder"),
        ("phone", "0123456789", "phone_placeholder"),
        ("birth_date", "31/02/1980", "birth_date_invalid"),
        ("birth_date", "about 1980", "birth_date_invalid"),
    ],
)
def test_what_cannot_be_believed_is_null_and_flagged(standardized, field, delivered, flags):
    assert standardized(field, delivered) == (None, flags)


@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_nothing_is_null_without_a_flag(standardized, nothing):
    assert standardized("given_name", nothing) == (None, "")


def test_flags_of_several_fields_are_separated_by_commas(con):
    delivered = people({"email": "x", "phone": "1"}, {"birth_date": "x"})
    flags = standardize_people(delivered, "GB", con)["flags"].to_pylist()
    assert flags == ["email_invalid,phone_invalid", "birth_date_invalid"]


@pytest.mark.parametrize(
    ("delivered", "region"),
    [
        ("1980-04-03", "GB"),
        ("1980-04-03T00:00:00Z", "GB"),
        ("1980-04-03 00:00:00", "GB"),
        ("19800403", "GB"),
        ("03/04/1980", "GB"),
        ("3.4.1980", "DE"),
        ("3 Apr 1980", "GB"),
        ("04/03/1980", "US"),
    ],
)
def test_a_birth_date_is_read_in_the_order_of_the_region(standardized, delivered, region):
    expected = (dt.date(1980, 4, 3), "")
    assert standardized("birth_date", delivered, region=region) == expected


@pytest.mark.parametrize(
    ("born", "at", "believed"),
    [
        ("2026-01-01", utc(2026, 1, 1), True),
        ("2026-01-02", utc(2026, 1, 1), False),
        ("1906-01-01", utc(2026, 1, 1), True),
        ("1905-12-31", utc(2026, 1, 1), False),
        ("1900-01-01", utc(2010, 1, 1), False),
        ("1900-01-02", utc(2010, 1, 1), True),
        ("1862-12-30", ALWAYS, True),
        ("1266-03-04", ALWAYS, True),
        ("1900-01-01", ALWAYS, False),
        ("2999-01-01", ALWAYS, False),
    ],
)
def test_an_age_is_judged_at_the_time_of_the_record_if_it_has_one(standardized, born, at, believed):
    value, flags = standardized("birth_date", born, at=at)
    assert value == (dt.date.fromisoformat(born) if believed else None)
    assert flags == ("" if believed else "birth_date_implausible")


PIECES = [
    "Mr.",
    "dr",
    " ",
    "-",
    "'",
    "\u2019",
    "St.",
    "Street",
    "Saint",
    "n/a",
    "none",
    "x",
    "İ",
    "ß",
]
text = st.one_of(
    st.none(),
    st.text(max_size=12),
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
    st.sampled_from(["020 7946 0001", "+1 650-253-0000", "A@B.uk", "<a.b@c.de>", "1980-04-03"]),
)
person = st.fixed_dictionaries(dict.fromkeys(PERSON_FIELDS, text))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(persons=st.lists(person, max_size=20))
def test_standardizing_again_changes_nothing(persons, con):
    once = standardize_people(people(*persons), "GB", con).select(PERSON_FIELDS)
    again = [{f: v and str(v) for f, v in row.items()} for row in once.to_pylist()]
    assert standardize_people(people(*again), "GB", con).select(PERSON_FIELDS) == once


@pytest.mark.parametrize(
    ("standardize", "texts"),
    [
        (standardize_emails,
         ["A.B@x-1.example", "a@b.c1", "a@b.1c", "jürgen@müller.example", "a@b", None, "a@٣.co"]),
        (standardize_postcodes, ["sw1a 1aa", "〒100-0001", "1_000", "٣-4", "00000"]),
    ],
)  # fmt: skip
def test_a_value_alone_is_standardized_as_among_others(standardize, texts):
    together, findings = standardize(pa.array(texts, pa.string()))
    alone = [standardize(pa.array([text], pa.string())) for text in texts]
    assert together.to_pylist() == [values[0].as_py() for values, _ in alone]
    assert findings.to_pylist() == [found[0].as_py() for _, found in alone]

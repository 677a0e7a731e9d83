import datetime as dt

import ibis
import pytest
from conftest import rows, spark_sql, utc

from cdp_ml.config import Survivorship
from cdp_ml.profiles import build_customers

JAN, FEB, MAR = utc(2026, 1, 1), utc(2026, 2, 1), utc(2026, 3, 1)


def record(source, record_id, known_at, changed_at=None, **fields):
    return {
        "source": source,
        "source_record_id": record_id,
        "event_timestamp": changed_at or known_at,
        "ingested_at": known_at,
        **fields,
    }


def link(source, record_id, customer_id, valid_from, valid_to=None, confidence=1.0):
    return {
        "confidence": confidence,
        "source": source,
        "source_record_id": record_id,
        "customer_id": customer_id,
        "valid_from": valid_from,
        "valid_to": valid_to,
    }


RECORDS = rows(
    "records",
    record("crm", "1", JAN, given_name="ann", email="old@x.org", birth_date=dt.date(1980, 5, 1)),
    record("shop", "7", FEB, given_name="annie", email="new@x.org"),
    record("pos", "9", FEB, given_name="annie", birth_date=dt.date(1980, 5, 1)),
    record("crm", "2", FEB, given_name="bob"),
)
CROSSWALK = rows(
    "crosswalk",
    link("crm", "1", "c1", JAN),
    link("shop", "7", "c1", FEB, confidence=0.97),
    link("pos", "9", "c1", FEB),
    link("crm", "2", "c2", FEB),
)


def customers(con, as_of=MAR, crosswalk=CROSSWALK, **rules):
    tables = [ibis.memtable(t) for t in (RECORDS, crosswalk)]
    built = con.to_pyarrow(build_customers(*tables, rules, as_of)).to_pylist()
    return {row["customer_id"]: row for row in built}


def test_without_a_rule_the_latest_value_survives_with_its_source(con):
    ann = customers(con)["c1"]
    assert (ann["email"], ann["email_source"]) == ("new@x.org", "shop")
    assert (ann["birth_date"], ann["birth_date_source"]) == (dt.date(1980, 5, 1), "pos")
    assert ann["phone"] is None


def test_trust_prefers_the_named_sources_in_their_order(con):
    trusted = customers(con, email=Survivorship(rule="trust", trust=("crm", "shop")))["c1"]
    assert (trusted["email"], trusted["email_source"]) == ("old@x.org", "crm")


def test_most_frequent_prefers_the_value_that_most_records_share(con):
    ann = customers(con, given_name=Survivorship(rule="most_frequent"))["c1"]
    assert ann["given_name"] == "annie"


def test_a_customer_knows_its_records_sources_and_weakest_link(con):
    built = customers(con)
    assert (built["c1"]["records"], built["c1"]["sources"]) == (3, "crm,pos,shop")
    assert built["c1"]["identity_confidence"] == pytest.approx(0.97)
    assert built["c2"]["identity_confidence"] == 1.0
    assert built["c1"]["first_seen_at"] == JAN


def test_as_of_an_instant_only_what_was_known_then_counts(con):
    built = customers(con, as_of=utc(2026, 1, 15))
    assert set(built) == {"c1"}
    assert (built["c1"]["email"], built["c1"]["records"]) == ("old@x.org", 1)


def test_a_link_that_ended_before_the_instant_does_not_count(con):
    moved = rows("crosswalk", link("crm", "1", "c1", JAN, FEB), link("crm", "1", "c9", FEB))
    assert set(customers(con, crosswalk=moved)) == {"c9"}
    assert set(customers(con, as_of=utc(2026, 1, 15), crosswalk=moved)) == {"c1"}


def test_it_compiles_for_spark():
    tables = [ibis.table(t.schema, name=n) for t, n in ((RECORDS, "r"), (CROSSWALK, "x"))]
    sql = spark_sql(build_customers(*tables, {}, MAR))
    assert "ROW_NUMBER" in sql

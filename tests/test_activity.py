import datetime as dt

import ibis
import pyarrow as pa
import pytest
from conftest import rows, spark_sql, utc
from hypothesis import given, settings
from hypothesis import strategies as st

from cdp_ml.activity import activity_as_of
from cdp_ml.config import Engine
from cdp_ml.engine import connect

AS_OF = utc(2026, 3, 1)
LONG_AGO = utc(2025, 1, 1)
TICK = dt.timedelta(microseconds=1)


def event(event_id, identifier="k1", at=LONG_AGO, known=None, kind="cookie"):
    return {
        "event_id": event_id,
        "identifier_type": kind,
        "identifier": identifier,
        "event_timestamp": at,
        "ingested_at": known or at,
    }


def identifier(identifier, record, at=LONG_AGO, known=None, kind="cookie", source="shop"):
    return {
        "identifier_type": kind,
        "identifier": identifier,
        "source": source,
        "source_record_id": record,
        "event_timestamp": at,
        "ingested_at": known or at,
    }


def link(record, customer, since=LONG_AGO, until=None, source="shop"):
    return {
        "source": source,
        "source_record_id": record,
        "customer_id": customer,
        "valid_from": since,
        "valid_to": until,
    }


def keyed(con, events, identifiers, links, as_of=AS_OF):
    """Which customer each event is keyed to."""
    tables = (rows("events", *events), rows("identifiers", *identifiers), rows("crosswalk", *links))
    found = con.to_pyarrow(activity_as_of(*map(ibis.memtable, tables), as_of)).to_pylist()
    return {row["event_id"]: row["customer_id"] for row in found}


def test_a_fact_belongs_to_the_customer_of_the_record_behind_its_identifier(con):
    events = [event("e1", "k1"), event("e2", "k2"), event("e3", "nobody")]
    identifiers = [identifier("k1", "1"), identifier("k2", "2")]
    assert keyed(con, events, identifiers, [link("1", "c1"), link("2", "c2")]) == {
        "e1": "c1",
        "e2": "c2",
    }


def test_the_columns_are_the_facts_own_and_the_customer(con):
    facts = ibis.memtable(rows("transactions"))
    links = (ibis.memtable(rows("identifiers")), ibis.memtable(rows("crosswalk")))
    assert activity_as_of(facts, *links, AS_OF).columns == ("customer_id", *facts.columns)


def test_the_kind_of_an_identifier_tells_it_from_another_kind_with_the_same_value(con):
    events = [event("e1", "7", kind="pos"), event("e2", "7", kind="cookie")]
    assert keyed(con, events, [identifier("7", "1", kind="pos")], [link("1", "c1")]) == {"e1": "c1"}


@pytest.mark.parametrize("column", ["at", "known"])
def test_what_happened_or_became_known_at_the_instant_does_not_count(con, column):
    events = [
        event("before", **{"at": LONG_AGO, column: AS_OF - TICK}),
        event("at", **{"at": LONG_AGO, column: AS_OF}),
    ]
    assert keyed(con, events, [identifier("k1", "1")], [link("1", "c1")]) == {"before": "c1"}


def test_an_identifier_counts_once_it_is_known_and_then_for_the_past_too(con):
    events, links = [event("e1")], [link("1", "c1")]
    login = [identifier("k1", "1", at=utc(2026, 1, 5), known=utc(2026, 2, 1))]
    assert keyed(con, events, login, links, as_of=utc(2026, 2, 1)) == {}
    assert keyed(con, events, login, links, as_of=utc(2026, 2, 1) + TICK) == {"e1": "c1"}


def test_a_merge_moves_facts_only_after_the_instant_at_which_it_became_known(con):
    merge = utc(2026, 2, 1)
    links = [link("1", "c1", until=merge), link("1", "c2", since=merge)]
    events, identifiers = [event("e1")], [identifier("k1", "1")]
    assert keyed(con, events, identifiers, links, merge - TICK) == {"e1": "c1"}
    assert keyed(con, events, identifiers, links, merge) == {"e1": "c1"}
    assert keyed(con, events, identifiers, links, merge + TICK) == {"e1": "c2"}


def test_a_shared_cookie_stays_with_who_used_it_first(con):
    first = identifier("k1", "2", at=utc(2025, 5, 1))
    later = identifier("k1", "1", at=utc(2025, 6, 1))
    links = [link("1", "c1"), link("2", "c2")]
    assert keyed(con, [event("e1")], [later, first], links) == {"e1": "c2"}


def test_equally_early_users_of_a_cookie_are_told_apart_by_their_records(con):
    users = [identifier("k1", "2"), identifier("k1", "1")]
    links = [link("1", "c1"), link("2", "c2")]
    assert keyed(con, [event("e1")], users, links) == {"e1": "c1"}
    assert keyed(con, [event("e1")], users[::-1], links[::-1]) == {"e1": "c1"}


def test_a_records_own_id_is_its_own_whoever_else_names_it_earlier(con):
    claim = identifier("7", "crm1", at=LONG_AGO, kind="pos", source="crm")
    own = identifier("7", "7", at=utc(2025, 6, 1), kind="pos", source="pos")
    links = [link("crm1", "c1", source="crm"), link("7", "c2", source="pos")]
    assert keyed(con, [event("e1", "7", kind="pos")], [claim, own], links) == {"e1": "c2"}


days = st.integers(-60, 60)


def instant(day):
    return AS_OF + dt.timedelta(days=day)


@settings(max_examples=25, deadline=None)
@given(
    events=st.lists(st.tuples(st.sampled_from("ab"), days, days), max_size=8),
    logins=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("123"), days), max_size=8),
    links=st.lists(st.tuples(st.sampled_from("123"), st.sampled_from("xy"), days), max_size=6),
)
def test_what_becomes_known_at_the_instant_or_later_changes_nothing(events, logins, links):
    con = connect(Engine(threads=1))
    facts = [
        event(f"e{i}", k, instant(at), instant(max(at, known)))
        for i, (k, at, known) in enumerate(events)
    ]
    identifiers = {(k, r): identifier(k, r, instant(day)) for k, r, day in logins}.values()
    whole = _timeline(links, until=None)
    then = _timeline([row for row in links if row[2] < 0], until=None)
    known_facts = [e for e in facts if e["ingested_at"] < AS_OF and e["event_timestamp"] < AS_OF]
    known_identifiers = [i for i in identifiers if i["ingested_at"] < AS_OF]
    assert keyed(con, facts, identifiers, whole) == keyed(con, known_facts, known_identifiers, then)


def _timeline(links, until):
    """Each record's links one after the other, the last one open."""
    found = []
    for record in sorted({r for r, _, _ in links}):
        changes = sorted({day: c for r, c, day in links if r == record}.items())
        ends = [instant(day) for day, _ in changes[1:]] + [until]
        for (day, customer), end in zip(changes, ends, strict=True):
            found.append(link(record, customer, instant(day), end))
    return found


def test_it_compiles_for_spark():
    tables = (ibis.table(pa_schema(t), name=t) for t in ("events", "identifiers", "crosswalk"))
    assert "ROW_NUMBER" in spark_sql(activity_as_of(*tables, AS_OF))


def pa_schema(table: str) -> ibis.Schema:
    schema: pa.Schema = rows(table).schema
    return ibis.Schema.from_pyarrow(schema)

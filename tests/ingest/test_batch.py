import datetime as dt
import json
import os
import sqlite3
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ONLINE_RETAIL_REFUSED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdp_ml.config import Source, load_settings
from cdp_ml.contracts import arrow_schema
from cdp_ml.errors import ConfigError, ContractError
from cdp_ml.ingest.batch import read_source, source_files

ROOT = Path(__file__).resolve().parents[2]
NOW = dt.datetime(2026, 7, 1, tzinfo=dt.UTC)
ORDERS = {
    "order_id": "no",
    "identifier": "customer",
    "product_id": "sku",
    "quantity": "qty",
    "unit_price": "price",
    "event_timestamp": "at",
}
HEADER = "no,customer,sku,qty,price,at\n"
PEOPLE = {"source_record_id": "id", "email": "email", "event_timestamp": "at"}


def utc(*when: int) -> dt.datetime:
    return dt.datetime(*when, tzinfo=dt.UTC)


@pytest.fixture
def read(tmp_path, con):
    """Read a source from a text: read("a.csv", "...", kind=..., fields=...)."""

    def read(path, content, name="src", **declared):
        if content is not None:
            data = content if isinstance(content, bytes) else content.encode()
            (tmp_path / path).write_bytes(data)
        declared = {"kind": "transactions", "fields": ORDERS, "identifier_type": "shop"} | declared
        batch = read_source(name, Source(path=path, **declared), tmp_path, con, NOW)
        ends = ("kept", "repeated", "refused", "filtered")
        assert batch.counts["read"] == sum(batch.counts[end] for end in ends)
        assert batch.counts["kept"] == batch.rows.num_rows
        assert batch.counts["refused"] == batch.rejects.num_rows
        left = con.con.execute("SELECT table_name FROM duckdb_tables()").fetchall()
        assert left == []
        return batch

    return read


def people(**declared):
    return {"kind": "people", "fields": PEOPLE, "identifier_type": None} | declared


def column(batch, name):
    return batch.rows[name].to_pylist()


def reasons(batch):
    return dict(
        zip(batch.rejects["position"].to_pylist(), batch.rejects["reason"].to_pylist(), strict=True)
    )


# ---- what a row becomes ----


def test_an_order_line_comes_out_in_the_contract(read):
    batch = read("o.csv", HEADER + "A1,7,mug,2,7.50,2026-02-01T10:00:00Z\n", name="orders")
    assert batch.rows.schema == arrow_schema("transactions")
    assert batch.rows.to_pylist() == [
        {
            "order_id": "orders:A1",
            "line_no": 1,
            "source": "orders",
            "identifier_type": "shop",
            "identifier": "7",
            "product_id": "mug",
            "quantity": 2.0,
            "unit_price": 7.5,
            "discount": 0.0,
            "channel": "orders",
            "event_timestamp": utc(2026, 2, 1, 10),
            "ingested_at": utc(2026, 2, 1, 10),
        }
    ]
    assert batch.counts == {"read": 1, "kept": 1, "repeated": 0, "refused": 0, "filtered": 0}


def test_lines_of_an_order_are_numbered_as_they_come(read):
    lines = "A,1,x,1,1,2026-01-01\nB,1,x,1,1,2026-01-01\nA,1,x,1,1,2026-01-01\n"
    batch = read("o.csv", HEADER + lines)
    assert list(zip(column(batch, "order_id"), column(batch, "line_no"), strict=True)) == [
        ("src:A", 1),
        ("src:A", 2),
        ("src:B", 1),
    ]


def test_an_anonymous_line_is_kept(read):
    batch = read("o.csv", HEADER + "A,,x,1,1,2026-01-01\n")
    assert column(batch, "identifier") == [None]
    assert column(batch, "identifier_type") == [None]


@pytest.mark.parametrize(
    ("delivered", "mapping", "timezone", "expected"),
    [
        ("2026-06-01T10:00:00Z", "at", "Europe/London", utc(2026, 6, 1, 10)),
        ("2026-06-01T10:00:00+02:00", "at", "Europe/London", utc(2026, 6, 1, 8)),
        ("2026-06-01 10:00:00-0530", "at", "UTC", utc(2026, 6, 1, 15, 30)),
        ("2026-06-01T10:00", "at", "Europe/London", utc(2026, 6, 1, 9)),
        ("2026-01-01", "at", "Europe/London", utc(2026, 1, 1)),
        ("01/06/2026 10:00", "%d/%m/%Y %H:%M", "Europe/London", utc(2026, 6, 1, 9)),
        ("01/06/2026 10:00 +0200", "%d/%m/%Y %H:%M %z", "UTC", utc(2026, 6, 1, 8)),
    ],
)
def test_times_are_utc_and_naive_ones_local_to_the_source(
    read, delivered, mapping, timezone, expected
):
    at = mapping if mapping == "at" else {"field": "at", "format": mapping}
    fields = ORDERS | {"event_timestamp": at}
    batch = read("o.csv", HEADER + f"A,1,x,1,1,{delivered}\n", fields=fields, timezone=timezone)
    assert column(batch, "event_timestamp") == [expected]


def test_ingested_at_is_as_mapped_else_when_it_happened(read):
    lines = "id,email,at,known\n1,a,2026-01-01,2026-02-01\n2,b,2026-01-01,\n"
    batch = read("p.csv", lines, **people(fields=PEOPLE | {"ingested_at": "known"}))
    assert column(batch, "ingested_at") == [utc(2026, 2, 1), utc(2026, 1, 1)]


def test_people_without_a_time_are_known_always(read):
    fields = {"source_record_id": "id"}
    batch = read("p.csv", "id\n1\n", **people(fields=fields))
    assert column(batch, "event_timestamp") == column(batch, "ingested_at") == [utc(1970, 1, 1)]


def test_a_birth_date_in_the_declared_format_becomes_iso_and_others_stay_as_delivered(read):
    fields = PEOPLE | {"birth_date": {"field": "dob", "format": "%d/%m/%Y"}}
    lines = "id,email,at,dob\n1,a,2026-01-01,02/03/1980\n2,b,2026-01-01,about 1980\n"
    batch = read("p.csv", lines, **people(fields=fields))
    assert column(batch, "birth_date") == ["1980-03-02", "about 1980"]


def test_consents_concern_records_of_the_people_source(read):
    fields = {"identifier": "id", "purpose": "p", "granted": "g", "event_timestamp": "at"}
    lines = (
        "id,p,g,at\n7,marketing,yes,2026-01-01\n8,marketing,0,2026-01-01\n9,m,maybe,2026-01-01\n"
    )
    batch = read("c.csv", lines, kind="consents", identifier_type="crm", fields=fields)
    assert batch.rows.schema == arrow_schema("consents")
    assert column(batch, "source") == ["crm", "crm"]
    assert column(batch, "source_record_id") == ["7", "8"]
    assert column(batch, "granted") == [True, False]
    assert reasons(batch) == {4: "granted: not true or false"}


def test_events_without_an_id_are_known_by_their_content(read):
    fields = {"event_type": "type", "identifier": "c", "event_timestamp": "at"}
    lines = "c,type,at\n1,view,2026-01-01\n2,view,2026-01-01\n1,view,2026-01-01\n"
    batch = read("e.csv", lines, kind="events", identifier_type="cookie", fields=fields)
    assert batch.counts["kept"] == 2
    assert batch.counts["repeated"] == 1
    assert all(i.startswith("src:") and len(i) == 4 + 32 for i in column(batch, "event_id"))


# ---- one row a key ----


def test_a_corrected_row_replaces_the_former_and_a_repeated_one_is_counted(read):
    lines = (
        "id,email,at\n1,new@x.uk,2026-02-01\n1,old@x.uk,2026-01-01\n"
        "2,first@x.uk,2026-01-01\n2,second@x.uk,2026-01-01\n"
    )
    batch = read("p.csv", lines, **people())
    assert column(batch, "email") == ["new@x.uk", "second@x.uk"]
    assert batch.counts == {"read": 4, "kept": 2, "repeated": 2, "refused": 0, "filtered": 0}


# ---- identifiers ----


def test_a_record_is_identified_by_itself_and_by_its_declared_identifiers(read):
    lines = "id,email,at,card\n1,a,2026-01-01,P7\n2,b,2026-01-02,\n"
    batch = read("p.csv", lines, name="crm", **people(identifiers={"pos": "card"}))
    assert batch.identifiers.schema == arrow_schema("identifiers")
    assert [tuple(r.values())[:5] for r in batch.identifiers.to_pylist()] == [
        ("crm", "1", "crm", "1", utc(2026, 1, 1)),
        ("crm", "2", "crm", "2", utc(2026, 1, 2)),
        ("pos", "P7", "crm", "1", utc(2026, 1, 1)),
    ]


def test_a_cookie_belongs_to_the_account_since_its_first_login(read):
    fields = {"event_type": "type", "identifier": "c", "event_timestamp": "at"}
    lines = "c,type,at,account\nk,view,2026-01-01,\nk,view,2026-01-03,S1\nk,cart,2026-01-02,S1\n"
    batch = read(
        "e.csv",
        lines,
        kind="events",
        identifier_type="cookie",
        fields=fields,
        login={"field": "account", "source": "shop"},
    )
    assert [tuple(r.values())[:5] for r in batch.identifiers.to_pylist()] == [
        ("cookie", "k", "shop", "S1", utc(2026, 1, 2))
    ]


def test_ids_that_became_floats_still_agree_as_text(read, tmp_path):
    table = pa.table({"id": [17850.0, None, 12.5], "email": ["a", "b", "c"], "at": [NOW] * 3})
    pq.write_table(table, tmp_path / "p.parquet")
    batch = read("p.parquet", None, **people())
    assert sorted(column(batch, "source_record_id")) == ["12.5", "17850"]
    assert reasons(batch) == {2: "source_record_id: missing"}


# ---- rejects ----


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (",1,x,1,1,2026-01-01", "order_id: missing"),
        ("A,1,x,,1,2026-01-01", "quantity: missing"),
        ("A,1,x,two,1,2026-01-01", "quantity: not a number"),
        ("A,1,x,nan,1,2026-01-01", "quantity: not a number"),
        ("A,1,x,1,-1,2026-01-01", "unit_price: negative"),
        ("A,1,x,1,1,soon", "event_timestamp: not a timestamp"),
        ("A,1,x,1,1,infinity", "event_timestamp: not a timestamp"),
        ("A,1,x,1,1,2026-02-30", "event_timestamp: not a timestamp"),
        ("A,1,x,1,1,2026-07-02", "event_timestamp: in the future"),
    ],
)
def test_a_refused_row_lands_in_rejects_with_its_line_reason_and_content(read, line, reason):
    batch = read("o.csv", HEADER + "B,1,x,1,1,2026-01-01\n" + line + "\n")
    assert batch.rejects.schema == arrow_schema("rejects")
    (reject,) = batch.rejects.to_pylist()
    delivered = dict(zip(HEADER.strip().split(","), line.split(","), strict=True))
    assert json.loads(reject.pop("row")) == {k: v or None for k, v in delivered.items()}
    place = {"source": "src", "file": "o.csv", "position": 3}
    assert reject == place | {"reason": reason, "ingested_at": NOW}


def test_the_first_rule_that_holds_gives_the_reason(read):
    refuse = [
        {"where": "sku = 'fee'", "reason": "fee"},
        {"where": "TRY_CAST(price AS DOUBLE) = 0", "reason": "gift"},
    ]
    lines = "A,1,fee,1,0,2026-01-01\nB,1,mug,1,0,2026-01-01\nC,1,mug,1,?,2026-01-01\n"
    batch = read("o.csv", HEADER + lines, refuse=refuse)
    assert reasons(batch) == {2: "fee", 3: "gift", 4: "unit_price: not a number"}


def test_where_leaves_out_rows_that_are_not_of_the_source(read):
    lines = "A,1,x,1,1,2026-01-01\nA,,x,1,1,2026-01-01\n"
    batch = read("o.csv", HEADER + lines, where="customer IS NOT NULL")
    assert batch.counts == {"read": 2, "kept": 1, "repeated": 0, "refused": 0, "filtered": 1}


cell = st.sampled_from(["", "A", "B", "1", "-1", "x", '"q\n"', "2026-01-01", "2030-01-01"])
line = st.lists(cell, min_size=5, max_size=7).map(",".join)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(lines=st.lists(line, min_size=1, max_size=8))
def test_every_delivered_row_is_accounted_for(lines, read):
    rule = [{"where": "customer = 'B'", "reason": "refused"}]
    content = HEADER + "Z,1,x,1,1,2026-01-01\n" + "\n".join(lines) + "\n"
    batch = read("o.csv", content, malformed="quarantine", where="sku IS NOT NULL", refuse=rule)
    delivered = [text for text in lines if text.strip(",")]
    blank = sum(text.count(",") != 5 for text in lines if not text.strip(","))
    assert batch.counts["read"] == 1 + len(delivered) + blank
    starts = 3
    for text in lines:
        found = [r for r in batch.rejects.to_pylist() if r["position"] == starts]
        if text.count(",") != 5:
            assert [r["reason"] for r in found] == ["not 6 fields"]
        starts += 1 + text.count("\n")


# ---- formats ----


def test_line_numbers_count_line_breaks_inside_quotes(read):
    lines = 'A,1,"two\nlines",1,1,2026-01-01\n\nB,1,x,?,1,2026-01-01\n'
    assert reasons(read("o.csv", HEADER + lines)) == {5: "quantity: not a number"}


def test_delimiter_and_encoding_are_as_declared(read):
    content = "id;email;at\n1;Zoë;2026-01-01\n".encode("cp1252")
    batch = read("p.csv", content, **people(delimiter=";", encoding="cp1252"))
    assert column(batch, "email") == ["Zoë"]


def test_json_lines_deliver_nested_fields_by_dotted_path(read):
    lines = (
        '{"id": 1, "contact": {"email": "a@x.uk"}, "at": "2026-01-01"}\n\n'
        '{"id": "2", "contact": null, "at": "2026-01-01", "vip": true}\n'
        '{"id": null, "contact": {"email": "c@x.uk"}, "at": "2026-01-01"}\n'
    )
    fields = PEOPLE | {"email": "contact.email"}
    batch = read("p.jsonl", lines, **people(fields=fields))
    assert column(batch, "source_record_id") == ["1", "2"]
    assert column(batch, "email") == ["a@x.uk", None]
    assert reasons(batch) == {4: "source_record_id: missing"}
    assert json.loads(batch.rejects["row"][0].as_py())["contact"] == {"email": "c@x.uk"}
    refuse = [{"where": "\"contact.email\" = 'a@x.uk'", "reason": "test account"}]
    assert reasons(read("p.jsonl", lines, **people(fields=fields, refuse=refuse)))[1] == (
        "test account"
    )


def test_parquet_files_of_a_glob_are_united_by_column_name(read, tmp_path):
    pq.write_table(pa.table({"id": [1], "at": [NOW]}), tmp_path / "p-1.parquet")
    more = pa.table({"email": ["b", "c"], "at": [NOW, NOW], "id": ["2", None]})
    pq.write_table(more, tmp_path / "p-2.parquet")
    batch = read("p-*.parquet", None, **people())
    assert list(zip(column(batch, "source_record_id"), column(batch, "email"), strict=True)) == [
        ("1", None),
        ("2", "b"),
    ]
    assert batch.rejects.select(["file", "position"]).to_pylist() == [
        {"file": "p-2.parquet", "position": 2}
    ]


def test_a_naive_parquet_timestamp_is_local_to_the_source(read, tmp_path):
    table = pa.table({"id": ["1"], "email": ["a"], "at": [dt.datetime(2026, 6, 1, 10)]})
    pq.write_table(table, tmp_path / "p.parquet")
    batch = read("p.parquet", None, **people(timezone="Europe/London"))
    assert column(batch, "event_timestamp") == [utc(2026, 6, 1, 9)]


@pytest.fixture
def database(tmp_path):
    db = sqlite3.connect(tmp_path / "crm.db")
    db.execute("CREATE TABLE customers (id REAL, email TEXT, at TIMESTAMP)")
    rows = [(1.0, "a@x.uk", "2026-01-01 10:00:00"), (2.0, "b@x.uk", "soon")]
    db.executemany("INSERT INTO customers VALUES (?, ?, ?)", rows)
    db.commit()
    yield db
    db.close()


def test_a_database_table_is_read_through_its_url(read, database):
    batch = read("sqlite:///crm.db", None, **people(table="customers"))
    assert column(batch, "source_record_id") == ["1"]
    assert column(batch, "event_timestamp") == [utc(2026, 1, 1, 10)]
    assert batch.rejects.select(["file", "position", "reason"]).to_pylist() == [
        {"file": "customers", "position": 2, "reason": "event_timestamp: not a timestamp"}
    ]


# ---- what a source consists of ----


def test_fingerprints_change_with_the_files(tmp_path):
    source = Source(path="o*.csv", kind="transactions", fields=ORDERS)
    (tmp_path / "o1.csv").write_text("a")
    before = source_files("src", source, tmp_path)
    assert source_files("src", source, tmp_path) == before
    assert list(before) == ["o1.csv"]
    (tmp_path / "o1.csv").write_text("ab")
    (tmp_path / "o2.csv").write_text("c")
    after = source_files("src", source, tmp_path)
    assert list(after) == ["o1.csv", "o2.csv"]
    assert after["o1.csv"] != before["o1.csv"]


def test_the_fingerprint_of_a_table_changes_with_a_correction(tmp_path, database):
    source = Source(path="sqlite:///crm.db", table="customers", **people())
    before = source_files("crm", source, tmp_path)
    assert source_files("crm", source, tmp_path) == before
    database.execute("UPDATE customers SET email = 'longer@x.uk' WHERE id = 1")
    database.commit()
    assert source_files("crm", source, tmp_path) != before


# ---- errors: one line, what and where and what to do ----


def message(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("o.csv", HEADER + "A,1,x,1,1,2026-01-01\nA,1,x,1,1\n", "o.csv:3: has 5 fields where"),
        ("o.csv", HEADER + 'A,1,"x\n",1,1,2026-01-01\nA\n', "o.csv:4: has 1 fields where"),
        ("o.csv", "", "o.csv: is empty"),
        ("o.csv", HEADER, "o.csv has no rows"),
        (
            "o.csv",
            HEADER.encode() + b"A,1,x,1,1,2026-01-01\nA,\xe9,x,1,1,1\n",
            "o.csv:3: byte 0xe9",
        ),
        ("o.csv", b"no,\xe9\n", "o.csv:1: byte 0xe9 is not utf-8"),
        ("o.csv", HEADER + 'A,1,x,1,1,2026-01-01\nA,1,x,1,1,"2026\nA,1\n', "o.csv:3: a quote is"),
        ("o.csv", "no,sku,no\n", "o.csv:1: column 'no' stands twice"),
        ("o.jsonl", '{"no": 1}\n{"no": \n', "o.jsonl:2: not a JSON object"),
        ("o.jsonl", "[1]\n", "o.jsonl:1: not a JSON object"),
        ("o.jsonl", b'{"no": "\xe9"}\n', "o.jsonl:1: byte 0xe9"),
        ("o.jsonl", "", "o.jsonl has no rows"),
        ("o.parquet", b"PAR1 and then nothing", "o.parquet: not a readable Parquet file"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(read, path, content, expected):
    with pytest.raises(ContractError) as error:
        read(path, content)
    assert expected in message(error)
    assert "source 'src'" in message(error)


def test_a_parquet_file_damaged_within_is_named(read, tmp_path):
    pq.write_table(pa.table({"no": [str(i) for i in range(9999)]}), tmp_path / "o.parquet")
    content = bytearray((tmp_path / "o.parquet").read_bytes())
    content[100:30000] = os.urandom(29900)
    with pytest.raises(ContractError, match=r"o\.parquet: not a readable Parquet file"):
        read("o.parquet", bytes(content))


def test_ragged_rows_are_set_aside_if_declared(read):
    lines = "A,1,x,1,1,2026-01-01\nB,1,x\nC,1,x,1,1,2026-01-01\n"
    batch = read("o.csv", HEADER + lines, malformed="quarantine")
    assert batch.counts["kept"] == 2
    assert reasons(batch) == {3: "not 6 fields"}
    assert json.loads(batch.rejects["row"][0].as_py()) == "B,1,x"


def test_malformed_json_lines_are_set_aside_if_declared(read):
    lines = '{"id": 1, "email": "a", "at": "2026-01-01"}\n{"id": 2\n'
    batch = read("p.jsonl", lines, **people(malformed="quarantine"))
    assert reasons(batch) == {2: "not a JSON object"}


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"path": "order.csv"}, "no file .*did you mean 'orders.csv'"),
        ({"path": "orders-*.csv"}, "did you mean 'orders.csv'"),
        ({"path": "orders.xlsx"}, "give format: csv, jsonl or parquet"),
        ({"encoding": "utf-9"}, "no encoding 'utf-9'"),
        (
            {"fields": ORDERS | {"unit_prize": "price"}},
            "'unit_prize' for .*did you mean 'unit_price'",
        ),
        ({"fields": ORDERS | {"quantity": "qyt"}}, "fields.quantity: .*did you mean 'qty'"),
        ({"fields": {"order_id": "no"}}, "'quantity' is required"),
        ({"identifier_type": None}, "without 'identifier_type'"),
        ({"where": "skv = 'x'"}, "sources.src.where: no column 'skv'; did you mean 'sku'"),
        ({"where": "price <"}, "not an SQL condition"),
        ({"where": "price < 3"}, "TRY_CAST"),
        ({"where": "CAST(sku AS INT) < 3"}, "TRY_CAST"),
        ({"refuse": [{"where": "nofun(sku)", "reason": "r"}]}, "sources.src.refuse.0: .*nofun"),
        ({"fields": ORDERS | {"event_timestamp": {"field": "at", "format": "%Q"}}}, "'%Q'"),
        ({"fields": ORDERS | {"quantity": {"field": "qty", "format": "%d"}}}, "format"),
    ],
)
def test_a_declaration_that_does_not_fit_says_so(tmp_path, con, declared, expected):
    for name in ("orders.csv", "orders.xlsx"):
        (tmp_path / name).write_text(HEADER + "A,1,x,1,1,2026-01-01\n")
    given = {"path": "orders.csv", "kind": "transactions", "identifier_type": "shop"}
    source = Source(**({"fields": ORDERS} | given | declared))
    with pytest.raises(ConfigError, match=expected) as error:
        read_source("src", source, tmp_path, con, NOW)
    assert "src" in message(error)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///crn.db", "did you mean 'crm.db'"),
        ("sqlite:///crm.db", "no table 'customer'.*did you mean 'customers'"),
        ("nodb://me:secret@localhost/crm", "not a usable database URL"),
        ("oracle+cx_oracle://me:secret@localhost/crm", "needs the Python package 'cx_Oracle'"),
    ],
)
def test_a_database_that_is_not_there_says_so(tmp_path, con, database, url, expected):
    source = Source(path=url, table="customer", **people())
    for attempt in (lambda: read_source("crm", source, tmp_path, con, NOW),
                    lambda: source_files("crm", source, tmp_path)):  # fmt: skip
        with pytest.raises(ConfigError, match=expected) as error:
            attempt()
        assert "secret" not in message(error)


# ---- public data ----


@pytest.mark.usefixtures("shared_data")
def test_online_retail_is_accounted_for_to_the_last_row(con, shared_data):
    settings = load_settings(ROOT / "examples" / "online_retail")
    source = settings.sources["orders"].model_copy(
        update={"path": str(shared_data / "online_retail.parquet")}
    )
    batch = read_source("orders", source, settings.home, con, NOW)
    assert batch.counts == {
        "read": 541_909,
        "kept": 536_495,
        "repeated": 0,
        "refused": 5_414,
        "filtered": 0,
    }
    counted = {r["values"]: r["counts"] for r in batch.rejects["reason"].value_counts().to_pylist()}
    assert counted == ONLINE_RETAIL_REFUSED

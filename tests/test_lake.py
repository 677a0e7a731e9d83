import json

import pyarrow as pa
import pytest
from conftest import rows, utc

from cdp_ml.errors import ContractError
from cdp_ml.lake import Lake, last_run, publish

T1, T2 = utc(2026, 1, 1), utc(2026, 1, 2)


def products(*pairs, known_at=T1):
    return rows(
        "products", *({"product_id": p, "name": n, "ingested_at": known_at} for p, n in pairs)
    )


def names(lake, table="products"):
    return {r["product_id"]: r["name"] for r in lake.arrow(table).to_pylist()}


@pytest.fixture
def lake(tmp_path):
    return Lake(tmp_path)


def test_an_absent_table_reads_as_empty_with_its_columns(lake, con):
    empty = con.to_pyarrow(lake.read("products", con))
    assert empty.num_rows == 0
    assert empty.column_names == lake.arrow("products").column_names


def test_a_written_but_empty_table_reads_as_empty(lake, con):
    lake.write("products", products())
    assert con.to_pyarrow(lake.read("products", con)).num_rows == 0


def test_upserting_the_same_rows_writes_nothing(lake, con):
    lake.upsert("products", products(("a", "mug")), con)
    before = dict(lake.versions)
    counts = lake.upsert("products", products(("a", "mug"), known_at=T2), con)
    assert counts == {"new": 0, "changed": 0, "same": 1}
    assert lake.versions == before
    assert lake.arrow("products")["ingested_at"].to_pylist() == [T1]


def test_upsert_inserts_new_rows_and_replaces_changed_ones(lake, con):
    lake.upsert("products", products(("a", "mug"), ("b", "tray")), con)
    counts = lake.upsert("products", products(("b", "big tray"), ("c", "pot")), con)
    assert counts == {"new": 1, "changed": 1, "same": 0}
    assert names(lake) == {"a": "mug", "b": "big tray", "c": "pot"}


def test_amend_takes_out_what_is_gone_and_puts_in_what_replaces_it(lake, con):
    lake.amend("products", products(("a", "mug"), ("b", "tray"), ("c", "pot")), con)
    gone = products(("b", ""), ("c", "")).select(["product_id"])
    lake.amend("products", products(("b", "big tray"), ("d", "pan")), con, gone)
    assert names(lake) == {"a": "mug", "b": "big tray", "d": "pan"}


def test_amend_writes_nothing_where_nothing_changed(lake, con):
    lake.amend("products", products(("a", "mug")), con)
    before = dict(lake.versions)
    nothing = products().select(["product_id"])
    lake.amend("products", products(), con, nothing)
    assert lake.versions == before


def test_what_was_known_first_stays_when_a_row_is_corrected(lake, con):
    lake.upsert("products", products(("a", "mug"), known_at=T1), con)
    lake.upsert("products", products(("a", "cup"), known_at=T2), con)
    assert lake.arrow("products").to_pylist()[0]["ingested_at"] == T1
    assert names(lake) == {"a": "cup"}


def test_the_first_use_of_an_identifier_is_not_forgotten(lake, con):
    key = {
        "identifier_type": "cookie",
        "identifier": "k",
        "source": "shop",
        "source_record_id": "1",
    }
    for when in (T2, T1, T2):
        given = rows("identifiers", {**key, "event_timestamp": when, "ingested_at": when})
        lake.upsert("identifiers", given, con)
    assert lake.arrow("identifiers")["event_timestamp"].to_pylist() == [T1]


@pytest.mark.parametrize("odd", ["with space", "100% sure", "a#b"])
def test_a_folder_may_have_any_name(tmp_path, con, odd):
    lake = Lake(tmp_path / odd)
    lake.write("products", products(("a", "mug")))
    assert con.to_pyarrow(lake.read("products", con)).num_rows == 1


def test_a_column_that_a_former_version_did_not_write_is_null(lake, con):
    from deltalake import write_deltalake

    write_deltalake(lake.root / "products", products(("a", "mug")).drop_columns(["category"]))
    lake.versions["products"] = 0
    for found in (lake.arrow("products"), con.to_pyarrow(lake.read("products", con))):
        assert found.select(["name", "category"]).to_pylist() == [{"name": "mug", "category": None}]


def test_a_publication_that_was_killed_at_its_very_beginning_is_none(lake):
    (lake.root / "runs").mkdir()
    assert last_run(lake.root) is None


def test_a_reader_keeps_seeing_its_version(lake, con):
    lake.write("products", products(("a", "mug")))
    reader = Lake(lake.root, dict(lake.versions))
    lake.write("products", products(("a", "cup")))
    assert names(reader) == {"a": "mug"}
    assert names(lake) == {"a": "cup"}


def test_appending_forgets_what_a_crashed_run_wrote_after_the_seen_version(lake):
    lake.write("products", products(("a", "mug")))
    seen = dict(lake.versions)
    lake.append("products", products(("x", "orphan")))
    resumed = Lake(lake.root, seen)
    resumed.append("products", products(("b", "tray")))
    assert names(resumed) == {"a": "mug", "b": "tray"}


def test_appending_to_a_table_that_only_a_crashed_run_wrote_starts_anew(lake):
    Lake(lake.root).append("products", products(("x", "orphan")))
    lake.append("products", products(("b", "tray")))
    assert names(lake) == {"b": "tray"}


def scores_of(day, *customers):
    row = {"model": "m", "model_version": 1, "as_of": day, "score": 0.5}
    return rows("scores", *({**row, "customer_id": c} for c in customers))


def scored(lake):
    return sorted((r["as_of"], r["customer_id"]) for r in lake.arrow("scores").to_pylist())


def test_rows_of_an_instant_are_replaced_and_files_of_others_are_not_written_again(lake):
    lake.replace("scores", scores_of(T1, "a", "b"), "as_of", T1.isoformat())
    first = lake.files("scores")
    lake.replace("scores", scores_of(T2, "a", "b"), "as_of", T2.isoformat())
    lake.replace("scores", scores_of(T2, "c"), "as_of", T2.isoformat())
    assert scored(lake) == [(T1, "a"), (T1, "b"), (T2, "c")]
    assert set(first) < set(lake.files("scores"))


def test_no_rows_of_an_instant_leave_those_of_others(lake):
    lake.replace("scores", scores_of(T1, "a"), "as_of", T1.isoformat())
    lake.replace("scores", scores_of(T2), "as_of", T2.isoformat())
    assert scored(lake) == [(T1, "a")]


def test_replacing_forgets_what_a_crashed_run_wrote_after_the_seen_version(lake):
    lake.replace("scores", scores_of(T1, "a"), "as_of", T1.isoformat())
    seen = dict(lake.versions)
    lake.replace("scores", scores_of(T2, "orphan"), "as_of", T2.isoformat())
    resumed = Lake(lake.root, seen)
    resumed.replace("scores", scores_of(T1, "b"), "as_of", T1.isoformat())
    assert scored(resumed) == [(T1, "b")]


def test_publication_is_what_readers_see(lake):
    assert Lake.published(lake.root).versions == {}
    assert last_run(lake.root) is None
    lake.write("products", products(("a", "mug")))
    moments = {"as_of": T1, "started_at": T1, "published_at": T2}
    publish(lake.root, {"run_id": "1", "versions": lake.versions, "summary": {"n": 1}, **moments})
    lake.write("products", products(("a", "unpublished")))
    assert names(Lake.published(lake.root)) == {"a": "mug"}
    assert last_run(lake.root)["summary"] == {"n": 1}
    assert json.dumps(last_run(lake.root)["versions"]) == '{"products": 0}'


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (pa.table({"product_id": ["a"]}), "column 'name' is missing"),
        (products(("a", "mug")).append_column("nam", pa.array(["x"])), "no column 'nam'.*'name'"),
        (products((None, "mug")), "1 rows without key 'product_id'"),
        (
            products(("a", "b")).set_column(3, "price", pa.array(["dear"])),
            "'products': column 'price' holds values that are no double",
        ),
    ],
)
def test_what_breaks_the_contract_is_refused(lake, broken, message):
    with pytest.raises(ContractError, match=message):
        lake.write("products", broken)
    assert not lake.has("products")


def test_an_unknown_table_names_the_nearest(lake, con):
    with pytest.raises(ContractError, match="no table 'product'; did you mean 'products'"):
        lake.read("product", con)


def test_tables_are_read_without_python_in_arrows_threads(lake, monkeypatch):
    """Else a process that ends right after a read may abort: apache/arrow#39862."""
    lake.write("products", products(("p1", "cushion")))

    def refuse(*args, **kwargs):
        raise AssertionError("files are opened through Python")

    monkeypatch.setattr("deltalake.DeltaTable.to_pyarrow_dataset", refuse)
    assert names(lake) == {"p1": "cushion"}

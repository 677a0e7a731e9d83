import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_ml.engine import check_condition, lend, private_connection, where
from cdp_ml.errors import ConfigError

COLUMNS = ("orders_90d", "spend_90d", "city")


def test_a_condition_keeps_the_rows_that_satisfy_it(con):
    table = con.create_table("t", pa.table({"orders_90d": [1, 5, None], "city": ["a", "b", "c"]}))
    kept = con.to_pyarrow(where(con, table, "orders_90d between 2 and 9", "here", ["city"]))
    assert kept.to_pydict() == {"city": ["b"]}


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("unheard_of(orders_90d) > 1", "here: .*unheard_of does not exist"),
        ("city + 1 > 2", "here: No function matches .*VARCHAR"),
        ("sum(orders_90d) > 1", "here: .*aggregates"),
        ("city", "here: cannot be evaluated for some rows; write a comparison"),
        ("CAST(city AS INT) > 1", "here: cannot be evaluated for some rows; .*TRY_CAST"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_without_telling_a_value(condition, message, con):
    table = con.create_table("t", pa.table({"orders_90d": [1], "city": ["Secretville"]}))
    with pytest.raises(ConfigError, match=message) as refusal:
        where(con, table, condition, "here", ["city"])
    assert "Secretville" not in str(refusal.value)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("order_90d > 1", "here: no column 'order_90d'; did you mean 'orders_90d'"),
        ("orders_90d >", "here: not an SQL condition"),
        ("orders_90d > 1; DROP TABLE t", "here: not an SQL condition"),
        ("orders_90d > 1 ORDER BY 1", "here: not an SQL condition"),
        ("orders_90d IN (SELECT 1)", "here: not an SQL condition"),
    ],
)
def test_what_is_no_condition_on_the_columns_is_refused(condition, message):
    with pytest.raises(ConfigError, match=message):
        check_condition(condition, COLUMNS, "here")


def test_what_is_lent_is_read_where_it_lies_be_it_files_or_computed(con, tmp_path):
    rows = pa.table({"city": ["a", "b"], "orders": [1, 2]})
    pq.write_table(rows, tmp_path / "it's.parquet")
    files = con.read_parquet(tmp_path / "it's.parquet")
    db = private_connection(con)
    lend(files.filter(files.orders > 1).select("city"), "few", con, db)
    lend(files.join(con.create_table("held", rows), "city").select("city"), "joined", con, db)
    lend(rows, "all_of_it", con, db)
    found = {n: db.sql(f"SELECT city FROM {n} ORDER BY 1").fetchall() for n in ("few", "joined")}
    assert found == {"few": [("b",)], "joined": [("a",), ("b",)]}
    assert db.sql("SELECT sum(orders) FROM all_of_it").fetchall() == [(3,)]
    (kept,) = db.sql("SELECT sql FROM duckdb_views() WHERE view_name = 'few'").fetchall()
    assert "ibis_read_parquet" in kept[0]


def test_conditions_are_translated_for_spark():
    assert check_condition("city ILIKE 'a%'", COLUMNS, "here", "pyspark") == "city ILIKE 'a%'"

import pyarrow as pa
import pytest

from cdp_ml.engine import check_condition, where
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


def test_conditions_are_translated_for_spark():
    assert check_condition("city ILIKE 'a%'", COLUMNS, "here", "pyspark") == "city ILIKE 'a%'"

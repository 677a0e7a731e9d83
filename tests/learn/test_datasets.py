import datetime as dt

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from learn_cases import (
    AS_OF,
    clustering,
    customers_at,
    fitted_next,
    propensity,
    split_of,
    training_frame,
    uplift,
)

from cdp_ml.errors import ConfigError, ContractError, LeakageError, NotPromotedError
from cdp_ml.learn.datasets import (
    check_no_leak,
    eligible,
    feature_names,
    in_order,
    matrix,
    rows_at,
    time_split,
)

DAY = dt.timedelta(days=1)


def test_the_test_lies_a_horizon_back_and_training_ends_a_horizon_before_it():
    spec = propensity(snapshots={"count": 2, "every_days": 7})
    split = time_split(spec, AS_OF, AS_OF - 365 * DAY)
    assert split.test == AS_OF - 30 * DAY
    assert split.train == (AS_OF - 67 * DAY, AS_OF - 60 * DAY)
    assert split.instants == (*split.train, split.test)


def test_snapshots_without_a_horizon_of_history_before_them_are_left_out():
    split = time_split(propensity(), AS_OF, AS_OF - 121 * DAY)
    assert split.train == (AS_OF - 90 * DAY, AS_OF - 60 * DAY)


def test_too_short_a_history_is_said_and_not_crashed_on():
    with pytest.raises(NotPromotedError, match="too little history: 80 days, needs 90"):
        time_split(propensity(), AS_OF, AS_OF - 80 * DAY)


@given(st.integers(1, 120), st.integers(1, 60), st.integers(1, 20), st.integers(0, 900))
def test_no_training_label_is_younger_than_the_test(horizon, every, count, history):
    spec = propensity(
        label={"within_days": horizon}, snapshots={"count": count, "every_days": every}
    )
    try:
        split = time_split(spec, AS_OF, AS_OF - history * DAY)
    except NotPromotedError:
        assert history < 3 * horizon
        return
    assert all(t + split.horizon <= split.test for t in split.train)
    assert split.test + split.horizon == AS_OF
    assert 1 <= len(split.train) <= count


def uplift_split(began, as_of=AS_OF):
    spec = uplift(campaign="spring_2026", label={"within_days": 30})
    return time_split(spec, as_of, AS_OF - 900 * DAY, began)


def test_an_uplift_model_looks_at_the_midnight_before_its_campaign():
    start = AS_OF - 40 * DAY
    split = uplift_split({"spring_2026": start + dt.timedelta(hours=9)})
    assert split.instants == (start,)
    assert split.horizon == 30 * DAY


def test_without_its_campaign_there_is_no_uplift_model():
    with pytest.raises(NotPromotedError, match=r"no such campaign: 'spring_2026'; no exposures"):
        uplift_split({})
    with pytest.raises(NotPromotedError, match=r"no such campaign.*did you mean 'spring_2025'"):
        uplift_split({"spring_2025": AS_OF - 400 * DAY})
    with pytest.raises(NotPromotedError, match="no such campaign"):
        uplift_split({"spring_2026": AS_OF})


def test_a_campaign_is_not_judged_before_its_outcomes_are_known():
    start = AS_OF - 29 * DAY
    with pytest.raises(NotPromotedError, match=f"known from {start + 30 * DAY:%Y-%m-%d} on"):
        uplift_split({"spring_2026": start})
    assert uplift_split({"spring_2026": start}, AS_OF + DAY).instants == (start,)


def test_next_items_are_tested_on_the_last_window():
    spec = fitted_next().spec.model_copy(update={"estimator": {"windows": 2}})
    split = time_split(spec, AS_OF, AS_OF)
    assert (split.train, split.test) == ((AS_OF - 90 * DAY, AS_OF - 60 * DAY), AS_OF - 30 * DAY)


def test_clusters_are_of_now():
    assert split_of(clustering()).instants == (AS_OF,)


def test_the_population_is_an_sql_condition_over_features(con):
    features = con.create_table("features", customers_at(AS_OF, rows=20))
    spec = propensity(population="orders_365d >= 3")
    found = eligible(con, features, spec).to_pyarrow()
    expected = (customers_at(AS_OF, rows=20)["orders_365d"].to_numpy() >= 3).sum()
    assert found.num_rows == expected
    assert found.column_names == ["customer_id", "event_timestamp"]


def test_a_misspelt_population_names_the_feature_meant(con):
    features = con.create_table("features", customers_at(AS_OF, rows=1))
    with pytest.raises(ConfigError, match=r"purchase_30d.yaml: population.*'orders_365d'"):
        eligible(con, features, propensity(population="orders_356d > 0"))


def test_features_are_the_numeric_columns_and_neither_key_nor_label():
    frame = customers_at(AS_OF, rows=2).append_column("country", pa.array(["GB", "GB"]))
    names = feature_names(propensity(), frame)
    assert "visits_30d" in names
    assert not {"customer_id", "event_timestamp", "label", "country"} & set(names)


def test_an_unknown_input_names_the_one_meant():
    with pytest.raises(ContractError, match="did you mean 'visits_30d'"):
        feature_names(propensity(inputs=("visit_30d",)), customers_at(AS_OF, rows=2))


def test_a_matrix_is_the_same_from_arrow_pandas_and_lists():
    columns = {"a": [1, None, 3], "b": [True, False, None]}
    expected = np.array([[1, 1], [np.nan, 0], [3, np.nan]])
    for frame in (pa.table(columns), pd.DataFrame(columns).convert_dtypes(), columns):
        np.testing.assert_array_equal(matrix(frame, ("a", "b")), expected)


def test_a_missing_feature_is_named():
    with pytest.raises(ContractError, match=r"no feature 'spent' in .*; did you mean 'spend'"):
        matrix({"spend": [1.0], "visits": [1.0]}, ("spent",))


def test_a_feature_from_after_its_instant_is_a_leak():
    frame = training_frame(propensity())
    computed = pa.array([t + DAY for t in frame["event_timestamp"].to_pylist()])
    planted = frame.append_column("traits_computed_at", computed)
    with pytest.raises(LeakageError, match="'traits_computed_at' lies after their instant"):
        check_no_leak(planted, split_of(propensity()), "purchase_30d")


def test_a_feature_from_its_instant_or_before_is_none():
    frame = training_frame(propensity())
    at = frame.append_column("traits_computed_at", frame["event_timestamp"])
    check_no_leak(at, split_of(propensity()), "purchase_30d")


@pytest.mark.parametrize("days_before_test", [29, 1, -1])
def test_a_training_label_that_closes_after_the_test_is_a_leak(days_before_test):
    split = split_of(propensity())
    overlapping = customers_at(split.test - days_before_test * DAY)
    frame = pa.concat_tables([training_frame(propensity()), overlapping])
    with pytest.raises(LeakageError, match="its outcome was not yet known then"):
        check_no_leak(frame, split, "purchase_30d")


def test_the_order_and_kind_of_a_frame_do_not_matter():
    frame = customers_at(AS_OF, rows=12)
    shuffled = frame.take(np.random.default_rng(0).permutation(12)).to_pandas()
    assert in_order(shuffled)["visits_30d"] == in_order(frame)["visits_30d"]


def test_rows_are_taken_at_their_instants():
    split = split_of(propensity())
    frame = training_frame(propensity(), rows=5)
    assert rows_at(frame, split.train).num_rows == 15
    assert set(rows_at(frame, (split.test,))["event_timestamp"].to_pylist()) == {split.test}

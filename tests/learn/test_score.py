import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from learn_cases import (
    AS_OF,
    campaign_at,
    customers_at,
    fitted,
    fitted_clusters,
    fitted_next,
    fitted_uplift,
    order_lines,
    three_kinds_of_customers,
)

from cdp_ml.contracts import arrow_schema
from cdp_ml.errors import CdpError, ContractError
from cdp_ml.learn.datasets import matrix
from cdp_ml.learn.score import BLOCK, _percentiles, recommend_items, score_customers


@pytest.fixture(scope="module")
def predictor():
    return dataclasses.replace(fitted().predictor, version=4)


def test_scores_are_probabilities_with_the_share_of_lower_ones(predictor):
    customers = customers_at(AS_OF, rows=50)
    scores = score_customers(predictor, [customers], AS_OF)
    assert scores.schema == arrow_schema("scores")
    given = scores["score"].to_numpy()
    assert ((given > 0) & (given < 1)).all()
    lower = [(given < s).mean() for s in given]
    np.testing.assert_allclose(scores["percentile"].to_numpy(), lower)
    assert set(scores["model_version"].to_pylist()) == {4}
    assert scores["cluster"].null_count == 50


@given(st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 2.5])))
def test_a_percentile_is_the_share_of_lower_scores(values):
    """Also where many are equal, as a rule's are, or all."""
    found = _percentiles(pa.chunked_array([values], pa.float64())).to_pylist()
    assert found == [sum(v < value for v in values) / len(values) for value in values]


def test_many_customers_score_as_each_of_them_alone(predictor):
    customers = customers_at(AS_OF, rows=2 * BLOCK + 5)
    whole = predictor.model.predict(matrix(customers, predictor.features))
    np.testing.assert_array_equal(predictor.predict(customers), whole)


def test_clusters_are_assigned_by_name():
    predictor = dataclasses.replace(fitted_clusters().predictor, version=1)
    scores = score_customers(predictor, [three_kinds_of_customers()], AS_OF)
    assert set(scores["cluster"].to_pylist()) == set(predictor.clusters)
    assert (scores["score"].to_numpy() >= 0).all()
    assert predictor.reasons(three_kinds_of_customers().slice(0, 2)) == [[], []]


def test_a_new_customer_falls_into_the_cluster_of_those_alike():
    predictor = fitted_clusters().predictor
    old = predictor.assign(three_kinds_of_customers())[0]
    new = {"days_since_last_order": [9.0], "orders_365d": [21.0], "spend_365d": [880.0]}
    assert predictor.assign(new)[0] == old


def test_an_uplift_is_the_probability_that_treatment_adds():
    predictor = dataclasses.replace(fitted_uplift().predictor, version=1)
    customers = campaign_at(AS_OF, 500)
    uplift = score_customers(predictor, [customers], AS_OF)["score"].to_numpy()
    moved = customers["visits_30d"].to_numpy() > 0
    assert uplift[moved].mean() == pytest.approx(0.5, abs=0.1)
    assert uplift[~moved].mean() == pytest.approx(0.0, abs=0.1)
    assert predictor.reasons(customers.slice(0, 2)) == [[], []]


def test_recommendations_are_rows_of_their_table():
    predictor = dataclasses.replace(fitted_next().predictor, version=2)
    found = recommend_items(predictor, order_lines(), AS_OF, top=2)
    assert found.schema == arrow_schema("recommendations")
    assert set(found["rank"].to_pylist()) == {1, 2}
    assert set(found["model_version"].to_pylist()) == {2}
    assert (found["score"].to_numpy() <= 1).all()
    key = found.select(["customer_id", "rank"]).to_pandas()
    assert not key.duplicated().any()
    assert found["customer_id"].unique().sort() == order_lines()["customer_id"].unique().sort()
    assert recommend_items(predictor, order_lines().slice(0, 0), AS_OF).num_rows == 0


def test_nobody_to_score_gives_no_scores(predictor):
    nobody = customers_at(AS_OF, rows=3).slice(0, 0)
    assert score_customers(predictor, [nobody], AS_OF).num_rows == 0


def test_all_reasons_and_the_expectation_add_up_to_the_log_odds(predictor):
    customers = customers_at(AS_OF, rows=5)
    chance = predictor.predict(customers)
    reasons = predictor.reasons(customers, top=len(predictor.features))
    x = np.column_stack([customers[f].to_numpy() for f in predictor.features])
    expectation = predictor.model.predict(x, pred_contrib=True)[:, -1]
    total = [sum(r.contribution for r in row) for row in reasons] + expectation
    np.testing.assert_allclose(total, np.log(chance / (1 - chance)))


def test_reasons_come_strongest_first_with_the_value_seen(predictor):
    customer = customers_at(AS_OF, rows=1)
    (reasons,) = predictor.reasons(customer, top=3)
    sizes = [abs(r.contribution) for r in reasons]
    assert len(reasons) == 3
    assert sizes == sorted(sizes, reverse=True)
    assert all(r.value == customer[r.feature][0].as_py() for r in reasons)


def test_unknown_values_score_and_are_reported_as_unknown(predictor):
    unknown = {f: [None] for f in predictor.features}
    assert 0 < predictor.predict(unknown)[0] < 1
    assert all(r.value is None for r in predictor.reasons(unknown)[0])


def test_a_missing_feature_is_named(predictor):
    with pytest.raises(ContractError, match="no feature 'visits_30d'"):
        score_customers(predictor, [customers_at(AS_OF, rows=2).drop(["visits_30d"])], AS_OF)


def test_an_unregistered_model_writes_no_scores():
    with pytest.raises(CdpError, match="not registered"):
        score_customers(fitted().predictor, [pa.table({"customer_id": ["a"]})], AS_OF)

import numpy as np
import pytest

from cdp_ml.errors import ConfigError
from cdp_ml.learn.estimators import baseline_scores, fit_lightgbm, fit_logistic, parameters

NAMES = ("days_since_last_order", "orders_lifetime")


def some_rows(n=200):
    random = np.random.default_rng(0)
    x = np.column_stack([random.integers(0, 100, n), random.integers(1, 9, n)]).astype(float)
    return x, (x[:, 1] > 4).astype(float)


def test_the_same_rows_give_the_same_trees():
    x, y = some_rows()
    chosen = parameters({"n_estimators": 10}, len(y), "here")
    first, second = (fit_lightgbm(x, y, NAMES, chosen).model_to_string() for _ in range(2))
    assert first == second


def test_few_rows_get_small_trees_unless_the_specification_says_otherwise():
    assert parameters({}, 100_000, "here")["num_leaves"] == 15
    assert parameters({}, 19_999, "here")["num_leaves"] == 8
    assert parameters({}, 4_999, "here")["num_leaves"] == 4
    assert parameters({"num_leaves": 31}, 100, "here")["num_leaves"] == 31


def test_a_leaf_holds_a_fiftieth_of_few_rows_unless_the_specification_says_otherwise():
    assert parameters({}, 100_000, "here")["min_child_samples"] == 50
    assert parameters({}, 1_000, "here")["min_child_samples"] == 20
    assert parameters({}, 100, "here")["min_child_samples"] == 5
    assert parameters({"min_child_samples": 7}, 100_000, "here")["min_child_samples"] == 7


def test_an_unknown_parameter_names_the_one_meant():
    with pytest.raises(ConfigError, match=r"m.yaml: no parameter 'num_leafs'.*'num_leaves'"):
        parameters({"num_leafs": 3}, 100, "m.yaml")


def test_leaves_to_be_found_are_those_of_few_rows_until_they_are():
    assert parameters({"num_leaves": "auto"}, 19_999, "here")["num_leaves"] == 8


def test_a_text_is_no_number():
    with pytest.raises(ConfigError, match=r"m.yaml: num_leaves: must be a number, not 'atuo'"):
        parameters({"num_leaves": "atuo"}, 100, "m.yaml")


def test_random_thresholds_give_other_trees():
    x, y = some_rows()
    plain, random = (
        fit_lightgbm(x, y, NAMES, parameters({"n_estimators": 5, "extra_trees": e}, 200, "here"))
        for e in (0, 1)
    )
    assert not np.array_equal(plain.predict(x), random.predict(x))


def test_recency_and_frequency_rank_as_their_names_say():
    x = np.array([[1.0, 9], [50, 2], [np.nan, 1]])
    scores = baseline_scores(some_rows(), x, NAMES, happens=True)
    assert list(np.argsort(-scores["recency"])) == [0, 1, 2]
    assert list(np.argsort(-scores["frequency"])) == [0, 1, 2]


def test_for_churn_they_rank_the_other_way():
    x = np.array([[1.0, 9], [50, 2], [np.nan, 1]])
    scores = baseline_scores(some_rows(), x, NAMES, happens=False)
    assert list(np.argsort(-scores["recency"])) == [2, 1, 0]
    assert list(np.argsort(-scores["frequency"])) == [2, 1, 0]


def test_baselines_without_their_feature_are_left_out():
    x, y = some_rows()
    assert set(baseline_scores((x, y), x, ("a", "b"), happens=True)) == {"logistic"}


def test_the_logistic_regression_bears_unknown_and_constant_features():
    x, y = some_rows()
    x = np.column_stack([x, np.full(len(x), np.nan), np.ones(len(x))])
    x[::3, 0] = np.nan
    probability = fit_logistic(x, y).predict_proba(x)[:, 1]
    assert ((probability > 0.5) == y).mean() > 0.9

import numpy as np
import pytest

from cdp_ml.learn.baselines import (
    HISTORY,
    VALUE_HISTORY,
    fit_expectation,
    has_history,
    propensity_baselines,
    rank_scores,
    value_baselines,
)
from cdp_ml.learn.estimators import fit_logistic

NAMES = ("days_since_last_order", "orders_lifetime", "spend_365d")
THREE = np.array([[1.0, 9, 90], [50, 2, 30], [np.nan, 1, 10]])


def order(scores):
    return list(np.argsort(-scores, kind="stable"))


def test_ranks_rank_as_their_names_say():
    scores = rank_scores(THREE, NAMES, happens=True)
    assert {name: order(s) for name, s in scores.items()} == {
        "recency": [0, 1, 2],
        "frequency": [0, 1, 2],
        "monetary": [0, 1, 2],
        "rfm": [0, 1, 2],
    }


def test_for_churn_they_rank_the_other_way():
    scores = rank_scores(THREE, NAMES, happens=False)
    assert all(order(s) == [2, 1, 0] for s in scores.values())


def test_rfm_is_the_sum_of_the_fifths():
    x = np.column_stack([np.arange(10.0)[::-1], np.arange(10.0), np.zeros(10)])
    assert list(rank_scores(x, NAMES, True)["rfm"]) == [3, 3, 5, 5, 7, 7, 9, 9, 11, 11]


def test_ranks_without_their_feature_are_left_out():
    assert not rank_scores(THREE, ("a", "b", "c"), happens=True)
    assert set(rank_scores(THREE, ("a", "orders_lifetime", "c"), True)) == {"frequency"}


def shoppers(n=2_000, seed=0):
    """Orders, days since the first and the last, and spend; some have left long ago."""
    random = np.random.default_rng(seed)
    orders = 1 + random.poisson(2, n).astype(float)
    age = random.uniform(200, 400, n)
    since = np.where(orders > 1, age * random.beta(1, 2, n), age)
    return np.column_stack([orders, age, since, orders * random.gamma(4, 10, n)])


def test_bgnbd_is_a_probability_that_falls_with_silence_and_rises_with_orders():
    few = np.array([[5.0, 300, 10, 100], [5, 300, 250, 100], [1, 300, 300, 20]])
    x = np.vstack([few, shoppers()])
    y = (np.random.default_rng(1).random(len(x)) < 0.3).astype(float)
    for happens in (True, False):
        chance = propensity_baselines(fit_logistic(x, y), x, VALUE_HISTORY, happens, 90)["bgnbd"]
        assert np.all((chance > 0) & (chance < 1))
        assert order(chance[:3] if happens else -chance[:3])[0] == 0


def test_without_a_second_purchase_there_is_no_bgnbd():
    x = shoppers()
    x[:, 0], x[:, 2] = 1, x[:, 1]
    y = (np.random.default_rng(1).random(len(x)) < 0.3).astype(float)
    assert "bgnbd" not in propensity_baselines(fit_logistic(x, y), x, VALUE_HISTORY, True, 90)


def test_the_expected_spend_is_purchases_times_their_value():
    x = shoppers()
    expected = fit_expectation(x, VALUE_HISTORY, 90)
    spend = expected.spend(x, VALUE_HISTORY)
    assert spend.mean() == pytest.approx(
        (spend / expected.value.mean_value(x[:, 0], x[:, 3] / x[:, 0])).mean() * 40, rel=0.1
    )
    assert set(value_baselines(x, VALUE_HISTORY, 90)) >= {"bgnbd", "frequency", "recency"}
    assert "bgnbd" not in value_baselines(x[:, :3], VALUE_HISTORY[:3], 90)


def test_who_has_a_history():
    assert has_history(HISTORY)
    assert not has_history(HISTORY, value=True)
    assert has_history((*VALUE_HISTORY, "more"), value=True)

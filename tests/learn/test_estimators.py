import lightgbm
import numpy as np
import pytest

from cdp_ml.errors import ConfigError
from cdp_ml.learn.estimators import (
    fit_lightgbm,
    fit_logistic,
    fit_sigmoid,
    join_logistic,
    log_odds,
    mixed,
    parameters,
    recalibrate,
)

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


def test_a_recalibrated_booster_is_the_sigmoid_of_its_log_odds():
    x, y = some_rows()
    booster = fit_lightgbm(x, y, NAMES, parameters({"n_estimators": 5}, 200, "here"))
    raw = booster.predict(x, raw_score=True)
    changed = recalibrate(booster, 0.7, -0.3)
    np.testing.assert_allclose(changed.predict(x), 1 / (1 + np.exp(-(0.7 * raw - 0.3))))
    assert not np.allclose(booster.predict(x), changed.predict(x))


def test_a_sigmoid_undoes_what_was_overstated():
    random = np.random.default_rng(0)
    odds = random.normal(size=20_000)
    y = (random.random(20_000) < 1 / (1 + np.exp(-odds))).astype(float)
    slope, shift = fit_sigmoid(1 / (1 + np.exp(-2 * odds - 1)), y)
    assert slope == pytest.approx(1 / 2, abs=0.03)
    assert shift == pytest.approx(-1 / 2, abs=0.05)


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_trees_and_a_logistic_regression_are_one_booster(share):
    x, y = skewed_rows()
    booster, logistic = trees_and_logistic(x, y)
    joined = join_logistic(booster, logistic, x, share)
    expected = log_odds(mixed(booster.predict(x), logistic.predict_proba(x)[:, 1], share))
    found = joined.predict(x, raw_score=True)
    assert np.abs(found - expected).mean() < 0.02 * expected.std()
    np.testing.assert_allclose(joined.predict(x), 1 / (1 + np.exp(-found)))


def test_what_is_joined_is_read_back_explained_and_recalibrated_like_any_booster(tmp_path):
    x, y = skewed_rows()
    joined = join_logistic(*trees_and_logistic(x, y), x, 0.5)
    joined.save_model(tmp_path / "model.lgb")
    again = lightgbm.Booster(model_file=tmp_path / "model.lgb")
    np.testing.assert_array_equal(again.predict(x), joined.predict(x))
    shares = again.predict(x, pred_contrib=True)
    np.testing.assert_allclose(shares.sum(axis=1), joined.predict(x, raw_score=True))
    assert (shares[:, 3] == 0).all()  # nothing but unknown values
    changed = recalibrate(joined, 0.7, -0.3).predict(x, raw_score=True)
    np.testing.assert_allclose(changed, 0.7 * joined.predict(x, raw_score=True) - 0.3)


def test_beyond_what_was_seen_the_regression_s_part_stays_level():
    x, y = skewed_rows()
    joined = join_logistic(*trees_and_logistic(x, y), x, 1.0)
    far, further = (np.where(np.arange(4) == 0, v, x[:1]) for v in (1e5, 1e9))
    assert joined.predict(far) == joined.predict(further)


def test_what_was_known_of_all_is_taken_for_usual_once_it_is_unknown():
    """As the regression does; the trees would read 0, which lies far outside here."""
    random = np.random.default_rng(0)
    x = np.column_stack([random.normal(1_000, 50, 2_000), random.normal(size=2_000)])
    y = (random.random(2_000) < 1 / (1 + np.exp(-(x[:, 0] - 1_000) / 30))).astype(float)
    booster = fit_lightgbm(x, y, ("a", "b"), parameters({"n_estimators": 20}, len(y), "here"))
    logistic = fit_logistic(x, y)
    joined = join_logistic(booster, logistic, x, 1.0)
    unknown = np.array([[np.nan, 0.3], [np.nan, np.nan], [1_050.0, np.nan]])
    expected = logistic.predict_proba(unknown)[:, 1]
    np.testing.assert_allclose(joined.predict(unknown), expected, atol=0.03)


def skewed_rows(n=2_000):
    """A skewed feature, one with gaps, one that says nothing, and one that is never known."""
    random = np.random.default_rng(0)
    x = np.column_stack(
        [random.lognormal(3, 1, n), *random.normal(size=(2, n)), np.full(n, np.nan)]
    )
    odds = np.log(x[:, 0]) - 3 + x[:, 1]
    x[::5, 1] = np.nan
    return x, (random.random(n) < 1 / (1 + np.exp(-odds))).astype(float)


def trees_and_logistic(x, y):
    chosen = parameters({"n_estimators": 20}, len(y), "here")
    return fit_lightgbm(x, y, ("a", "b", "c", "d"), chosen), fit_logistic(x, y)


def test_the_logistic_regression_takes_infinity_for_unknown():
    x, y = some_rows()
    x[::7, 0], unknown = np.inf, x.copy()
    unknown[::7, 0] = np.nan
    found, expected = (fit_logistic(v, y).predict_proba(v) for v in (x, unknown))
    np.testing.assert_array_equal(found, expected)


def test_the_logistic_regression_bears_unknown_and_constant_features():
    x, y = some_rows()
    x = np.column_stack([x, np.full(len(x), np.nan), np.ones(len(x))])
    x[::3, 0] = np.nan
    probability = fit_logistic(x, y).predict_proba(x)[:, 1]
    assert ((probability > 0.5) == y).mean() > 0.9

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from cdp_ml.errors import NotPromotedError
from cdp_ml.learn.evaluate import (
    auc_against_truth,
    auc_gain,
    check_learnable,
    decile_table,
    judge_propensity,
    judge_value,
    propensity_metrics,
    value_metrics,
)

OUTCOMES = np.array([0, 1, 0, 1, 1, 0, 0, 0, 1, 0] * 40, dtype=float)


def noisy(strength, seed=0):
    noise = np.random.default_rng(seed).normal(size=len(OUTCOMES))
    return 1 / (1 + np.exp(-(strength * OUTCOMES + noise - strength / 2)))


def test_a_hand_computed_case():
    y = np.array([0.0, 1, 0, 1])
    found = propensity_metrics(y, np.array([0.1, 0.4, 0.6, 0.8]), draws=5)
    assert found["auc"].value == pytest.approx(3 / 4)
    assert found["average_precision"].value == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found["brier"].value == pytest.approx((0.01 + 0.36 + 0.36 + 0.04) / 4)
    assert found["base_rate"].value == 0.5


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 8]))
@settings(max_examples=25, deadline=None)
def test_metrics_equal_those_of_scikit_learn_also_with_ties(seed, digits):
    random = np.random.default_rng(seed)
    y = np.r_[0.0, 1.0, (random.random(60) < 0.3).astype(float)]
    score = np.clip(np.round(random.random(62), digits), 0.01, 0.99)
    found = propensity_metrics(y, score, draws=2)
    expected = {
        "auc": reference.roc_auc_score,
        "average_precision": reference.average_precision_score,
        "brier": reference.brier_score_loss,
        "log_loss": reference.log_loss,
    }
    for name, metric in expected.items():
        assert found[name].value == pytest.approx(metric(y, score)), name


def test_intervals_hold_the_value_and_shrink_with_the_data():
    few = propensity_metrics(OUTCOMES[:100], noisy(2)[:100])["auc"]
    many = propensity_metrics(np.tile(OUTCOMES, 9), np.tile(noisy(2), 9))["auc"]
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 2


def test_honest_probabilities_have_a_small_calibration_error_and_inflated_ones_do_not():
    random = np.random.default_rng(0)
    chance = random.random(5_000)
    y = (random.random(5_000) < chance).astype(float)
    assert propensity_metrics(y, chance, draws=2)["ece"].value < 0.03
    inflated = propensity_metrics(y, chance**0.5, draws=2)["ece"].value
    assert inflated == pytest.approx((chance**0.5 - chance).mean(), abs=0.02)


def test_ranks_have_no_calibration():
    found = propensity_metrics(OUTCOMES, -noisy(1), probability=False, draws=2)
    assert set(found) == {"auc", "average_precision", "top_decile_lift", "base_rate"}


def test_a_gain_over_oneself_is_nothing():
    gain = auc_gain(OUTCOMES, noisy(1), noisy(1))
    assert (gain.value, gain.low, gain.high) == (0.0, 0.0, 0.0)


def test_a_model_better_than_its_baselines_is_promoted():
    judged = judge_propensity("m", OUTCOMES, noisy(3), {"recency": noisy(1, seed=1)}, 0.0)
    assert judged.promoted
    assert "m is promoted: AUC 0.9" in judged.verdict
    assert "the best baseline (recency)" in judged.verdict
    assert judged.metrics["auc_gain"].low > 0


def test_a_model_no_better_than_a_baseline_is_not():
    rivals = {"recency": noisy(0, seed=2), "logistic": noisy(1)}
    judged = judge_propensity("m", OUTCOMES, noisy(1), rivals, 0.0)
    assert not judged.promoted
    assert "m is not promoted" in judged.verdict
    assert "(logistic)" in judged.verdict


def test_a_model_that_ranks_better_but_knows_worse_how_likely_is_not():
    honest, better = noisy(1), noisy(3)
    judged = judge_propensity("m", OUTCOMES, better / 50, {"logistic": honest}, 0.0)
    assert judged.metrics["auc"].value > judged.metrics["baseline_logistic/auc"].value
    assert not judged.promoted
    assert "it must be lower" in judged.verdict
    assert judge_propensity("m", OUTCOMES, better, {"logistic": honest}, 0.0).promoted


def test_the_verdict_says_by_how_much_and_how_sure():
    judged = judge_propensity("m", OUTCOMES, noisy(3), {"logistic": noisy(1)}, 0.0)
    assert f"lead {judged.metrics['auc_gain']}" in judged.verdict
    assert "log-loss 0." in judged.verdict


def test_the_gate_asks_for_the_lead_of_its_specification():
    rival = {"recency": noisy(1.5, seed=3)}
    assert judge_propensity("m", OUTCOMES, noisy(3), rival, 0.01).promoted
    judged = judge_propensity("m", OUTCOMES, noisy(3), rival, 0.4)
    assert not judged.promoted
    assert "better by more than 0.4" in judged.verdict


def honest(strength, seed=0, shift=0.0):
    """The probability given y * strength + noise; `shift` overstates its log-odds."""
    z = strength * OUTCOMES + np.random.default_rng(seed).normal(size=len(OUTCOMES))
    prior = np.log(OUTCOMES.mean() / (1 - OUTCOMES.mean()))
    return 1 / (1 + np.exp(-(strength * z - strength**2 / 2 + prior + shift)))


def test_a_challenger_below_the_champion_is_not_promoted():
    rival = {"recency": noisy(0, seed=2)}
    better, worse = honest(3), honest(1.5)
    assert not judge_propensity("m", OUTCOMES, worse, rival, 0.0, champion=better).promoted
    judged = judge_propensity("m", OUTCOMES, better, rival, 0.0, champion=worse)
    assert judged.promoted, judged.verdict
    assert judged.metrics["champion/log_loss_gain"].low > 0


def test_a_challenger_that_may_be_worse_is_not_promoted_but_the_same_is():
    rival, champion = {"recency": noisy(0, seed=2)}, honest(2)
    alike = judge_propensity("m", OUTCOMES, honest(2.02, seed=5), rival, 0.0, champion=champion)
    assert alike.metrics["champion/log_loss_gain"].low < 0
    assert "its interval must not reach below 0" in alike.verdict
    assert judge_propensity("m", OUTCOMES, champion, rival, 0.0, champion=champion).promoted


def test_a_challenger_whose_probabilities_mean_less_is_not_promoted():
    rival = {"recency": noisy(0, seed=2)}
    judged = judge_propensity("m", OUTCOMES, honest(3, shift=2.5), rival, 0.0, champion=honest(1))
    assert judged.metrics["champion/log_loss_gain"].low > 0
    assert "its ECE is worse than the champion's by 0." in judged.verdict


def test_the_gain_over_every_baseline_has_an_interval():
    rivals = {"recency": noisy(1, seed=1), "frequency": noisy(0.5, seed=2)}
    judged = judge_propensity("m", OUTCOMES, noisy(3), rivals, 0.0)
    for name, score in rivals.items():
        assert judged.metrics[f"baseline_{name}/auc_gain"] == auc_gain(OUTCOMES, noisy(3), score)


def test_the_gini_of_a_hand_computed_case():
    """Spend 0, 0, 10, 30; best order reaches 3/4, then all: the area is known."""
    y = np.array([0.0, 0, 10, 30])
    by_order = {(3, 2, 1, 0): 1.0, (0, 1, 2, 3): -1.0, (2, 3, 1, 0): 0.6}
    for order, expected in by_order.items():
        score = np.empty(4)
        score[list(order)] = [4.0, 3, 2, 1]
        assert value_metrics(y, score, draws=1)["gini"].value == pytest.approx(expected)
    assert value_metrics(y, np.ones(4), draws=1)["gini"].value == pytest.approx(0)


SPEND = np.random.default_rng(0).gamma(2, 20, 500) * (np.arange(500) % 3 == 0)


def forecast(noise, level=1.0, seed=0):
    error = np.random.default_rng(seed).normal(size=len(SPEND)) * noise
    return level * np.maximum(SPEND + error, 0) / np.maximum(SPEND + error, 0).mean() * SPEND.mean()


def test_a_value_is_judged_by_rank_level_and_deciles():
    found = value_metrics(SPEND, SPEND * 1.5, draws=3)
    assert found["gini"].value == pytest.approx(1)
    assert found["bias"].value == pytest.approx(1.5)
    assert found["decile_mape"].value == pytest.approx(0.5)
    assert found["mae"].value == pytest.approx(0.5 * SPEND.mean())
    assert "bias" not in value_metrics(SPEND, SPEND, amount=False, draws=1)


def test_a_value_model_is_promoted_by_its_gini_unless_its_level_is_off():
    rivals = {"bgnbd": forecast(60, seed=1), "frequency": forecast(90, seed=2)}
    assert judge_value("v", SPEND, forecast(20), rivals, 0.0).promoted
    high = judge_value("v", SPEND, forecast(20, level=2.0), rivals, 0.0)
    assert "predicted over actual spend 2.00; it must be between 0.67 and 1.50" in high.verdict
    rank = judge_value("v", SPEND, forecast(60, seed=1), rivals, 0.0)
    assert "v is not promoted: Gini" in rank.verdict
    assert "(bgnbd)" in rank.verdict


def test_a_value_model_below_the_champion_is_not_promoted():
    rivals = {"frequency": forecast(90, seed=2)}
    judged = judge_value("v", SPEND, forecast(40), rivals, 0.0, champion=forecast(10))
    assert "over the champion in Gini" in judged.verdict
    assert not judged.promoted


def test_deciles_add_up():
    table = decile_table(OUTCOMES, noisy(2))
    assert table["customers"].to_pylist() == [40] * 10
    assert table["gain"].to_pylist()[-1] == 1.0
    assert np.mean(table["lift"].to_numpy()) == pytest.approx(1.0)
    assert np.all(np.diff(table["mean_score"].to_numpy()) <= 0)


def test_the_truth_attains_itself_and_chance_attains_nothing():
    truth = noisy(2)
    assert auc_against_truth(OUTCOMES, truth, truth)["attained"] == 1.0
    assert auc_against_truth(OUTCOMES, np.zeros(len(OUTCOMES)), truth)["attained"] == 0.0


def test_one_class_cannot_be_learnt():
    with pytest.raises(NotPromotedError, match="training has 50 rows, 0 of them"):
        check_learnable(np.zeros(50), "m", "training")
    check_learnable(np.r_[np.zeros(20), np.ones(20)], "m", "training")

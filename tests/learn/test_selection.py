import time

import numpy as np
import pyarrow as pa
import pytest
from learn_cases import customers_at, propensity, split_of

from cdp_ml.learn.estimators import parameters
from cdp_ml.learn.selection import Candidate, Forward, _simplest, candidates_table, choose

FEATURES = ("days_since_last_order", "orders_365d", "visits_30d")
SIX = {"count": 6, "every_days": 30}


def spec_of(**changes):
    given = {"estimator": {"n_estimators": 20}, "snapshots": SIX}
    return propensity(**{**given, **changes})


def past_of(spec, changed=lambda table: table):
    return pa.concat_tables([changed(customers_at(t)) for t in split_of(spec).train])


def straight(table):
    """The same customers, whose outcome depends on each feature by itself."""
    odds = (table["visits_30d"].to_numpy() - table["days_since_last_order"].to_numpy() / 90) * 1.5
    happens = np.random.default_rng(0).random(len(odds)) < 1 / (1 + np.exp(-odds))
    label = pa.array(happens.astype(float))
    return table.set_column(table.column_names.index("label"), "label", label)


def chosen(spec, past=None):
    return choose(spec, past_of(spec) if past is None else past, split_of(spec), FEATURES)


def test_a_trial_learns_only_from_windows_that_had_closed():
    spec = spec_of(snapshots={"count": 6, "every_days": 15})
    forward = Forward(spec, past_of(spec), split_of(spec), FEATURES)
    *_, third, _, newest = split_of(spec).train
    assert forward.closed_by(newest) == split_of(spec).train[:4]
    assert forward.closed_by(newest)[-1] == third


def test_leaves_are_tried_unless_the_specification_gives_them():
    tried = chosen(spec_of(estimator={"n_estimators": 20, "logistic_share": 0}))
    assert [c.parameters["num_leaves"] for c in tried.candidates] == [4, 8, 15, 31]
    assert tried.parameters in [c.parameters for c in tried.candidates]
    table = candidates_table(tried.candidates)
    assert table.column_names == ["num_leaves", "log_loss", "auc"]
    given = {"n_estimators": 20, "num_leaves": 5, "logistic_share": 0.5}
    assert not chosen(spec_of(estimator=given)).candidates


def test_candidates_tried_side_by_side_are_what_they_are_one_after_the_other(monkeypatch):
    found = {}
    for cores in (1, 4):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        found[cores] = chosen(spec_of())
    assert found[1].parameters == found[4].parameters
    one, four = ([c.metrics for c in found[cores].candidates] for cores in (1, 4))
    assert one == four


def candidate(leaves, losses):
    return Candidate({"num_leaves": leaves}, {"log_loss": np.mean(losses)}, 1.0, np.array(losses))


def test_the_fewest_leaves_are_taken_that_are_no_worse_by_a_standard_error():
    worse = candidate(4, [0.5, 0.5, 0.5, 0.6])  # by 0.1 each, but for a standard error of 0.02
    like = candidate(8, [0.3, 0.5, 0.4, 0.5])
    best = candidate(15, [0.4, 0.4, 0.4, 0.4])
    more = candidate(31, [0.4, 0.4, 0.4, 0.41])
    assert _simplest([worse, like, best, more], "propensity") is like
    assert _simplest([worse, best, more], "propensity") is best
    values = [Candidate({"num_leaves": n}, {"gini": g}, 1.0) for n, g in ((4, 0.70), (8, 0.71))]
    assert _simplest(values, "value") is values[1]


def test_trees_go_without_the_regression_where_they_do_better_so():
    """What happens depends on two features together, which no regression can tell."""
    given = {"n_estimators": 100, "num_leaves": 8}
    alone = chosen(spec_of(estimator=given))
    assert [c.parameters["logistic_share"] for c in alone.candidates] == [0.5, 0]
    assert alone.parameters["logistic_share"] == 0
    kept = chosen(spec_of(estimator={**given, "logistic_share": 0.5}))
    assert kept.parameters["logistic_share"] == 0.5


def test_the_regression_stays_where_it_helps():
    found = chosen(spec_of(), past_of(spec_of(), straight))
    assert found.parameters["logistic_share"] == 0.5
    assert found.candidates[-1].parameters["logistic_share"] == 0


def test_training_stops_early_where_more_trees_did_worse():
    """Eager trees, fitted to pure chance, do worse with every one more."""
    chance = [customers_at(t, learnable=False) for t in split_of(spec_of()).train]
    eager = spec_of(estimator={"learning_rate": 0.3, "logistic_share": 0})
    found = chosen(eager, pa.concat_tables(chance))
    assert {c.parameters["n_estimators"] for c in found.candidates} == {100}
    kept = spec_of(estimator={**eager.estimator, "n_estimators": 300})
    assert chosen(kept, pa.concat_tables(chance)).parameters["n_estimators"] == 300


def test_fewer_trees_are_the_first_of_many():
    spec = spec_of(estimator={"n_estimators": 30})
    forward = Forward(spec, past_of(spec), split_of(spec), FEATURES)
    params = parameters(spec.estimator, 2_400, "here")
    _, score = forward.predict({**params, "n_estimators": 30}, forward.newest)
    _, fewer = forward.predict({**params, "n_estimators": 10}, forward.newest)
    fresh = Forward(spec, past_of(spec), split_of(spec), FEATURES)
    _, fitted = fresh.predict({**params, "n_estimators": 10}, fresh.newest)
    np.testing.assert_array_equal(fewer, fitted)
    assert not np.array_equal(score, fewer)


def test_honest_probabilities_are_left_as_they_are():
    spec = spec_of(estimator={"n_estimators": 200, "num_leaves": 8, "logistic_share": 0})
    found = chosen(spec)
    assert found.sigmoid is None
    assert "log-loss" in found.calibration
    assert found.calibration.count("with a sigmoid on") == 2


def test_understated_probabilities_are_recalibrated():
    """Five slow trees reach a fraction of the log-odds there are."""
    found = chosen(spec_of(estimator={"n_estimators": 5, "num_leaves": 8}))
    assert found.sigmoid is not None
    slope, _ = found.sigmoid
    assert slope > 2
    assert found.calibration.startswith("Recalibrated by a sigmoid: log-loss")


def test_with_too_little_history_nothing_is_recalibrated():
    found = chosen(spec_of(snapshots={"count": 2, "every_days": 30}))
    assert found.sigmoid is None
    assert "too little history to try a sigmoid" in found.calibration


def test_tuning_keeps_to_its_minutes_and_begins_from_the_best_leaves():
    pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
    spec, started = spec_of(tuning={"minutes": 2 / 60}), time.perf_counter()
    found = chosen(spec)
    assert time.perf_counter() - started < 15
    assert len(found.candidates) > 6
    losses = [c.metrics["log_loss"] for c in found.candidates]
    assert losses[5] in losses[:5]  # its first trial is what was chosen before
    best = int(np.argmin(losses[5:])) + 5
    assert found.parameters == found.candidates[best].parameters

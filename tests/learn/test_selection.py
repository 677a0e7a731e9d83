import time

import numpy as np
import pyarrow as pa
import pytest
from learn_cases import customers_at, propensity, split_of

from cdp_ml.learn.estimators import parameters
from cdp_ml.learn.selection import Forward, candidates_table, choose

FEATURES = ("days_since_last_order", "orders_365d", "visits_30d")
SIX = {"count": 6, "every_days": 30}


def spec_of(**changes):
    given = {"estimator": {"n_estimators": 20}, "snapshots": SIX}
    return propensity(**{**given, **changes})


def past_of(spec, changed=lambda table: table):
    return pa.concat_tables([changed(customers_at(t)) for t in split_of(spec).train])


def chosen(spec, past=None):
    return choose(spec, past_of(spec) if past is None else past, split_of(spec), FEATURES)


def test_a_trial_learns_only_from_windows_that_had_closed():
    spec = spec_of(snapshots={"count": 6, "every_days": 15})
    forward = Forward(spec, past_of(spec), split_of(spec), FEATURES)
    *_, third, _, newest = split_of(spec).train
    assert forward.closed_by(newest) == split_of(spec).train[:4]
    assert forward.closed_by(newest)[-1] == third


def test_leaves_are_tried_unless_the_specification_gives_them():
    tried = chosen(spec_of())
    assert [c.parameters["num_leaves"] for c in tried.candidates] == [4, 8, 15, 31]
    best = min(tried.candidates, key=lambda c: c.metrics["log_loss"])
    assert tried.parameters == best.parameters
    assert not chosen(spec_of(estimator={"n_estimators": 20, "num_leaves": 5})).candidates
    table = candidates_table(tried.candidates)
    assert table.column_names == ["num_leaves", "log_loss", "auc"]


def test_training_stops_early_where_more_trees_did_worse():
    """Eager trees, fitted to pure chance, do worse with every one more."""
    chance = [customers_at(t, learnable=False) for t in split_of(spec_of()).train]
    eager = spec_of(estimator={"learning_rate": 0.3})
    found = chosen(eager, pa.concat_tables(chance))
    assert {c.parameters["n_estimators"] for c in found.candidates} == {100}
    kept = spec_of(estimator={"learning_rate": 0.3, "n_estimators": 300})
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
    spec = spec_of(estimator={"n_estimators": 200, "num_leaves": 8})
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
    assert len(found.candidates) > 5
    losses = [c.metrics["log_loss"] for c in found.candidates]
    assert losses[4] == min(losses[:4])  # its first trial is what was best before
    assert found.parameters == found.candidates[int(np.argmin(losses))].parameters

import datetime as dt
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from learn_cases import AS_OF, FIRST_FACT

from cdp_ml.config import ModelSpec
from cdp_ml.errors import NotPromotedError
from cdp_ml.learn.baselines import VALUE_HISTORY
from cdp_ml.learn.datasets import time_split
from cdp_ml.learn.report import model_card, parameters, write_report
from cdp_ml.learn.training import train
from cdp_ml.learn.value import expectation_of


def value(**changes) -> ModelSpec:
    given = {
        "name": "clv_90d",
        "task": "value",
        "description": "Spend within 90 days.",
        "features": "customer_traits",
        "label": {"within_days": 90},
        "snapshots": {"count": 2, "every_days": 30},
        "estimator": {"n_estimators": 60},
    }
    return ModelSpec(**{**given, **changes})


def shoppers_at(instant, rows=600, seed=0) -> pa.Table:
    """Customers with an own rate and an own value of orders; a lapsed one buys nothing more."""
    random = np.random.default_rng([seed, int(instant.timestamp())])
    rate, worth = random.gamma(1, 2, rows), random.gamma(4, 10, rows)
    visits = random.integers(0, 2, rows)
    age = random.uniform(100, 400, rows)
    orders = 1 + random.poisson(rate * age / 365)
    since = np.where(orders > 1, age * random.beta(1, np.maximum(orders - 1, 1)), age)
    coming = random.poisson(rate * 90 / 365 * np.where(visits, 1.5, 0.2))
    return pa.table(
        {
            "customer_id": [f"c{i}" for i in range(rows)],
            "event_timestamp": pa.array([instant] * rows, pa.timestamp("us", "UTC")),
            "orders_lifetime": orders,
            "days_since_first_order": age,
            "days_since_last_order": since,
            "spend_lifetime": orders * worth,
            "visits_30d": visits,
            "label": coming * worth * random.gamma(9, 1 / 9, rows),
        }
    )


def split(spec):
    return time_split(spec, AS_OF, FIRST_FACT)


def frame_of(spec):
    return pa.concat_tables([shoppers_at(t) for t in split(spec).instants])


@cache
def fitted_value():
    return train(value(), frame_of(value()), split(value()))


def test_a_value_model_beats_what_knows_only_the_history():
    assert fitted_value().promoted, fitted_value().verdict
    metrics = fitted_value().metrics
    assert metrics["gini"] > metrics["baseline_bgnbd/gini"] + 0.05
    assert {"baseline_recency/gini", "baseline_frequency/gini", "baseline_rfm/gini"} <= set(metrics)


def test_the_prediction_is_half_trees_and_half_expectation():
    model = fitted_value().predictor.model
    customers = shoppers_at(AS_OF, rows=20)
    x = np.column_stack([customers[f].to_numpy().astype(float) for f in model.features])
    halves = (model.booster.predict(x) + model.expectation.spend(x, model.features)) / 2
    np.testing.assert_allclose(fitted_value().predictor.predict(customers), halves)
    assert fitted_value().predictor.reasons(customers)[0][0].feature in model.features


def test_without_a_history_among_the_features_the_trees_predict_alone():
    spec = value(inputs=["visits_30d", "orders_lifetime", "spend_lifetime"])
    alone = train(spec, frame_of(spec), split(spec))
    assert alone.predictor.model.expectation is None
    assert "baseline_bgnbd/gini" not in alone.metrics


def test_what_is_spent_on_a_category_is_not_mixed_with_what_is_expected_of_all_orders():
    spec = value(label={"within_days": 90, "category": "cushions"})
    narrow = train(spec, frame_of(spec), split(spec))
    assert narrow.predictor.model.expectation is None
    booster, customers = narrow.predictor.booster, shoppers_at(AS_OF, rows=20)
    x = np.column_stack([customers[f].to_numpy().astype(float) for f in narrow.predictor.features])
    np.testing.assert_allclose(narrow.predictor.predict(customers), booster.predict(x))


def test_the_expectation_survives_being_written_down():
    model = fitted_value().predictor.model
    assert expectation_of(model.expectation_fields()) == model.expectation
    assert set(VALUE_HISTORY) <= set(model.features)
    assert expectation_of(None) is None


def with_column(frame, name, values):
    if name not in frame.column_names:
        return frame.append_column(name, values)
    return frame.set_column(frame.column_names.index(name), name, values)


@pytest.mark.parametrize(("spend", "said"), [(0.0, "0 of them"), (9.9, "1200 of them")])
def test_nobody_spends_or_everybody_the_same_and_no_model(spend, said):
    frame = frame_of(value())
    alike = with_column(frame, "label", pa.array([spend] * frame.num_rows))
    with pytest.raises(NotPromotedError, match=f"{said} with the outcome; .* no model this time"):
        train(value(), alike, split(value()))


def test_thirty_customers_give_a_sentence_and_no_model():
    frame = pa.concat_tables([shoppers_at(t, rows=30) for t in split(value()).instants])
    with pytest.raises(NotPromotedError, match="no model this time"):
        train(value(), frame, split(value()))


def test_features_of_a_value_without_two_values_are_left_out_and_named():
    frame = frame_of(value())
    frame = with_column(frame, "never_filled", pa.nulls(frame.num_rows, pa.float64()))
    frame = with_column(frame, "always_the_same", pa.array([1.0] * frame.num_rows))
    found = train(value(), frame, split(value()))
    assert found.excluded == ("never_filled", "always_the_same")
    assert found.metrics == fitted_value().metrics


def test_a_feature_that_is_no_longer_known_at_the_test_is_borne():
    frame = frame_of(value())
    at_test = pc.equal(frame["event_timestamp"], pa.scalar(split(value()).test))
    gone = pc.if_else(at_test, pa.scalar(None, pa.int64()), frame["visits_30d"])
    found = train(value(), with_column(frame, "visits_30d", gone), split(value()))
    assert np.isfinite(found.scores["model"]).all()
    assert found.metrics["gini"] < fitted_value().metrics["gini"]


def test_where_all_orders_are_worth_the_same_the_trees_predict_alone():
    frame = frame_of(value())
    spend = pc.multiply(frame["orders_lifetime"], 10.0)
    found = train(value(), with_column(frame, "spend_lifetime", spend), split(value()))
    assert found.predictor.model.expectation is None
    assert np.isfinite(found.scores["model"]).all()


def test_the_report_of_a_value_model(tmp_path):
    write_report(fitted_value(), tmp_path)
    assert "Predicts the spend within 90 days" in model_card(fitted_value())
    assert parameters(fitted_value())["outcome"] == "spend"
    plots = {f.stem for f in (tmp_path / "plots").iterdir()}
    assert {"gain", "lift", "reliability", "drift", "contributions"} <= plots
    assert "roc" not in plots


def test_a_value_is_of_orders():
    with pytest.raises(ValueError, match="a value model predicts spend"):
        value(label={"event": "email_opened", "within_days": 30})


def test_a_horizon_longer_than_the_history_is_said():
    with pytest.raises(NotPromotedError, match="too little history"):
        time_split(value(), AS_OF, AS_OF - dt.timedelta(days=120))

import datetime as dt

import ibis
import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT, rows, utc
from hypothesis import given
from hypothesis import strategies as st
from learn_cases import uplift

from cdp_ml import workspace
from cdp_ml.errors import ConfigError, ContractError, NotPromotedError
from cdp_ml.lake import Lake
from cdp_ml.learn.estimators import with_defaults
from cdp_ml.learn.evaluate import Estimate, too_few_to_tell
from cdp_ml.learn.uplift import DEFAULTS, KINDS, fit_models, load_uplift, save_uplift
from cdp_ml.learn.uplift_balance import check_randomized
from cdp_ml.learn.uplift_experiment import Experiment, campaign_customers, experiment_of
from cdp_ml.learn.uplift_metrics import uplift_metrics
from cdp_ml.learn.uplift_training import train_uplift

FEATURES = ("member", "orders", "days", "noise")
QUICK = {"folds": 3, "repeats": 1, "n_estimators": 60, "learning_rate": 0.1}


def campaign(gain, rows=6_000, seed=0, treat=None) -> Experiment:
    """Customers of whom some buy anyway, and whom treatment changes by `gain(x)`."""
    random = np.random.default_rng(seed)
    x = np.column_stack([random.integers(0, 2, rows), random.normal(size=(rows, 3))])
    share = np.full(rows, 0.5) if treat is None else treat(x)
    treated = (random.random(rows) < share).astype(float)
    y = (random.random(rows) < anyway(x) + treated * gain(x)).astype(float)
    return Experiment(x, treated, y, FEATURES)


def anyway(x):
    return np.where(x[:, 3] > 0, 0.6, 0.15)


def members_gain(x):
    return 0.3 * x[:, 0]


def two_at_once(x):
    """An effect that no single feature shows: with the sign of a product."""
    return np.where(x[:, 1] * x[:, 2] > 0, 0.35, -0.1)


def metric(y, treated, score, name):
    found = uplift_metrics(np.array(y, float), np.array(treated, float), {"model": score}, 1)
    return found[f"model/{name}"].value


def test_qini_by_hand():
    # Treated: outcome, none. Control: none, outcome. Targeted in this order, the curve of further
    # outcomes is 0, 1, 1, 1, 0: as good as possible. The other way round it is as far below 0.
    y, treated = [1, 0, 0, 1], [1, 0, 1, 0]
    assert metric(y, treated, np.array([4.0, 3, 2, 1]), "qini") == pytest.approx(1.0)
    # From the end: 0, 0 (no treated yet), 0 - 1 * 1 / 1, 0 - 1 * 1 / 2, 0.
    assert metric(y, treated, np.array([1.0, 2, 3, 4]), "qini") == pytest.approx(-1.5 / 3)


def test_a_score_that_says_nothing_has_no_qini_and_half_the_average_effect():
    y, treated = [1, 0, 0, 0], [1, 0, 1, 0]
    assert metric(y, treated, np.zeros(4), "qini") == pytest.approx(0.0)
    assert metric(y, treated, np.zeros(4), "auuc") == pytest.approx(0.5 / 2)
    assert metric(y, treated, np.zeros(4), "uplift_top_decile") == pytest.approx(0.5)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=8))
def test_only_the_order_of_scores_counts_not_that_of_rows(rows):
    y, treated, score = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    name = "qini"
    as_given = metric(y, treated, score, name)
    assert metric(y, treated, np.exp(score), name) == pytest.approx(as_given)
    assert metric(y[::-1], treated[::-1], score[::-1], name) == pytest.approx(as_given)


def test_where_one_feature_tells_all_the_rule_is_promoted_and_says_so():
    trial = train_uplift(campaign(members_gain, seed=2), QUICK, "spring")
    assert trial.evaluation.promoted
    assert trial.model.kind == "rule"
    assert trial.model.parts["feature"] == "member"
    assert trial.model.parts["above"] == pytest.approx(0.3, abs=0.05)
    assert "customers with member above 0 gain +0.2" in trial.evaluation.verdict


def test_where_two_features_act_together_a_learner_is_promoted():
    trial = train_uplift(campaign(two_at_once), {**QUICK, "num_leaves": 8}, "spring")
    assert trial.evaluation.promoted, trial.evaluation.verdict
    assert trial.model.kind in ("t_lightgbm", "x_lightgbm")
    fresh = campaign(two_at_once, seed=1).x
    effect = two_at_once(fresh)
    predicted = trial.model.predict(fresh)
    assert predicted[effect > 0].mean() > 0.2 > predicted[effect < 0].mean() + 0.15


def test_metrics_have_intervals_and_baselines_beside_them():
    found = train_uplift(campaign(members_gain, seed=2), QUICK, "spring").evaluation
    assert found.metrics["qini"].low < found.metrics["qini"].value < found.metrics["qini"].high
    assert {"baseline_propensity/qini", "baseline_x_lightgbm/auuc"} <= set(found.metrics)
    assert found.metrics["average_effect"].value == pytest.approx(0.15, abs=0.03)
    assert found.tables["deciles"]["uplift"][0].as_py() == pytest.approx(0.3, abs=0.1)
    assert found.tables["qini"]["rule"][-1] == found.tables["qini"]["random"][-1]


def test_an_effect_that_is_the_same_for_all_is_no_reason_to_target():
    trial = train_uplift(campaign(lambda x: np.full(len(x), 0.1)), QUICK, "spring")
    assert not trial.evaluation.promoted
    assert "interval must be above 0" in trial.evaluation.verdict


def test_where_likely_buyers_gain_most_targeting_by_propensity_does_as_well():
    trial = train_uplift(campaign(lambda x: 0.3 * (x[:, 3] > 0)), QUICK, "spring")
    assert trial.evaluation.metrics["qini"].low > 0
    assert not trial.evaluation.promoted
    assert "of targeting by propensity" in trial.evaluation.verdict


def test_without_randomization_nothing_is_promoted():
    chosen_by_hand = campaign(members_gain, treat=lambda x: np.where(x[:, 1] > 0, 0.7, 0.3))
    trial = train_uplift(chosen_by_hand, QUICK, "spring")
    assert not trial.evaluation.promoted
    assert "it was not chance" in trial.evaluation.verdict
    table = trial.evaluation.tables["balance"].to_pydict()
    difference = dict(zip(table["feature"], table["difference"], strict=True))
    assert difference["orders"] > 0.3
    assert abs(difference["noise"]) < 0.1


def test_a_hidden_choice_by_two_features_is_found_too():
    both = campaign(members_gain, treat=lambda x: np.where(x[:, 1] * x[:, 2] > 0, 0.8, 0.2))
    assert not check_randomized(both).randomized
    assert check_randomized(campaign(members_gain, seed=2)).randomized


def test_chance_is_not_taken_for_a_choice():
    """Seed 4 looks most like one: the interval of a single AUC is above 0.5."""
    by_chance = [check_randomized(campaign(members_gain, rows=1_500, seed=s)) for s in range(6)]
    assert max(balance.auc.low for balance in by_chance) > 0.51
    assert all(balance.randomized for balance in by_chance)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_model_predicts_as_the_fitted_one(kind, tmp_path):
    experiment = campaign(members_gain, rows=1_000)
    experiment.x[::7, 1] = np.nan
    model = fit_models(experiment, with_defaults(QUICK, DEFAULTS, "spring"), [kind])[kind]
    save_uplift(model, tmp_path)
    assert not list(tmp_path.glob("*.pkl"))
    loaded = load_uplift(tmp_path)
    assert loaded.features == FEATURES
    assert (loaded.predict(experiment.x) == model.predict(experiment.x)).all()


def frame(arms, rows=400) -> pa.Table:
    start = dt.datetime(2026, 5, 2, tzinfo=dt.UTC)
    return pa.table(
        {
            "customer_id": [f"c{i:04}" for i in range(rows)],
            "event_timestamp": pa.array([start] * rows, pa.timestamp("us", "UTC")),
            "arm": [arms[i % len(arms)] for i in range(rows)],
            "label": [float(i % 3 == 0) for i in range(rows)],
            "orders": list(range(rows)),
        }
    )


def test_a_frame_becomes_an_experiment_of_one_arm_against_the_others():
    found = experiment_of(frame(["a", "b"]), ("orders",), "a", "spring")
    assert found.treated[:4].tolist() == [1, 0, 1, 0]
    assert found.y[:4].tolist() == [1, 0, 0, 1]
    assert found.x[:3, 0].tolist() == [0, 1, 2]


def test_customers_of_a_campaign_are_in_one_arm_since_their_first_exposure(con):
    days = [dt.datetime(2026, 5, d, tzinfo=dt.UTC) for d in (3, 2, 2, 2, 1)]
    exposures = pa.table(
        {
            "campaign_id": ["spring"] * 4 + ["autumn"],
            "customer_id": ["a", "a", "b", "b", "c"],
            "arm": ["treatment", "treatment", "treatment", "control", "control"],
            "event_timestamp": pa.array(days),
        }
    )
    found = con.to_pyarrow(campaign_customers(ibis.memtable(exposures), "spring")).to_pylist()
    assert found == [{"customer_id": "a", "event_timestamp": days[1], "arm": "treatment"}]


@pytest.mark.parametrize("arms", [["control"], ["treatment"]])
def test_one_arm_alone_shows_no_effect(arms):
    with pytest.raises(NotPromotedError, match="customers who were left out"):
        experiment_of(frame(arms), ("orders",), "treatment", "spring")


def test_an_arm_that_nobody_is_in_is_named_with_the_nearest():
    with pytest.raises(NotPromotedError, match=r"arm 'treated'; did you mean 'treatment'"):
        experiment_of(frame(["treatment", "control"]), ("orders",), "treated", "spring")


def test_a_missing_feature_is_named():
    with pytest.raises(ContractError, match="visits"):
        experiment_of(frame(["a", "b"]), ("visits",), "a", "spring")


@pytest.mark.parametrize("column", ["arm", "label"])
def test_who_has_no_arm_or_outcome_is_neither_left_out_nor_guessed(column):
    known = frame(["a", "b"])
    values = pa.array([None, *known[column].to_pylist()[1:]])
    unknown = known.set_column(known.column_names.index(column), column, values)
    with pytest.raises(ContractError, match=f"1 of 400 rows have no {column}"):
        experiment_of(unknown, ("orders",), "a", "spring")
    with pytest.raises(ContractError, match=f"no column '{column}'"):
        experiment_of(known.drop([column]), ("orders",), "a", "spring")


@pytest.mark.parametrize(
    ("experiment", "said"),
    [
        (campaign(members_gain, rows=30), "needs at least"),
        (campaign(lambda x: -anyway(x)), "needs at least 50 with it"),  # none if treated
        (campaign(lambda x: 1 - anyway(x)), "and 50 without"),  # all if treated
        (campaign(members_gain, treat=lambda x: np.full(len(x), 0.01)), "arm 'treated' has"),
        (Experiment(np.ones((400, 2)), *(np.arange(400) // n % 2 for n in (1, 2)), ("a", "b")),
         "none of its 2 features varies"),
    ],
)  # fmt: skip
def test_too_little_to_learn_from_is_refused(experiment, said):
    with pytest.raises(NotPromotedError, match=said):
        train_uplift(experiment, QUICK, "spring")


def test_unknown_features_and_values_are_borne():
    experiment = campaign(members_gain, seed=2)
    experiment.x[:, 2] = np.nan
    experiment.x[::5, 1] = np.nan
    assert train_uplift(experiment, QUICK, "spring").model.parts["feature"] == "member"


def test_an_unknown_parameter_names_the_one_meant():
    with pytest.raises(ConfigError, match="'repeats'"):
        train_uplift(campaign(members_gain, rows=500), {"repeat": 3}, "spring")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"folds": 1}, "folds: must be at least 2, not 1"),
        ({"repeats": 0}, "repeats: must be at least 1"),
        ({"n_estimators": 2.5}, "n_estimators: must be a whole number"),
        ({"subsample": 3}, "subsample: must be at most 1"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(given, said):
    with pytest.raises(ConfigError, match=f"models/spring.yaml: estimator: {said}"):
        train_uplift(campaign(members_gain, rows=500), given, "spring")


def test_hillstrom_a_rule_for_women_and_nothing_for_men(shared_data, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from uplift import hillstrom

    monkeypatch.setattr("cdp_ml.learn.uplift_metrics.DRAWS", 100)
    quick = {"folds": 2, "repeats": 1}
    women = train_uplift(hillstrom("Womens E-Mail"), quick, "women").evaluation
    assert women.promoted
    assert "promoted as a rule of one feature" in women.verdict
    assert women.metrics["qini"].value >= 0.05
    assert not train_uplift(hillstrom("Mens E-Mail"), quick, "men").evaluation.promoted


def test_a_verdict_says_how_many_customers_would_show_a_faint_gain():
    # The lower end is twice the gain below it: four times as many customers bring it to 0.
    said = "; 1,234 customers are too few to tell: such a gain would show with about 5,000"
    assert too_few_to_tell(Estimate(0.05, -0.05, 0.15), 1_234) == said
    assert too_few_to_tell(Estimate(-0.01, -0.05, 0.03), 1_234) == ""
    faint = campaign(lambda x: 0.06 * x[:, 0], rows=1_500, seed=2)
    evaluation = train_uplift(faint, QUICK, "spring").evaluation
    assert not evaluation.promoted
    assert "1,500 customers are too few to tell" in evaluation.verdict


def test_who_bought_and_was_merged_for_it_stays_in_the_experiment(con, tmp_path):
    """B was treated, then bought twice in shops: those records' customer, A, took her over."""
    before, start, bought = utc(2026, 1, 1), utc(2026, 5, 1), utc(2026, 5, 10)
    merged, lake = utc(2026, 5, 20), Lake(tmp_path)
    names = ("source", "source_record_id", "customer_id", "valid_from", "valid_to")
    links = [
        ("web", "w1", "B", before, merged),
        ("web", "w1", "A", merged, None),
        ("web", "w2", "C", before, None),
        ("pos", "p1", "A", bought, None),
        ("pos", "p2", "A", bought, None),
    ]
    crosswalk = [dict(zip(names, link, strict=True), confidence=1.0) for link in links]
    lake.write("crosswalk", rows("crosswalk", *crosswalk))
    known = [
        {
            "identifier_type": source,
            "identifier": record,
            "source": source,
            "source_record_id": record,
            "event_timestamp": since,
            "ingested_at": since,
        }
        for source, record, _, since, _ in links
        if since != merged
    ]
    lake.write("identifiers", rows("identifiers", *known))
    shown = {"event_timestamp": start, "ingested_at": start, "identifier_type": "web"}
    exposures = [
        {"campaign_id": "spring", "arm": "treatment", "identifier": record, **shown}
        for record in ("w1", "w2")
    ]
    lake.write("exposures", rows("exposures", *exposures))
    people = pa.table(
        {
            "customer_id": ["B", "C"],
            "event_timestamp": pa.array([start] * 2, pa.timestamp("us", "UTC")),
        }
    )
    spec = uplift()
    found = workspace._of_campaign(lake, con, spec, people, utc(2026, 7, 1))
    assert sorted(found["customer_id"].to_pylist()) == ["B", "C"]

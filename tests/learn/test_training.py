import datetime as dt
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from learn_cases import (
    AS_OF,
    FIRST_FACT,
    campaign_at,
    clustering,
    customers_at,
    fitted,
    fitted_clusters,
    fitted_next,
    fitted_uplift,
    order_lines,
    propensity,
    split_of,
    three_kinds_of_customers,
    training_frame,
)

from cdp_ml.config import ModelSpec, load_spec
from cdp_ml.errors import ContractError, LeakageError, NotPromotedError
from cdp_ml.learn import estimators
from cdp_ml.learn.datasets import time_split, too_good
from cdp_ml.learn.drift import Drift
from cdp_ml.learn.report import (
    _markdown,
    candidates,
    comparison,
    decisive,
    model_card,
    write_report,
)
from cdp_ml.learn.training import check_parameters, train


def with_label(frame, values):
    return frame.set_column(frame.column_names.index("label"), "label", values)


def test_the_shipped_specifications_are_valid():
    root = Path(__file__).parents[2]
    files = [*root.glob("models/*.yaml"), *root.glob("examples/*/models/*.yaml")]
    specs = [load_spec(f, ModelSpec) for f in files if f.stem != "identity"]
    assert {"purchase_30d", "churn_90d", "clusters"} <= {s.name for s in specs}
    for spec in specs:
        check_parameters(spec)
        if spec.task not in ("uplift", "next_category"):  # which have no snapshots
            assert split_of(spec).instants


def test_what_can_be_learnt_is_learnt_and_promoted():
    assert fitted().promoted
    assert fitted().metrics["auc"] > fitted().metrics["baseline_logistic/auc"] + 0.1
    assert fitted().rows["train_rows"] == 1200
    assert fitted().rows["test_rows"] == 400


def test_features_without_two_values_are_left_out_and_named():
    assert fitted().excluded == ("never_filled", "always_the_same")
    assert not set(fitted().excluded) & set(fitted().predictor.features)
    assert "never_filled, always_the_same" in model_card(fitted())


@pytest.mark.parametrize(("every", "count", "used"), [(30, 8, False), (30, 13, True)])
def test_the_season_is_learnt_from_a_year_and_not_from_less(every, count, used):
    spec = propensity(
        estimator={"n_estimators": 20}, snapshots={"count": count, "every_days": every}
    )
    frames = [
        customers_at(t, rows=100).append_column("month", pa.array([float(t.month)] * 100))
        for t in split_of(spec).instants
    ]
    found = train(spec, pa.concat_tables(frames), split_of(spec))
    assert ("month" in found.predictor.features) == used
    assert ("month" in found.excluded) != used
    assert "month" not in found.profile


def test_training_again_gives_the_same_model():
    spec = propensity()
    again = train(spec, training_frame(spec).to_pandas(), split_of(spec))
    assert again.metrics == fitted().metrics
    ours, theirs = (t.predictor.model.model_to_string() for t in (fitted(), again))
    assert ours == theirs


def test_the_number_of_leaves_is_found_on_the_newest_training_instant():
    spec = propensity(estimator={"n_estimators": 20, "num_leaves": "auto"})
    chosen = train(spec, training_frame(spec), split_of(spec))
    tried = chosen.evaluation.tables["candidates"].to_pylist()
    assert {row["num_leaves"] for row in tried} == set(estimators.LEAVES)
    assert tried[0] == min(tried, key=lambda row: row["log_loss"])
    assert chosen.parameters["num_leaves"] <= tried[0]["num_leaves"]


def test_the_test_has_no_say_in_the_number_of_leaves():
    spec = propensity(estimator={"n_estimators": 20, "num_leaves": "auto"})
    split = split_of(spec)
    others = [customers_at(t) for t in split.train]
    another = [*others, customers_at(split.test, seed=9, learnable=False)]
    first, second = (
        train(spec, pa.concat_tables(frames), split).evaluation.tables["candidates"]
        for frames in ([*others, customers_at(split.test)], another)
    )
    assert first == second


def test_without_a_closed_earlier_instant_the_number_of_leaves_is_that_of_few_rows():
    spec = propensity(
        estimator={"n_estimators": 20, "num_leaves": "auto"},
        snapshots={"count": 2, "every_days": 7},
    )
    chosen = train(spec, training_frame(spec), split_of(spec))
    assert chosen.parameters["num_leaves"] == 4
    assert "candidates" not in chosen.evaluation.tables


def test_noise_is_not_promoted():
    spec = propensity(beat_baselines_by=0.02)
    noise = train(spec, training_frame(spec, learnable=False), split_of(spec))
    assert not noise.promoted
    assert "is not promoted" in noise.verdict


def test_the_champion_is_compared_on_the_same_test():
    spec = propensity()
    again = train(spec, training_frame(spec), split_of(spec), champion=fitted().predictor)
    assert again.metrics["champion/auc"] == fitted().metrics["auc"]
    weak = propensity(estimator={"n_estimators": 1, "num_leaves": 2})
    weaker = train(weak, training_frame(weak), split_of(weak), champion=fitted().predictor)
    assert not weaker.promoted


def test_a_champion_that_has_seen_the_test_is_not_compared_with():
    """As where `as_of` went back: it would win by what it knows."""
    spec, split = propensity(), split_of(propensity())
    knows = replace(fitted().predictor, version=7, learned_until=split.test + dt.timedelta(days=1))
    found = train(spec, training_frame(spec), split, champion=knows)
    assert "champion/auc" not in found.metrics
    assert "not compared with version 7, which learned from outcomes until" in found.verdict
    alone = found.verdict.partition(" It was not compared")[0]
    assert alone == train(spec, training_frame(spec), split).verdict


@pytest.mark.parametrize(
    ("changed", "why"),
    [({"features": ("shoe_size",)}, "'shoe_size', a feature that is gone"),
     ({"learned_until": None}, "does not tell until when it learned")],
)  # fmt: skip
def test_a_champion_that_cannot_be_compared_with_is_said(changed, why):
    spec, champion = propensity(), replace(fitted().predictor, **changed)
    found = train(spec, training_frame(spec), split_of(spec), champion=champion)
    assert why in found.verdict
    assert "champion/auc" not in found.metrics


def test_an_uplift_champion_is_compared_on_a_campaign_that_it_has_not_seen():
    champion = fitted_uplift().predictor
    start = champion.learned_until
    spec = fitted_uplift().spec.model_copy(update={"campaign": "summer"})
    split = time_split(spec, start + dt.timedelta(days=30), FIRST_FACT, {"summer": start})
    found = train(spec, campaign_at(start), split, champion=champion)
    theirs, gain = (found.evaluation.metrics[f"champion/{m}"] for m in ("qini", "qini_gain"))
    assert gain.value == pytest.approx(found.metrics["qini"] - theirs.value)
    assert found.promoted == (gain.low >= 0)
    assert f"of the champion {theirs}" in found.verdict
    assert "champion" not in [c.name for c in candidates(found)]
    assert "no better and no worse than the champion" in comparison(found)


def test_an_uplift_champion_of_the_same_campaign_is_not_compared_with():
    start = AS_OF - dt.timedelta(days=60)
    spec = fitted_uplift().spec
    split = time_split(spec, AS_OF, FIRST_FACT, {"spring": start})
    found = train(spec, campaign_at(start), split, champion=fitted_uplift().predictor)
    assert "it has seen this test" in found.verdict
    assert found.metrics == fitted_uplift().metrics


def test_a_planted_leak_is_refused():
    split = split_of(propensity())
    frame = pa.concat_tables([training_frame(propensity()), customers_at(split.as_of)])
    with pytest.raises(LeakageError):
        train(propensity(), frame, split)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_class_gives_a_sentence_and_no_model(value):
    frame = training_frame(propensity())
    with pytest.raises(NotPromotedError, match="no model this time"):
        train(
            propensity(),
            with_label(frame, pa.array([value] * frame.num_rows)),
            split_of(propensity()),
        )


def test_thirty_customers_give_a_sentence_and_no_model():
    with pytest.raises(NotPromotedError, match="no model this time"):
        train(propensity(), training_frame(propensity(), rows=30), split_of(propensity()))


def test_features_that_never_vary_give_a_sentence_and_no_model():
    spec = propensity(inputs=("never_filled", "always_the_same"))
    with pytest.raises(NotPromotedError, match="none of its 2 features varies"):
        train(spec, training_frame(spec), split_of(spec))


def test_an_empty_frame_gives_a_sentence_and_no_model():
    with pytest.raises(NotPromotedError, match="training has 0 rows"):
        train(propensity(), training_frame(propensity()).slice(0, 0), split_of(propensity()))


def test_labels_must_be_there_and_known():
    frame = training_frame(propensity())
    with pytest.raises(ContractError, match="no column 'label'"):
        train(propensity(), frame.drop(["label"]), split_of(propensity()))
    unknown = with_label(frame, pa.nulls(frame.num_rows, pa.float64()))
    with pytest.raises(ContractError, match="1200 rows without a label"):
        train(propensity(), unknown, split_of(propensity()))


def test_lines_say_of_which_instant_they_are():
    spec = fitted_next().spec
    with pytest.raises(ContractError, match="no column 'as_of'"):
        train(spec, order_lines(), fitted_next().split)


def test_a_feature_that_is_no_longer_known_at_the_test_is_borne():
    frame, spec = training_frame(propensity()), propensity()
    at_test = pc.equal(frame["event_timestamp"], pa.scalar(split_of(spec).test))
    gone = pc.if_else(at_test, pa.scalar(None, pa.float64()), frame["visits_30d"])
    place = frame.column_names.index("visits_30d")
    found = train(spec, frame.set_column(place, "visits_30d", gone), split_of(spec))
    assert np.isfinite(found.scores["model"]).all()
    assert not found.promoted


def test_a_copy_of_the_outcome_among_the_features_is_refused():
    frame = training_frame(propensity())
    copied = frame.append_column("spend_next_month", frame["label"])
    with pytest.raises(LeakageError, match="'spend_next_month' tells the outcome of all 1,200"):
        train(propensity(), copied, split_of(propensity()))


def test_a_feature_that_tells_nearly_all_of_the_outcome_is_doubted():
    """As what was computed too late, of which some is missing; what orders less is no reason."""
    frame, random = training_frame(propensity()), np.random.default_rng(1)
    noisy = frame["label"].to_numpy() + (random.random(frame.num_rows) < 0.01)
    found = train(
        propensity(), frame.append_column("late", pa.array(noisy)), split_of(propensity())
    )
    assert "Alone, 'late' has an AUC of 0.99" in found.verdict
    assert "Alone" not in fitted().verdict


def test_few_outcomes_raise_no_doubt_where_chance_could():
    random = np.random.default_rng(1)
    x, y = random.normal(size=(20_000, 60)), np.zeros(20_000)
    y[:25] = 1
    assert too_good(x, y, tuple(map(str, range(60)))) == ""
    y[:200] = 1
    assert too_good(x, y, tuple(map(str, range(60)))) == ""
    x[:, 7] = y + random.normal(size=20_000) / 3
    assert "'7' has an AUC of 0.98" in too_good(x, y, tuple(map(str, range(60))))


def test_later_customers_are_compared_with_those_of_the_test():
    """What grows with time has moved since the first snapshots before anything changed."""
    drift = Drift(fitted().profile)
    drift.count(customers_at(fitted().split.test))
    assert set(drift.table()["psi"].to_pylist()) == {0.0}


def test_features_that_became_known_after_their_instant_are_refused():
    frame = training_frame(propensity())
    late = pc.add(frame["event_timestamp"], pa.scalar(1, pa.duration("us")))
    with pytest.raises(LeakageError, match="whose 'ingested_at' lies after their instant"):
        train(propensity(), frame.append_column("ingested_at", late), split_of(propensity()))
    days = late.cast("date32")
    tomorrow = pa.array([d + dt.timedelta(days=1) for d in days.to_pylist()])
    with pytest.raises(LeakageError, match="whose 'seen_on' lies after their instant"):
        train(propensity(), frame.append_column("seen_on", tomorrow), split_of(propensity()))
    frame = frame.append_column("seen_on", days)
    known = frame.append_column("ingested_at", frame["event_timestamp"])
    assert train(propensity(), known, split_of(propensity())).metrics == fitted().metrics


def test_the_champion_and_the_challenger_are_compared_in_a_document(tmp_path):
    spec = propensity()
    again = train(spec, training_frame(spec), split_of(spec), champion=fitted().predictor)
    write_report(again, tmp_path)
    text = (tmp_path / "champion.md").read_text(encoding="utf-8")
    assert again.verdict in text
    assert "champion (version 0)" in text
    assert "| log-loss |" in text
    (log_loss,) = [x for x in text.splitlines() if x.startswith("| log-loss |")]
    assert log_loss.endswith("| 0 |")
    assert "above the baseline" not in text
    assert "the challenger is no better and no worse than the champion: gain 0." in text


def test_clusters_are_trained_without_labels():
    assert fitted_clusters().promoted
    assert fitted_clusters().metrics["clusters"] == 3
    assert len(set(fitted_clusters().predictor.clusters)) == 3


def test_unstable_clusters_are_not_promoted():
    spec = clustering(estimator={"max_clusters": 3, "min_share": 0.4})
    refused = train(spec, three_kinds_of_customers(), split_of(spec))
    assert not refused.promoted
    assert "is not promoted" in refused.verdict


def test_the_model_card_shows_the_model_beside_each_baseline():
    card = model_card(fitted())
    assert card.startswith(f"# purchase_30d\n\n{fitted().verdict}\n")
    lines = card.splitlines()
    (own,) = [x for x in lines if x.startswith("| AUC |")]
    auc = fitted().evaluation.metrics["auc"]
    assert own == f"| AUC | {auc.value:.3f} | {auc.low:.3f} to {auc.high:.3f} |"
    (head,) = [x for x in lines if x.startswith("|  | AUC |")]
    (logistic,) = [x for x in lines if x.startswith("| logistic regression |")]
    beside = dict(zip(head.split(" | ")[1:], logistic.split(" | ")[1:], strict=True))
    assert beside["AUC"] == f"{fitted().metrics['baseline_logistic/auc']:.3f}"
    assert "base rate" not in head


def test_a_cell_has_as_many_decimals_as_it_needs():
    table = pa.table({"x": ["a", "b"], "share": [0.5, 0.25], "mean_spend": [1234.5, 7.891]})
    assert _markdown(table).splitlines() == [
        "| x | share | mean spend |",
        "|---|---:|---:|",
        "| a | 0.500 | 1,234 |",
        "| b | 0.250 | 7.89 |",
    ]


def test_what_a_training_chose_from():
    leaves = candidates(fitted())
    assert [c.name for c in leaves] == [
        *("4 leaves", "8 leaves", "15 leaves", "31 leaves"),
        leaves[-1].name,
    ]
    assert leaves[-1].name.endswith(" leaves, trees alone")
    assert sum(c.chosen for c in leaves) == 1
    assert [c.name for c in candidates(fitted_clusters()) if c.chosen] == ["3 clusters"]
    learners = {c.name: c for c in candidates(fitted_uplift())}
    found, parameters = fitted_uplift().metrics, fitted_uplift().parameters
    (chosen,) = [c for c in learners.values() if c.chosen]
    assert chosen.parameters["learner"] == parameters["learner"]
    assert chosen.metrics["qini"] == found["qini"]


def test_runs_of_a_model_are_compared_by_what_decides():
    assert decisive(fitted().evaluation.metrics)[:3] == ["auc", "auc_low", "auc_high"]
    assert "baseline_logistic/auc" in decisive(fitted().evaluation.metrics)
    for trained in (fitted(), fitted_clusters(), fitted_uplift(), fitted_next()):
        main, _, _, *others = decisive(trained.evaluation.metrics)
        assert {main, *others} <= set(trained.metrics)


def test_the_report_has_its_plots_and_no_customer(tmp_path):
    write_report(fitted(), tmp_path / "p")
    write_report(fitted_clusters(), tmp_path / "c")
    plots = {f.stem for f in (tmp_path / "p" / "plots").iterdir()}
    assert plots == {
        *("roc", "precision_recall", "reliability", "gain", "lift", "importance", "scores"),
        *("contributions", "drift"),
    }
    page = (tmp_path / "p" / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == len(plots)
    assert page.index("class='verdict promoted'") < page.index("<table>") < page.index("<img")
    assert page.index('alt="roc"') < page.index('alt="drift"')
    assert "<table>" in page
    drawn = {f.stem for f in (tmp_path / "c" / "plots").iterdir()}
    assert drawn == {"profiles", "shares", "candidates"}
    for file in tmp_path.rglob("*.*"):
        if file.suffix in (".csv", ".md", ".json", ".html"):
            written = re.sub(r'base64,[^"]*', "", file.read_text(encoding="utf-8"))
            assert "c123" not in written

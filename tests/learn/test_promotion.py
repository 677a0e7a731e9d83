"""Training, promoting and rolling back by hand, and what the next refresh makes of it."""

import datetime as dt
import json
import shutil
from dataclasses import replace

import pyarrow as pa
import pytest
from learn_cases import fitted, fitted_next

from cdp_ml import steps
from cdp_ml.config import IdentitySpec, Settings, load_models
from cdp_ml.contracts import arrow_schema
from cdp_ml.errors import LeakageError, NotPromotedError
from cdp_ml.journal import Journal
from cdp_ml.lake import Lake, publish
from cdp_ml.learn import registry
from cdp_ml.learn.training import check_parameters

NAME = "purchase_30d"
NOW = dt.datetime(2026, 7, 1, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A workspace with three registered versions, of which the first was published as champion."""
    settings = Settings(home=tmp_path_factory.mktemp("promotion"), sources={})
    for run in ("a", "b", "c"):
        registry.log_run(settings, fitted(), {}, run)
    registry.promote(settings, NAME, 1)
    served(settings, 1)
    return settings


@pytest.fixture
def settings(template, tmp_path):
    """A copy of it, to change: to make one takes seconds."""
    shutil.copytree(template.home, tmp_path / "copy")
    return Settings(home=tmp_path / "copy", sources={})


def served(settings, version):
    """Publish a run that serves a version."""
    at = NOW + dt.timedelta(hours=version)
    times = {"as_of": NOW, "started_at": at, "published_at": at}
    versions = {f"model/{NAME}": version}
    publish(settings.lake, {"run_id": str(version), **times, "versions": versions, "summary": {}})


def run_of(settings, reported):
    """A refresh whose last training reported a version."""
    journal = Journal(settings.data / "journal.json", versions={f"model/{NAME}": reported})
    journal.run = {"run_id": "next", "known_at": NOW.isoformat()}
    model = {
        "version": reported,
        "as_of": NOW.isoformat(),
        "specification": [fitted().spec.fingerprint(), steps.hash_of(settings.share("features"))],
        "metrics": {},
        "trained": True,
    }
    journal.steps = {
        "train": {"report": {"models": {NAME: model}}},
        "ingest": {"report": {"last_fact": "2026-06-30T12:00:00+00:00"}},
    }
    empty = IdentitySpec(comparisons=(), blocking_rules=(), training_rules=(), prior_rules=())
    lake = Lake(settings.lake, journal.versions)
    return steps.Run(settings, {NAME: fitted().spec}, empty, journal, lake)


def test_what_people_promote_serves_from_the_next_refresh_on(settings):
    before = steps.training_inputs(run_of(settings, 1))
    registry.promote(settings, NAME, 3)
    run = run_of(settings, 1)
    assert steps.training_inputs(run) != before, "training is due"
    report = steps.train(run)
    assert report["models"][NAME]["version"] == 3
    assert run.lake.versions == {f"model/{NAME}": 3}


def test_once_it_serves_nothing_is_due_any_more(settings):
    before = steps.training_inputs(run_of(settings, 1))
    registry.promote(settings, NAME, 3)
    settled = steps.training_inputs(run_of(settings, 3))
    served(settings, 3)
    assert steps.training_inputs(run_of(settings, 3)) == settled == before


def test_what_a_refresh_promotes_is_not_taken_for_a_decision_of_people(settings):
    """Killed between its training and its publication, it goes on with what it trained."""
    before = steps.training_inputs(run_of(settings, 2))
    assert steps.train(run_of(settings, 2))["models"][NAME]["version"] == 2
    registry.promote(settings, NAME, 2)
    assert steps.training_inputs(run_of(settings, 2)) == before
    served(settings, 2)
    assert steps.training_inputs(run_of(settings, 2)) == before


def test_a_version_that_people_promoted_against_the_gate_says_so(settings):
    client = registry._client(settings)
    client.set_model_version_tag(NAME, "3", "promoted", "false")
    registry.promote(settings, NAME, 3)
    assert client.get_model_version(NAME, "3").tags["promoted"] == "by hand"
    assert client.get_model_version(NAME, "2").tags["promoted"] == "true"


def test_a_version_that_is_not_there_names_those_that_are(settings):
    with pytest.raises(NotPromotedError, match="no version 9; it has 1, 2, 3"):
        registry.promote(settings, NAME, 9)
    with pytest.raises(NotPromotedError, match="no version 1; 'cdp-ml refresh' makes the first"):
        registry.promote(settings, "nobody", 1)


def test_the_labels_of_a_model_that_is_gone_go_too(settings):
    run = run_of(settings, 1)
    labels = pa.Table.from_pylist([], arrow_schema("labels_churn"))
    for name in (NAME, "churn"):
        run.lake.write(f"labels_{name}", labels)
    steps.train(run)
    assert [t for t in run.lake.versions if t.startswith("labels_")] == [f"labels_{NAME}"]


def test_a_leak_is_that_models_verdict_and_stops_no_other(settings, monkeypatch):
    def leaks(*given):
        raise LeakageError("model 'purchase_30d': the feature 'x' tells the outcome")

    monkeypatch.setattr(steps, "training_frame", leaks)
    run = run_of(settings, 1)
    run.journal.steps["ingest"]["report"]["first_fact"] = "2025-01-01T00:00:00+00:00"
    found = steps._train_model(run, fitted().spec)
    assert found["version"] == 1, "the champion goes on"
    assert "tells the outcome" in found["verdict"]


def test_rolling_back_serves_the_champion_before(settings):
    registry.promote(settings, NAME, 2)
    served(settings, 2)
    assert registry.rollback(settings, NAME) == 1
    assert steps.train(run_of(settings, 2))["models"][NAME]["version"] == 1


def test_asking_who_is_champion_needs_no_mlflow(settings, monkeypatch):
    monkeypatch.setattr(registry, "_client", None)
    assert registry.champion_version(settings, NAME) == 1
    assert registry.champion_version(settings, "nobody") is None


def test_scores_are_judged_once_their_windows_have_closed(settings, monkeypatch):
    """Of two instants with scores only the older has outcomes; those are what it was worth."""
    run, old, new = run_of(settings, 1), NOW - dt.timedelta(days=30), NOW - dt.timedelta(days=29)
    rows = [
        {
            "model": NAME,
            "model_version": 1,
            "customer_id": f"c{i}",
            "as_of": at,
            "score": i / 100,
            "percentile": i / 100,
        }
        for at in (old, new)
        for i in range(100)
    ]
    run.lake.write("scores", pa.Table.from_pylist(rows, arrow_schema("scores")))
    asked = []

    def outcomes(lake, con, spec, given, as_of):
        asked.extend(set(given["event_timestamp"].to_pylist()))
        number = [int(c[1:]) for c in given["customer_id"].to_pylist()]
        return given.append_column("label", pa.array([float(n >= 50) for n in number]))

    monkeypatch.setattr(steps, "with_labels", outcomes)
    gave = registry.load_model(settings, NAME, 1)
    found = steps._realized(run, fitted().spec, gave)
    assert asked == [old]
    assert found["realized_auc"] == 1.0
    assert found["realized_base_rate"] == 0.5
    sooner = fitted().spec.label.model_copy(update={"within_days": 7})
    changed = fitted().spec.model_copy(update={"label": sooner})
    assert steps._realized(run, changed, gave) == {}, "those scores were of another question"

    def gone(*given):
        raise NotPromotedError("no product is of 'cushions'")

    monkeypatch.setattr(steps, "with_labels", gone)
    assert steps._realized(run, fitted().spec, gave) == {}, "no reason to stop the refresh"


def test_recommendations_are_judged_once_their_window_has_closed(settings, monkeypatch):
    run, spec = run_of(settings, 1), fitted_next().spec
    gave, old = replace(fitted_next().predictor, version=1), NOW - dt.timedelta(days=30)
    rows = [
        {
            "model": spec.name,
            "model_version": 1,
            "customer_id": f"c{i}",
            "as_of": at,
            "item": item,
            "rank": 1,
        }
        for at, item in ((old, "covers"), (NOW - dt.timedelta(days=29), "bulbs"))
        for i in range(60)
    ]
    run.lake.write("recommendations", pa.Table.from_pylist(rows, arrow_schema("recommendations")))
    asked = []

    def bought(lake, con, spec, start, days, as_of):
        asked.append((start, days, as_of))
        items = ["covers"] * 45 + ["bulbs"] * 15
        return pa.table({"customer_id": [f"c{i}" for i in range(60)], "item": items})

    monkeypatch.setattr(steps, "purchases_from", bought)
    assert steps._realized(run, spec, gave) == {"realized_recall_at_1": 0.75}
    assert asked == [(old, 30, NOW)]
    shorter = replace(gave.model, parameters={**gave.model.parameters, "within_days": 7})
    now = replace(gave, version=2, model=shorter)
    monkeypatch.setattr(registry, "load_model", lambda *given: gave)
    assert steps._realized(run, spec, now) == {}, "those were offered for another window"


def test_a_champion_of_another_question_serves_no_more(settings):
    """Not even where the new one cannot be trained, or people had chosen it."""
    registry.promote(settings, NAME, 3)
    run = run_of(settings, 1)
    sooner = fitted().spec.label.model_copy(update={"within_days": 7})
    run.models[NAME] = fitted().spec.model_copy(update={"label": sooner})
    assert steps._train_model(run, run.models[NAME])["version"] is None


def test_a_question_is_the_same_whatever_else_was_written_down_with_it(settings):
    """As the campaign, which a model of an older version still holds."""
    gave, spec = registry.load_model(settings, NAME, 1), fitted().spec
    older = json.dumps({**json.loads(gave.question), "campaign": None})
    assert replace(gave, question=older).answers(spec)
    assert replace(gave, question=None).answers(spec)
    assert not replace(
        gave, question=older.replace('"within_days": 30', '"within_days": 7')
    ).answers(spec)
    assert not replace(gave, question=None).answers(spec.model_copy(update={"task": "value"}))


def test_what_was_refused_is_tried_again_by_its_cadence(settings):
    """Else chance would promote it some night; what had too little data is tried each time."""
    for version in (None, 1):  # of a champion, which goes on serving
        run = run_of(settings, version)
        assert steps._is_fresh(run, NAME)
        run.report("train")["models"][NAME]["trained"] = False
        assert not steps._is_fresh(run, NAME)


def test_every_parameter_of_a_task_passes_the_check_before_the_refresh(tmp_path):
    spec = load_models(Settings(home=tmp_path, sources={}))["purchase_30d"]
    check_parameters(spec.model_copy(update={"estimator": {"logistic_share": 0}}))

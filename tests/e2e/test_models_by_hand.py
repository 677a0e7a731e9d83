"""Models that people write, train, promote and roll back, on a small synthetic world."""

import shutil

import mlflow
import pytest
from conftest import ROOT

import cdp_ml
from cdp_ml import online
from cdp_ml.config import load_settings
from cdp_ml.errors import ConfigError, NotPromotedError
from cdp_ml.learn import uplift_training
from cdp_ml.learn.registry import tracking_uri

UPLIFT = "spring_2026_uplift"
QUICK = """
inputs: [days_since_last_order, orders_365d, spend_365d]
estimator: {folds: 2, repeats: 1, n_estimators: 30}
"""
OPENS = """
name: opens_email_14d
task: propensity
description: Opens an e-mail within 14 days.
features: customer_traits
label: {event: email_opened, within_days: 14}
population: emails_sent_90d >= 1
snapshots: {count: 3, every_days: 14}
segments:
  openers: {top: 0.1, consent: marketng}
"""
CATEGORY = """
name: category_60d
task: propensity
description: Buys of the category within 60 days.
features: customer_traits
label: {event: order, category: CATEGORY, within_days: 60}
snapshots: {count: 3, every_days: 30}
"""


@pytest.fixture
def copied(demo_workspace, tmp_path):
    shutil.copytree(demo_workspace, tmp_path / "demo")
    return tmp_path / "demo"


def versions_that_scored(home, model, table="scores"):
    cdp = cdp_ml.open(home)
    scores = cdp.table(table).filter(lambda t: (t.model == model) & (t.as_of == cdp.as_of))
    return set(scores.model_version.to_pyarrow().to_pylist())


def metrics_in_mlflow(home, model, version):
    client = mlflow.MlflowClient(tracking_uri(load_settings(home)))
    return client.get_run(client.get_model_version(model, str(version)).run_id).data.metrics


def train_and_promote(home, model):
    cdp = cdp_ml.open(home)
    version = cdp.train(model, register=True).predictor.version
    cdp.promote(model, version)
    return version


def check_what_they_gave(cdp):
    """Recommendations for whoever has bought, a segment of an uplift, and answers online."""
    items = cdp.table("recommendations").to_pandas()
    assert set(items["item"]) <= set(cdp.table("products").category.to_pandas())
    assert set(items["rank"]) == {1, 2, 3}
    assert not items.duplicated(["customer_id", "rank"]).any()
    buyers = cdp.training_set("next_category")["customer_id"]
    assert set(items["customer_id"]) == set(buyers)
    scores = cdp.table("scores").filter(lambda t: t.model == UPLIFT).to_pandas()
    assert scores["score"].between(-1, 1).all()
    stays = cdp.table("segment_membership").filter(lambda t: t.segment == "persuadables")
    inside = set(stays.customer_id.to_pandas())
    best = scores.sort_values(["score", "customer_id"], ascending=[False, True])
    assert set() < inside == set(best["customer_id"].head(round(0.2 * len(best))))
    run = online.open_online(cdp.settings)
    one = scores.iloc[0]
    answer = online.score(run, one["customer_id"], UPLIFT)
    assert answer["score"] == pytest.approx(one["score"])
    with pytest.raises(ConfigError, match="read the table 'recommendations'"):
        online.score(run, one["customer_id"], "next_category")


def test_next_items_are_judged_and_the_campaign_is_too_small(demo_workspace):
    cdp = cdp_ml.open(demo_workspace)
    trained = cdp.run["summary"]["train"]["models"]
    assert "of the best baseline" in trained["next_category"]["verdict"]
    assert trained["next_category"]["metrics"]["recall_at_3"] > 0.4
    assert "needs at least 50 with it and 50 without" in trained[UPLIFT]["verdict"]
    frame = cdp.training_set(UPLIFT)
    assert set(frame["arm"]) == {"treatment", "control"}
    assert frame["customer_id"].is_unique
    assert set(frame["label"]) == {0.0, 1.0}
    lines = cdp.training_set("next_category")
    longer = cdp.train("next_category", estimator={"within_days": 60, "windows": 2}).split
    assert (longer.horizon.days, len(longer.train)) == (60, 2)
    assert list(lines) == ["as_of", "customer_id", "order_id", "event_timestamp", "item"]


def test_people_train_promote_and_roll_back(copied, monkeypatch):
    """Also what the gate refused: people may know better."""
    monkeypatch.setattr(uplift_training, "FEWEST", 10)
    shutil.copytree(ROOT / "models", copied / "models")
    with (copied / "models" / f"{UPLIFT}.yaml").open("a") as specification:
        specification.write(QUICK)
    promoted = [train_and_promote(copied, model) for model in ("next_category", UPLIFT)]
    name = "churn_90d"
    cdp = cdp_ml.open(copied)
    tried = cdp.train(name, estimator={"n_estimators": 30, "num_leaves": 4})
    assert tried.predictor.version == 0, "only tried"
    assert tried.parameters["n_estimators"] == 30
    assert "champion/log_loss_gain" in tried.metrics
    second = cdp.train(name, register=True).predictor.version
    assert second == 2
    cdp.promote(name, second)
    assert cdp_ml.refresh(copied).published
    assert versions_that_scored(copied, name) == {2}
    assert versions_that_scored(copied, "next_category", "recommendations") == {promoted[0]}
    assert versions_that_scored(copied, UPLIFT) == {promoted[1]}
    check_what_they_gave(cdp_ml.open(copied))
    assert not cdp_ml.refresh(copied).published
    assert cdp_ml.open(copied).rollback(name) == 1
    assert cdp_ml.refresh(copied).published
    assert versions_that_scored(copied, name) == {1}


def test_what_is_not_there_is_said(demo_workspace):
    cdp = cdp_ml.open(demo_workspace)
    with pytest.raises(ConfigError, match=r"no model 'purchase_3d'.*purchase_30d"):
        cdp.train("purchase_3d")
    with pytest.raises(NotPromotedError, match="no version 99"):
        cdp.promote("purchase_30d", 99)
    with pytest.raises(NotPromotedError, match="no champion before"):
        cdp.rollback("churn_90d")


def test_a_new_propensity_is_a_new_file(copied, caplog):
    """Opening an e-mail, and buying of a category: no line of code."""
    products = cdp_ml.open(copied).table("products")
    counted = products.group_by("category").count().to_pyarrow().to_pylist()
    category = max(counted, key=lambda r: list(r.values())[-1])["category"]
    (copied / "models").mkdir()
    shutil.copy(ROOT / "models" / "identity.yaml", copied / "models")
    (copied / "models" / "opens_email_14d.yaml").write_text(OPENS)
    (copied / "models" / "category_60d.yaml").write_text(CATEGORY.replace("CATEGORY", category))
    outcome = cdp_ml.refresh(copied)
    trained = outcome.reports["train"]["models"]
    assert set(trained) == {"opens_email_14d", "category_60d"}
    for model in trained.values():
        assert model["metrics"]["auc"] > 0.6, model["verdict"]
    frame = cdp_ml.open(copied).training_set("opens_email_14d")
    assert 0.05 < frame["label"].mean() < 0.95
    drift = outcome.reports["score"]["metrics"]
    for name in (n for n, m in trained.items() if m["version"]):
        assert drift[name]["psi_score"] >= 0
        logged = metrics_in_mlflow(copied, name, trained[name]["version"])
        assert logged["psi_score"] == drift[name]["psi_score"]
    assert "'openers': nobody consents to 'marketng'; did you mean 'marketing'" in caplog.text

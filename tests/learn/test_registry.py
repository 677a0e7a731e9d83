import json
import logging
import pickletools
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
from learn_cases import (
    AS_OF,
    campaign_at,
    customers_at,
    fitted,
    fitted_clusters,
    fitted_next,
    fitted_uplift,
    order_lines,
    three_kinds_of_customers,
)
from test_value import fitted_value, shoppers_at

from cdp_ml.config import Settings
from cdp_ml.errors import NotPromotedError
from cdp_ml.learn import registry
from cdp_ml.learn.next_category import recommend


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Settings:
    """A workspace whose MLflow store is made once for all tests: that takes seconds."""
    return Settings(home=tmp_path_factory.mktemp("workspace"), sources={})


@pytest.fixture(scope="module")
def version(workspace):
    return registry.log_run(workspace, fitted(), {"transactions": 3, "events": 1}, "run-1")


@pytest.fixture(scope="module")
def clusters_version(workspace):
    return registry.log_run(workspace, fitted_clusters(), {"transactions": 3}, "run-1")


@pytest.fixture
def client(workspace):
    uri = registry.tracking_uri(workspace)
    return mlflow.MlflowClient(uri, uri)  # else its registry is that of another test's workspace


@pytest.fixture
def run(client, version):
    return client.get_run(client.get_model_version("purchase_30d", str(version)).run_id)


def test_a_loaded_propensity_scores_as_the_trained_one(workspace, version):
    loaded = registry.load_model(workspace, "purchase_30d", version)
    customers = customers_at(AS_OF, rows=50)
    np.testing.assert_array_equal(loaded.predict(customers), fitted().predictor.predict(customers))
    assert (loaded.version, loaded.features) == (version, fitted().predictor.features)


def test_loaded_clusters_assign_as_the_trained_ones(workspace, clusters_version):
    loaded = registry.load_model(workspace, "clusters", clusters_version)
    customers, fresh = three_kinds_of_customers(), fitted_clusters().predictor
    assert list(loaded.assign(customers)) == list(fresh.assign(customers))
    np.testing.assert_allclose(loaded.predict(customers), fresh.predict(customers))


def test_mlflow_itself_serves_the_probability(client, version):
    model = mlflow.pyfunc.load_model(client.get_model_version("purchase_30d", str(version)).source)
    customers = customers_at(AS_OF, rows=5).to_pandas()[list(fitted().predictor.features)]
    given = model.predict(customers.astype(float))
    np.testing.assert_allclose(given, fitted().predictor.predict(customers))


def test_no_artifact_is_a_pickle(workspace, version, clusters_version):
    files = [f for f in Path(workspace.data / "mlflow" / "artifacts").rglob("*") if f.is_file()]
    assert {"model.lgb", "model.skops"} <= {f.name for f in files}
    for file in files:
        assert file.suffix not in (".pkl", ".pickle", ".joblib"), file
        assert not is_pickle(file), file


def is_pickle(file: Path) -> bool:
    content = file.read_bytes()
    try:
        return content[:1] == b"\x80" and bool(list(pickletools.genops(content)))
    except ValueError:
        return False


def test_a_run_tells_what_a_reviewer_asks(run, client):
    assert run.data.params["population"] == "orders_lifetime >= 1"
    assert run.data.params["test_snapshot"] == "2026-06-01"
    assert run.data.params["train_snapshots"] == "2026-03-03, 2026-04-02, 2026-05-02"
    assert run.data.params["estimator.n_estimators"] == "40"
    assert run.data.tags["cdp_ml.table_versions"] == '{"events": 1, "transactions": 3}'
    assert "is promoted" in run.data.tags["cdp_ml.verdict"]
    assert {"auc", "auc_low", "auc_high", "baseline_recency/auc", "ece"} <= set(run.data.metrics)
    assert {d.dataset.name: d.dataset.digest for d in run.inputs.dataset_inputs} == {
        "transactions": "version 3"  # events count through the traits alone
    }
    assert run.info.run_name == "2026-07-01 promoted"
    assert run.info.status == "FINISHED"
    assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {"model_card.md", "plots"}


def test_the_list_of_runs_is_offered_with_what_decides(client, version):
    experiment = client.get_experiment_by_name("purchase_30d")
    view = json.loads(experiment.tags["mlflow.sharedViewState.baselines"])
    assert view["name"] == registry._VIEW
    assert "metrics.`baseline_logistic/auc`" in json.loads(view["state"])["selectedColumns"]
    assert "viewStateShareKey=baselines" in experiment.tags["mlflow.note.content"]


def test_the_sides_of_intervals_are_logged_of_the_model_alone_and_what_is_common_once():
    logged = registry.logged_metrics(fitted())
    assert logged["auc_low"] <= logged["auc"] <= logged["auc_high"]
    assert "baseline_logistic/auc" in logged
    assert not [m for m in logged if m.startswith("baseline_") and m.endswith("_low")]
    assert [m for m in logged if m.endswith("base_rate")] == ["base_rate"]


def test_the_tables_that_a_model_is_trained_from():
    read = registry.tables_read(fitted().spec)
    assert read[:3] == ("traits_transactional", "traits_behavioral", "traits_profile")
    assert {"transactions", "crosswalk"} <= set(read)
    assert "exposures" not in read
    assert "exposures" in registry.tables_read(fitted_uplift().spec)
    assert set(registry.tables_read(fitted_clusters().spec)) == set(read[:3])


def test_a_version_is_described_and_has_a_signature(client, version):
    described = client.get_model_version("purchase_30d", str(version))
    assert described.description.startswith(fitted().verdict)
    assert "## Limits" in described.description
    assert described.tags["promoted"] == "true"
    assert described.tags["as_of"] == "2026-07-01"
    signature = mlflow.models.get_model_info(described.source).signature
    assert "visits_30d" in signature.inputs.input_names()


def test_only_promotion_makes_a_champion(workspace):
    from dataclasses import replace

    other = replace(fitted(), spec=fitted().spec.model_copy(update={"name": "other"}))
    first, second = (registry.log_run(workspace, other, {}, run) for run in ("run-2", "run-2b"))
    assert (first, second) == (1, 2)
    assert registry.champion_version(workspace, "other") is None
    registry.promote(workspace, "other", first)
    assert registry.champion_version(workspace, "other") == first
    registry.promote(workspace, "other", second)
    assert registry.champion_version(workspace, "other") == second


def test_the_newest_version_is_the_challenger_until_it_is_promoted(workspace, client):
    from dataclasses import replace

    other = replace(fitted(), spec=fitted().spec.model_copy(update={"name": "third"}))
    first, second = (registry.log_run(workspace, other, {}, run) for run in ("run-3", "run-3b"))
    registry.promote(workspace, "third", first)
    assert registry._version_by_alias(client, "third", "challenger") == second
    registry.promote(workspace, "third", second)
    assert registry._version_by_alias(client, "third", "challenger") is None
    assert registry.rollback(workspace, "third") == first
    assert registry.champion_version(workspace, "third") == first
    with pytest.raises(NotPromotedError, match="no champion before the present one"):
        registry.rollback(workspace, "third")


def test_rolling_back_begins_at_the_champion_there_is_and_undoes_nothing_if_it_fails(
    workspace, client
):
    """Also one that was chosen on MLflow's own pages."""
    from dataclasses import replace

    other = replace(fitted(), spec=fitted().spec.model_copy(update={"name": "fourth"}))
    for version in (1, 2, 3):
        assert registry.log_run(workspace, other, {}, f"run-4-{version}") == version
    for version in (1, 3):
        registry.promote(workspace, "fourth", version)
    client.set_registered_model_alias("fourth", "champion", "2")
    assert registry.rollback(workspace, "fourth") == 3
    client.delete_model_version("fourth", "1")
    with pytest.raises(NotPromotedError, match="no version 1"):
        registry.rollback(workspace, "fourth")
    assert registry._champions(client, "fourth") == [1, 3]
    assert registry.champion_version(workspace, "fourth") == 3


def test_a_champion_that_predicts_something_else_is_none(workspace, version, caplog):
    spec = fitted().spec
    assert registry.load_champion(workspace, spec, version).version == version
    longer = spec.label.model_copy(update={"within_days": 60})
    assert registry.load_champion(workspace, spec.model_copy(update={"label": longer}), 1) is None
    assert "predicts something else" in caplog.text
    again = spec.model_copy(update={"task": "clustering"})
    assert registry.load_champion(workspace, again, version) is None


def test_every_candidate_is_a_child_of_the_training(client, version):
    run = client.get_model_version("purchase_30d", str(version)).run_id
    experiment = client.get_experiment_by_name("purchase_30d").experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run}'")
    leaves = [c.data.params["estimator.num_leaves"] for c in children]
    assert sorted(set(leaves), key=int) == ["4", "8", "15", "31"]
    shares = [c.data.params["estimator.logistic_share"] for c in children]
    assert sorted(shares) == ["0", *["0.5"] * 4]
    (chosen,) = [c for c in children if c.data.tags["cdp_ml.chosen"] == "true"]
    best = min(c.data.metrics["log_loss"] for c in children)
    assert best <= chosen.data.metrics["log_loss"] < 1.05 * best


def test_what_scores_were_worth_is_added_to_the_run(workspace, client, version):
    registry.log_monitoring(workspace, "purchase_30d", version, {"realized_auc": 0.7}, AS_OF)
    run = client.get_model_version("purchase_30d", str(version)).run_id
    assert client.get_run(run).data.metrics["realized_auc"] == 0.7
    registry.log_monitoring(workspace, "purchase_30d", 99, {"realized_auc": 0.7}, AS_OF)


def test_a_loaded_value_model_predicts_as_the_trained_one_and_so_does_mlflow(workspace, client):
    trained = fitted_value()
    version = registry.log_run(workspace, trained, {}, "run-v")
    customers = shoppers_at(AS_OF, rows=20)
    expected = trained.predictor.predict(customers)
    loaded = registry.load_model(workspace, "clv_90d", version)
    np.testing.assert_allclose(loaded.predict(customers), expected)
    assert loaded.profile == trained.profile
    served = mlflow.pyfunc.load_model(client.get_model_version("clv_90d", str(version)).source)
    features = customers.to_pandas()[list(trained.predictor.features)].astype(float)
    np.testing.assert_allclose(served.predict(features), expected)


def test_a_refresh_that_was_killed_after_registering_finds_its_version_again(workspace, version):
    assert (
        registry.log_run(workspace, fitted(), {"transactions": 3, "events": 1}, "run-1") == version
    )


def test_a_linkage_model_is_logged_once_a_refresh(workspace, version, client):
    facts = ({"contexts": "household"}, {"edges": 12.0, "em_share/substr(surname, 1)": 0.9})
    given = (workspace, "abc123", "run-1", facts)

    def write(folder: Path) -> None:
        (folder / "report.md").write_text("# identity")

    def fail(folder: Path) -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        registry.log_linkage(*given, fail, "killed")
    for _ in range(2):
        registry.log_linkage(*given, write, "Learned from 5 records.")
    experiment = client.get_experiment_by_name("identity")
    assert experiment.tags["mlflow.note.content"] == registry.LINKAGE
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(r.info.status for r in runs) == ["FAILED", "FINISHED"]
    (run,) = [r for r in runs if r.info.status == "FINISHED"]
    assert run.data.params == {"contexts": "household"}
    assert run.data.metrics == {"edges": 12.0, "em_share/substr_surname_ 1_": 0.9}
    assert run.data.tags["cdp_ml.linkage_model"] == "abc123"
    assert run.data.tags["mlflow.note.content"] == "Learned from 5 records."
    assert [a.path for a in client.list_artifacts(run.info.run_id)] == ["report.md"]
    registry.log_linkage(workspace, "abc123", "run-2", facts, write, "")
    assert len(client.search_runs([experiment.experiment_id])) == 3


def test_what_is_not_there_is_said(workspace, version):
    assert registry.champion_version(workspace, "nobody") is None
    with pytest.raises(NotPromotedError, match="no version 99"):
        registry.promote(workspace, "purchase_30d", 99)
    with pytest.raises(NotPromotedError, match="'cdp-ml refresh --force' or 'cdp-ml rollback"):
        registry.load_model(workspace, "purchase_30d", 99)


def test_asking_for_a_champion_makes_no_store(tmp_path):
    empty = Settings(home=tmp_path, sources={})
    assert registry.champion_version(empty, "purchase_30d") is None
    assert not empty.data.exists()


def test_a_workspace_can_be_copied_and_neither_copy_writes_into_the_other(
    workspace, version, tmp_path
):
    shutil.copytree(workspace.home, tmp_path / "copy")
    copy = Settings(home=tmp_path / "copy", sources={})
    assert registry._model_folder(copy, "purchase_30d", version).is_relative_to(tmp_path)
    before = {f for f in workspace.home.rglob("*") if f.is_file()}
    made = registry.log_run(copy, fitted(), {}, "run of the copy")
    assert {f for f in workspace.home.rglob("*") if f.is_file()} == before
    assert registry.load_model(copy, "purchase_30d", made).version == made
    uri = registry.tracking_uri(copy)
    copied = mlflow.MlflowClient(uri, uri)
    for known in (version, made):
        run = copied.get_run(copied.get_model_version("purchase_30d", str(known)).run_id)
        assert run.info.artifact_uri.startswith(copy.home.as_uri())
        assert copied.list_artifacts(run.info.run_id)


def test_the_list_of_experiments_says_what_each_predicts(version, client):
    experiment = client.get_experiment_by_name("purchase_30d")
    assert experiment.tags["mlflow.note.content"].startswith(fitted().spec.description)


def test_recording_a_run_is_silent_and_leaves_the_folder_clean(
    workspace, version, tmp_path, monkeypatch, capfd, caplog
):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        registry.log_run(workspace, fitted(), {}, "run-3")
    heard = capfd.readouterr()
    assert (heard.out, heard.err) == ("", "")
    assert [r for r in caplog.records if r.name.startswith(("mlflow", "alembic"))] == []
    assert list(tmp_path.iterdir()) == []


def test_the_pages_open_on_this_workspace(workspace):
    command, environment = registry.ui_command(workspace, 5001)
    assert registry.tracking_uri(workspace) in command
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_loaded_uplift_model_predicts_as_the_trained_one_and_so_does_mlflow(workspace, client):
    trained = fitted_uplift()
    version = registry.log_run(workspace, trained, {}, "run-uplift")
    customers = campaign_at(AS_OF, 20)
    expected = trained.predictor.predict(customers)
    loaded = registry.load_model(workspace, "spring", version)
    np.testing.assert_array_equal(loaded.predict(customers), expected)
    registered = client.get_model_version("spring", str(version))
    frame = customers.to_pandas()[list(loaded.features)].astype(float)
    np.testing.assert_allclose(mlflow.pyfunc.load_model(registered.source).predict(frame), expected)
    run = client.get_run(registered.run_id)
    assert {"qini", "qini_low", "baseline_propensity/qini"} <= set(run.data.metrics)
    assert run.data.params["campaign"] == "spring"
    plots = {a.path for a in client.list_artifacts(registered.run_id, "plots")}
    assert plots == {f"plots/{name}.png" for name in ("qini", "deciles", "balance")}
    assert "of the campaign `spring`" in registered.description


def test_a_loaded_model_of_next_items_recommends_as_the_trained_one(workspace, client):
    trained, lines = fitted_next(), order_lines()
    version = registry.log_run(workspace, trained, {}, "run-next")
    loaded = registry.load_model(workspace, "next_category", version).model
    assert loaded.parameters == trained.parameters
    before, after = (recommend(lines, r, AS_OF, 3) for r in (trained.predictor.model, loaded))
    assert before.equals(after)
    registered = client.get_model_version("next_category", str(version))
    run = client.get_run(registered.run_id)
    assert {"recall_at_1", "baseline_global_top/recall_at_1"} <= set(run.data.metrics)
    assert "buys next" in registered.description
    plots = {a.path for a in client.list_artifacts(registered.run_id, "plots")}
    assert plots == {f"plots/{name}.png" for name in ("recall", "importance", "contributions")}

"""A reviewer who opens MLflow's pages in a browser finds what was judged, and the verdict first."""

import mlflow
import pytest
from mlflow_walk import NAMES, installed_browser, pages_of, walk

from cdp_ml.config import load_settings
from cdp_ml.learn.registry import tracking_uri

MODEL = "churn_90d"


@pytest.fixture(scope="module")
def seen(demo_workspace, tmp_path_factory):
    """The visible text of three pages, and the folder of their screenshots."""
    if installed_browser() is None:
        pytest.skip(f"no browser to walk with; install one of {', '.join(NAMES)}")
    pages = pages_of(demo_workspace, MODEL)
    chosen = {n: pages[f"{MODEL}-{n}"] for n in ("baselines", "run", "version")}
    folder = tmp_path_factory.mktemp("walk")
    return walk(demo_workspace, folder, chosen), folder


@pytest.fixture(scope="module")
def verdict(demo_workspace):
    uri = tracking_uri(load_settings(demo_workspace))
    client = mlflow.MlflowClient(uri, uri)
    (version, *_) = client.search_model_versions(f"name = '{MODEL}'")
    return client.get_run(version.run_id).data.tags["cdp_ml.verdict"]


@pytest.mark.parametrize("page", ["run", "version"])
def test_the_verdict_is_read_before_anything_else_of_the_description(page, seen, verdict):
    text = seen[0][page]
    assert verdict in text
    assert text.index("Description") < text.index(verdict) < text.index("Metrics")


def test_the_list_of_runs_is_there_with_the_metrics_of_model_and_baselines(seen):
    text = seen[0]["baselines"]
    assert "The runs beside their baselines" in text
    assert "auc_low" in text
    assert "Request error" not in text


def test_the_run_names_the_tables_with_their_versions_and_its_candidates(seen):
    text = seen[0]["run"]
    assert "traits_transactional (version" in text
    assert "(chosen)" in text


def test_every_page_was_photographed(seen):
    texts, folder = seen
    for page in texts:
        assert (folder / f"{page}.png").stat().st_size > 20_000, page

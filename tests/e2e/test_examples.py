"""The examples on public data, end to end; fewer training instants than they ship with."""

import shutil

import pyarrow.compute as pc
import pytest
from conftest import ONLINE_RETAIL_REFUSED, ROOT

import cdp_ml
from cdp_ml import online
from cdp_ml.truth import evaluate_workspace

LINES = 541_909


def rewrite(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path.name} has no '{old}' any more"
    path.write_text(text.replace(old, new), encoding="utf-8")


def copy_of(example, file, shared_data, folder):
    """The example's workspace elsewhere, its source where the public data is here."""
    if not (shared_data / file).is_file():
        pytest.skip(f"no {file} in {shared_data}; the example's README says where to get it")
    home = folder / example
    shutil.copytree(ROOT / "examples" / example, home, ignore=shutil.ignore_patterns(".cdp"))
    rewrite(home / "cdp.yaml", f"../../../shared/data/{file}", str(shared_data / file))
    return home


@pytest.fixture(scope="module")
def shop(shared_data, tmp_path_factory):
    """Online Retail, refreshed, with one propensity on five instants instead of two on eight."""
    folder = tmp_path_factory.mktemp("examples")
    home = copy_of("online_retail", "online_retail.parquet", shared_data, folder)
    (home / "models" / "churn_90d.yaml").unlink()
    shipped = "{count: 8, every_days: 14}"
    rewrite(home / "models" / "purchase_90d.yaml", shipped, "{count: 5, every_days: 24}")
    assert cdp_ml.refresh(home).published
    return cdp_ml.open(home)


def test_every_line_of_the_shop_is_accounted_for(shop):
    sources = shop.run["summary"]["ingest"]["sources"]
    for name in ("shop", "products", "orders"):
        counts = sources[name]
        parts = [counts[p] for p in ("kept", "repeated", "refused", "filtered")]
        assert counts["read"] == sum(parts) == LINES, name
    assert sources["shop"]["kept"] == 4_372
    assert sources["orders"]["kept"] == LINES - sum(ONLINE_RETAIL_REFUSED.values())
    rejects = shop.table("rejects").to_pyarrow()
    reasons = pc.value_counts(rejects["reason"]).to_pylist()
    assert {r["values"]: r["counts"] for r in reasons} == ONLINE_RETAIL_REFUSED


def test_lines_without_a_customer_are_kept_and_attributed_to_nobody(shop):
    lines = shop.table("transactions").select("identifier", "quantity").to_pyarrow()
    known = pc.is_valid(lines["identifier"])
    assert pc.sum(pc.invert(known)).as_py() == 131_586
    returned = pc.and_(known, pc.less(lines["quantity"], 0))
    assert pc.sum(returned).as_py() == 8_539


def test_the_instants_leave_a_closed_window_after_the_test(shop):
    split = shop.split("purchase_90d")
    assert f"{shop.as_of:%Y-%m-%d}" == f"{split.as_of:%Y-%m-%d}" == "2011-12-10"
    assert f"{split.test:%Y-%m-%d}" == "2011-09-11"
    assert f"{split.train[-1]:%Y-%m-%d}" == "2011-06-13"
    assert len(split.train) == 5


def test_the_models_of_the_shop_are_judged_beside_their_baselines(shop):
    trained = shop.run["summary"]["train"]["models"]
    assert set(trained) == {"purchase_90d", "clusters"}
    assert trained["clusters"]["version"] is not None
    purchase = trained["purchase_90d"]
    assert purchase["metrics"]["auc"] > 0.72
    assert purchase["metrics"]["brier"] < 0.22
    assert purchase["metrics"]["auc"] > purchase["metrics"]["baseline_recency/auc"] + 0.03
    for said in ("the best baseline", "log-loss"):
        assert said in purchase["verdict"]
    assert purchase["version"] is not None, purchase["verdict"]


def test_the_segments_of_the_shop_have_members(shop):
    members = shop.table("segment_membership").to_pyarrow()
    sizes = {r["values"]: r["counts"] for r in pc.value_counts(members["segment"]).to_pylist()}
    assert {"big_spenders", "lapsing", "likely_buyers"} <= set(sizes)
    assert sum(name.startswith("clusters:") for name in sizes) >= 3
    assert sizes["likely_buyers"] == pytest.approx(4_372 / 10, abs=10)


def test_a_customer_of_the_shop_is_scored_online_as_in_the_batch(shop):
    run = online.open_online(shop.settings)
    scores = [r for r in shop.lake.arrow("scores").to_pylist() if r["model"] == "purchase_90d"]
    for row in scores[::500]:
        answer = online.score(run, row["customer_id"], "purchase_90d")
        assert answer["score"] == pytest.approx(row["score"], abs=1e-9)
        assert answer["reasons"]


def test_historical_figures_are_linked(shared_data, tmp_path):
    home = copy_of("historical_figures", "historical_figures_50k.parquet", shared_data, tmp_path)
    assert cdp_ml.refresh(home).published
    figures = cdp_ml.open(home)
    counts = figures.run["summary"]["ingest"]["sources"]["figures"]
    assert counts["read"] == counts["kept"] == 50_578
    found = evaluate_workspace(figures)["identity"]
    assert found["f1"] >= 0.85
    assert found["precision"] >= 0.95

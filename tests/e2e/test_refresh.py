"""The whole platform on a small synthetic world: complete, idempotent, unkillable."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
from conftest import ROOT

import cdp_ml
from cdp_ml.lake import Lake
from cdp_ml.refresh import STEPS
from cdp_ml.truth import evaluate_workspace

CLOCK = {
    "valid_from",
    "valid_to",
    "ingested_at",
    "started_at",
    "published_at",
    "run_id",
    "event_id",
}
"""Columns that may hold the time of the run."""


def published(home):
    return Lake.published(home / ".cdp" / "lake")


def content(home):
    """Every published table as sorted rows, without the clock of the run."""
    lake = published(home)
    tables = {}
    for name in sorted(t for t in lake.versions if lake.has(t)):
        frame = lake.arrow(name).to_pandas()
        clock = CLOCK | ({"event_timestamp"} if name == "identity_log" else set())
        frame = frame.drop(columns=[c for c in frame.columns if c in clock])
        tables[name] = frame.sort_values(list(frame.columns)).reset_index(drop=True)
    return tables


def deliver_more(home):
    """A subscriber who is a customer already, a corrected row, one model to be retrained."""
    path = home / "data" / "demo" / "newsletter" / "subscribers.csv"
    lines = path.read_text().splitlines()
    number, mail, *rest = lines[5].split(",")
    added = [
        ",".join(["N99000001", mail, *rest]),
        ",".join([number, "corrected@new.example", *rest]),
    ]
    path.write_text("\n".join([*lines, *added]) + "\n")
    (home / "models").mkdir()
    for kept in ("identity", "purchase_30d", "clusters"):
        shutil.copy(ROOT / "models" / f"{kept}.yaml", home / "models")
    with (home / "models" / "purchase_30d.yaml").open("a") as specification:
        specification.write("estimator: {n_estimators: 100}\n")


def test_every_table_is_published_and_every_row_accounted_for(demo_workspace):
    run = cdp_ml.open(demo_workspace).run
    lake = published(demo_workspace)
    for table in {t for step in STEPS for t in step.writes}:
        assert lake.has(table), table
    for counts in run["summary"]["ingest"]["sources"].values():
        parts = ("kept", "repeated", "refused", "filtered")
        assert counts["read"] == sum(counts[p] for p in parts)
    refused = sum(c["refused"] for c in run["summary"]["ingest"]["sources"].values())
    assert lake.arrow("rejects").num_rows == refused


def test_a_customer_is_one_of_ours_everywhere(demo_workspace):
    cdp = cdp_ml.open(demo_workspace)
    customers = set(cdp.table("customers").customer_id.execute())
    assert 400 < len(customers) < 900
    for table in ("scores", "segment_membership", "traits_profile", "labels_purchase_30d"):
        assert set() < set(cdp.table(table).customer_id.execute()) <= customers


def test_a_second_refresh_does_nothing(demo_workspace):
    before = published(demo_workspace).versions
    again = cdp_ml.refresh(demo_workspace)
    assert not again.published
    assert again.seconds == {}
    assert published(demo_workspace).versions == before


def test_a_notebook_gets_the_training_set_as_of_its_instants(demo_workspace):
    cdp = cdp_ml.open(demo_workspace)
    frame, split = cdp.training_set("purchase_30d"), cdp.split("purchase_30d")
    assert set(frame["event_timestamp"]) == set(pd.to_datetime(list(split.instants)))
    assert set(frame["label"]) == {0.0, 1.0}
    assert (frame["orders_lifetime"] >= 1).all()


def test_the_links_and_scores_are_near_the_truth(demo_workspace):
    cdp = cdp_ml.open(demo_workspace)
    found = evaluate_workspace(cdp)
    assert found["identity"]["precision"] >= 0.90
    assert found["identity"]["f1"] >= 0.85
    trained = cdp.run["summary"]["train"]["models"]
    served = {name for name, model in trained.items() if model["version"]}
    assert set(found["models"]) == served & {"purchase_30d", "churn_90d"} != set()
    for model in found["models"].values():
        assert 0.5 < model["auc"] <= model["auc_truth"] + 0.05


def test_killed_anywhere_it_ends_in_the_same_state_and_readers_see_no_mixture(
    demo_workspace, tmp_path
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for home in (whole, killed):
        shutil.copytree(demo_workspace, home)
        deliver_more(home)
    before = published(killed).versions
    command = [sys.executable, str(Path(__file__).with_name("killing.py")), str(killed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as killing:
        cdp_ml.refresh(whole)
        said, errors = killing.communicate()
    attempts = [json.loads(line) for line in said.splitlines()]
    assert attempts, errors[-2000:]
    deaths = [a for a in attempts if a["code"] == -9]
    assert {a["step"] for a in deaths} == {"", *(step.name for step in STEPS)}
    for attempt in attempts:
        assert attempt["error"] is None, attempt
        if attempt["moment"] not in ("after the publication", "never"):
            assert attempt["seen"]["versions"] == before, attempt
    assert attempts[-1]["code"] == 0
    left, right = content(whole), content(killed)
    assert set(left) == set(right)
    for table, rows in left.items():
        if table not in ("runs", "metrics"):
            pd.testing.assert_frame_equal(rows, right[table], obj=table)

"""`cdp-ml identity` as a person meets it, on a refreshed workspace."""

import csv
import json
import shutil

import pytest
from conftest import ROOT
from test_cli import assert_refused, cdp

import cdp_ml
from cdp_ml import online


@pytest.fixture(scope="module")
def home(demo_workspace, tmp_path_factory):
    """A copy that decisions may be written to; no test here refreshes it."""
    return shutil.copytree(demo_workspace, tmp_path_factory.mktemp("people") / "demo")


@pytest.fixture
def doubt(home):
    """The most probable pair of the queue."""
    return json.loads(cdp("identity", "review", "-w", home, "--json").out)[0]


def overrides(home):
    return json.loads(cdp("identity", "overrides", "-w", home, "--json").out)


def ids(home):
    """The customer of each record."""
    known = cdp_ml.open(home).identity
    return {r["record"]: r["customer_id"] for r in known.con.to_pyarrow(known.links()).to_pylist()}


def test_the_queue_is_shown_and_written(home, tmp_path):
    shown = cdp("identity", "review", "-w", home, "--limit", 3)
    assert (shown.code, shown.err) == (0, "")
    assert "are they one person?" in shown.out
    path = tmp_path / "queue.csv"
    told = cdp("identity", "review", "-w", home, "--out", path)
    assert f"cdp-ml identity decide {path}" in told.out.replace("\n", " ")
    with path.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(cdp_ml.open(home).table("reviews").to_pandas())
    assert_refused(cdp("identity", "review", "-w", home, "--out", path), "exists already")
    assert "Nothing is decided" in cdp("identity", "decide", path, "-w", home).out


def test_a_dry_run_shows_what_would_change_and_writes_nothing(home, doubt):
    pair = (doubt["record_l"], doubt["record_r"])
    told = cdp("identity", "merge", *pair, "-w", home, "--dry-run")
    assert (told.code, told.err) == (0, "")
    assert doubt["customer_l"] in told.out
    assert doubt["customer_r"] in told.out
    assert "merges into" in told.out
    assert told.out.endswith("Nothing was written.\n")
    assert not any(o["reason"] == "dry" for o in overrides(home))


def test_asked_a_person_may_decline(home, doubt, monkeypatch):
    before, questions = overrides(home), []
    monkeypatch.setattr("typer.confirm", lambda text: bool(questions.append(text)))
    told = cdp("identity", "merge", doubt["record_l"], doubt["record_r"], "-w", home)
    assert len(questions) == 1
    assert told.out.endswith("Nothing was written.\n")
    assert overrides(home) == before


def test_decisions_are_listed_with_who_when_why_and_taken_back(home, doubt):
    names = (doubt["record_l"], doubt["record_r"])
    made = cdp(
        "identity", "merge", *names, "-w", home, "-y", "--actor", "eve", "--reason", "phoned"
    )
    assert "The next 'cdp-ml refresh' applies it." in made.out
    decision = overrides(home)[-1]
    assert (decision["actor"], decision["reason"], decision["pairs"]) == ("eve", "phoned", 1)
    assert decision["state"] == "holds from the next refresh on"
    assert names not in [
        (r["record_l"], r["record_r"])
        for r in json.loads(cdp("identity", "review", "-w", home, "--json").out)
    ]
    assert "phoned" in cdp("identity", "overrides", "-w", home).out
    cdp("identity", "undo", decision["override_id"], "-w", home, "-y", "--actor", "mia")
    assert overrides(home)[-1]["undone_by"] == "mia"
    refusal = cdp("identity", "undo", decision["override_id"], "-w", home, "-y")
    assert_refused(refusal, "taken back already")


def test_explanations_are_text_and_charts(home, doubt, tmp_path):
    names = (doubt["record_l"], doubt["record_r"])
    told = cdp("identity", "explain", *names, "-w", home, "--out", tmp_path / "bits.png")
    assert "They are two customers" in told.out
    assert (tmp_path / "bits.png").is_file()
    found = json.loads(cdp("identity", "explain", *names, "-w", home, "--json").out)
    assert found["weight"] == pytest.approx(doubt["match_weight"])
    held = cdp("identity", "why", doubt["record_l"], "-w", home, "--out", tmp_path / "why.html")
    assert doubt["customer_l"] in held.out
    assert "<svg" in (tmp_path / "why.html").read_text()


def test_history_tells_the_links_that_held_at_an_instant(home, doubt):
    now = json.loads(cdp("identity", "history", doubt["record_l"], "-w", home, "--json").out)
    assert now["links"][-1]["customer_id"] == doubt["customer_l"]
    assert doubt["customer_l"] in cdp("identity", "history", doubt["customer_l"], "-w", home).out
    before = cdp("identity", "history", doubt["record_l"], "-w", home, "--as-of", "2001-01-01")
    assert "No link held then." in before.out
    assert cdp("identity", "history", "x", "-w", home, "--as-of", "yesterday").code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("merge", "crm:nobody", "crm:nobody"), "source 'crm' has no such record"),
        (("merge", "cmr:C00000001", "crm:C00000002"), "no source 'cmr'.*did you mean 'crm'"),
        (("split", "zoe@zulu.example", "crm:C00000001"), "no customer of this id; name a record"),
        (("undo", "o12345"), "no decision 'o12345'"),
        (("decide", "no.csv"), "no.csv: no such file; 'cdp-ml identity review --out FILE'"),
        (("explain", "crm:C00000001", "crm:nobody"), "source 'crm' has no such record"),
        (("explain", "crm:C1", "crm:C2", "--out", "a.gif"), r"no format '\.gif'"),
        (("why", "c0"), "no customer of this id"),
        (("history", "shop:nobody"), "source 'shop' has no such record"),
    ],
)
def test_what_is_wrong_is_one_line(home, arguments, message):
    assert_refused(cdp("identity", *arguments, "-w", home), message)


def test_before_the_first_refresh_there_is_nothing_to_decide(tmp_path):
    cdp_ml.workspace.make_workspace(tmp_path / "new")
    assert_refused(cdp("identity", "review", "-w", tmp_path / "new"), "nothing published yet")


# ---- the whole platform follows -----------------------------------------------------------------


def seen(home):
    """What is published of each customer, and what the service says: all but the clock."""
    workspace = cdp_ml.open(home)
    people = workspace.table("customers").to_pandas().set_index("customer_id")
    orders = workspace.table("traits_transactional").to_pandas()
    orders = orders[orders["event_timestamp"] == workspace.as_of].set_index("customer_id")
    scores = workspace.table("scores").to_pandas()
    scores = scores[(scores["as_of"] == workspace.as_of) & (scores["model"] == "churn_90d")]
    stays = workspace.table("segment_membership").to_pandas()
    inside = stays[stays["exited_at"].isna()]
    return {
        "records": people["records"].to_dict(),
        "orders": orders["orders_lifetime"].to_dict(),
        "scored": set(scores["customer_id"]),
        "members": set(inside["customer_id"]),
        "segments": set(zip(inside["segment"], inside["customer_id"], strict=True)),
    }


def served(home):
    trained = cdp_ml.open(home).run["summary"]["train"]["models"]
    return [name for name, model in trained.items() if model["version"]]


def test_a_merge_goes_through_to_the_service_and_undone_comes_back(demo_workspace, tmp_path):
    home = shutil.copytree(demo_workspace, tmp_path / "demo")
    with (home / "cdp.yaml").open("a") as settings:
        # A model that was refused would be trained anew with every refresh.
        settings.write(f"models: {sorted(served(home))}\n")
    before, links = seen(home), ids(home)
    buyers = sorted(before["scored"] & before["members"], key=lambda c: (-before["records"][c], c))
    survivor, retired = buyers[0], next(
        c for c in buyers if before["records"][c] < before["records"][buyers[0]]
    )  # fmt: skip
    assert cdp("identity", "merge", survivor, retired, "-w", home, "-y").code == 0
    assert seen(home) == before

    assert cdp("refresh", "-w", home).code == 0
    merged = seen(home)
    assert merged["records"][survivor] == before["records"][survivor] + before["records"][retired]
    assert merged["orders"][survivor] == before["orders"][survivor] + before["orders"][retired]
    assert survivor in merged["scored"]
    for what in ("records", "orders", "scored", "members"):
        assert retired not in merged[what], what
    assert set(before["records"]) - set(merged["records"]) == {retired}
    service = online.open_online(cdp_ml.open(home).settings)
    assert online.profile(service, survivor)["records"] == merged["records"][survivor]
    told = online.score(service, survivor, "churn_90d", reasons=False)
    assert told["in_population"]
    # Who asks with the retired id is answered with the survivor.
    assert online.profile(service, retired) == online.profile(service, survivor)
    moved = {r for r, c in ids(home).items() if c != links[r]}
    assert moved == {r for r, c in links.items() if c == retired}

    (decision,) = overrides(home)
    assert decision["state"] == "holds"
    assert cdp("identity", "undo", decision["override_id"], "-w", home, "-y").code == 0
    assert cdp("refresh", "-w", home).code == 0
    assert ids(home) == links
    assert seen(home) == before
    service = online.open_online(cdp_ml.open(home).settings)
    assert online.profile(service, retired)["records"] == before["records"][retired]


def test_the_readme_lists_the_commands():
    from typer.main import get_command

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in get_command(cdp_ml.cli.identity).commands:
        assert f"`cdp-ml identity {command}" in readme

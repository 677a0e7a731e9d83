import datetime as dt
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from published import AS_OF, SCORED, delivered, fill_online_store, make_workspace, traits

from cdp_ml import online, serve
from cdp_ml.config import Settings, load_settings
from cdp_ml.errors import CdpError, ConfigError, LinkageError, NotPromotedError


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    made = make_workspace(tmp_path_factory.mktemp("online") / "ws")
    made.publish()
    return made


@pytest.fixture(scope="module")
def run(workspace):
    return online.open_online(workspace.settings)


def batch(workspace, model):
    rows = workspace.lake.arrow("scores").to_pylist()
    return {r["customer_id"]: r for r in rows if r["model"] == model}


def test_without_a_publication_the_error_says_what_to_run(tmp_path):
    with pytest.raises(online.NothingPublishedError, match="run 'cdp-ml refresh'"):
        online.open_online(Settings(home=tmp_path, sources={}))


def test_online_and_batch_give_each_customer_the_same_score_also_to_many_callers(workspace, run):
    rows = batch(workspace, "purchase_30d")
    with ThreadPoolExecutor(4) as callers:
        answers = callers.map(lambda c: online.score(run, c, "purchase_30d", reasons=False), rows)
        for answer, row in zip(answers, rows.values(), strict=True):
            assert answer["customer_id"] == row["customer_id"]
            assert answer["score"] == pytest.approx(row["score"], abs=1e-12)
            assert answer["percentile"] == pytest.approx(row["percentile"], abs=1e-12)
            assert answer["model_version"] == row["model_version"] == 1
            assert answer["as_of"] == AS_OF


def test_online_and_batch_put_customers_into_the_same_cluster(workspace, run):
    for customer_id, row in list(batch(workspace, "clusters").items())[:50]:
        answer = online.score(run, customer_id, "clusters")
        assert answer["cluster"] == row["cluster"]
        assert answer["score"] == pytest.approx(row["score"], abs=1e-9)


def test_customers_outside_the_population_are_marked(run):
    inside, outside = f"c{SCORED - 1}", f"c{SCORED}"
    assert online.score(run, inside, "purchase_30d")["in_population"]
    assert not online.score(run, outside, "purchase_30d")["in_population"]


def test_reasons_are_the_weightiest_features_with_the_customers_values(run):
    reasons = online.score(run, "c7", "purchase_30d")["reasons"]
    weights = [abs(r["contribution"]) for r in reasons]
    assert weights == sorted(weights, reverse=True)
    values = traits(AS_OF).slice(7, 1).to_pylist()[0]
    assert {r["feature"]: r["value"] for r in reasons} == {
        r["feature"]: values[r["feature"]] for r in reasons
    }
    assert len(reasons) == 3
    assert all(r["meaning"] for r in reasons)


def test_reasons_may_be_left_out(run):
    assert online.score(run, "c7", "purchase_30d", reasons=False)["reasons"] == []


@pytest.mark.parametrize("ask", [online.profile, online.segments])
def test_an_unknown_customer_is_an_error_that_does_not_repeat_the_id(run, ask):
    with pytest.raises(online.UnknownCustomerError, match="no customer") as error:
        ask(run, "jane@example.org")
    assert "jane" not in str(error.value)


def test_an_unknown_customer_has_no_score(run):
    with pytest.raises(online.UnknownCustomerError):
        online.score(run, "nobody", "purchase_30d")


def test_an_unknown_model_is_told_with_the_nearest_name(run):
    with pytest.raises(ConfigError, match="did you mean 'purchase_30d'"):
        online.score(run, "c1", "purchase_30")


def test_a_model_without_champion_does_not_score(run):
    with pytest.raises(NotPromotedError, match="churn_90d"):
        online.score(run, "c1", "churn_90d")


def test_a_profile_holds_what_is_known_with_its_source(run):
    answer = online.profile(run, "c3")
    assert answer["fields"] == {
        "given_name": {"value": "zuzana", "source": "shop"},
        "email": {"value": "zuzana3@example.org", "source": "crm"},
        "birth_date": {"value": dt.date(1980, 2, 29), "source": "crm"},
    }
    assert (answer["records"], answer["sources"]) == (2, ["crm", "shop"])


def test_segments_are_those_that_the_customer_has_not_left(run):
    may, june = (dt.datetime(2026, m, 1, tzinfo=dt.UTC) for m in (5, 6))
    assert online.segments(run, "c1") == [
        {"segment": "big_spenders", "entered_at": may},
        {"segment": "lapsing", "entered_at": june},
    ]
    assert online.segments(run, "c9") == []


@pytest.mark.parametrize("former", ["young", "old"])
def test_an_id_that_was_merged_away_is_answered_with_the_survivors_data(run, former):
    assert online.profile(run, former) == online.profile(run, "c5")
    assert online.score(run, former, "purchase_30d") == online.score(run, "c5", "purchase_30d")
    assert online.segments(run, former) == online.segments(run, "c5")
    assert online.profile(run, former)["customer_id"] == "c5"


@pytest.mark.parametrize("present", ["c6", "c9"])
def test_an_id_that_lives_is_itself_whatever_the_log_says_of_the_past(run, present):
    assert online.profile(run, present)["customer_id"] == present


def test_an_id_whose_survivor_is_gone_is_unknown(run):
    with pytest.raises(online.UnknownCustomerError):
        online.profile(run, "lost")


def test_a_person_is_resolved_to_the_records_and_customer_that_it_might_be(run):
    best = online.resolve(run, delivered(7))[0]
    assert best["customer_id"] == "c7"
    assert best["match_probability"] > 0.9


def test_many_callers_who_ask_first_open_one_resolver(workspace):
    fresh = online.open_online(workspace.settings)
    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda _: online.resolve(fresh, delivered(7)), range(4)))
        resolvers = list(callers.map(lambda _: fresh.resolving.resolver(), range(4)))
    assert all(answer == answers[0] for answer in answers)
    assert all(r is resolvers[0] for r in resolvers)


def test_nobody_in_particular_is_nobody_and_an_unknown_field_an_error(run):
    assert online.resolve(run, {}) == []
    with pytest.raises(LinkageError, match="did you mean 'surname'"):
        online.resolve(run, {"sirname": "x"})


def test_resolving_writes_nothing(workspace, run):
    before = {p: p.stat().st_mtime_ns for p in workspace.settings.home.rglob("*")}
    online.resolve(run, delivered(3))
    assert {p: p.stat().st_mtime_ns for p in workspace.settings.home.rglob("*")} == before


@pytest.mark.parametrize("summary", [{}, {"identity": {"model": None}},
                                     {"identity": {"model": {"version": "gone"}}}])  # fmt: skip
def test_without_a_linkage_model_the_error_says_what_to_run(tmp_path, summary):
    workspace = make_workspace(tmp_path / "ws")
    workspace.summary = summary
    workspace.publish()
    run = online.open_online(workspace.settings)
    with pytest.raises(NotPromotedError, match="cdp-ml refresh --force"):
        online.resolve(run, delivered(7))


def test_models_lists_also_those_without_champion(run):
    versions = {m["model"]: m["version"] for m in online.models(run)}
    assert versions == {"churn_90d": None, "clusters": 1, "purchase_30d": 1}


def test_a_new_publication_takes_over_whole_and_a_broken_one_does_not(tmp_path):
    workspace = make_workspace(tmp_path / "ws")
    latest = online.Latest(workspace.settings)
    assert not latest.update()
    assert not latest.ready
    workspace.publish()
    assert latest.update()
    assert not latest.update()
    first = latest.online()

    workspace.publish(**{"model/purchase_30d": 99})
    with pytest.raises(NotPromotedError):
        latest.update()
    assert latest.online() is first

    workspace.train("purchase_30d", seed=1)
    workspace.score()
    workspace.lake.versions["online_store"] = fill_online_store(workspace, 2)
    answers, stop = set(), threading.Event()

    def ask():
        while not stop.is_set():
            now = latest.online()
            version = online.score(now, "c1", "purchase_30d", reasons=False)["model_version"]
            answers.add((now.run_id, version))

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    workspace.publish()
    assert latest.update()
    while ("run-3", 2) not in answers and all(t.is_alive() for t in asking):
        stop.wait(0.01)
    stop.set()
    for thread in asking:
        thread.join()
    assert answers == {("run-1", 1), ("run-3", 2)}
    assert online.score(first, "c1", "purchase_30d")["model_version"] == 1


def test_only_an_address_of_this_machine_that_is_free_is_served(workspace):
    with pytest.raises(ConfigError, match="'localhost': not an IP address"):
        serve.serve_command(workspace.settings, "localhost", 3000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="in use; choose another port"):
            serve.serve_command(workspace.settings, "127.0.0.1", taken.getsockname()[1])


def test_a_service_that_cannot_start_shows_its_log_and_leaves_nothing_behind(tmp_path):
    home = tmp_path / "ws"
    (home / "serving").mkdir(parents=True)
    (home / "serving" / "bentofile.yaml").write_text('service: "absent:Service"\n')
    (home / "cdp.yaml").write_text("sources: {}\n")
    before = children()
    with (
        pytest.raises(CdpError, match=r"the service ended; the end of its log:(.|\n)*absent"),
        serve.running_service(load_settings(home)),
    ):
        pass
    assert children() == before


def children():
    import psutil

    return {p.pid for p in psutil.Process(os.getpid()).children(recursive=True)}


def test_a_run_of_an_older_version_says_what_to_run(tmp_path, monkeypatch):
    made = make_workspace(tmp_path / "ws")
    monkeypatch.setattr(made, "_described", lambda: {"purchase_30d": {"version": 1}})
    made.publish()
    with pytest.raises(CdpError, match=r"older version .* run 'cdp-ml refresh'"):
        online.open_online(made.settings)


def test_a_model_file_that_was_broken_since_disturbs_no_answer(tmp_path):
    made = make_workspace(tmp_path / "ws")
    made.publish()
    for name in ("purchase_30d", "clusters"):
        (made.settings.home / "models" / f"{name}.yaml").write_text("task: [")
    again = online.open_online(made.settings)
    assert online.score(again, "c7", "purchase_30d")["model_version"] == 1
    assert [m["model"] for m in online.models(again)] == ["churn_90d", "clusters", "purchase_30d"]

"""The real BentoML server, started once, asked over HTTP as a client would."""

import importlib
import json
import time
import urllib.error
import urllib.request

import psutil
import pytest
from published import delivered, make_workspace

from cdp_ml import serve
from cdp_ml.config import shipped


class Service:
    def __init__(self, url, log, workspace):
        self.url, self.log, self.workspace = url, log, workspace

    def get(self, path):
        return self._send(urllib.request.Request(f"{self.url}{path}"))

    def post(self, path, body, content="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._send(
            urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": content})
        )

    def _send(self, request):
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers

    def ask(self, method, **body):
        status, content, _ = self.post(f"/{method}", body)
        return status, json.loads(content)

    def until(self, holds, seconds=90):
        end = time.monotonic() + seconds
        while not holds() and time.monotonic() < end:
            time.sleep(0.1)
        return holds()


@pytest.fixture(scope="module")
def unpublished(tmp_path_factory):
    home = tmp_path_factory.mktemp("serving")
    workspace = make_workspace(home / "ws")
    log = home / "service.log"
    with serve.running_service(workspace.settings, until="livez", log=log) as url:
        yield Service(url, log, workspace)


@pytest.fixture(scope="module")
def before(unpublished):
    """What the service said while nothing was published."""
    return unpublished.get("/readyz")[0], unpublished.ask("status"), unpublished.get("/livez")[0]


@pytest.fixture(scope="module")
def service(unpublished, before):
    unpublished.workspace.publish()
    assert unpublished.until(lambda: unpublished.get("/readyz")[0] == 200)
    return unpublished


def test_before_the_first_publication_it_is_alive_but_not_ready(before):
    ready, (status, answer), alive = before
    assert (ready, alive, status) == (503, 200, 503)
    assert answer["error"] == "NothingPublishedError"
    assert "cdp-ml refresh" in answer["message"]


def test_it_becomes_ready_by_itself_once_a_run_is_published(service):
    assert service.get("/healthz")[0] == 200
    assert service.ask("status")[1]["run_id"] == "run-1"


def test_a_score_over_http_equals_the_batch_score(service):
    scores = service.workspace.lake.arrow("scores").to_pylist()
    row = next(r for r in scores if r["model"] == "purchase_30d" and r["customer_id"] == "c5")
    status, answer = service.ask("score", customer_id="c5", model="purchase_30d")
    assert status == 200
    assert answer["score"] == pytest.approx(row["score"])
    assert answer["percentile"] == pytest.approx(row["percentile"])
    assert len(answer["reasons"]) == 3
    assert set(answer["reasons"][0]) == {"feature", "value", "contribution", "meaning"}


def test_a_cluster_is_named(service):
    _, answer = service.ask("score", customer_id="c5", model="clusters", reasons=False)
    assert answer["cluster"]
    assert answer["reasons"] == []


def test_a_profile_tells_each_fields_source(service):
    status, answer = service.ask("profile", customer_id="c5")
    assert status == 200
    assert answer["fields"]["email"] == {"value": "zuzana5@example.org", "source": "crm"}


def test_segments_and_models(service):
    _, answer = service.ask("segments", customer_id="c1")
    assert [s["segment"] for s in answer["segments"]] == ["big_spenders", "lapsing"]
    _, answer = service.ask("models")
    assert {m["model"] for m in answer["models"]} == {"churn_90d", "clusters", "purchase_30d"}


def test_a_person_is_resolved_and_nothing_but_ids_of_others_is_told(service):
    status, answer = service.ask("resolve", **delivered(7))
    assert (status, set(answer)) == (200, {"as_of", "candidates"})
    best = answer["candidates"][0]
    assert best["customer_id"] == "c7"
    assert set(best) == {"source", "source_record_id", "customer_id", "match_weight",
                         "match_probability", "evidence"}  # fmt: skip


def test_who_nobody_knows_has_no_candidates(service):
    for person in ({}, {"given_name": "小龍", "surname": "李"}, {"email": "not an address"}):
        status, answer = service.ask("resolve", **person)
        assert (status, answer["candidates"]) == (200, [])


def test_an_id_that_was_merged_away_is_answered_for_with_the_survivors(service):
    for method, more in (("profile", {}), ("segments", {}), ("score", {"model": "clusters"})):
        status, answer = service.ask(method, customer_id="old", **more)
        assert (status, answer["customer_id"]) == (200, "c5")


@pytest.mark.parametrize(
    ("method", "body", "status", "error", "message"),
    [
        ("profile", {"customer_id": "no"}, 404, "UnknownCustomerError", "no customer"),
        ("segments", {"customer_id": "no"}, 404, "UnknownCustomerError", "no customer"),
        ("score", {"customer_id": "c1", "model": "clustres"}, 404, "ConfigError", "'clusters'"),
        ("score", {"customer_id": "c1", "model": "churn_90d"}, 409, "NotPromotedError", "churn"),
        ("score", {"customer_id": "c1"}, 400, "InvalidRequest", "model: Field required"),
        ("score", {"customer_id": 3, "model": "m"}, 400, "InvalidRequest", "valid string"),
        ("profile", {"customer_id": "c1", "jane": 1}, 400, "InvalidRequest", "jane"),
        ("resolve", {"surnam": "jane"}, 400, "InvalidRequest", "surnam"),
        ("resolve", {"surname": 7}, 400, "InvalidRequest", "valid string"),
    ],
)
def test_errors_say_their_kind_and_what_is_wrong(service, method, body, status, error, message):
    got, answer = service.ask(method, **body)
    assert (got, answer["error"]) == (status, error)
    assert message in answer["message"]
    assert set(answer) == {"error", "message"}


def test_a_body_that_is_not_json_is_refused(service):
    status, content, _ = service.post("/score", b"{secret")
    assert status == 400
    assert json.loads(content)["error"] == "InvalidRequest"


def test_a_body_that_is_not_declared_as_json_is_refused_with_what_to_do(service):
    asked = {"customer_id": "c5", "model": "purchase_30d"}
    status, content, _ = service.post("/score", asked, "application/x-www-form-urlencoded")
    assert status == 400
    assert "Content-Type: application/json" in json.loads(content)["message"]
    assert service.post("/score", asked, "application/json; charset=utf-8")[0] == 200


def test_the_openapi_page_describes_requests_answers_and_errors(service):
    status, page, headers = service.get("/")
    assert status == 200
    assert b"swagger" in page
    assert headers["content-security-policy"].startswith("default-src 'self';")
    spec = json.loads(service.get("/docs.json")[1])
    asked = spec["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert asked["required"] == ["customer_id", "model"]
    assert asked["properties"]["customer_id"]["description"]
    assert set(asked["example"]) == {"customer_id", "model"}
    assert set(spec["components"]["schemas"]["Error"]["properties"]) == {"error", "message"}
    assert spec["info"]["title"] == "cdp-ml"
    for path in ("score", "profile", "segments", "resolve", "models", "status"):
        told = spec["paths"][f"/{path}"]["post"]
        assert told["summary"]
        assert set(told["responses"]) == {"200", "400", "404", "409", "500", "503"}


def test_the_log_holds_neither_personal_data_nor_tracebacks(service):
    service.ask("profile", customer_id="c5")
    service.ask("score", customer_id="jane@example.org", model=["jane"])
    service.ask("resolve", email="jane@example.org", given_name="jane", birth_date="zuzana")
    service.ask("resolve", email=["jane@example.org"])
    service.post("/score", b'{"customer_id": "jane@example.org"')
    log = service.log.read_text()
    assert "refused a request" in log
    assert "path=/profile" in log
    for secret in ("jane", "example.org", "zuzana", "Traceback"):
        assert secret not in log


def test_an_unforeseen_error_tells_neither_caller_nor_log_what_the_data_was(monkeypatch, caplog):
    monkeypatch.syspath_prepend(shipped("serving"))
    answering = importlib.import_module("service").answering

    @answering
    def score(customer_id):
        raise ValueError(customer_id)

    answer = score("jane@example.org")
    assert answer.status_code == 500
    assert json.loads(answer.body)["error"] == "InternalError"
    assert "ValueError in score" in caplog.text
    assert "jane" not in caplog.text + answer.body.decode()


def test_check_service_shows_a_score_with_reasons_and_stops_what_it_started(service):
    before = children()
    answer = serve.check_service(service.workspace.settings)
    assert (answer["model"], answer["in_population"]) == ("purchase_30d", True)
    assert answer["reasons"]
    assert children() == before


def children():
    return {p.pid for p in psutil.Process().children(recursive=True)}


def test_a_new_publication_is_served_without_a_restart(service):
    version = service.workspace.train("purchase_30d", seed=1)
    service.workspace.score()
    service.workspace.publish()
    assert service.until(lambda: service.ask("status")[1]["run_id"] == "run-2")
    _, answer = service.ask("score", customer_id="c1", model="purchase_30d")
    assert answer["model_version"] == version == 2
    assert "serving run run-2" in service.log.read_text()

"""What a notebook gets of a published workspace."""

import datetime as dt
import socket

import numpy as np
import pytest
from published import AS_OF, make_workspace, traits

import cdp_ml
from cdp_ml.cli import ui
from cdp_ml.errors import ConfigError, ContractError, NotPromotedError


@pytest.fixture(scope="module")
def cdp(tmp_path_factory):
    made = make_workspace(tmp_path_factory.mktemp("notebook") / "ws")
    made.publish()
    return cdp_ml.open(made.settings.home)


def test_the_champion_is_the_version_that_scored(cdp):
    champion = cdp.model("purchase_30d")
    scores = cdp.table("scores").filter(lambda t: t.model == "purchase_30d").to_pandas()
    assert set(scores["model_version"]) == {champion.version}
    population = traits(AS_OF).slice(0, len(scores)).to_pandas()
    np.testing.assert_allclose(champion.predict(population), scores["score"])


def test_a_customer_is_scored_online_as_in_the_table_of_scores(cdp):
    scores = cdp.table("scores").filter(lambda t: t.model == "purchase_30d")
    row = scores.order_by(scores.customer_id).limit(1).to_pandas().iloc[0]
    answer = cdp.score(row["customer_id"], "purchase_30d")
    assert answer["score"] == pytest.approx(row["score"])
    assert len(answer["reasons"]) == 3


def test_what_holds_a_customer_together_and_what_speaks_for_a_pair(cdp):
    link = cdp.table("crosswalk").limit(1).to_pandas().iloc[0]
    record = f"{link['source']}:{link['source_record_id']}"
    assert cdp.why(link["customer_id"])["customer_id"] == link["customer_id"]
    assert cdp.why(record)["record"] == record
    other = next(r for r in cdp.why(link["customer_id"])["records"] if r != record)
    said = cdp.explain(record, other)
    assert said["records"] == [record, other]
    assert said["weight"] == pytest.approx(sum(step["bits"] for step in said["steps"]))


@pytest.mark.parametrize(
    ("as_of", "message"),
    [
        (AS_OF.replace(tzinfo=None), "has no time zone"),
        (AS_OF.date(), "has no time zone"),
        (AS_OF + dt.timedelta(days=1), "after the published run's, 2026-07-01"),
    ],
)
def test_an_instant_that_no_training_set_can_be_of_is_told(cdp, as_of, message):
    for asked in (cdp.split, cdp.training_set, cdp.train):
        with pytest.raises(ConfigError, match=message):
            asked("purchase_30d", as_of)


def test_a_model_without_champion_and_one_that_is_not_there_are_said(cdp):
    with pytest.raises(NotPromotedError, match="'churn_90d' has no champion; 'cdp-ml status'"):
        cdp.model("churn_90d")
    with pytest.raises(ConfigError, match=r"no model 'purchase_3d'.*purchase_30d"):
        cdp.model("purchase_3d")


def test_a_table_that_is_not_there_is_said(cdp):
    with pytest.raises(ConfigError, match=r"no published table 'customer'.*customers"):
        cdp.table("customer")


def test_a_port_that_is_taken_is_said_before_the_pages_open(cdp):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"cannot listen on .*choose another port"):
            ui(cdp.settings.home, taken.getsockname()[1])


def test_what_is_wrong_with_one_model_concerns_no_other(tmp_path):
    made = make_workspace(tmp_path / "ws")
    made.publish()
    models = made.settings.home / "models"
    (models / "churn_90d.yaml").write_text("task: [")
    (models / "clusters.yaml").write_text(
        (models / "clusters.yaml").read_text().replace("customer_traits", "customer_trait")
    )
    cdp = cdp_ml.open(made.settings.home)
    cdp.promote("purchase_30d", 1)
    with pytest.raises(ConfigError, match=r"churn_90d\.yaml:\d+: not valid YAML"):
        cdp.promote("churn_90d", 1)
    where = r"clusters\.yaml:5: features: no 'customer_trait'; did you mean 'customer_traits'"
    for asked in (cdp.training_set, cdp.train):
        with pytest.raises(ConfigError, match=where):
            asked("clusters")
    text = (models / "clusters.yaml").read_text().replace("customer_trait", "customer_traits")
    (models / "clusters.yaml").write_text(text.replace("orders_90d", "orders_9d"))
    with pytest.raises(ContractError, match=r"clusters\.yaml:\d+: inputs: .*orders_90d"):
        cdp_ml.open(made.settings.home).training_set("clusters")

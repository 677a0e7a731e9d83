"""What training says when it cannot learn, and what a trained model tells of itself."""

import json
import logging
import re

import pytest
from conftest import ROOT

from cdp_ml.config import Engine, IdentitySpec, load_spec
from cdp_ml.engine import connect
from cdp_ml.errors import LinkageError
from cdp_ml.identity import training
from cdp_ml.identity.charts import level_bits
from cdp_ml.identity.linkage import link
from cdp_ml.identity.model import Model
from cdp_ml.identity.report import facts, report, write_report
from cdp_ml.standardize import standardize_people
from cdp_ml.synthetic import generate_records

SPEC = load_spec(ROOT / "models" / "identity.yaml", IdentitySpec)


@pytest.fixture(scope="module")
def shared_con():
    return connect(Engine())


@pytest.fixture(scope="module")
def world(shared_con):
    records, identifiers, _ = generate_records(400)
    return standardize_people(records, "GB", shared_con), identifiers


@pytest.fixture(scope="module")
def model(world, shared_con):
    return link(*world, SPEC, shared_con).model


def test_a_model_tells_how_its_training_went(model):
    assert set(model.sessions) == set(SPEC.training_rules)
    for session in model.sessions.values():
        assert 1 <= session["iterations"] <= training.EM_ITERATIONS
        assert 0.5 < session["share"] <= 1


def test_levels_never_observed_are_named_and_keep_what_was_declared(model):
    assert "phone: similar (m, u)" in model.unobserved
    (phone,) = [c for c in model.settings["comparisons"] if c["output_column_name"] == "phone"]
    (similar,) = [x for x in phone["comparison_levels"] if x["label_for_charts"] == "similar"]
    assert similar["m_probability"] == 0.03
    assert 0 < similar["u_probability"] < 1e-4
    assert not any(x.startswith("given_name: exact") for x in model.unobserved)


def test_a_model_read_again_is_the_same(model, tmp_path):
    model.save(tmp_path / model.version)
    again = Model.load(tmp_path / model.version)
    assert (again.version, again.unobserved, again.sessions) == (
        model.version, model.unobserved, model.sessions,
    )  # fmt: skip


def test_no_convergence_within_any_rule_is_one_clear_line(world, shared_con, monkeypatch):
    monkeypatch.setattr(training, "EM_ITERATIONS", 1)
    monkeypatch.setattr(training, "UNSETTLED", 1e-9)
    with pytest.raises(
        LinkageError, match=r"identity\.yaml: training_rules: .*of 5 rules"
    ) as error:
        link(*world, SPEC, shared_con)
    assert "\n" not in str(error.value)


def test_without_training_rules_typical_values_link(world, shared_con):
    spec = SPEC.model_copy(update={"training_rules": ()})
    linkage = link(*world, spec, shared_con)
    assert linkage.model.sessions == {}
    assert any(x.startswith("given_name: exact (m") for x in linkage.model.unobserved)
    assert linkage.edges.num_rows > 300


@pytest.mark.parametrize("failure", ["unsettled", "raises"])
def test_a_rule_that_fails_is_left_out_and_leaves_nothing_behind(
    world, shared_con, monkeypatch, caplog, failure
):
    """The model is that of a specification without the rule."""
    spec = SPEC.model_copy(update={"training_rules": ("postcode", "email", "phone")})
    change = training._change

    def fail_within_postcode(before, after):
        if "postcode" in failing:
            failing.clear()
            if failure == "raises":
                raise ZeroDivisionError
            return 0.5
        return change(before, after)

    failing = ["postcode"]
    monkeypatch.setattr(training, "_change", fail_within_postcode)
    with caplog.at_level(logging.WARNING):
        found = link(*world, spec, shared_con).model
    monkeypatch.undo()
    (warning,) = [r.getMessage() for r in caplog.records if "training_rules" in r.getMessage()]
    assert warning.startswith("models/identity.yaml: training_rules: 'postcode' is left out")
    assert set(found.sessions) == {"email", "phone"}
    rest = spec.model_copy(update={"training_rules": ("email", "phone")})
    expected = link(*world, rest, shared_con).model
    assert found.settings == expected.settings


# ---- the report ---------------------------------------------------------------------------------


def test_the_report_holds_charts_tables_and_the_model(model, tmp_path):
    write_report(model, {"records": 840, "moved_share": 0.125}, tmp_path)
    charts = {"match_weights.png", *(f"{name}.png" for name in model.contexts)}
    assert {p.name for p in (tmp_path / "plots").iterdir()} == charts
    assert json.loads((tmp_path / "model.json").read_text())["version"] == model.version
    text = (tmp_path / "report.md").read_text()
    assert "| records | 840 |\n| moved share | 0.125 |" in text
    assert "| phone | exact |" in text
    assert "- phone: similar (m, u)" in text
    assert all(f"| `{b.rule}` | {b.limit} |" in text for b in model.blocks)


def test_match_weights_are_the_logarithms_of_m_by_u(model):
    bits = level_bits(model)
    assert list(bits) == [c.field for c in SPEC.comparisons]
    assert bits["email"]["exact"] > 10 > 0 > bits["email"]["different"]


def test_no_file_of_a_run_holds_a_value_of_a_record(model, world, tmp_path):
    write_report(model, {}, tmp_path)
    written = (tmp_path / "model.json").read_text() + report(model, {}) + str(facts(model))
    words = set(re.findall(r"\w+", written.lower()))
    for field in ("given_name", "surname", "email", "phone", "street", "postcode", "city"):
        values = {v.lower() for v in world[0][field].to_pylist() if v and len(v) > 3}
        assert not values & words, field
    assert "@" not in written.replace("'@'", "")

from datetime import UTC, date, datetime

import pytest

from cdp_ml.config import (
    ModelSpec,
    Settings,
    as_of_instant,
    load_models,
    load_settings,
    load_spec,
    shipped,
)
from cdp_ml.errors import ConfigError

GOOD = """\
name: test
sources:
  crm:
    kind: people
    path: crm.csv
    fields:
      source_record_id: id
"""


@pytest.fixture
def written(tmp_path):
    def write(text):
        (tmp_path / "cdp.yaml").write_text(text, encoding="utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "segmnts: {}\n", r"cdp.yaml:8: segmnts: unknown key; did you mean 'segments'"),
        (GOOD.replace("path:", "pth:"), r"cdp.yaml:\d: sources.crm.path: is required and missing"),
        (GOOD.replace("people", "person"), r"cdp.yaml:4: sources.crm.kind: .*'people'"),
        (GOOD + "region: Britain\n", r"cdp.yaml:8: region"),
        (GOOD.replace("crm.csv", "sqlite:///x.db"), r"cdp.yaml:3: .*needs 'table'"),
        (GOOD + "    timezone: Europe/Londn\n", r"Europe/London"),
        (GOOD + "  [", r"cdp.yaml:8: not valid YAML"),
        ("just text", r"cdp.yaml: must hold 'key: value' lines"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_the_nearest_names(written, text, message):
    with pytest.raises(ConfigError, match=message):
        load_settings(written(text))


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="cdp-ml init"):
        load_settings(tmp_path)


def test_a_file_that_is_not_utf8_is_told_so(tmp_path):
    (tmp_path / "cdp.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_settings(tmp_path)


def test_the_environment_wins(written, monkeypatch):
    monkeypatch.setenv("CDP_ENGINE__THREADS", "7")
    settings = load_settings(written(GOOD))
    assert settings.engine.threads == 7
    assert settings.home.is_absolute()


def settings(**given):
    return Settings(sources={}, **given)


def test_as_of_latest_is_the_midnight_after_the_last_fact():
    last = datetime(2026, 6, 30, 23, 59, tzinfo=UTC)
    assert as_of_instant(settings(), last) == datetime(2026, 7, 1, tzinfo=UTC)


def test_as_of_latest_does_not_believe_a_fact_from_the_future():
    ahead = as_of_instant(settings(), datetime(2062, 1, 1, tzinfo=UTC))
    assert ahead.year < 2062


def test_as_of_a_date_is_its_midnight():
    assert as_of_instant(settings(as_of=date(2026, 7, 1)), None) == datetime(2026, 7, 1, tzinfo=UTC)


def test_as_of_a_day_that_has_not_come_is_refused():
    with pytest.raises(ConfigError, match="in the future"):
        as_of_instant(settings(as_of=date(2999, 1, 1)), None)


def test_the_shipped_models_are_valid_and_bear_their_files_names():
    models = load_models(settings())
    assert {"purchase_30d", "churn_90d", "clusters"} <= set(models)
    for name, spec in models.items():
        assert spec.name == name


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'purchase_30d'"):
        load_models(settings(models=("purchase_30",)))


@pytest.mark.parametrize(
    ("file", "message"),
    [("repeat.yml", "name it repeat.yaml, or it is not read"),
     ("a'b.yaml", "may not hold quotes, colons or slashes"),
     ("other.yaml", "name: 'repeat', must be the file's: 'other'")],
)  # fmt: skip
def test_a_model_file_that_is_misnamed_says_how_to_name_it(tmp_path, file, message):
    (tmp_path / "models").mkdir()
    text = (shipped("models") / "purchase_30d.yaml").read_text()
    (tmp_path / "models" / file).write_text(text.replace("purchase_30d\n", "repeat\n", 1))
    with pytest.raises(ConfigError, match=message):
        load_models(settings(home=tmp_path))


def test_fingerprints_tell_specifications_apart():
    spec = load_spec(shipped("models") / "purchase_30d.yaml", ModelSpec)
    assert spec.fingerprint() == spec.model_copy().fingerprint()
    assert spec.fingerprint() != spec.model_copy(update={"cadence_days": 1}).fingerprint()

import copy
import datetime as dt
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT, rows

from cdp_ml.config import Engine, IdentitySpec, load_spec
from cdp_ml.contracts import PERSON_FIELDS
from cdp_ml.engine import connect
from cdp_ml.errors import LinkageError
from cdp_ml.identity.linkage import link, weigh
from cdp_ml.identity.people import NOBODY
from cdp_ml.identity.resolve import open_resolver
from cdp_ml.identity.weighing import evidence
from cdp_ml.standardize import standardize_people
from cdp_ml.synthetic import generate_records

SPEC = load_spec(Path(ROOT / "models" / "identity.yaml"), IdentitySpec)
HELD_OUT = 20


@pytest.fixture(scope="module")
def world():
    """Raw and standardized records of people with households, their identifiers, and a model."""
    raw, identifiers, _ = generate_records(2_000)
    con = connect(Engine())
    records = standardize_people(raw, "GB", con)
    return raw, records, identifiers, link(records, identifiers, SPEC, con).model


def resolver(records, model, crosswalk=None):
    con = connect(Engine())
    standardize = partial(standardize_people, region="GB", con=connect(Engine(threads=1)))
    links = rows("crosswalk") if crosswalk is None else crosswalk
    return open_resolver(records, links, model, SPEC, standardize, con)


def linked(records):
    """A crosswalk in which each record is a customer of its own, c0, c1…"""
    keys = records.select(["source", "source_record_id"]).to_pylist()
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return rows(
        "crosswalk", *({**k, "customer_id": f"c{i}", "valid_from": now} for i, k in enumerate(keys))
    )


def person(raw, row):
    return raw.select(list(PERSON_FIELDS)).slice(row, 1).to_pylist()[0]


def key(row):
    return f"{row['source']}:{row['source_record_id']}"


@pytest.fixture(scope="module")
def whole(world):
    return resolver(world[1], world[3], linked(world[1]))


def test_weights_and_evidence_are_those_of_the_batch(world):
    raw, records, identifiers, model = world
    held = np.random.default_rng(3).choice(len(raw), HELD_OUT, replace=False)
    base = records.take(np.setdiff1d(np.arange(len(raw)), held))
    asked = resolver(base, model)
    compared, edges = 0, 0
    for row in held.tolist():
        everything = pa.concat_tables([base, records.slice(row, 1)])
        own = key(records.slice(row, 1).to_pylist()[0])
        db, _ = weigh(everything, identifiers, SPEC, connect(Engine()), model=model)
        pairs = db.execute(_PAIRS.format(evidence=evidence(model)), [own]).fetchall()
        batch = {(b if a == own else a): (weight, said) for a, b, weight, said in pairs}
        online = {key(c): c for c in asked.resolve(person(raw, row), least=0.0)}
        for record, found in online.items():
            weight, said = batch[record]
            assert found["match_weight"] == pytest.approx(weight, abs=1e-9)
            assert found["match_probability"] == pytest.approx(1 / (1 + 2.0**-weight))
            assert found["evidence"] == said
        # The others are pairs inside of a component that no block brought together.
        blocked = db.execute(_IN_BLOCKS, [own]).fetchall()
        assert set(online) == {record for (record,) in blocked}
        compared += len(online)
        edges += sum(weight >= 0 for weight, _ in batch.values())
    assert compared > HELD_OUT
    assert edges > HELD_OUT / 2


_PAIRS = """
SELECT l.record, r.record, weight, {evidence} FROM pairs
JOIN nodes l ON one = l.unique_id JOIN nodes r ON other = r.unique_id
WHERE $1 IN (l.record, r.record)
"""
_IN_BLOCKS = """
WITH keys AS (UNPIVOT (FROM blocks) ON COLUMNS(* EXCLUDE unique_id)),
    own AS (SELECT k.* FROM keys k JOIN nodes n USING (unique_id) WHERE record = $1)
SELECT DISTINCT record FROM keys k JOIN own o ON k.name = o.name AND k.value = o.value
JOIN nodes n ON n.unique_id = k.unique_id WHERE k.unique_id <> o.unique_id
"""


def test_a_known_person_is_found_first_with_its_customer(world, whole):
    records = world[1].select(["source", "source_record_id"]).to_pylist()
    for row in range(0, 200, 10):
        best = whole.resolve(person(world[0], row))[0]
        assert best["match_probability"] > 0.9
        weights = [c["match_weight"] for c in whole.resolve(person(world[0], row))]
        assert weights == sorted(weights, reverse=True)
        assert records[int(best["customer_id"][1:])] == {k: best[k] for k in records[0]}


def test_only_candidates_at_or_above_the_probability_are_told(world, whole):
    asked = person(world[0], 5)
    everything = whole.resolve(asked, least=0.0)
    assert whole.resolve(asked) == [c for c in everything if c["match_probability"] >= SPEC.review]
    assert whole.resolve(asked, least=1.0) == [
        c for c in everything if math.isclose(c["match_probability"], 1.0, abs_tol=0.0)
    ]


def test_a_record_without_a_link_has_no_customer(world):
    bare = resolver(world[1], world[3])
    assert bare.resolve(person(world[0], 5))[0]["customer_id"] is None


def test_the_delivered_form_does_not_matter(world, whole):
    asked = person(world[0], 5)
    shouted = {f: v.upper() if v and f != "birth_date" else v for f, v in asked.items()}
    assert whole.resolve(shouted) == whole.resolve(asked)


@pytest.mark.parametrize(
    "nobody",
    [
        {},
        dict.fromkeys(PERSON_FIELDS),
        {"given_name": "N/A", "email": "test@example.org", "phone": "000000", "birth_date": "?"},
        {"given_name": "", "surname": "  "},
        {"given_name": "Ærøskøbing", "surname": "李小龍", "city": "Αθήνα", "postcode": "〒100"},
        {"surname": "'; DROP TABLE people; --", "email": "\x00", "city": "🦄" * 1000},
    ],
)
def test_who_shares_no_block_with_anybody_has_no_candidates(whole, nobody):
    assert whole.resolve(nobody) == []


def test_a_name_in_another_script_is_found(world):
    model = world[3]
    lee = {**world[1].slice(0, 1).to_pylist()[0], "source_record_id": "lee", "given_name": "小龍",
           "surname": "李", "email": "李@例え.jp", "birth_date": dt.date(1940, 11, 27)}  # fmt: skip
    records = pa.concat_tables([world[1], rows("records", lee)])
    asked = {
        "given_name": "小龍",
        "surname": "李",
        "email": "李@例え.jp",
        "birth_date": "1940-11-27",
    }
    assert resolver(records, model).resolve(asked)[0]["source_record_id"] == "lee"


def test_a_contact_that_identifies_nobody_is_not_compared(world):
    raw, records, _, model = world
    many = records.slice(0, NOBODY).to_pylist()
    shared = rows("records", *({**r, "email": "info@shop.example"} for r in many))
    base = pa.concat_tables([shared, records.slice(NOBODY)])
    asked = {**person(raw, 0), "email": "info@shop.example"}
    found = resolver(base, model).resolve(asked, least=0.0)
    assert found
    assert all("email" not in c["evidence"] for c in found)


def test_without_any_records_nobody_is_found(world):
    nobody = resolver(world[1].slice(0, 0), world[3])
    assert nobody.resolve(person(world[0], 0)) == []


def test_an_unknown_field_is_an_error_with_the_nearest_name(whole):
    with pytest.raises(LinkageError, match="'emial'; did you mean 'email'"):
        whole.resolve({"emial": "jane@example.org"})


def test_threads_get_the_answers_that_one_gets(world, whole):
    asked = [person(world[0], row) for row in range(40)]
    alone = [whole.resolve(p) for p in asked]
    with ThreadPoolExecutor(4) as callers:
        assert list(callers.map(whole.resolve, asked)) == alone


def test_a_model_that_another_version_trained_is_refused_with_what_to_do(world):
    _, records, _, model = world
    settings = copy.deepcopy(model.settings)
    del settings["comparisons"][0]["comparison_levels"][1]
    with pytest.raises(LinkageError, match="another version of cdp-ml"):
        resolver(records, replace(model, settings=settings))

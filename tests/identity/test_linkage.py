import datetime as dt
from pathlib import Path

import ibis
import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT, rows, utc

from cdp_ml.config import Comparison, Engine, IdentitySpec, load_spec
from cdp_ml.engine import connect
from cdp_ml.errors import LinkageError
from cdp_ml.identity.linkage import link

SPEC = load_spec(Path(ROOT / "models" / "identity.yaml"), IdentitySpec)
NO_IDENTIFIERS = rows("identifiers")
NOW = utc(2026, 6, 1)
GIVEN = ["ada", "ben", "cleo", "dora", "eric", "fay", "gus", "hana", "ivan", "june", "kurt", "lena"]
SURNAMES = [a + b for a in ("ash", "bram", "cald", "dun") for b in ("ton", "ley", "ford", "by")]


def record(source: str, number: int, **fields: object) -> dict:
    return {
        "source": source,
        "source_record_id": str(number),
        "ingested_at": utc(2026, 1, 1),
        **fields,
    }


def households(count: int, seed: int = 5) -> tuple[pa.Table, pa.Table]:
    """Couples of one surname, address, e-mail and phone; each partner has a CRM and a shop record.

    One shop record in five has a slip in the given name; one in five lacks the birth date.
    """
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for home in range(count):
        shared = {
            "surname": str(rng.choice(SURNAMES)),
            "email": f"family{home}@post.example",
            "phone": f"+44770090{home:04d}",
            "postcode": f"AB{home:03d}CD",
            "street": f"{home} high st",
        }
        for partner, name in enumerate(rng.choice(GIVEN, 2, replace=False)):
            person = 2 * home + partner
            born = dt.date(1950, 1, 1) + dt.timedelta(days=int(rng.integers(18_000)))
            slip = name[0] + name[-1] if rng.random() < 0.2 else name
            unknown = rng.random() < 0.2
            found += [
                record("crm", person, **shared, given_name=str(name), birth_date=born),
                record("shop", person, **shared, given_name=str(slip),
                       birth_date=None if unknown else born),
            ]  # fmt: skip
            truth += [person, person]
    return rows("records", *found), pa.array(truth)


def partition(clusters: pa.Table) -> set[frozenset]:
    """The clusters as sets of record keys, whatever their numbers."""
    members: dict[int, set] = {}
    for row in clusters.to_pylist():
        members.setdefault(row["cluster"], set()).add((row["source"], row["source_record_id"]))
    return {frozenset(m) for m in members.values()}


@pytest.fixture(scope="module")
def couples():
    return households(120)


@pytest.fixture(scope="module")
def linked(couples):
    return link(couples[0], NO_IDENTIFIERS, SPEC, connect(Engine()), known_at=NOW)


def test_partners_who_share_everything_but_name_and_birth_date_stay_two_people(linked):
    people = partition(linked.clusters)
    mixed = [p for p in people if len({number for _, number in p}) > 1]
    found = [p for p in people if len(p) == 2 and len({number for _, number in p}) == 1]
    assert len(mixed) <= 3
    assert len(found) >= 0.8 * 240
    assert "household" in linked.model.contexts


def test_without_the_model_of_households_partners_are_merged(con, couples):
    spec = SPEC.model_copy(update={"contexts": False})
    people = partition(link(couples[0], NO_IDENTIFIERS, spec, con).clusters)
    assert sum(len({number for _, number in p}) > 1 for p in people) > 60


def test_order_and_threads_do_not_change_edges_clusters_or_model(con, couples, linked):
    shuffled = couples[0].take(np.random.default_rng(1).permutation(len(couples[0])))
    con.raw_sql("SET threads = 1")
    again = link(ibis.memtable(shuffled), ibis.memtable(NO_IDENTIFIERS), SPEC, con, known_at=NOW)
    assert again.edges.equals(linked.edges)
    assert again.clusters.equals(linked.clusters)
    assert again.model.version == linked.model.version


def test_edges_name_the_lesser_record_first_and_what_they_rest_on(linked):
    edges = linked.edges.to_pylist()
    assert all(e["record_l"] < e["record_r"] for e in edges)
    assert all(e["match_probability"] >= SPEC.threshold for e in edges)
    assert all(e["evidence"].startswith("given_name: ") for e in edges)


def test_every_record_is_in_one_cluster_with_the_probability_of_its_weakest_link(linked, couples):
    clusters = linked.clusters
    keys = ["source", "source_record_id"]
    assert (
        clusters.select(keys)
        .sort_by([(k, "ascending") for k in keys])
        .equals(couples[0].select(keys).sort_by([(k, "ascending") for k in keys]))
    )
    confidence = clusters["confidence"].to_numpy()
    assert ((confidence >= SPEC.threshold) & (confidence <= 1)).all()


def test_a_card_number_that_the_crm_knows_joins_its_record_with_the_point_of_sale(con):
    records = rows(
        "records",
        record("crm", 1, given_name="ada", surname="ashton"),
        record("pos", 77, given_name="a", surname="ashtn"),
        record("pos", 78, given_name="otto", surname="dunby"),
    )
    identifiers = rows(
        "identifiers",
        seen("crm", "1", "crm", 1),
        seen("pos", "77", "pos", 77),
        seen("pos", "78", "pos", 78),
        seen("pos", "77", "crm", 1),
        seen("cookie", "x", "pos", 78),
        seen("cookie", "x", "crm", 1),
    )
    linkage = link(records, identifiers, SPEC, con)
    assert partition(linkage.clusters) == {
        frozenset({("crm", "1"), ("pos", "77")}),
        frozenset({("pos", "78")}),
    }
    (edge,) = linkage.edges.to_pylist()
    assert (edge["record_l"], edge["record_r"], edge["kind"]) == (
        "crm:1", "pos:77", "deterministic",
    )  # fmt: skip
    assert edge["match_probability"] == 1
    assert edge["evidence"].startswith("same pos identifier")


def test_an_identifier_on_more_records_than_max_group_joins_none(con):
    records = rows("records", *(record("crm", n) for n in range(9)))
    shared = rows("identifiers", *(seen("device", "kiosk", "crm", n) for n in range(9)))
    spec = SPEC.model_copy(update={"deterministic": ("device",)})
    assert len(partition(link(records, shared, spec, con).clusters)) == 9
    roomy = spec.model_copy(update={"max_group": 9})
    assert len(partition(link(records, shared, roomy, con).clusters)) == 1


def seen(kind: str, identifier: str, source: str, number: int) -> dict:
    return {
        "identifier_type": kind,
        "identifier": identifier,
        "source": source,
        "source_record_id": str(number),
        "event_timestamp": utc(2026, 1, 1),
        "ingested_at": utc(2026, 1, 1),
    }


NAMED = {"given_name": "ada", "surname": "ashton", "email": "ada@post.example"}
DEGENERATE = {
    "no records": (rows("records"), 0),
    "one record": (rows("records", record("crm", 1, **NAMED)), 1),
    "nothing to compare": (rows("records", *(record("shop", n) for n in range(500))), 500),
    "empty strings": (rows("records", *(record("shop", n, email="") for n in range(3))), 3),
    "no shared blocking key": (
        rows("records", *(record("crm", n, email=f"{n}@post.example") for n in range(50))),
        50,
    ),
    "the same thing ten thousand times": (
        rows("records", *(record("crm", n, email="info@post.example") for n in range(10_000))),
        10_000,
    ),
    "two equal records": (rows("records", record("a", 1, **NAMED), record("b", 1, **NAMED)), 1),
    "all records equal": (rows("records", *(record("crm", n, **NAMED) for n in range(15))), 1),
    "an e-mail is all there is": (
        rows(
            "records",
            *(record("news", n, email=f"{n // 2}@post.example") for n in range(100)),
        ),
        50,
    ),
    "names are all there is": (
        rows("records", *(record("crm", n, given_name="ada", surname="by") for n in range(300))),
        300,
    ),
    "unicode": (
        rows("records", record("a", 1, given_name="søren", surname="吴"), record("b", 2)),
        2,
    ),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_records_give_sensible_customers(con, case):
    records, customers = DEGENERATE[case]
    linkage = link(records, NO_IDENTIFIERS, SPEC, con)
    assert linkage.clusters.num_rows == records.num_rows
    assert len(partition(linkage.clusters)) == customers


def test_a_rule_that_makes_too_many_pairs_is_refused(con, couples):
    spec = SPEC.model_copy(update={"blocking_rules": ("email",), "max_pairs": 100})
    with pytest.raises(LinkageError, match=r"'email' makes 720 pairs, more than max_pairs \(100\)"):
        link(couples[0], NO_IDENTIFIERS, spec, con)


def test_blocks_that_hardly_hold_a_match_are_left_out(con):
    records = rows("records", *(record("crm", n, city="leeds", surname=f"s{n // 2}",
        given_name=f"g{n}") for n in range(1_000)))  # fmt: skip
    spec = SPEC.model_copy(update={"blocking_rules": ("city",)})
    assert link(records, NO_IDENTIFIERS, spec, con).edges.num_rows == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocking_rules": ("emial",)}, "no field 'emial'; did you mean 'email'"),
        ({"blocking_rules": ("substr(email",)}, "not a list of SQL expressions"),
        (
            {"comparisons": (Comparison(field="email", kind="e-mail"),)},
            "no kind 'e-mail'; did you mean 'email'",
        ),
    ],
)
def test_a_wrong_specification_is_one_clear_line(con, change, message):
    records = rows("records", record("a", 1, **NAMED), record("b", 1, **NAMED))
    with pytest.raises(LinkageError, match=message) as caught:
        link(records, NO_IDENTIFIERS, SPEC.model_copy(update=change), con)
    assert "\n" not in str(caught.value)

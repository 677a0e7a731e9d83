"""Linking what changed gives what linking all with the same model gives."""

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from conftest import ROOT, rows, utc

from cdp_ml.config import Engine, IdentitySpec, load_spec
from cdp_ml.engine import connect
from cdp_ml.identity.linkage import link
from cdp_ml.standardize import standardize_people
from cdp_ml.synthetic import generate_records

SPEC = load_spec(Path(ROOT / "models" / "identity.yaml"), IdentitySpec)
MONDAY, TUESDAY = utc(2026, 6, 1), utc(2026, 6, 2)
LINKED = ("edges", "compared", "reviews")


@pytest.fixture(scope="module")
def world():
    """Standardized records and identifiers of 700 people, and the model that they teach."""
    con = connect(Engine())
    delivered, identifiers, _ = generate_records(700, seed=3)
    records = standardize_people(delivered, "GB", con)
    return records, identifiers, link(records, identifiers, SPEC, con).model


def everything(linkage) -> dict[str, pa.Table]:
    return {name: getattr(linkage, name) for name in LINKED}


def patched(former: dict[str, pa.Table], linkage) -> dict[str, pa.Table]:
    """The tables after the rows that are gone were taken out and those found were put in."""
    assert linkage.gone is not None
    keys = {"edges": 2, "compared": 2, "reviews": 2}
    tables = {}
    for name, old in former.items():
        key = old.column_names[: keys[name]]
        for left_out in (linkage.gone[name], getattr(linkage, name).select(key)):
            old = old.join(left_out, key, join_type="left anti")
        found = getattr(linkage, name)
        tables[name] = pa.concat_tables([old.select(found.column_names), found])
    return tables


def edges(table: pa.Table) -> dict:
    return {
        (e["record_l"], e["record_r"]): (e["kind"], e["match_weight"], e["evidence"])
        for e in table.to_pylist()
    }


def clusters(linkage) -> dict:
    """The other records of each record's cluster."""
    members: dict = {}
    for row in linkage.clusters.to_pylist():
        members.setdefault(row["cluster"], set()).add((row["source"], row["source_record_id"]))
    return {record: frozenset(who) for who in members.values() for record in who}


def some(records: pa.Table, share: float, seed: int) -> pa.Array:
    return pa.array(np.random.default_rng(seed).random(len(records)) < share)


def misspelled(records: pa.Table, which: pa.Array) -> pa.Table:
    """The records with another surname and without e-mail in some of them."""
    surname = pc.if_else(which, pc.binary_join_element_wise(records["surname"], "s", ""),
                         records["surname"])  # fmt: skip
    email = pc.if_else(which, None, records["email"])
    for name, values in (("surname", surname), ("email", email)):
        records = records.set_column(records.column_names.index(name), name, values)
    return records


CHANGES = {
    "new records": lambda r: (r.filter(pc.invert(some(r, 0.1, 1))), r),
    "changed records": lambda r: (r, misspelled(r, some(r, 0.05, 2))),
    "removed records": lambda r: (r, r.filter(pc.invert(some(r, 0.05, 3)))),
    "all at once": lambda r: (
        r.filter(pc.invert(some(r, 0.05, 4))),
        misspelled(r, some(r, 0.03, 5)).filter(pc.invert(some(r, 0.03, 6))),
    ),
    "nothing": lambda r: (r, r),
}


@pytest.mark.parametrize("change", CHANGES)
def test_linking_what_changed_equals_linking_all_with_the_same_model(con, world, change):
    records, identifiers, model = world
    before, after = CHANGES[change](records)
    first = link(before, identifiers, SPEC, con, model=model, known_at=MONDAY)
    part = link(after, identifiers, SPEC, con, model=model, former=everything(first),
                known_at=TUESDAY)  # fmt: skip
    full = link(after, identifiers, SPEC, con, model=model, known_at=TUESDAY)
    tables = patched(everything(first), part)
    assert edges(tables["edges"]) == edges(full.edges)
    assert sorted(tables["compared"]["fingerprint"].to_pylist()) == sorted(
        full.compared["fingerprint"].to_pylist()
    )
    wanted = clusters(full)
    kept = {k: v for k, v in clusters(first).items() if k in wanted}
    assert {**kept, **clusters(part)} == wanted
    assert (part.changed == 0) == (change in ("nothing", "removed records"))
    assert len(part.clusters) < 0.6 * len(full.clusters)


def test_what_people_decide_is_linked_again_without_comparing_anything(con, world):
    records, identifiers, model = world
    first = link(records, identifiers, SPEC, con, model=model, known_at=MONDAY)
    together = next(e for e in first.edges.to_pylist() if e["kind"] == "probabilistic")
    decided = decision(together["record_l"], together["record_r"], "cannot-link")
    part = link(records, identifiers, SPEC, con, model=model, overrides=decided,
                former=everything(first), known_at=TUESDAY)  # fmt: skip
    full = link(records, identifiers, SPEC, con, model=model, overrides=decided)
    assert part.changed == 0
    assert {**clusters(first), **clusters(part)} == clusters(full)
    assert edges(patched(everything(first), part)["edges"]) == edges(full.edges)
    one, other = ((r.split(":", 1)[0], r.split(":", 1)[1]) for r in decided_records(decided))
    assert clusters(full)[one] != clusters(full)[other]


def decision(one: str, other: str, what: str, at: dt.datetime = MONDAY) -> pa.Table:
    return rows(
        "overrides",
        {"override_id": "o1", "record_l": one, "record_r": other, "decision": what,
         "actor": "ada", "reason": "asked", "event_timestamp": at},
    )  # fmt: skip


def decided_records(decided: pa.Table) -> list[str]:
    (row,) = decided.to_pylist()
    return [row["record_l"], row["record_r"]]

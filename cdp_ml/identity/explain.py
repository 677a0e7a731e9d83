"""Why two records are one person or two, what holds a customer together, and who was whom when."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cdp_ml.as_of import links_as_of
from cdp_ml.engine import private_connection
from cdp_ml.errors import LinkageError
from cdp_ml.identity.comparisons import KINDS
from cdp_ml.identity.model import Model
from cdp_ml.identity.people import CANDIDATES, FIELDS, make_people, number_records
from cdp_ml.identity.review import Identity, Who, find, standing, unknown
from cdp_ml.identity.scope import list_certain
from cdp_ml.identity.weighing import levels, predict, weight

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from ibis.expr.types import Table

# ---- two records --------------------------------------------------------------------------------

_CANDIDATES = """
CREATE TABLE candidates AS
SELECT DISTINCT least(l.unique_id, r.unique_id) AS join_key_l,
    greatest(l.unique_id, r.unique_id) AS join_key_r, '0' AS match_key
FROM nodes l JOIN nodes r ON l.unique_id <> r.unique_id
WHERE list_contains($one, l.record) AND list_contains($other, r.record)
"""
_STRONGEST = """
SELECT c.*, l.record AS record_l, r.record AS record_r, {weights}
FROM {compared} c
JOIN nodes l ON unique_id_l = l.unique_id JOIN nodes r ON unique_id_r = r.unique_id
ORDER BY weight DESC, record_l, record_r LIMIT 1
"""
_SHARED = """
SELECT identifier_type FROM certain WHERE one = least($l, $r) AND other = greatest($l, $r)
"""


def explain(known: Identity, one: str, other: str) -> dict[str, Any]:
    """What speaks for and against two records being one person, in bits.

    The numbers are those of Splink for this pair, with the model by which the refresh links.

    Args:
        known: what is published.
        one: a record's key, or a customer id: then the pair that speaks most for it.
        other: likewise.

    Returns:
        `records`, `customers`; `steps`, what the prior, each field, the context and a contradiction
        add: the fields with `values`, the `level` found and the `rarity` within the bits; their sum
        `weight` and its `probability`; and what is stronger: the types of `identifiers` that both
        bear, and the `decision` of a person. `review` is why people are asked, if they are.

    Raises:
        LinkageError: if nothing is called so, or there is nothing to compare.
    """
    a, b = find(known, one), find(known, other)
    if known.model is None:
        raise LinkageError("the published run compared nothing: no field is filled in two records")
    db, row = _strongest(known, known.model, a, b)
    sides = ("l", "r") if row["record_l"] in _records_of(a) else ("r", "l")
    records = [row[f"record_{side}"] for side in sides]
    steps = [*_fields(known, known.model, row, sides), *_considered(known.model, row)]
    return {
        "records": records,
        "customers": [find(known, r).customer_id for r in records],
        "steps": steps,
        "weight": row["weight"],
        "probability": 1 / (1 + 2.0 ** -row["weight"]),
        "identifiers": _shared_identifiers(known, db, row),
        "decision": _decision(known, min(records), max(records)),
        "review": _review(known, min(records), max(records)),
    }


def _records_of(who: Who) -> list[str]:
    return [who.record] if who.record else list(who.records)


def _strongest(
    known: Identity, model: Model, a: Who, b: Who
) -> tuple[DuckDBPyConnection, dict[str, Any]]:
    """The pair that speaks most for it, as Splink compares it, in its database."""
    db = private_connection(known.con)
    # All records: a contact that too many of them have is not compared.
    records = known.read("records").select("source", "source_record_id", "ingested_at", *FIELDS)
    db.register("records", known.con.to_pyarrow(records))
    number_records(db)
    db.execute(_CANDIDATES, {"one": _records_of(a), "other": _records_of(b)})
    make_people(db, model, CANDIDATES)
    weights = ", ".join(f"{weight(m)} AS {name}" for name, m in _stages(model).items())
    compared = predict(db, model, explaining=True)
    found = db.sql(_STRONGEST.format(weights=weights, compared=compared)).to_arrow_table()
    if not found.num_rows:
        raise LinkageError("there are no two records to compare that a source still delivers")
    return db, found.to_pylist()[0]


def _stages(model: Model) -> dict[str, Model]:
    """The model as it weighs with one context after the other, and at last in full."""
    contexts = list(model.contexts)
    stages = {
        f"with_{name}": replace(
            model, contexts={c: model.contexts[c] for c in contexts[: i + 1]}, strict=False
        )
        for i, name in enumerate(contexts)
    }
    return {**stages, "weight": model}


def _considered(model: Model, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the contexts and the contradiction add to Splink's weight."""
    before = row["match_weight"]
    for stage in _stages(model):
        name = "contradiction" if stage == "weight" else stage.removeprefix("with_")
        if abs(row[stage] - before) > 1e-9:
            yield {"name": name, "bits": row[stage] - before}
        before = row[stage]


def _fields(
    known: Identity, model: Model, row: dict[str, Any], sides: tuple[str, str]
) -> Iterator[dict[str, Any]]:
    """The prior and what each field adds."""
    share = model.settings["probability_two_random_records_match"]
    yield {"name": "prior", "bits": math.log2(share / (1 - share))}
    given = _given(known, [row[f"record_{side}"] for side in sides])
    for comparison in model.settings["comparisons"]:
        field = comparison["output_column_name"]
        columns = KINDS[model.kinds[field]].columns
        rarity = row.get(f"mw_tf_adj_{field}", 0.0)
        yield {
            "name": field,
            "values": [_joined(values[c] for c in columns) for values in given],
            "level": _level(model, comparison, row, given),
            "rarity": rarity,
            "bits": row[f"mw_{field}"] + rarity,
        }


def _given(known: Identity, records: list[str]) -> list[dict[str, Any]]:
    """The records as they are published, in this order."""
    t = known.read("records")
    named = t.mutate(record=t.source + ":" + t.source_record_id).select("record", *FIELDS)
    rows = known.con.to_pyarrow(named.filter(named.record.isin(records))).to_pylist()
    found = {row["record"]: row for row in rows}
    return [found[r] for r in records]


def _joined(values: Iterator[Any]) -> str:
    return " ".join(str(v) for v in values if v not in (None, ""))


def _level(
    model: Model, comparison: dict[str, Any], row: dict[str, Any], given: list[dict[str, Any]]
) -> str:
    field = comparison["output_column_name"]
    for number, _, declared in levels(model, comparison):
        if number == row[f"gamma_{field}"]:
            return declared.label
    columns = KINDS[model.kinds[field]].columns
    if not all(any(values[c] for c in columns) for values in given):
        return "missing"
    if field in ("email", "phone"):
        return "not compared: too many have it"
    return "counted with the given name: swapped"


def _shared_identifiers(known: Identity, db: DuckDBPyConnection, row: dict[str, Any]) -> list[str]:
    """The types of the identifiers that both records bear and that join them for certain."""
    t = known.read("identifiers")
    keys = [row["record_l"], row["record_r"]]
    theirs = t.filter((t.source + ":" + t.source_record_id).isin(keys))
    alike = t.semi_join(theirs, ["identifier_type", "identifier"])
    columns = ("source", "source_record_id", "identifier_type", "identifier")
    db.register("identifiers", known.con.to_pyarrow(alike.select(*columns)))
    list_certain(db, known.spec.deterministic, known.spec.max_group)
    ends = {"l": row["unique_id_l"], "r": row["unique_id_r"]}
    return [str(kind) for (kind,) in db.execute(_SHARED, ends).fetchall()]


def _decision(known: Identity, record_l: str, record_r: str) -> dict[str, Any] | None:
    rows: list[dict[str, Any]] = standing(known).to_pylist()
    return next((r for r in rows if (r["record_l"], r["record_r"]) == (record_l, record_r)), None)


def _review(known: Identity, record_l: str, record_r: str) -> str | None:
    t = known.read("reviews")
    rows = known.con.to_pyarrow(t.filter(t.record_l == record_l, t.record_r == record_r))
    return rows["reason"][0].as_py() if rows.num_rows else None


# ---- a customer ---------------------------------------------------------------------------------


def why(known: Identity, customer: str) -> dict[str, Any]:
    """What holds a customer's records together.

    Args:
        known: what is published.
        customer: a customer id or a record's key.

    Returns:
        `customer_id`, its `records`, the `edges` among them as in table `edges`, and of these
        `needed`: the strongest without which it would fall apart, the weakest first (the maximum
        spanning tree). The first one's probability is the customer's confidence.

    Raises:
        LinkageError: if nothing is called so.
    """
    who = find(known, customer)
    t = known.read("edges")
    inside = t.filter(t.record_l.isin(who.records), t.record_r.isin(who.records))
    edges = [e for e in known.con.to_pyarrow(inside).to_pylist() if e["kind"] != "cannot-link"]
    edges.sort(key=_strength)
    needed = _spanning_tree(edges)[::-1]
    return {**vars(who), "records": list(who.records), "edges": edges, "needed": needed}


def _strength(edge: dict[str, Any]) -> tuple[Any, ...]:
    """The strongest first."""
    weight = -math.inf if edge["match_weight"] is None else edge["match_weight"]
    return -edge["match_probability"], edge["kind"] == "probabilistic", -weight, edge["record_l"]


def _spanning_tree(edges: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of edges, the strongest first, those that join what those before have not (Kruskal, 1956)."""
    group: dict[str, set[str]] = {}
    tree = []
    for edge in edges:
        a, b = (group.setdefault(r, {r}) for r in (edge["record_l"], edge["record_r"]))
        if a is not b:
            tree.append(edge)
            a |= b
            group.update(dict.fromkeys(b, a))
    return tree


# ---- the past -----------------------------------------------------------------------------------


def history(known: Identity, name: str, as_of: datetime | None = None) -> dict[str, Any]:
    """Who was whom, as known when.

    Args:
        known: what is published.
        name: a record's key or a customer id, also a retired one.
        as_of: an instant, UTC: the links that held then, instead of all of them.

    Returns:
        `links`: the rows of `crosswalk` of the record, or of all records that were ever the
        customer's (as of an instant: that were then); `events`: the rows of `identity_log` that
        concern these customers.

    Raises:
        LinkageError: if nothing was ever called so.
    """
    t = known.read("crosswalk")
    key = t.source + ":" + t.source_record_id
    own = t.filter((key == name) | (t.customer_id == name))
    if not known.con.to_pyarrow(own.limit(1)).num_rows:
        raise unknown(known, name)
    links = t.semi_join(own, ["source", "source_record_id"]) if as_of is None else own
    ids = {name, *known.con.to_pyarrow(own)["customer_id"].to_pylist()} if ":" in name else {name}
    return {
        "links": _shown(known, links if as_of is None else links_as_of(own, as_of)),
        "events": _events(known, sorted(ids), as_of),
    }


def _shown(known: Identity, links: Table) -> list[dict[str, Any]]:
    times = [c for c in ("valid_from", "valid_to") if c in links.columns]
    record = (links.source + ":" + links.source_record_id).name("record")
    shown = links.select(record, "customer_id", "confidence", *times)
    rows: list[dict[str, Any]] = known.con.to_pyarrow(shown).to_pylist()
    return sorted(rows, key=lambda r: (r["record"], *(r[c] for c in times[:1])))


def _events(known: Identity, ids: list[str], as_of: datetime | None) -> list[dict[str, Any]]:
    t = known.read("identity_log")
    theirs = t.filter(t.customer_id.isin(ids) | t.into_customer_id.isin(ids))
    if as_of is not None:
        theirs = theirs.filter(theirs.event_timestamp < as_of)
    ordered = theirs.order_by("event_timestamp", "event", "customer_id")
    rows: list[dict[str, Any]] = known.con.to_pyarrow(ordered).to_pylist()
    return rows

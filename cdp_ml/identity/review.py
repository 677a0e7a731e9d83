"""What people decide about identity: the review queue, merges, splits, and what they would change.

A decision is rows of table `overrides`, one a pair of records. Nothing else is written: the next
refresh links what the decision touches and gives ids, as `what_would_change` has shown before.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.config import IdentitySpec
from cdp_ml.contracts import arrow_schema
from cdp_ml.engine import lend, private_connection
from cdp_ml.errors import ConfigError, LinkageError, nearest
from cdp_ml.identity.crosswalk import assign_customer_ids
from cdp_ml.identity.linkage import link
from cdp_ml.identity.model import Model
from cdp_ml.lake import Lake

if TYPE_CHECKING:
    import pyarrow as pa
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Table

Pair = tuple[str, str]
DECISIONS = {"same": "must-link", "different": "cannot-link"}
"""What a person writes of a pair, and what it is called in `overrides`."""


@dataclass(frozen=True)
class Identity:
    """What a published run knows of who is whom, and what it found it with.

    Attributes:
        lake: the published tables.
        con: the engine.
        spec: models/identity.yaml.
        model: the model of the run; None if there was nothing to compare.
    """

    lake: Lake
    con: SQLBackend
    spec: IdentitySpec
    model: Model | None

    def read(self, table: str) -> Table:
        """A published table."""
        return self.lake.read(table, self.con)

    def links(self) -> Table:
        """The links that hold: record (source:source_record_id), customer_id, confidence."""
        t = self.read("crosswalk")
        record = (t.source + ":" + t.source_record_id).name("record")
        return t.filter(t.valid_to.isnull()).select(record, "customer_id", "confidence")

    def ask(self, query: str, params: Any = None, **tables: Table | pa.Table) -> pa.Table:
        """Answer SQL on some tables, in a database of its own."""
        db = private_connection(self.con)
        for name, table in tables.items():
            lend(table, name, self.con, db)
        return db.sql(query, params=params).to_arrow_table()


# ---- whom a name means --------------------------------------------------------------------------


@dataclass(frozen=True)
class Who:
    """Whom a name means: a customer with its records, and the record, if it was one."""

    customer_id: str
    records: tuple[str, ...]
    record: str | None = None


_NEAR = """
SELECT DISTINCT customer_id FROM ids WHERE levenshtein(customer_id, $name) <= 6
ORDER BY levenshtein(customer_id, $name), customer_id LIMIT 3
"""


def find(known: Identity, name: str) -> Who:
    """Find a customer by its id, by one that was merged into it, or by a record's key.

    Args:
        known: what is published.
        name: a customer id, or source:source_record_id.

    Raises:
        LinkageError: if nothing is called so.
    """
    links, asked = known.links(), name
    seen: set[str] = set()
    while asked not in seen:
        rows = links.filter((links.record == asked) | (links.customer_id == asked))
        if found := known.con.to_pyarrow(rows).to_pylist():
            return _who(known, asked, found[0]["customer_id"])
        seen.add(asked)
        asked = _survivor(known, asked) or asked
    raise unknown(known, name)


def _who(known: Identity, name: str, customer: str) -> Who:
    links = known.links()
    members = known.con.to_pyarrow(links.filter(links.customer_id == customer))
    records = tuple(sorted(members["record"].to_pylist()))
    return Who(customer, records, name if name in records else None)


def _survivor(known: Identity, customer: str) -> str | None:
    """The customer that a retired one was merged into."""
    log = known.read("identity_log")
    merged = log.filter(log.event == "merged", log.customer_id == customer)
    rows = known.con.to_pyarrow(merged.order_by(merged.event_timestamp)).to_pylist()
    return rows[-1]["into_customer_id"] if rows else None


def unknown(known: Identity, name: str) -> LinkageError:
    """What to say of a name that nothing bears; without a record's id, which may be an address."""
    source, colon, _ = name.partition(":")
    if colon:
        held = known.con.to_pyarrow(known.read("crosswalk").select("source").distinct())
        sources = held["source"].to_pylist()
        if source in sources:
            return LinkageError(f"source '{source}' has no such record; see table 'records'")
        return LinkageError(f"no source '{source}' with people; {nearest(source, sources)}")
    ids = known.read("crosswalk").select("customer_id")
    if near := known.ask(_NEAR, {"name": name}, ids=ids)["customer_id"].to_pylist():
        return LinkageError(f"no customer '{name}'; {nearest(name, near)}")
    return LinkageError(
        "no customer of this id; name a record as source:source_record_id, or see table 'crosswalk'"
    )


# ---- the queue ----------------------------------------------------------------------------------

# The newest word on a pair that was not taken back.
_STANDING = """
SELECT * FROM overrides WHERE undone_at IS NULL
QUALIFY row_number() OVER
    (PARTITION BY record_l, record_r ORDER BY event_timestamp DESC, decision) = 1
"""
_QUEUE = f"""
SELECT record_l, record_r, l.customer_id AS customer_l, r.customer_id AS customer_r, reason,
    match_weight, match_probability, evidence, known_at
FROM reviews ANTI JOIN ({_STANDING}) USING (record_l, record_r)
JOIN links l ON record_l = l.record JOIN links r ON record_r = r.record
ORDER BY match_probability DESC NULLS LAST, record_l, record_r LIMIT $most
"""
_DECISIONS = f"""
WITH applied AS (SELECT override_id, record_l, record_r, undone_at FROM published)
SELECT o.override_id, any_value(o.decision) AS decision, count(*) AS pairs,
    any_value(o.actor) AS actor, any_value(o.reason) AS reason,
    any_value(o.event_timestamp) AS event_timestamp, any_value(o.undone_at) AS undone_at,
    any_value(o.undone_by) AS undone_by,
    CASE WHEN bool_or(a.override_id IS NULL OR a.undone_at IS DISTINCT FROM o.undone_at)
            THEN CASE WHEN bool_or(o.undone_at IS NULL) THEN 'holds' ELSE 'undone' END
                || ' from the next refresh on'
        WHEN bool_or(o.undone_at IS NOT NULL) THEN 'undone'
        WHEN count(s.override_id) = 0 THEN 'overruled by a later one'
        ELSE 'holds' END AS state
FROM overrides o LEFT JOIN applied a USING (override_id, record_l, record_r)
LEFT JOIN ({_STANDING}) s USING (override_id, record_l, record_r)
GROUP BY o.override_id ORDER BY event_timestamp, o.override_id
"""


def queue(known: Identity, most: int | None = None) -> pa.Table:
    """What is doubtful and undecided, the most probable first.

    Args:
        known: what is published.
        most: how many pairs; all if None.

    Returns:
        Table `reviews`, with the customers of both records: customer_l, customer_r.
    """
    tables = {"reviews": known.read("reviews"), "links": known.links()}
    overrides = all_overrides(known)
    return known.ask(_QUEUE, {"most": most or 2**62}, overrides=overrides, **tables)


def all_overrides(known: Identity) -> pa.Table:
    """Table `overrides` with what was decided since the run was published."""
    return _newest(known).arrow("overrides")


def standing(known: Identity) -> pa.Table:
    """The rows of `overrides` that count: on each pair the newest that was not taken back."""
    return known.ask(_STANDING, overrides=all_overrides(known))


def decisions(known: Identity) -> pa.Table:
    """What people decided, the oldest first: one row a decision, with its state."""
    tables = {"overrides": all_overrides(known), "published": known.lake.arrow("overrides")}
    return known.ask(_DECISIONS, **tables)


def write_queue(rows: pa.Table, path: Path) -> None:
    """Write the queue as CSV with an empty column `decision`, for people to fill in.

    Raises:
        ConfigError: if there is such a file: it may hold decisions.
    """
    if path.exists():
        raise ConfigError(f"{path}: exists already and may hold decisions; choose another file")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["decision", *rows.column_names])
        writer.writerows(["", *row.values()] for row in rows.to_pylist())


# ---- decisions ----------------------------------------------------------------------------------

# What people told apart, of two customers of whom they now say that they are one.
_BARRED = f"""
SELECT s.record_l, s.record_r, p.record_l AS for_l, p.record_r AS for_r
FROM same p JOIN links a ON p.record_l = a.record JOIN links b ON p.record_r = b.record,
    ({_STANDING}) s JOIN links c ON s.record_l = c.record JOIN links d ON s.record_r = d.record
WHERE s.decision = 'cannot-link'
    AND (c.customer_id = a.customer_id AND d.customer_id = b.customer_id
      OR c.customer_id = b.customer_id AND d.customer_id = a.customer_id)
"""


def merge(known: Identity, one: str, other: str, actor: str, reason: str = "") -> pa.Table:
    """The decision that two customers, or two records, are one person.

    Args:
        known: what is published.
        one: a customer id or a record's key; for a customer its earliest known record is named.
        other: likewise.
        actor: who decides.
        reason: why.

    Returns:
        Rows for table `overrides`.

    Raises:
        LinkageError: if nothing is called so, or both are one customer without doubt.
    """
    a, b = find(known, one), find(known, other)
    two_records = a.record and b.record and a.record != b.record
    if a.customer_id == b.customer_id and not two_records:
        raise LinkageError(
            f"both are customer '{a.customer_id}' already; 'cdp-ml identity why "
            f"{a.customer_id}' shows what holds it together"
        )
    pair = _ordered(a.record or _earliest(known, a), b.record or _earliest(known, b))
    return _decided(known, {pair: "same"}, actor, reason)


def split(
    known: Identity, customer: str, records: Sequence[str], actor: str, reason: str = ""
) -> pa.Table:
    """The decision that some records of a customer are not the person that the others are.

    Args:
        known: what is published.
        customer: a customer id.
        records: keys of records of it, not all of them. Together they stay if they match.
        actor: who decides.
        reason: why.

    Returns:
        Rows for table `overrides`: each of the records with each of the others.

    Raises:
        LinkageError: if there is no such customer, or a record is not of it, or none is left.
    """
    who = find(known, customer)
    for name in records:
        if name not in who.records:
            found = find(known, name)
            raise LinkageError(
                f"not a record of customer '{who.customer_id}' but of '{found.customer_id}'; "
                f"'cdp-ml identity why {who.customer_id}' lists its records"
            )
    others = [r for r in who.records if r not in records]
    if not others:
        raise LinkageError(
            f"these are all records of customer '{who.customer_id}'; name only those that leave it"
        )
    pairs = {_ordered(r, o): "different" for r in records for o in others}
    return _decided(known, pairs, actor, reason)


def undo(known: Identity, override_id: str, actor: str) -> pa.Table:
    """Take a decision back.

    Returns:
        All its rows for table `overrides`.

    Raises:
        LinkageError: if there is no such decision, or it was taken back already.
    """
    rows = [r for r in all_overrides(known).to_pylist() if r["override_id"] == override_id]
    if not rows:
        ids = all_overrides(known)["override_id"].to_pylist()
        raise LinkageError(f"no decision '{override_id}'; {nearest(override_id, ids)}")
    if rows[0]["undone_at"] is not None:
        raise LinkageError(
            f"decision '{override_id}' was taken back already; 'cdp-ml identity overrides' lists "
            "the others"
        )
    undone = {"undone_at": datetime.now(UTC), "undone_by": actor}
    return _table([{**r, **undone} for r in rows])


def read_decisions(known: Identity, path: Path, actor: str, reason: str = "") -> pa.Table:
    """The decisions in a CSV as `write_queue` writes it: `same`, `different`, or blank for none.

    Returns:
        Rows for table `overrides`; each pair is a decision of its own.

    Raises:
        ConfigError: if the file is absent or has other columns or decisions.
        LinkageError: if it names a record that there is not.
    """
    decided: dict[Pair, str] = {}
    for line, row in _lines(path):
        said = (row["decision"] or "").strip().lower()
        if not said:
            continue
        if said not in DECISIONS:
            raise ConfigError(f"{path}:{line}: decision: write 'same', 'different' or nothing")
        pair = _ordered(row["record_l"] or "", row["record_r"] or "")
        if decided.setdefault(pair, said) != said:
            raise ConfigError(f"{path}:{line}: a line above decides otherwise on this pair")
    _check_records(known, path, {record for pair in decided for record in pair})
    return _decided(known, decided, actor, reason, each=True)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; 'cdp-ml identity review --out FILE' writes one")
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file)
        for column in ("record_l", "record_r", "decision"):
            if column not in (reader.fieldnames or ()):
                found = nearest(column, reader.fieldnames or ())
                raise ConfigError(f"{path}:1: column '{column}' is missing; {found}")
        yield from ((reader.line_num, row) for row in reader)


def _check_records(known: Identity, path: Path, records: set[str]) -> None:
    links = known.links()
    held = known.con.to_pyarrow(links.filter(links.record.isin(sorted(records))).select("record"))
    if absent := len(records - set(held["record"].to_pylist())):
        raise LinkageError(
            f"{path}: {absent} of {len(records)} records are not published; a record is written "
            "source:source_record_id, as 'cdp-ml identity review --out FILE' does"
        )


def _earliest(known: Identity, who: Who) -> str:
    """The record of a customer that was known first."""
    t = known.read("records")
    rows = t.mutate(record=t.source + ":" + t.source_record_id)
    theirs = rows.filter(rows.record.isin(who.records)).order_by("ingested_at", "record").limit(1)
    found = known.con.to_pyarrow(theirs.select("record"))["record"].to_pylist()
    if not found:
        raise LinkageError(
            f"no source delivers the records of customer '{who.customer_id}' any more; what is "
            "decided of them has no effect"
        )
    return str(found[0])


def _decided(
    known: Identity, decided: Mapping[Pair, str], actor: str, reason: str, each: bool = False
) -> pa.Table:
    """Rows of `overrides`: one decision on all pairs, or each pair one of its own.

    Two customers that are one person cannot have been told apart rightly: the newest word counts,
    so earlier ones on pairs between them are decided otherwise too.
    """
    before = all_overrides(known)
    now = _after(before)
    pairs = {pair: (said, pair if each else None) for pair, said in decided.items()}
    for barred in _barred(known, decided, before):
        pair, same = _pair(barred), (barred["for_l"], barred["for_r"])
        pairs.setdefault(pair, pairs[same])
    return _table(
        {
            "override_id": _id_of(of, now),
            "record_l": pair[0],
            "record_r": pair[1],
            "decision": DECISIONS[said],
            "actor": actor,
            "reason": reason,
            "event_timestamp": now,
        }
        for pair, (said, of) in sorted(pairs.items())
    )


def _id_of(pair: Pair | None, at: datetime) -> str:
    return "o" + hashlib.sha256(repr([pair, at]).encode()).hexdigest()[:10]


def _barred(known: Identity, decided: Mapping[Pair, str], before: pa.Table) -> Any:
    same = _table(
        {"record_l": one, "record_r": other}
        for (one, other), said in decided.items()
        if said == "same"
    )
    if not before.num_rows or not same.num_rows:
        return []
    found = known.ask(_BARRED, same=same, links=known.links(), overrides=before)
    return found.to_pylist()


def _after(before: pa.Table) -> datetime:
    """Now, and later than all that was decided, be it on a machine whose clock runs ahead."""
    import pyarrow.compute as pc

    last = pc.max(before["event_timestamp"]).as_py()
    now = datetime.now(UTC)
    return now if last is None else max(now, last + timedelta(microseconds=1))


def _ordered(one: str, other: str) -> Pair:
    return min(one, other), max(one, other)


def _pair(row: Mapping[str, Any]) -> Pair:
    return row["record_l"], row["record_r"]


def _table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), arrow_schema("overrides"))


# ---- what a decision would change, and writing it -----------------------------------------------


@dataclass(frozen=True)
class Change:
    """What the next refresh would make of a decision.

    Attributes:
        moves: record, customer_id, becomes (the customer that it then belongs to), retires
            (whether the former id does), is_new (whether the other one is).
        pending: ids of earlier decisions that no refresh has applied; they are part of the moves.
        in_vain: pairs that are decided to be one person and would not be, because of others that
            people told apart.
    """

    moves: pa.Table
    pending: tuple[str, ...]
    in_vain: int


_MOVES = """
SELECT record, l.customer_id, n.customer_id AS becomes,
    l.customer_id NOT IN (SELECT customer_id FROM now) AS retires,
    n.customer_id NOT IN (SELECT customer_id FROM links) AS is_new
FROM links l JOIN now n USING (record)
WHERE l.customer_id <> n.customer_id ORDER BY ALL
"""
_MERGED = """
FROM rows UNION ALL BY NAME
FROM overrides ANTI JOIN rows USING (override_id, record_l, record_r)
"""
_IN_VAIN = """
SELECT count(*) AS pairs FROM rows
JOIN now l ON record_l = l.record JOIN now r ON record_r = r.record
WHERE decision = 'must-link' AND undone_at IS NULL AND l.customer_id <> r.customer_id
"""
_NOW = """
SELECT record, coalesce(n.customer_id, l.customer_id) AS customer_id
FROM links l LEFT JOIN (
    SELECT source || ':' || source_record_id AS record, customer_id FROM assigned
    WHERE valid_to IS NULL
) n USING (record)
"""


def what_would_change(known: Identity, rows: pa.Table) -> Change:
    """What the next refresh would make of a decision, found by really linking; writes nothing.

    Args:
        known: what is published.
        rows: rows for table `overrides`, as `merge`, `split`, `undo` or `read_decisions` give.
    """
    links = known.con.to_pyarrow(known.links())
    now = known.ask(_NOW, links=links, assigned=_assigned_with(known, rows))
    pending = [r["override_id"] for r in decisions(known).to_pylist() if "next" in r["state"]]
    in_vain = known.ask(_IN_VAIN, rows=rows, now=now)["pairs"][0].as_py()
    return Change(known.ask(_MOVES, links=links, now=now), tuple(pending), in_vain)


def _assigned_with(known: Identity, rows: pa.Table) -> pa.Table:
    """The rows of `crosswalk` that the next refresh would write."""
    former = {t: known.read(t) for t in ("edges", "compared", "reviews")}
    linkage = link(
        known.read("records"),
        known.read("identifiers"),
        known.spec,
        known.con,
        model=known.model,
        overrides=known.ask(_MERGED, rows=rows, overrides=all_overrides(known)),
        former=former if known.model else None,
    )
    now, crosswalk = datetime.now(UTC), known.read("crosswalk")
    return assign_customer_ids(linkage.clusters, crosswalk, now, known.con).links


def write_decision(known: Identity, rows: pa.Table) -> None:
    """Write a decision: all its rows or none. The next refresh applies it."""
    with _alone(known.lake.root):
        _newest(known).upsert("overrides", rows, known.con)


def _newest(known: Identity) -> Lake:
    """A lake that sees what was decided until now."""
    lake = Lake(known.lake.root)
    lake.renew("overrides")
    return lake


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Let one decision at a time be written: a lake takes back what others wrote meanwhile."""
    import fcntl

    with (root.parent / "overrides.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

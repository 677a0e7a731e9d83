"""Which records are one person: Splink weighs the pairs, deterministic identifiers join for sure.

All sources are one table to Splink, under integer ids, so pairs are found within and between them.
The steps: the records are numbered (`people`), paired up in blocks (`blocking`), the pairs weighed
(`weighing`) and clustered (`clustering`) by what the model has learned (`training`). What joins for
certain (a loyalty number that the CRM notes) merges clusters afterwards, and people overrule both.
With a model that is there already, only what changed is linked again (`scope`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cdp_ml.config import IdentitySpec
from cdp_ml.contracts import arrow_schema
from cdp_ml.engine import lend, private_connection
from cdp_ml.identity import blocking, scope
from cdp_ml.identity.clustering import (
    FORBIDDEN,
    cluster_pairs,
    components,
    join_clusters,
    weakest_links,
)
from cdp_ml.identity.comparisons import Kind, usable
from cdp_ml.identity.model import Model
from cdp_ml.identity.people import (
    FIELDS,
    count_rows,
    make_people,
    number_records,
    view_records,
)
from cdp_ml.identity.training import train
from cdp_ml.identity.weighing import evidence, pattern, predict, weight

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Linkage:
    """What linking found.

    Attributes:
        edges: table `edges`: the pairs at or above the threshold, and those that identifiers or
            people join or tell apart.
        clusters: source, source_record_id, ingested_at, cluster (number), confidence (probability
            of the weakest link that the cluster needs; 1 for single records). Whole clusters.
        compared: table `compared`: what the records held, to find what changed the next time.
        reviews: table `reviews`: what is doubtful, for people to decide.
        model: what was learned; None if there was nothing to compare.
        changed: records that are new or changed; all of them in a full run.
        gone: by table, the keys of former rows that hold no longer or are replaced. None in a full
            run: then the tables are whole, otherwise they are what is new or differs from before.
    """

    edges: pa.Table
    clusters: pa.Table
    compared: pa.Table
    reviews: pa.Table
    model: Model | None
    changed: int
    gone: Mapping[str, pa.Table] | None


def link(
    records: Table | pa.Table,
    identifiers: Table | pa.Table,
    spec: IdentitySpec,
    con: SQLBackend,
    *,
    model: Model | None = None,
    overrides: pa.Table | None = None,
    former: Mapping[str, Table | pa.Table] | None = None,
    known_at: datetime | None = None,
) -> Linkage:
    """Link the records of all sources into clusters, one a person.

    The same input gives the same output: ids follow the records' keys, sampling is seeded, and
    trained parameters are rounded, so that the order of summation does not show. Linking what
    changed gives the edges and clusters that linking all with the same model gives.

    Args:
        records: table `records`.
        identifiers: table `identifiers`.
        spec: models/identity.yaml.
        con: the engine; Splink gets a connection of its own with the same limits.
        model: a trained one to use again; trained here if None.
        overrides: table `overrides`, what people decided.
        former: tables `edges`, `compared` and `reviews` as this model and code left them, to link
            only what changed since; all is linked if None, and where no model is given.
        known_at: when this run learns of the edges, UTC; now if None.

    Raises:
        LinkageError: if the specification does not fit the records, or a blocking rule would make
            more pairs than `max_pairs`.
    """
    former = former if model else None
    db, model = weigh(
        records, identifiers, spec, con, model=model, overrides=overrides, former=former
    )
    _cluster(db, spec)
    return _found(db, spec, model, former is not None, known_at or datetime.now(UTC))


def weigh(
    records: Table | pa.Table,
    identifiers: Table | pa.Table,
    spec: IdentitySpec,
    con: SQLBackend,
    *,
    model: Model | None = None,
    overrides: pa.Table | None = None,
    former: Mapping[str, Table | pa.Table] | None = None,
) -> tuple[DuckDBPyConnection, Model | None]:
    """Number the records and weigh the pairs: `link` without the clusters.

    Args:
        records: as for `link`, like the other arguments.
        identifiers: table `identifiers`.
        spec: models/identity.yaml.
        con: the engine.
        model: a trained one to use again; trained here if None.
        overrides: table `overrides`.
        former: tables `edges`, `compared` and `reviews`, only with a model.

    Returns:
        A database with tables `nodes` (the records, numbered by unique_id), `pairs` (one, other,
        weight in bits, pattern of levels) and what `partition` needs; and the model.
    """
    db = private_connection(con)
    keys = ("source", "source_record_id")
    lend(records.select([*keys, "ingested_at", *FIELDS]), "records", con, db)
    columns = [*keys, "identifier_type", "identifier"]
    lend(identifiers.select(columns), "identifiers", con, db)
    if former is None:
        filled = number_records(db)
        if model:
            make_people(db, model)
        else:
            model = _trained(db, spec, filled)  # leaves table `people`
    elif model:
        view_records(db)
        blocking.make_prints(db, model.blocks, model.large_blocks)
    scope.list_overrides(db, overrides)
    scope.list_certain(db, spec.deterministic, spec.max_group, former is not None)
    for name in ("edges", "compared", "reviews"):
        lend(
            former[name] if former else arrow_schema(name).empty_table(), f"former_{name}", con, db
        )
    scope.begin(db, former is not None)
    _weigh_all(db, spec, model, former is not None)
    return db, model


def check_specification(spec: IdentitySpec) -> None:
    """Check the names in a specification without any records.

    Raises:
        LinkageError: if a comparison or a rule names what there is not.
    """
    nothing = dict.fromkeys(FIELDS, 0)
    usable(spec, nothing)
    for rules in (spec.blocking_rules, spec.training_rules, spec.prior_rules):
        blocking.usable_rules(rules, nothing)


def _trained(db: DuckDBPyConnection, spec: IdentitySpec, filled: Mapping[str, int]) -> Model | None:
    kinds = usable(spec, filled)
    _note_left_out(spec, kinds)
    rules = blocking.usable_rules(spec.blocking_rules, filled)
    return train(db, spec, kinds, rules, filled) if kinds and rules else None


def _note_left_out(spec: IdentitySpec, kinds: Mapping[str, Kind]) -> None:
    if left_out := [c.field for c in spec.comparisons if c.field not in kinds]:
        log.info("identity: nothing to compare in %s", ", ".join(left_out))


# ---- weighing the pairs -------------------------------------------------------------------------


# Records of one component that no block brought together: they too speak for or against it.
_MISSING = """
CREATE OR REPLACE TABLE candidates AS
SELECT least(l.unique_id, r.unique_id) AS join_key_l, greatest(l.unique_id, r.unique_id)
    AS join_key_r, '0' AS match_key
FROM component l JOIN component r USING (component)
ANTI JOIN pairs ON one = l.unique_id AND other = r.unique_id
WHERE l.unique_id < r.unique_id
"""


def _weigh_all(db: DuckDBPyConnection, spec: IdentitySpec, model: Model | None, part: bool) -> None:
    """Make table `pairs`: the blocked pairs, and all pairs inside of their components.

    Args:
        db: with the records, identifiers and overrides.
        spec: the specification.
        model: the model; nothing is compared if None.
        part: whether to weigh only what the former run and what changed since make necessary;
            tables `scope` and `changed` then tell what that is.
    """
    db.execute("CREATE TABLE pairs (one BIGINT, other BIGINT, weight DOUBLE, pattern BIGINT)")
    blocking.begin(db)
    if model is None:
        return
    if part:
        blocking.take_blocks(db, model.blocks, "SEMI JOIN changed USING (unique_id)")
        blocking.add_neighbors(db, model.blocks)
        blocking.pair_up(db, model.blocks, spec.max_pairs, among="changed")
        scope.take_nodes(db)
        make_people(db, model)
    else:
        blocking.make_blocks(db, model.blocks, model.large_blocks)
    predicted = predict(db, model)
    if part:
        _weigh(db, model, predicted)
        scope.widen(db, bits_of(spec))
        # What changed has been compared with all.
        rest = "SEMI JOIN scope USING (unique_id) ANTI JOIN changed USING (unique_id)"
        blocking.take_blocks(db, model.blocks, rest)
    blocking.pair_up(db, model.blocks, spec.max_pairs)
    _weigh(db, model, predicted)
    _list_components(db, bits_of(spec))
    db.execute(_MISSING)
    _weigh(db, model, predicted)


def _weigh(db: DuckDBPyConnection, model: Model, predicted: str) -> None:
    """Add table `candidates` to table `pairs`.

    Args:
        db: the database.
        model: the model.
        predicted: the view of `weighing.predict`, which reads tables `people` and `candidates`.
    """
    db.execute(f"""
        INSERT INTO pairs SELECT unique_id_l, unique_id_r, {weight(model)}, {pattern(model)}
        FROM {predicted}
    """)


def bits_of(spec: IdentitySpec) -> float:
    """The threshold as a match weight."""
    return _bits(spec.threshold)


def _bits(probability: float) -> float:
    return math.log2(probability / (1 - probability))


def _list_components(db: DuckDBPyConnection, bits: float) -> None:
    """Make table `component` of the components that lack pairs: unique_id, component."""
    import numpy as np
    import pyarrow as pa

    ids = scope.records(db)
    pairs = scope.pairs(db, ids, _WEIGHTS)
    one, other = pairs["one"], pairs["other"]
    label = components(len(ids), one, other, pairs["weight"], bits)
    size = np.bincount(label)
    inside = label[one] == label[other]
    listed = np.bincount(label[one[inside]], minlength=len(size))
    lacking = np.flatnonzero((listed < size * (size - 1) // 2)[label])
    db.register("component", pa.table({"unique_id": ids[lacking], "component": label[lacking]}))


# ---- clusters -----------------------------------------------------------------------------------


# What people told apart is apart, whatever its weight.
_APART = "SELECT one, other FROM decided WHERE decision = 'cannot-link'"
_WEIGHTS = f"""
SELECT one, other, CASE WHEN apart IS NULL THEN weight ELSE {FORBIDDEN} END AS weight
FROM pairs FULL JOIN (SELECT *, true AS apart FROM ({_APART})) USING (one, other)
"""
_LINKS = """
SELECT one, other, true AS personal FROM decided WHERE decision = 'must-link'
UNION ALL
SELECT one, other, false FROM certain ANTI JOIN decided USING (one, other)
"""
_STRONG = f"""
SELECT one, other, 1 / (1 + pow(2, -weight)) AS probability FROM pairs
ANTI JOIN certain USING (one, other) ANTI JOIN decided USING (one, other)
WHERE weight >= $bits
UNION ALL SELECT one, other, 1.0 FROM ({_LINKS})
"""


def partition(db: DuckDBPyConnection, spec: IdentitySpec) -> tuple[Any, Any, list[Any]]:
    """Cluster the pairs, and join and part clusters as identifiers and people say.

    Args:
        db: of `weigh`.
        spec: its threshold and limits.

    Returns:
        The records in scope (unique_id), the cluster of each, and what is doubtful: record, record
        (unique_id) and the reason.
    """
    import numpy as np

    ids = scope.records(db)
    pairs, apart = scope.pairs(db, ids, _WEIGHTS), scope.pairs(db, ids, _APART)
    weighed = (pairs["one"], pairs["other"], pairs["weight"])
    label, bridges = cluster_pairs(len(ids), weighed, bits_of(spec), spec.max_cluster)
    links = scope.pairs(db, ids, f"{_LINKS} ORDER BY personal DESC, one, other")
    label, left_out = join_clusters(
        label,
        (links["one"], links["other"]),
        links["personal"],
        (apart["one"], apart["other"]),
        spec.max_group,
    )
    doubts = [(*ends, "bridge") for ends in bridges]
    doubts += [(links["one"][i], links["other"][i], "conflict") for i in np.flatnonzero(left_out)]
    return ids, label, [(int(ids[one]), int(ids[other]), why) for one, other, why in doubts]


def _cluster(db: DuckDBPyConnection, spec: IdentitySpec) -> None:
    """Make `clustered` (unique_id, cluster, confidence) and `doubts` (one, other, reason)."""
    import pyarrow as pa

    ids, label, doubts = partition(db, spec)
    strong = scope.pairs(db, ids, _STRONG, bits=bits_of(spec))
    confidence = weakest_links(label, strong["one"], strong["other"], strong["probability"])
    columns = {"unique_id": ids, "cluster": label, "confidence": confidence[label]}
    db.register("clustered", pa.table(columns))
    db.execute("CREATE TABLE doubts (one BIGINT, other BIGINT, reason VARCHAR)")
    if doubts:
        db.executemany("INSERT INTO doubts VALUES (?, ?, ?)", doubts)


# ---- what was found -----------------------------------------------------------------------------


# There are few patterns: what each says is put in words once.
_SAID = """
CREATE TABLE said AS
SELECT pattern, {evidence} AS said FROM (SELECT DISTINCT pattern FROM pairs)
"""
_EDGES = """
WITH found AS (
    SELECT * FROM (SELECT one, other, weight, pattern FROM pairs WHERE weight >= $bits)
    FULL JOIN certain USING (one, other) FULL JOIN decided USING (one, other)
    LEFT JOIN (
        SELECT least(one, other) AS one, greatest(one, other) AS other, known_at FROM former
    ) USING (one, other)
), named AS (
    SELECT f.*, least(l.record, r.record) AS record_l, greatest(l.record, r.record) AS record_r
    FROM found f JOIN nodes l ON one = l.unique_id JOIN nodes r ON other = r.unique_id
    WHERE one IN (FROM scope)
)
SELECT record_l, record_r,
    coalesce(decision, CASE WHEN identifier_type IS NULL THEN 'probabilistic'
        ELSE 'deterministic' END) AS kind,
    weight AS match_weight,
    CASE WHEN decision = 'cannot-link' THEN 0
        WHEN decision IS NULL AND identifier_type IS NULL THEN 1 / (1 + pow(2, -weight))
        ELSE 1 END AS match_probability,
    concat_ws('; ', nullif(reason, ''), 'same ' || identifier_type || ' identifier',
        nullif(said, '')) AS evidence,
    coalesce(actor, 'refresh') AS actor,
    least(known_at, coalesce(event_timestamp, $known_at)) AS known_at
FROM named LEFT JOIN said USING (pattern) ORDER BY one, other
"""
_CLUSTERS = """
SELECT source, source_record_id, ingested_at, cluster, confidence
FROM nodes JOIN clustered USING (unique_id) ORDER BY unique_id
"""
_COMPARED = """
SELECT source, source_record_id, fingerprint FROM nodes WHERE unique_id IN (FROM changed)
ORDER BY unique_id
"""
# Of two customers, the pair that speaks most for their being one.
_REVIEWS = """
WITH open AS (
    SELECT *, coalesce(d.reason, CASE WHEN weight >= $bits THEN 'outvoted' ELSE 'uncertain' END)
        AS why, d.reason IS NULL AS usual
    FROM (SELECT one, other, weight, pattern FROM pairs WHERE weight >= $review)
    FULL JOIN doubts d USING (one, other) ANTI JOIN decided USING (one, other)
), apart AS (
    SELECT open.*, least(l.cluster, r.cluster) AS a, greatest(l.cluster, r.cluster) AS b
    FROM open JOIN clustered l ON one = l.unique_id JOIN clustered r ON other = r.unique_id
    WHERE a <> b
    QUALIFY row_number() OVER (PARTITION BY a, b ORDER BY usual, weight DESC, one, other) = 1
)
SELECT record_l, record_r, why AS reason, weight AS match_weight,
    1 / (1 + pow(2, -weight)) AS match_probability, said AS evidence,
    least(f.known_at, $known_at) AS known_at
FROM (
    SELECT apart.*, least(l.record, r.record) AS record_l, greatest(l.record, r.record) AS record_r
    FROM apart JOIN nodes l ON one = l.unique_id JOIN nodes r ON other = r.unique_id
) LEFT JOIN said USING (pattern) LEFT JOIN former_reviews f USING (record_l, record_r)
ORDER BY record_l, record_r
"""


def _found(
    db: DuckDBPyConnection,
    spec: IdentitySpec,
    model: Model | None,
    part: bool,
    known_at: datetime,
) -> Linkage:
    db.execute(_SAID.format(evidence="NULL" if model is None else evidence(model)))
    given = {"bits": bits_of(spec), "known_at": known_at}
    review = {**given, "review": _bits(spec.review)}
    found = {
        "edges": _asked(db, "edges", _EDGES, given),
        "compared": _asked(db, "compared", _COMPARED),
        "reviews": _asked(db, "reviews", _REVIEWS, review),
    }
    found, gone = scope.changes(db, found) if part else (found, None)
    return Linkage(
        **found,
        clusters=db.sql(_CLUSTERS).to_arrow_table(),
        model=model,
        changed=count_rows(db, "changed"),
        gone=gone,
    )


def _asked(
    db: DuckDBPyConnection, table: str, query: str, given: dict[str, Any] | None = None
) -> pa.Table:
    schema = arrow_schema(table)
    return db.sql(query, params=given).to_arrow_table().select(schema.names).cast(schema)

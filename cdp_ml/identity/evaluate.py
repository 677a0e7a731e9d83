"""How well the customers are the people: pairwise and B-cubed precision, recall and F1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

from cdp_ml.config import IdentitySpec
from cdp_ml.engine import lend, private_connection, to_arrow
from cdp_ml.identity.model import Model

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Table

    Array = npt.NDArray[Any]

REPLICATES = 200
THRESHOLDS = (0.1, 0.2, 0.33, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
"""Match probabilities at which clusters are compared with the truth."""
WEIGHTS = (-20, 40)
"""Match weights (bits) beyond which the histogram ends."""
_CELLS = """
SELECT dense_rank() OVER (ORDER BY customer_id) - 1 AS customer,
    dense_rank() OVER (ORDER BY person_id) - 1 AS person,
    dense_rank() OVER (ORDER BY customer_id, person_id) - 1 AS cell,
    source, count(*)::DOUBLE AS records
FROM crosswalk JOIN truth USING (source, source_record_id)
GROUP BY customer_id, person_id, source ORDER BY ALL
"""

# ---- against the truth --------------------------------------------------------------------------


def evaluate_linkage(
    crosswalk: Table | pa.Table, truth: Table | pa.Table, con: SQLBackend, seed: int = 1
) -> dict[str, float]:
    """Compare the links with the truth, over the records that are in both.

    A pair is two records of one customer (`pairs_linked`), of one person (`pairs_true`), or of
    both (`pairs_right`). Everything follows from the counts of records by customer and person; no
    pair is listed. The intervals are bootstrap percentiles over the groups of records that
    neither a link nor the truth connects with others. B-cubed: Bagga and Baldwin (1998).

    Args:
        crosswalk: source, source_record_id, customer_id; only links that hold.
        truth: source, source_record_id, person_id.
        con: the engine of the tables.
        seed: of the bootstrap.

    Returns:
        `precision`, `recall`, `f1` of pairs, `b3_precision`, `b3_recall`, `b3_f1`, each with `_low`
        and `_high` (95% interval); and the counts `records`, `customers`, `people`,
        `pairs_linked`, `pairs_true`, `pairs_right`. Ratios without denominator are 1.
    """
    cells = _cells(crosswalk, truth, con)
    pairs = _pairs_by_unit(cells)
    return {
        **_estimates({"": pairs, "b3_": _b_cubed_by_unit(cells)}, seed),
        "records": float(cells["records"].sum()),
        **{name: float(cells[of].max(initial=-1) + 1) for name, of in _COUNTED.items()},
        **_pair_counts(pairs),
    }


_COUNTED = {"customers": "customer", "people": "person"}


def evaluate_source_pairs(
    crosswalk: Table | pa.Table, truth: Table | pa.Table, con: SQLBackend, seed: int = 1
) -> dict[str, dict[str, float]]:
    """Compare the links with the truth between each two sources, and within each.

    Returns:
        By pair of sources, such as 'crm-shop' (a source with itself: within it), what
        `evaluate_linkage` says of pairs, counting those of one record each. Pairs of sources
        without any true or linked pair are left out.
    """
    cells = _cells(crosswalk, truth, con)
    found = {}
    for a, b in combinations_with_replacement(sorted(set(cells["source"])), 2):
        pairs = _pairs_by_unit(cells, cells["source"] == a, cells["source"] == b)
        if pairs.any():
            found[f"{a}-{b}"] = {**_estimates({"": pairs}, seed), **_pair_counts(pairs)}
    return found


def _cells(
    crosswalk: Table | pa.Table, truth: Table | pa.Table, con: SQLBackend
) -> dict[str, Array]:
    """Records by customer, person (both numbered), and source; with the `unit` of each count."""
    db = private_connection(con)
    lend(crosswalk, "crosswalk", con, db)
    lend(truth, "truth", con, db)
    cells: dict[str, Array] = db.execute(_CELLS).fetchnumpy()
    return {**cells, "unit": _units(cells["customer"], cells["person"])}


def _units(customer: Array, person: Array) -> Array:
    """The connected group of customers and people that each cell belongs to."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(customer):
        return customer
    people = customer.max() + 1
    nodes = people + person.max() + 1
    ends = (customer, people + person)
    graph = coo_array((np.ones(len(customer)), ends), shape=(nodes, nodes))
    numbers: Array = connected_components(graph, directed=False)[1][customer]
    return np.unique(numbers, return_inverse=True)[1]


def _pairs_by_unit(cells: Mapping[str, Array], a: Any = True, b: Any = True) -> Array:
    """Of each unit the right, linked, right and true pairs of a record in `a` and one in `b`.

    Args:
        cells: the counts.
        a: by cell, whether it counts on the one side; all by default.
        b: by cell, whether it counts on the other: the same cells as `a`, or none of them.
    """
    import numpy as np

    records, unit = cells["records"], cells["unit"]
    sums = {}
    for name in ("cell", "customer", "person"):
        group = cells[name]
        one, other, both = (np.bincount(group, records * side) for side in (a, b, a & b))
        unit_of = np.zeros(len(one), dtype=np.int64)
        unit_of[group] = unit
        sums[name] = np.bincount(unit_of, one * other - both * (both + 1) / 2)
    return np.column_stack([sums[n] for n in ("cell", "customer", "cell", "person")])


def _b_cubed_by_unit(cells: Mapping[str, Array]) -> Array:
    """Summed over a unit's records: the share of a record's customer, or person, rightly there.

    Returns:
        Four columns: of the customers, the records, of the people, the records.
    """
    import numpy as np

    def records(name: str) -> Any:
        return np.bincount(cells[name], cells["records"])[cells[name]]

    together = cells["records"] * records("cell")
    weights = (together / records("customer"), together / records("person"), cells["records"])
    precise, recalled, all_ = (np.bincount(cells["unit"], w) for w in weights)
    return np.column_stack([precise, all_, recalled, all_])


def _pair_counts(pairs: Array) -> dict[str, float]:
    right, linked, _, true = pairs.sum(axis=0)
    counts = {"pairs_linked": linked, "pairs_true": true, "pairs_right": right}
    return {name: float(count) for name, count in counts.items()}


def _ratios(sums: Array) -> dict[str, Any]:
    """Precision (first column by the second), recall (third by fourth), their harmonic mean."""
    import numpy as np

    def share(part: Any, whole: Any, otherwise: float) -> Any:
        whole = np.asarray(whole, dtype=float)
        return np.divide(part, whole, out=np.full_like(whole, otherwise), where=whole > 0)

    precision, recall = (share(sums[..., i], sums[..., i + 1], 1.0) for i in (0, 2))
    f1 = share(2 * precision * recall, precision + recall, 0.0)
    return {"precision": precision, "recall": recall, "f1": f1}


def _estimates(measures: Mapping[str, Array], seed: int) -> dict[str, float]:
    """Ratios with 95% percentile intervals, resampling the units for all measures alike.

    Args:
        measures: by prefix of the ratios' names, four columns (`_ratios`) by unit.
        seed: of the bootstrap.
    """
    import numpy as np

    found = _named(measures, [x.sum(axis=0) for x in measures.values()])
    columns = np.hstack([*measures.values()])
    if len(columns):
        drawn = np.split(_resampled(columns, seed), len(measures), axis=1)
        for name, values in _named(measures, drawn).items():
            found[f"{name}_low"], found[f"{name}_high"] = np.percentile(values, [2.5, 97.5])
    return {name: float(value) for name, value in found.items()}


def _named(prefixes: Any, sums: Sequence[Array]) -> dict[str, Any]:
    return {
        f"{prefix}{name}": value
        for prefix, columns in zip(prefixes, sums, strict=True)
        for name, value in _ratios(columns).items()
    }


def _resampled(columns: Array, seed: int) -> Array:
    """Sums of as many units as there are, drawn with replacement; one row a replicate."""
    import numpy as np

    # Most units are alike: drawing how many there are of each kind is the same, and quick.
    kinds, counts = np.unique(columns, axis=0, return_counts=True)
    rng, units = np.random.default_rng(seed), len(columns)
    draws = (rng.multinomial(units, counts / units) for _ in range(REPLICATES))
    return np.array([draw @ kinds for draw in draws])


# ---- by threshold -------------------------------------------------------------------------------


def evaluate_thresholds(
    records: Table | pa.Table,
    identifiers: Table | pa.Table,
    spec: IdentitySpec,
    model: Model,
    truth: Table | pa.Table,
    con: SQLBackend,
    *,
    overrides: pa.Table | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> tuple[list[dict[str, float]], pa.Table]:
    """What the same model and blocks would give at other thresholds: for choosing one.

    The pairs are weighed once and clustered for each threshold. A threshold that is chosen by
    these figures has seen the truth: judge it on other records.

    Args:
        records: table `records`.
        identifiers: table `identifiers`.
        spec: models/identity.yaml; its threshold is one of those that are compared.
        model: the trained model.
        truth: source, source_record_id, person_id.
        con: the engine.
        overrides: table `overrides`.
        thresholds: match probabilities.

    Returns:
        By `threshold`, ascending: `match_weight` (bits), `customers` of records with a known truth,
        and pairwise and B-cubed ratios as `evaluate_linkage` names them. And how many of the
        weighed pairs are one person's: match_weight (whole bits, downwards), true, false.
    """
    from cdp_ml.identity.linkage import bits_of, weigh

    asked = [
        spec.model_copy(update={"threshold": t}) for t in sorted({*thresholds, spec.threshold})
    ]
    # At the least threshold the components, inside of which all pairs are weighed, hold all others.
    db, _ = weigh(records, identifiers, asked[0], con, model=model, overrides=overrides)
    known = to_arrow(truth, con)
    found = []
    for at in asked:
        scores = _scores(_clusters(db, at), known, con)
        found.append({"threshold": at.threshold, "match_weight": bits_of(at), **scores})
    return found, _weight_counts(db, known)


def _clusters(db: DuckDBPyConnection, spec: IdentitySpec) -> pa.Table:
    """source, source_record_id, customer_id."""
    import pyarrow as pa

    from cdp_ml.identity.linkage import partition

    ids, label, _ = partition(db, spec)
    db.register("labeled", pa.table({"unique_id": ids, "customer_id": label}))
    asked = "SELECT source, source_record_id, customer_id FROM nodes JOIN labeled USING (unique_id)"
    table: pa.Table = db.sql(asked).to_arrow_table()
    return table


def _scores(crosswalk: pa.Table, truth: pa.Table, con: SQLBackend) -> dict[str, float]:
    cells = _cells(crosswalk, truth, con)
    sums = [x.sum(axis=0) for x in (_pairs_by_unit(cells), _b_cubed_by_unit(cells))]
    scores = {name: float(value) for name, value in _named(("", "b3_"), sums).items()}
    return {"customers": float(cells["customer"].max(initial=-1) + 1), **scores}


def _weight_counts(db: DuckDBPyConnection, truth: pa.Table) -> pa.Table:
    db.register("truth", truth)
    least, greatest = WEIGHTS
    table: pa.Table = db.sql(f"""
        WITH known AS (FROM nodes JOIN truth USING (source, source_record_id))
        SELECT greatest({least}, least({greatest}, floor(weight)))::INTEGER AS match_weight,
            count(*) FILTER (l.person_id = r.person_id) AS true,
            count(*) FILTER (l.person_id <> r.person_id) AS false
        FROM pairs JOIN known l ON one = l.unique_id JOIN known r ON other = r.unique_id
        GROUP BY 1 ORDER BY 1
    """).to_arrow_table()
    return table


# ---- against what people decided ----------------------------------------------------------------


_LABELED = """
WITH customer AS (
    SELECT source || ':' || source_record_id AS record, customer_id FROM crosswalk
), labeled AS (
    SELECT least(record_l, record_r) AS record_l, greatest(record_l, record_r) AS record_r,
        bool_and(decision = 'same') AS same, count(DISTINCT decision) > 1 AS contradictory
    FROM labels WHERE record_l <> record_r GROUP BY 1, 2
), applied AS (
    SELECT DISTINCT least(record_l, record_r) AS record_l, greatest(record_l, record_r) AS record_r,
        true AS is_applied
    FROM overrides WHERE undone_at IS NULL
)
SELECT same, l.customer_id = r.customer_id AS clusters, e.record_l IS NOT NULL AS edges,
    CASE WHEN contradictory THEN 'contradictory' WHEN is_applied THEN 'applied'
        WHEN l.record IS NULL OR r.record IS NULL THEN 'unknown' ELSE 'judged' END AS state
FROM labeled
LEFT JOIN customer l ON record_l = l.record LEFT JOIN customer r ON record_r = r.record
LEFT JOIN (FROM edges WHERE kind <> 'cannot-link') e USING (record_l, record_r)
LEFT JOIN applied USING (record_l, record_r)
"""


def evaluate_labels(
    labels: pa.Table, crosswalk: pa.Table, edges: pa.Table, overrides: pa.Table
) -> dict[str, Any]:
    """Compare clusters and edges with what people decided about pairs of records.

    The figures hold for the labeled pairs, and for others only so far as the labels are a random
    sample of them. Those of the review queue are not: they are the doubtful pairs, where any model
    does worst. Decisions that were applied as overrides are left out, for they would only be found
    again. The intervals (Wilson, 1927) take the pairs for independent.

    Args:
        labels: record_l, record_r ('source:source_record_id'), decision ('same', 'different').
        crosswalk: source, source_record_id, customer_id; only links that hold.
        edges: table `edges`.
        overrides: table `overrides`.

    Returns:
        Counts of labeled pairs: `judged` (`same` and `different`), and those left out: `applied`,
        `unknown` (a record that is not there), `contradictory`. For `clusters` and `edges`, of
        pairs: `linked`, `precision` and `recall` with `_low` and `_high` (95% interval).
    """
    import duckdb

    db = duckdb.connect()
    given = {"labels": labels, "crosswalk": crosswalk, "edges": edges, "overrides": overrides}
    for name, table in given.items():
        db.register(name, table)
    rows = db.execute(_LABELED).fetchall()
    judged = [row for row in rows if row[3] == "judged"]
    same = sum(row[0] for row in judged)
    left_out = ("applied", "unknown", "contradictory")
    return {
        "judged": len(judged),
        "same": same,
        "different": len(judged) - same,
        **{state: sum(row[3] == state for row in rows) for state in left_out},
        "clusters": _judge([(is_same, linked) for is_same, linked, _, _ in judged]),
        "edges": _judge([(is_same, linked) for is_same, _, linked, _ in judged]),
    }


def _judge(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """Precision and recall of (same, linked)."""
    right = sum(same and linked for same, linked in pairs)
    linked = sum(linked for _, linked in pairs)
    shares = {"precision": (right, linked), "recall": (right, sum(same for same, _ in pairs))}
    found: dict[str, float] = {"linked": linked}
    for name, (part, whole) in shares.items():
        found[name] = part / whole if whole else 1.0
        found[f"{name}_low"], found[f"{name}_high"] = wilson(part, whole)
    return found


def wilson(part: int, whole: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a share; (0, 1) where there is nothing to know it from."""
    if not whole:
        return 0.0, 1.0
    share, spread = part / whole, z * z / whole
    center = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / whole + spread / (4 * whole))
    return max(0.0, (center - half) / (1 + spread)), min(1.0, (center + half) / (1 + spread))

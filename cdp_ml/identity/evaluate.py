"""How well the customers are the people: pairwise and B-cubed precision, recall and F1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cdp_ml.engine import private_connection

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Table

    Floats = npt.NDArray[Any]

REPLICATES = 200
_CELLS = """
SELECT dense_rank() OVER (ORDER BY customer_id) - 1 AS customer,
    dense_rank() OVER (ORDER BY person_id) - 1 AS person, count(*) AS records
FROM crosswalk JOIN truth USING (source, source_record_id)
GROUP BY customer_id, person_id ORDER BY customer, person
"""


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
        `precision`, `recall`, `f1`, each with `_low` and `_high` (95% interval);
        `b3_precision`, `b3_recall`, `b3_f1`; and the counts `records`, `customers`, `people`,
        `pairs_linked`, `pairs_true`, `pairs_right`. Ratios without denominator are 1.
    """
    import numpy as np

    customer, person, n = _cells(crosswalk, truth, con)
    by_customer, by_person = (np.bincount(i, n) for i in (customer, person))
    linked, true, right = (_pairs(x) for x in (by_customer, by_person, n))
    point = _ratios(right.sum(), linked.sum(), true.sum())
    unit = _units(customer, person)
    sums = [
        np.bincount(unit[position], weights)
        for position, weights in (
            (np.arange(len(n)), right),
            (np.unique(customer, return_index=True)[1], linked),
            (np.unique(person, return_index=True)[1], true),
        )
    ]
    counts = {"records": n.sum(), "customers": len(by_customer), "people": len(by_person)}
    pairs = {"pairs_linked": linked.sum(), "pairs_true": true.sum(), "pairs_right": right.sum()}
    b_cubed = _b_cubed(n, by_customer[customer], by_person[person])
    found = {**point, **_intervals(sums, seed), **b_cubed, **counts, **pairs}
    return {name: float(value) for name, value in found.items()}


def _cells(
    crosswalk: Table | pa.Table, truth: Table | pa.Table, con: SQLBackend
) -> tuple[Any, Any, Floats]:
    """Customer, person (numbered) and the number of their common records."""
    import pyarrow as pa

    db = private_connection(con)
    for name, table in (("crosswalk", crosswalk), ("truth", truth)):
        db.register(name, table if isinstance(table, pa.Table) else con.to_pyarrow(table))
    cells = db.execute(_CELLS).fetchnumpy()
    return cells["customer"], cells["person"], cells["records"].astype(float)


def _pairs(records: Floats) -> Any:
    return records * (records - 1) / 2


def _ratios(right: Any, linked: Any, true: Any) -> dict[str, Any]:
    import numpy as np

    def share(part: Any, whole: Any) -> Any:
        return np.divide(part, whole, out=np.ones_like(whole, dtype=float), where=whole > 0)

    return {
        "precision": share(right, linked),
        "recall": share(right, true),
        "f1": share(2 * right, linked + true),
    }


def _units(customer: Any, person: Any) -> Any:
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
    return connected_components(graph, directed=False)[1][customer]


def _intervals(sums: list[Floats], seed: int) -> dict[str, float]:
    """95% percentile intervals, resampling the groups; one draw of weights a replicate."""
    import numpy as np

    groups, rng = len(sums[0]), np.random.default_rng(seed)
    if not groups:
        return {}
    weights = (rng.multinomial(groups, np.full(groups, 1 / groups)) for _ in range(REPLICATES))
    drawn = np.array([[weight @ total for total in sums] for weight in weights])
    found = _ratios(*drawn.T)
    ends = {"low": 2.5, "high": 97.5}
    return {
        f"{name}_{end}": np.percentile(values, at)
        for name, values in found.items()
        for end, at in ends.items()
    }


def _b_cubed(n: Floats, of_customer: Floats, of_person: Floats) -> dict[str, float]:
    """Averaged over records: the share of a record's customer, or person, that is rightly there."""
    records = n.sum()
    precision = float((n**2 / of_customer).sum() / records) if records else 1.0
    recall = float((n**2 / of_person).sum() / records) if records else 1.0
    f1 = 2 * precision * recall / (precision + recall)
    return {"b3_precision": precision, "b3_recall": recall, "b3_f1": f1}

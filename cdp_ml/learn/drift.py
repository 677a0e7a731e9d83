"""How far customers have moved from those that a model learnt from: the population stability index.

PSI sums (p - q) * ln(p / q) over bins (Siddiqi 2006). By custom, below 0.1 nothing has changed, and
above 0.25 much has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cdp_ml.learn.datasets import matrix

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

BINS = 10
SCORE = "score"
Profile = dict[str, dict[str, list[float]]]
"""By feature, and `SCORE`: the `edges` of its bins, the `shares` of rows in them, and unknown."""


def profile(rows: pa.Table, features: tuple[str, ...], score: np.ndarray) -> Profile:
    """What later customers are compared with: the features' and the score's distribution.

    Args:
        rows: features of the training rows.
        features: the model's.
        score: of the test customers; those of rows learnt from would be too good.
    """
    found = {}
    for name in (*features, SCORE):
        values = score if name == SCORE else matrix(rows, (name,))[:, 0]
        edges = _edges(values)
        found[name] = {"edges": edges.tolist(), "shares": _shares(values, edges).tolist()}
    return found


def drift_table(
    reference: Mapping[str, Any], rows: pa.Table, score: np.ndarray | None = None
) -> pa.Table:
    """The PSI of each feature, and of the score, against a profile.

    Returns:
        feature, psi; the largest first. Features that the rows do not have are left out.
    """
    import pyarrow as pa

    names = [n for n in reference if n in rows.column_names and n != SCORE]
    psi = {n: _psi(reference[n], matrix(rows, (n,))[:, 0]) for n in names}
    if score is not None:
        psi[SCORE] = _psi(reference[SCORE], score)
    ordered = sorted(psi, key=lambda n: -psi[n])
    return pa.table(
        {
            "feature": pa.array(ordered, pa.string()),
            "psi": pa.array([psi[n] for n in ordered], pa.float64()),
        }
    )


def drift_metrics(
    reference: Mapping[str, Any], rows: pa.Table, score: np.ndarray
) -> dict[str, float]:
    """The PSI of the score as `psi_score`, of each feature as `psi/FEATURE`, and the largest.

    Empty for models that were registered without a profile.
    """
    if not reference:
        return {}
    table = drift_table(reference, rows, score).to_pylist()
    found = {f"psi/{r['feature']}": r["psi"] for r in table if r["feature"] != SCORE}
    total = {r["feature"]: r["psi"] for r in table}[SCORE]
    return {"psi_score": total, "psi_max": max(found.values(), default=0.0), **found}


def _psi(reference: Mapping[str, list[float]], values: np.ndarray) -> float:
    import numpy as np

    before = np.array(reference["shares"])
    now = _shares(values, np.array(reference["edges"]))
    before, now = (np.maximum(s, 1e-4) for s in (before, now))  # an empty bin is no infinity
    return float(((now - before) * np.log(now / before)).sum())


def _edges(values: np.ndarray) -> np.ndarray:
    """The inner edges of up to ten bins of equal size; fewer where values repeat."""
    import numpy as np

    known = values[~np.isnan(values)]
    if not len(known):
        return np.empty(0)
    found: np.ndarray = np.unique(np.quantile(known, np.arange(1, BINS) / BINS))
    return found


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The share of values in each bin, and last of unknown ones."""
    import numpy as np

    place = np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values))
    found: np.ndarray = np.bincount(place, minlength=len(edges) + 2) / max(len(values), 1)
    return found

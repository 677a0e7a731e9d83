"""How far customers have moved from those of a model's test: the population stability index.

PSI sums (p - q) * ln(p / q) over bins (Siddiqi 2006). By custom, below 0.1 nothing has changed, and
above 0.25 much has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
        rows: features of the customers to compare with.
        features: the model's.
        score: of the test customers; those of rows learnt from would be too good.
    """
    found = {}
    for name in (*features, SCORE):
        values = score if name == SCORE else matrix(rows, (name,))[:, 0]
        edges = _edges(values).tolist()
        shares = _counts(values, edges) / max(len(values), 1)
        found[name] = {"edges": edges, "shares": shares.tolist()}
    return found


@dataclass(frozen=True)
class Drift:
    """How later customers, counted some after the others, differ from a profile.

    `reference` is the profile, empty for models that were registered without one.
    """

    reference: Mapping[str, Any]
    counts: dict[str, np.ndarray] = field(default_factory=dict)

    def passing(self, blocks: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Count blocks of customers as they pass to whom they are for."""
        for block in blocks:
            self.count(block)
            yield block

    def count(self, rows: pa.Table) -> None:
        """Count rows by their features, or `SCORE`; columns without a profile are ignored."""
        for name in set(self.reference).intersection(rows.column_names):
            found = _counts(matrix(rows, (name,))[:, 0], self.reference[name]["edges"])
            self.counts[name] = self.counts.get(name, 0) + found

    def table(self) -> pa.Table:
        """The PSI of each feature, and of the score, that was counted.

        Returns:
            feature, psi; the largest first.
        """
        import pyarrow as pa

        psi = {n: _psi(self.reference[n]["shares"], self.counts[n]) for n in self.counts}
        ordered = sorted(psi, key=lambda n: (-psi[n], n))
        return pa.table(
            {
                "feature": pa.array(ordered, pa.string()),
                "psi": pa.array([psi[n] for n in ordered], pa.float64()),
            }
        )

    def metrics(self) -> dict[str, float]:
        """The PSI of the score as `psi_score`, of each feature as `psi/FEATURE`, and the largest.

        Empty if nothing was counted.
        """
        psi = {row["feature"]: row["psi"] for row in self.table().to_pylist()}
        if SCORE not in psi:
            return {}
        total = psi.pop(SCORE)
        found = {f"psi/{name}": value for name, value in psi.items()}
        return {"psi_score": total, "psi_max": max(psi.values(), default=0.0), **found}


def _psi(shares: Sequence[float], counts: np.ndarray) -> float:
    import numpy as np

    before, now = np.array(shares), counts / max(counts.sum(), 1)
    before, now = (np.maximum(s, 1e-4) for s in (before, now))  # an empty bin is no infinity
    return float(((now - before) * np.log(now / before)).sum())


def _edges(values: np.ndarray) -> np.ndarray:
    """The inner edges of up to ten bins of equal size; fewer where values repeat."""
    import numpy as np

    known = values[np.isfinite(values)]
    if not len(known):
        return np.empty(0)
    found: np.ndarray = np.unique(np.quantile(known, np.arange(1, BINS) / BINS))
    return found


def _counts(values: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """How many values lie in each bin, and last how many are unknown."""
    import numpy as np

    place = np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values))
    found: np.ndarray = np.bincount(place, minlength=len(edges) + 2)
    return found

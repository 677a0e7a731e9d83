"""Weighted pairs into clusters: average linkage inside connected components."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]

log = logging.getLogger(__name__)

MISSING_WEIGHT = -2.0
"""The weight of two records of a component that no blocking rule brought together."""
WEIGHT_CAP = 12.0
"""Beyond this, evidence is certain enough: more of it must not outvote a contradiction."""
LARGE_COMPONENT = 1_500
"""Above this many records the weakest links of a component are cut first."""


def cluster_pairs(records: int, left: Array, right: Array, weight: Array, threshold: float) -> Any:
    """Partition records by average linkage inside the connected components of the strong pairs.

    Connected components alone chain mistakes: A-B and B-C put A with C whatever speaks against
    it. Where a component lacks pairs or has weak ones, it is cut where the mean weight between
    two groups falls below the threshold (UPGMA; missing pairs count as `MISSING_WEIGHT`).

    Args:
        records: how many; they are numbered from 0.
        left: one record of each pair.
        right: the other one.
        weight: match weight of each pair, bits.
        threshold: match weight from which a pair is a match, bits.

    Returns:
        The cluster of each record, numbered from 0 in the order of their first records.
    """
    import numpy as np

    label = components(records, left, right, weight, threshold)
    size = np.bincount(label, minlength=records)
    inside = label[left] == label[right]
    left, right, weight = left[inside], right[inside], weight[inside]
    strong = np.bincount(label[left[weight >= threshold]], minlength=records)
    doubtful = np.flatnonzero(strong < size * (size - 1) // 2)
    for members, rows, columns, bits in _parts(label, left, right, weight, doubtful):
        first = _average_linkage(len(members), rows, columns, bits, threshold)
        label[members] = records + members[first]
    return np.unique(_first_members(label), return_inverse=True)[1]


def components(records: int, left: Array, right: Array, weight: Array, threshold: float) -> Any:
    """The connected components of the pairs at or above a weight; large ones at a higher weight."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    strong = weight >= threshold
    ends = (left[strong], right[strong])
    graph = coo_array((np.ones(len(ends[0]), dtype=np.int8), ends), shape=(records, records))
    label = connected_components(graph, directed=False)[1].astype(np.int64)
    large = np.bincount(label, minlength=records)[label] > LARGE_COMPONENT
    if not large.any() or not strong.any() or threshold >= weight[strong].max():
        return label
    log.warning("%d records in too large components: cutting at %.0f bits", large.sum(), threshold)
    finer = components(records, left, right, weight, threshold + 2)
    return np.unique(np.where(large, finer + records, label), return_inverse=True)[1]


def weakest_links(
    label: Array, left: Array, right: Array, probability: Array
) -> npt.NDArray[np.float64]:
    """The weakest link that each cluster needs: the least of its maximum spanning tree.

    Args:
        label: the cluster of each record, from 0.
        left: one record of each pair.
        right: the other one.
        probability: match probability of each pair.

    Returns:
        A probability for each cluster; 1 for single records.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    confidence = np.ones(int(label.max(initial=-1)) + 1)
    inside = label[left] == label[right]
    # A stored 0 would mean "no edge", so distances start above it.
    distance = 2.0 - probability[inside]
    shape = (len(label), len(label))
    tree = minimum_spanning_tree(coo_array((distance, (left[inside], right[inside])), shape=shape))
    tree = tree.tocoo()
    np.minimum.at(confidence, label[tree.row], np.clip(2.0 - tree.data, 0.0, 1.0))
    return confidence


def _parts(label: Array, left: Array, right: Array, weight: Array, doubtful: Array) -> Any:
    """The records and pairs of each doubtful component."""
    import numpy as np

    member_order, pair_order = np.argsort(label, kind="stable"), np.argsort(label[left])
    members, pairs = label[member_order], label[left][pair_order]
    first, last = (np.searchsorted(members, doubtful, side=s) for s in ("left", "right"))
    begin, end = (np.searchsorted(pairs, doubtful, side=s) for s in ("left", "right"))
    for m0, m1, p0, p1 in zip(first, last, begin, end, strict=True):
        chosen, records = pair_order[p0:p1], member_order[m0:m1]
        rows, columns = (np.searchsorted(records, side[chosen]) for side in (left, right))
        yield records, rows, columns, weight[chosen]


def _average_linkage(
    size: int, rows: Array, columns: Array, weight: Array, threshold: float
) -> Any:
    """For each record of a component, the position of its cluster's first record."""
    import numpy as np
    from scipy.cluster.hierarchy import fcluster, linkage

    similarity = np.full((size, size), MISSING_WEIGHT)
    similarity[rows, columns] = similarity[columns, rows] = np.clip(weight, -WEIGHT_CAP, WEIGHT_CAP)
    distance = WEIGHT_CAP - similarity[np.triu_indices(size, 1)]
    cut = fcluster(linkage(distance, "average"), WEIGHT_CAP - threshold, "distance")
    return _first_members(cut)


def _first_members(label: Array) -> Any:
    import numpy as np

    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    return first[inverse]

"""Weighted pairs into clusters: average linkage inside connected components."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]

log = logging.getLogger(__name__)

LEAST_WEIGHT = -2.0
"""What a pair of a component speaks against it at most. A record with a wrong surname disagrees
with all others of its person: many pairs, but one mistake."""
FORBIDDEN = -1e9
"""The weight of a pair that a person has told apart: no mean recovers from it."""
WEIGHT_CAP = 12.0
"""Beyond this, evidence is certain enough: more of it must not outvote a contradiction."""
LARGE_COMPONENT = 1_500
"""Above this many records the weakest links of a component are cut first."""


def cluster_pairs(
    records: int,
    pairs: tuple[Array, Array, Array],
    threshold: float,
    most: int = LARGE_COMPONENT,
) -> tuple[Any, list[tuple[int, int]]]:
    """Partition records by average linkage inside the connected components of the strong pairs.

    Connected components alone chain mistakes: A-B and B-C put A with C whatever speaks against
    it. Where a component lacks pairs or has weak ones, it is cut where the mean weight between
    two groups falls below the threshold (UPGMA). No pair counts less than `LEAST_WEIGHT`, but for
    those that are `FORBIDDEN`. Two groups that one bridge alone would join stay apart.

    Args:
        records: how many; they are numbered from 0.
        pairs: one record of each pair, the other one, and its match weight, bits.
        threshold: match weight from which a pair is a match, bits.
        most: records of a cluster; larger ones are cut at their weakest place.

    Returns:
        The cluster of each record, numbered from 0 in the order of their first records; and the
        bridges that were cut.
    """
    import numpy as np

    left, right, weight = pairs
    label = components(records, left, right, weight, threshold)
    size = np.bincount(label, minlength=records)
    inside = label[left] == label[right]
    left, right, weight = left[inside], right[inside], weight[inside]
    strong = np.bincount(label[left[weight >= threshold]], minlength=records)
    doubtful = np.flatnonzero((strong < size * (size - 1) // 2) | (size > most))
    bridges: list[tuple[int, int]] = []
    for members, rows, columns, bits in _parts(label, left, right, weight, doubtful):
        bits = _similarity(len(members), rows, columns, bits, threshold)
        first, cut = _average_linkage(bits, threshold, most)
        label[members] = records + members[first]
        bridges += [(int(members[a]), int(members[b])) for a, b in cut]
    return np.unique(_first_members(label), return_inverse=True)[1], bridges


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


def join_clusters(
    label: Array, links: tuple[Array, Array], certain: Array, apart: tuple[Array, Array], most: int
) -> tuple[Any, Any]:
    """Merge the clusters that identifiers or people join.

    Only now: identifiers that went into the clustering itself would chain whole households and
    more. A group that would unite more than `most` clusters, or what a person told apart, is joined
    link by link, the surest first, leaving out the links that would do so.

    Args:
        label: the cluster of each record, from 0.
        links: the records that are joined, one and other, the surest first.
        certain: by link, whether a person made it: these are not limited by `most`.
        apart: the records that a person told apart, one and other.
        most: clusters that identifiers may unite.

    Returns:
        The cluster of each record, numbered from 0 in the order of their first records; and by
        link, whether it was left out.
    """
    import numpy as np

    clusters = int(label.max(initial=-1)) + 1
    one, other = label[links[0]], label[links[1]]
    joined = components(clusters, one, other, np.ones(len(one)), 0.0)
    far = (label[apart[0]], label[apart[1]])
    wrong = np.bincount(joined, minlength=clusters)[joined] > most
    wrong |= np.isin(joined, joined[far[0]][joined[far[0]] == joined[far[1]]])
    left_out = np.zeros(len(one), dtype=bool)
    if wrong.any():
        log.warning("identity: %d clusters would unite too much: joined in part", wrong.sum())
        joined, left_out = _join_in_part(joined, wrong, (one, other), certain, far, most)
    return np.unique(_first_members(joined[label]), return_inverse=True)[1], left_out


def _join_in_part(
    joined: Array, wrong: Array, links: tuple[Array, Array], certain: Array, far: Any, most: int
) -> tuple[Any, Any]:
    """Join the groups of the `wrong` clusters link by link."""
    import numpy as np

    group = {int(c): {int(c)} for c in np.flatnonzero(wrong)}
    apart = {frozenset(p) for p in zip(far[0].tolist(), far[1].tolist(), strict=True)}
    left_out = np.zeros(len(certain), dtype=bool)
    for i in np.flatnonzero(wrong[links[0]]):
        a, b = group[int(links[0][i])], group[int(links[1][i])]
        if a is b:
            continue
        many = not certain[i] and len(a) + len(b) > most
        if many or any(frozenset((x, y)) in apart for x in a for y in b):
            left_out[i] = True
            continue
        a |= b
        group.update(dict.fromkeys(b, a))
    members = np.array(sorted(group))
    result = joined.copy()
    result[members] = len(joined) + np.array([min(group[int(c)]) for c in members])
    return result, left_out


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


def _similarity(
    size: int, rows: Array, columns: Array, weight: Array, threshold: float
) -> npt.NDArray[np.float64]:
    """The weights between the records of a component, within bounds."""
    import numpy as np

    least = min(LEAST_WEIGHT, threshold - 1)
    similarity = np.full((size, size), least)
    bits = np.where(weight <= FORBIDDEN, FORBIDDEN, np.clip(weight, least, WEIGHT_CAP))
    similarity[rows, columns] = similarity[columns, rows] = bits
    return similarity


def _average_linkage(
    similarity: npt.NDArray[np.float64], threshold: float, most: int
) -> tuple[Any, list[tuple[int, int]]]:
    """For each record of a component, the position of its cluster's first record; the bridges."""
    import numpy as np
    from scipy.cluster.hierarchy import linkage

    size = len(similarity)
    tree = linkage(WEIGHT_CAP - similarity[np.triu_indices(size, 1)], "average")
    groups = [np.array([i]) for i in range(size)]
    whole = [True] * size
    bridges = []
    for a, b, distance, records in tree.tolist():
        one, other = groups[int(a)], groups[int(b)]
        groups.append(np.concatenate([one, other]))
        joins = whole[int(a)] and whole[int(b)] and records <= most
        joins = joins and distance <= WEIGHT_CAP - threshold
        if (
            joins
            and min(len(one), len(other)) >= 2
            and (bridge := _bridge(similarity, one, other, threshold))
        ):
            bridges.append(bridge)
            joins = False
        whole.append(joins)
    first = np.arange(size)
    for group, is_whole in zip(groups, whole, strict=True):
        if is_whole:
            first[group] = group.min()
    return first, bridges


def _bridge(
    similarity: npt.NDArray[np.float64], one: Array, other: Array, threshold: float
) -> tuple[int, int] | None:
    """The only strong pair between two groups that are dense themselves, if there is but one."""
    import numpy as np

    if min(len(one), len(other)) == 1:
        return None
    across = np.argwhere(similarity[np.ix_(one, other)] >= threshold)
    if len(across) != 1 or not all(_is_dense(similarity, g, threshold) for g in (one, other)):
        return None
    (a, b) = across[0]
    return int(one[a]), int(other[b])


def _is_dense(similarity: npt.NDArray[np.float64], group: Array, threshold: float) -> bool:
    strong = (similarity[group[:, None], group] >= threshold).sum()
    return bool(strong >= len(group) * (len(group) - 1) / 2)  # each pair is counted twice


def _first_members(label: Array) -> Any:
    import numpy as np

    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    return first[inverse]

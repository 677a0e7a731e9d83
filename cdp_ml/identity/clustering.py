"""Weighted pairs into clusters: average linkage inside connected components."""

from __future__ import annotations

import logging
from collections.abc import Iterator
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
LARGE_COMPONENT = 500
"""Above this many records the weakest links of a component are cut first."""
CELLS = 4_000_000
"""Weights held in memory at once."""


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
    doubtful = (strong < size * (size - 1) // 2) | (size > most)
    bridges = []
    for members, similarity in _by_size(label, size, doubtful, (left, right, weight), threshold):
        first, cut = _average_linkage(similarity, threshold, most)
        label[members] = records + np.take_along_axis(members, first, axis=1)
        bridges += [(int(members[c, a]), int(members[c, b])) for c, a, b in cut]
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


def _by_size(
    label: Array, size: Array, doubtful: Array, pairs: tuple[Array, Array, Array], threshold: float
) -> Iterator[tuple[Any, Any]]:
    """The doubtful components, those of one size together, as many as memory holds.

    Yields:
        Their records (components x size) and the weights between these, within bounds
        (components x size x size); -inf on the diagonal.
    """
    import numpy as np

    left, right, weight = pairs
    least = min(LEAST_WEIGHT, threshold - 1)
    bits = np.where(weight <= FORBIDDEN, FORBIDDEN, np.clip(weight, least, WEIGHT_CAP))
    order = np.argsort(label, kind="stable")
    start = np.searchsorted(label[order], np.arange(len(size)))
    place = np.empty(len(label), dtype=np.int64)
    place[order] = np.arange(len(label)) - start[label[order]]
    by_component = np.argsort(label[left], kind="stable")
    first_pair = np.searchsorted(label[left[by_component]], np.arange(len(size) + 1))
    for n in np.unique(size[doubtful]):
        chosen = np.flatnonzero(doubtful & (size == n))
        for some in np.array_split(chosen, 1 + len(chosen) * n * n // CELLS):
            members = order[start[some][:, None] + np.arange(n)]
            similarity = np.full((len(some), n, n), float(least))
            similarity[:, np.arange(n), np.arange(n)] = -np.inf
            counts = first_pair[some + 1] - first_pair[some]
            which = np.repeat(np.arange(len(some)), counts)
            offset = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
            pair = by_component[first_pair[some][which] + offset]
            rows, columns = place[left[pair]], place[right[pair]]
            similarity[which, rows, columns] = similarity[which, columns, rows] = bits[pair]
            yield members, similarity


def _average_linkage(similarity: Array, threshold: float, most: int) -> tuple[Any, list[Any]]:
    """Merge the groups of the greatest mean weight while it reaches the threshold (UPGMA).

    All components advance together, one merge at a time.

    Args:
        similarity: components x records x records; changed in place.
        threshold: bits.
        most: records of a group.

    Returns:
        For each record the position of its group's first record; and the bridges, each as
        component, record, record.
    """
    import numpy as np

    components, n, _ = similarity.shape
    each, strong = np.arange(components), (similarity >= threshold).astype(np.int64)
    links, count = strong.copy(), np.ones((components, n))
    first = np.tile(np.arange(n), (components, 1))
    bridges: list[Any] = []
    while len(each):
        best = similarity[each].reshape(len(each), -1).argmax(axis=1)
        one, other = np.minimum(best // n, best % n), np.maximum(best // n, best % n)
        going = similarity[each, one, other] >= threshold
        each, one, other = each[going], one[going], other[going]
        sizes = count[each, one], count[each, other]
        # Inside of a group each pair counts twice, once from either side.
        dense = [
            links[each, g, g] >= s * (s - 1) / 2 for g, s in zip((one, other), sizes, strict=True)
        ]
        bridge = (links[each, one, other] == 1) & (np.minimum(*sizes) > 1) & dense[0] & dense[1]
        for c, a, b in zip(each[bridge], one[bridge], other[bridge], strict=True):
            across = strong[c] * np.outer(first[c] == a, first[c] == b)
            bridges.append((c, *np.unravel_index(across.argmax(), across.shape)))
        apart = bridge | (sizes[0] + sizes[1] > most)
        c, a, b = each[apart], one[apart], other[apart]
        similarity[c, a, b] = similarity[c, b, a] = -np.inf
        _merge(similarity, links, count, first, each[~apart], one[~apart], other[~apart])
    return first, bridges


def _merge(
    similarity: Array, links: Array, count: Array, first: Array, c: Array, a: Array, b: Array
) -> None:
    """Unite group `b` with group `a` in each component `c`."""
    import numpy as np

    na, nb = count[c, a][:, None], count[c, b][:, None]
    mean = (na * similarity[c, a] + nb * similarity[c, b]) / (na + nb)
    similarity[c, a] = similarity[c, :, a] = mean
    similarity[c, a, a] = similarity[c, b] = similarity[c, :, b] = -np.inf
    links[c, a] += links[c, b]
    links[c, :, a] += links[c, :, b]
    count[c, a] += count[c, b]
    first[c] = np.where(first[c] == b[:, None], a[:, None], first[c])


def _first_members(label: Array) -> Any:
    import numpy as np

    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    return first[inverse]

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdp_ml.identity.clustering import cluster_pairs, components, weakest_links

PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(-9, 9)), max_size=30)


def arrays(pairs):
    unique = {(min(a, b), max(a, b)): w for a, b, w in pairs if a != b}
    one, other = (np.array([k[i] for k in unique], dtype=np.int64) for i in (0, 1))
    return one, other, np.array([*unique.values()], dtype=float)


def grown(one, other, weight, least):
    """Kruskal's maximum spanning forest: the trees' records and their weakest edges."""
    trees = {n: ({n}, 1.0) for n in range(10)}
    edges = sorted(zip(weight, one, other, strict=True), reverse=True)
    for w, a, b in edges:
        if w >= least and b not in trees[a][0]:
            joined = (trees[a][0] | trees[b][0], w)
            trees |= dict.fromkeys(joined[0], joined)
    return {frozenset(members): weakest for members, weakest in trees.values()}


@settings(deadline=None)
@given(PAIRS)
def test_components_are_those_of_the_graph(pairs):
    one, other, weight = arrays(pairs)
    label = components(10, one, other, weight, 0.0)
    expected = set(grown(one, other, weight, 0.0))
    assert {frozenset(np.flatnonzero(label == x)) for x in set(label)} == expected


@settings(deadline=None)
@given(PAIRS)
def test_clusters_lie_within_components_and_are_numbered_by_their_first_records(pairs):
    one, other, weight = arrays(pairs)
    label = cluster_pairs(10, (one, other, weight), 0.0)[0]
    component = components(10, one, other, weight, 0.0)
    assert all(len(set(component[label == x])) == 1 for x in set(label))
    first = [np.flatnonzero(label == x)[0] for x in range(label.max() + 1)]
    assert first == sorted(first)


def test_a_chain_with_a_contradiction_at_its_ends_is_cut_at_its_weakest_link():
    one, other = np.array([0, 1, 0]), np.array([1, 2, 2])
    weight = np.array([8.0, 1.5, -9.0])
    assert cluster_pairs(3, (one, other, weight), 0.0)[0].tolist() == [0, 0, 1]


def test_records_that_no_rule_brought_together_can_still_be_one_cluster():
    one, other = np.array([0, 1]), np.array([1, 2])
    label, _ = cluster_pairs(3, (one, other, np.array([8.0, 8.0])), 0.0)
    assert label.tolist() == [0, 0, 0]


def test_a_cluster_is_as_sure_as_the_weakest_link_that_it_needs():
    label = np.array([0, 0, 0, 1])
    one, other = np.array([0, 1, 0]), np.array([1, 2, 2])
    confidence = weakest_links(label, one, other, np.array([0.99, 0.9, 0.6]))
    assert confidence.tolist() == pytest.approx([0.9, 1.0])


@settings(deadline=None)
@given(PAIRS)
def test_the_weakest_needed_link_is_that_of_the_maximum_spanning_tree(pairs):
    one, other, weight = arrays(pairs)
    probability = 1 / (1 + np.exp2(-weight))
    label = components(10, one, other, weight, 0.0)
    strong = weight >= 0
    found = weakest_links(label, one[strong], other[strong], probability[strong])
    for members, weakest in grown(one, other, probability, 0.5).items():
        assert found[label[min(members)]] == pytest.approx(weakest)

import dataclasses

import numpy as np
import pytest
from learn_cases import clustering, fitted_clusters, split_of, three_kinds_of_customers

from cdp_ml.errors import ConfigError, NotPromotedError
from cdp_ml.learn import clusters
from cdp_ml.learn.clusters import (
    fit_clusters,
    keep_names,
    name_clusters,
    profile_table,
)
from cdp_ml.learn.datasets import matrix
from cdp_ml.learn.training import train

INPUTS = ("days_since_last_order", "orders_365d", "spend_365d")


@pytest.fixture(scope="module")
def customers():
    return matrix(three_kinds_of_customers(), INPUTS)


@pytest.fixture(scope="module")
def chosen(customers):
    return fit_clusters(customers, {"max_clusters": 5}, "clusters")[0]


def test_the_groups_that_are_there_are_found(customers, chosen):
    assigned = chosen.pipeline.predict(customers)
    assert chosen.k == 3
    groups = {tuple(np.unique(assigned[start::3])) for start in range(3)}
    assert len(groups) == 3
    assert all(len(group) == 1 for group in groups)


def test_a_model_says_nothing_of_single_customers(chosen):
    assert not len(chosen.pipeline[-1].labels_)


def test_found_again_on_resampled_customers(chosen):
    assert chosen.stability.value > 0.95
    assert chosen.smallest_share == pytest.approx(1 / 3)


def test_clusters_are_called_by_what_stands_out(customers, chosen):
    names = name_clusters(chosen.pipeline, INPUTS)
    profiles = profile_table(customers, chosen.pipeline.predict(customers), names, INPUTS)
    spend = dict(zip(*(profiles[c].to_pylist() for c in ("cluster", "spend_365d")), strict=True))
    best, worst = max(spend, key=spend.get), min(spend, key=spend.get)
    assert {"frequent", "high spend"} & set(best.split(", "))
    assert {"long inactive", "low spend"} & set(worst.split(", "))
    assert profiles["share"].to_pylist() == pytest.approx([1 / 3] * 3)


def test_names_differ_even_where_nothing_stands_out(customers):
    from sklearn.cluster import KMeans
    from sklearn.pipeline import make_pipeline

    means = KMeans(2, init=np.array([[0.1, 0.1], [-0.1, -0.1]]), n_init=1)
    pipeline = make_pipeline(means).fit([[0.1, 0.1], [-0.1, -0.1]])
    assert name_clusters(pipeline, ("a", "b")) == ("average", "average (2)")


def test_the_same_words_in_another_order_are_no_other_name():
    from sklearn.cluster import KMeans
    from sklearn.pipeline import make_pipeline

    centers = np.array([[1.0, 2.0, 0.6], [2.0, 1.0, -0.6]])
    pipeline = make_pipeline(KMeans(2, init=centers, n_init=1)).fit(centers)
    names = name_clusters(pipeline, ("orders_365d", "spend_365d", "visits_90d"))
    assert names == ("frequent, high spend, many visits", "frequent, high spend, few visits")


def test_a_tiny_group_of_outliers_does_not_make_a_clustering():
    random = np.random.default_rng(0)
    crowd = random.normal(size=(400, 2))
    crowd[:4] += 500
    chosen, _ = fit_clusters(crowd, {"max_clusters": 4, "min_stability": 0.0}, "clusters")
    assert chosen.smallest_share >= 0.05


def test_unknown_values_are_borne(customers):
    holes = customers.copy()
    holes[::10, 1] = np.nan
    assert fit_clusters(holes, {"max_clusters": 3}, "clusters")[0].k == 3


def continuum(rows=600, seed=0):
    """Customers of every kind: those who order more also spend more, no groups between."""
    random = np.random.default_rng(seed)
    orders = random.lognormal(1, 1, rows)
    days, spend = random.exponential(90, rows), orders * random.lognormal(3, 0.5, rows)
    return np.column_stack([days, orders, spend])


def test_without_groups_the_largest_of_the_firm_numbers_is_taken(monkeypatch):
    monkeypatch.setattr(clusters, "FIRM", 0.6)
    chosen, found = fit_clusters(continuum(), {"min_stability": 0.6}, "clusters")
    good = [c for c in found if c.stability.value >= 0.6 and c.smallest_share >= 0.05]
    assert max(c.silhouette for c in good) < 0.5
    assert chosen.k == max(c.k for c in good)


def test_where_none_is_firm_the_most_stable_is_taken(monkeypatch):
    monkeypatch.setattr(clusters, "FIRM", 1.01)
    chosen, found = fit_clusters(continuum(), {}, "clusters")
    assert chosen.stability.value == max(c.stability.value for c in found)


def test_outliers_count_no_more_than_the_edge_of_what_is_usual(customers):
    spoiled = customers.copy()
    spoiled[0, 2], spoiled[1, 2] = 1e9, -1e9
    chosen, _ = fit_clusters(spoiled, {"max_clusters": 5}, "clusters")
    assert chosen.k == 3
    assert chosen.smallest_share == pytest.approx(1 / 3, abs=0.01)


def test_a_new_customer_joins_those_like_her(customers, chosen):
    frequent, gone = chosen.pipeline.predict([[8, 22, 1_000], [400, 1, 15]])
    assert (frequent, gone) == tuple(chosen.pipeline.predict(customers[[0, 2]]))


def test_a_new_customer_of_whom_nothing_is_known_is_taken_for_a_usual_one(customers, chosen):
    unknown = chosen.pipeline.predict([[np.nan] * 3])
    assert unknown == chosen.pipeline.predict([np.median(customers, axis=0)])


def test_clusters_keep_numbers_and_names_when_customers_move_on(customers, chosen):
    later = customers * np.array([1.1, 1.05, 1.2])
    moved, found = fit_clusters(later, {"max_clusters": 5}, "clusters", chosen.pipeline)
    assert moved.kept
    assert found == (moved,)
    assert (moved.pipeline.predict(later) == chosen.pipeline.predict(customers)).all()
    names = ("best", "good", "gone")
    assert keep_names(moved.pipeline, INPUTS, later, (chosen.pipeline, names)) == names


def test_the_transform_stays_so_that_the_same_customer_is_the_same_point(customers, chosen):
    moved, _ = fit_clusters(customers * 1.1, {}, "clusters", chosen.pipeline)
    assert (
        moved.pipeline[:-1].transform(customers) == chosen.pipeline[:-1].transform(customers)
    ).all()


def test_it_begins_anew_when_the_customers_are_others(customers, chosen):
    others = continuum() * 1_000
    fresh, _ = fit_clusters(others, {"min_stability": 0.6}, "clusters", chosen.pipeline)
    assert not fresh.kept


def test_it_begins_anew_when_another_number_is_asked_for(customers, chosen):
    asked = {"min_clusters": 4, "max_clusters": 5, "min_stability": 0.0}
    assert fit_clusters(customers, asked, "clusters", chosen.pipeline)[0].k >= 4


def test_a_model_trained_after_a_champion_keeps_its_names():
    first = fitted_clusters()
    spec = clustering(estimator={"max_clusters": 4, "seed": 2})
    named = dataclasses.replace(first.predictor, clusters=("best", "good", "gone"))
    again = train(spec, three_kinds_of_customers(), split_of(spec), named)
    assert again.predictor.clusters == ("best", "good", "gone")
    assert again.metrics["same_as_champion"] == 1.0


def test_a_fresh_fit_finds_its_former_names_whatever_its_numbers(customers, chosen):
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline

    order = [2, 0, 1]
    means = clone(chosen.pipeline[-1]).set_params(
        init=chosen.pipeline[-1].cluster_centers_[order], max_iter=1
    )
    z = chosen.pipeline[:-1].transform(customers)
    shuffled = make_pipeline(chosen.pipeline[:-1], means.fit(z))
    names = keep_names(shuffled, INPUTS, customers, (chosen.pipeline, ("a", "b", "c")))
    assert names == ("c", "a", "b")


def test_a_cluster_that_is_no_longer_there_passes_its_name_to_nobody(customers, chosen):
    two = customers[np.arange(len(customers)) % 3 > 0]
    fresh, _ = fit_clusters(two, {"min_clusters": 2, "max_clusters": 2}, "clusters")
    former = ("a", "b", "c")
    names = keep_names(fresh.pipeline, INPUTS, two, (chosen.pipeline, former))
    kept = {former[k] for k in chosen.pipeline.predict(customers[1:3])}
    assert set(names) == kept


def test_a_column_without_variety_changes_nothing(customers):
    constant = np.column_stack([customers, np.ones(len(customers))])
    assert fit_clusters(constant, {"max_clusters": 5}, "clusters")[0].k == 3


@pytest.mark.parametrize(
    "x",
    [
        np.random.default_rng(0).random((30, 3)),
        np.ones((500, 3)),
        np.repeat(np.eye(5), 40, axis=0),  # fewer distinct customers than clusters
        np.full((200, 2), np.nan),
        np.empty((0, 3)),
    ],
)
def test_too_few_or_identical_customers_are_refused(x):
    with pytest.raises(NotPromotedError, match="no model this time"):
        fit_clusters(x, {}, "clusters")


def test_an_unknown_parameter_names_the_one_meant(customers):
    with pytest.raises(ConfigError, match="'max_clusters'"):
        fit_clusters(customers, {"max_cluster": 3}, "clusters")


@pytest.mark.parametrize("given", [{"min_clusters": 5, "max_clusters": 3}, {"min_clusters": 1}])
def test_numbers_of_clusters_that_there_cannot_be_are_refused(customers, given):
    with pytest.raises(ConfigError, match="min_clusters: "):
        fit_clusters(customers, given, "clusters")

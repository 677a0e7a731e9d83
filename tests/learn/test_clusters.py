import numpy as np
import pytest
from learn_cases import three_kinds_of_customers

from cdp_ml.errors import ConfigError, NotPromotedError
from cdp_ml.learn.clusters import (
    fit_clusters,
    name_clusters,
    profile_table,
)
from cdp_ml.learn.datasets import matrix

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


@pytest.mark.parametrize("x", [np.random.default_rng(0).random((30, 3)), np.ones((500, 3))])
def test_too_few_or_identical_customers_are_refused(x):
    with pytest.raises(NotPromotedError, match="no model this time"):
        fit_clusters(x, {}, "clusters")


def test_an_unknown_parameter_names_the_one_meant(customers):
    with pytest.raises(ConfigError, match="'max_clusters'"):
        fit_clusters(customers, {"max_cluster": 3}, "clusters")

from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT, rows, utc
from hypothesis import given, settings
from hypothesis import strategies as st

from cdp_ml.config import Engine, IdentitySpec, load_spec
from cdp_ml.engine import connect
from cdp_ml.identity.charts import evaluation_figures, save_figures
from cdp_ml.identity.evaluate import (
    evaluate_labels,
    evaluate_linkage,
    evaluate_source_pairs,
    evaluate_thresholds,
    wilson,
)
from cdp_ml.identity.linkage import link
from cdp_ml.standardize import standardize_people
from cdp_ml.synthetic import generate_records

SPEC = load_spec(ROOT / "models" / "identity.yaml", IdentitySpec)


def tables(customers: list, people: list, sources: list | None = None) -> list[pa.Table]:
    """Crosswalk and truth: record n is of customer `customers[n]` and of person `people[n]`."""
    given = [("customer_id", customers), ("person_id", people)]
    return [
        pa.table(
            {
                "source": pa.array(sources or ["crm"] * len(values), pa.string()),
                "source_record_id": pa.array(map(str, range(len(values))), pa.string()),
                name: pa.array(map(str, values), pa.string()),
            }
        )
        for name, values in given
    ]


def evaluate(con, customers: list, people: list) -> dict[str, float]:
    return evaluate_linkage(*tables(customers, people), con)


def test_by_hand(con):
    # Person 1 lies in customers a and b, customer b holds persons 1 and 2.
    found = evaluate(con, ["a", "a", "b", "b", "b"], [1, 1, 1, 2, 2])
    assert found["pairs_linked"] == 1 + 3
    assert found["pairs_true"] == 3 + 1
    assert found["pairs_right"] == 1 + 1
    assert found["precision"] == found["recall"] == found["f1"] == 0.5
    assert (found["records"], found["customers"], found["people"]) == (5, 2, 2)
    assert found["b3_precision"] == pytest.approx((1 + 1 + 1 / 3 + 2 / 3 + 2 / 3) / 5)
    assert found["b3_recall"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 3 + 1 + 1) / 5)
    # One group of connected records: drawn again, it is itself.
    assert found["precision_low"] == found["precision_high"] == 0.5
    assert found["b3_f1_low"] == found["b3_f1_high"] == pytest.approx(found["b3_f1"])


def test_perfect_links_are_certain(con):
    found = evaluate(con, [1, 1, 2], ["x", "x", "y"])
    assert found["f1"] == found["f1_low"] == found["f1_high"] == found["b3_f1"] == 1


def test_only_records_with_a_known_truth_count(con):
    crosswalk, _ = tables([1, 1, 1], [0, 0, 0])
    found = evaluate_linkage(crosswalk, tables(["x", "x"], ["x", "x"])[1], con)
    assert (found["records"], found["precision"]) == (2, 1)


def test_nothing_to_compare(con):
    found = evaluate(con, [], [])
    assert (found["records"], found["pairs_linked"], found["precision"]) == (0, 0, 1)
    assert evaluate_source_pairs(*tables([], []), con) == {}


def test_intervals_are_those_of_drawing_the_groups_one_by_one(con):
    """300 people of two records each, of which every third is split."""
    people = [n // 2 for n in range(600)]
    customers = [n if n // 2 % 3 == 0 else f"p{n // 2}" for n in range(600)]
    found = evaluate(con, customers, people)
    found_recalls = np.random.default_rng(7).binomial(300, 2 / 3, 4000) / 300
    low, high = np.percentile(found_recalls, [2.5, 97.5])
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["recall_low"] == pytest.approx(low, abs=0.015)
    assert found["recall_high"] == pytest.approx(high, abs=0.015)
    assert found["b3_recall_low"] == pytest.approx(0.5 + low / 2, abs=0.01)


def test_by_source_by_hand(con):
    # One customer of crm 0, crm 1 and shop 2; in truth crm 0 and shop 2 are x, and shop 3 too.
    found = evaluate_source_pairs(
        *tables(["a", "a", "a", "b"], ["x", "y", "x", "x"], ["crm", "crm", "shop", "shop"]), con
    )
    assert set(found) == {"crm-crm", "crm-shop", "shop-shop"}
    counts = ("pairs_linked", "pairs_true", "pairs_right")
    assert [found["crm-crm"][c] for c in counts] == [1, 0, 0]
    assert [found["crm-shop"][c] for c in counts] == [2, 2, 1]
    assert [found["shop-shop"][c] for c in counts] == [0, 1, 0]
    assert found["crm-shop"]["precision"] == found["crm-shop"]["recall"] == 0.5


@pytest.fixture(scope="module")
def shared_con():
    return connect(Engine())


RECORDS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from("ab")), min_size=1, max_size=25
)


@settings(max_examples=60, deadline=None)
@given(RECORDS)
def test_counts_equal_those_of_listing_every_pair(shared_con, records):
    customers, people, sources = map(list, zip(*records, strict=True))
    given = tables(customers, people, sources)
    pairs = [*combinations(records, 2)]
    check(evaluate_linkage(*given, shared_con), pairs)
    by_source = evaluate_source_pairs(*given, shared_con)
    for name in ("a-a", "a-b", "b-b"):
        some = [p for p in pairs if sorted((p[0][2], p[1][2])) == name.split("-")]
        if name in by_source:
            check(by_source[name], some)
        else:
            assert not any(a[0] == b[0] or a[1] == b[1] for a, b in some)


def check(found: dict[str, float], pairs: list) -> None:
    linked = sum(a[0] == b[0] for a, b in pairs)
    true = sum(a[1] == b[1] for a, b in pairs)
    right = sum(a[:2] == b[:2] for a, b in pairs)
    assert (found["pairs_linked"], found["pairs_true"], found["pairs_right"]) == (
        linked, true, right,
    )  # fmt: skip
    assert found["precision"] == pytest.approx(right / linked if linked else 1)
    assert found["recall"] == pytest.approx(right / true if true else 1)
    assert found["f1"] == pytest.approx(2 * right / (linked + true) if linked + true else 1)
    assert found["f1_low"] <= found["f1_high"]


@settings(max_examples=40, deadline=None)
@given(RECORDS)
def test_b_cubed_equals_the_mean_over_records(shared_con, records):
    found = evaluate_linkage(*tables(*map(list, zip(*records, strict=True))), shared_con)

    def mean(of: int) -> float:
        shares = []
        for r in records:
            group = [o for o in records if o[of] == r[of]]
            shares.append(sum(o[:2] == r[:2] for o in group) / len(group))
        return sum(shares) / len(shares)

    precision, recall = mean(0), mean(1)
    assert found["b3_precision"] == pytest.approx(precision)
    assert found["b3_recall"] == pytest.approx(recall)
    assert found["b3_f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert found["b3_f1_low"] <= found["b3_f1_high"]


# ---- by threshold -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(shared_con):
    """Records, identifiers and truth of 400 people with households, and their linkage."""
    records, identifiers, truth = generate_records(400)
    records = standardize_people(records, "GB", shared_con)
    return records, identifiers, truth, link(records, identifiers, SPEC, shared_con)


@pytest.fixture(scope="module")
def compared(shared_con, world):
    records, identifiers, truth, linkage = world
    given = (records, identifiers, SPEC, linkage.model, truth, shared_con)
    return evaluate_thresholds(*given, thresholds=(0.1, 0.9, 0.999))


@pytest.mark.parametrize("threshold", [SPEC.threshold, 0.9])
def test_clusters_at_a_threshold_are_those_of_linking_with_it(
    shared_con, world, compared, threshold
):
    records, identifiers, truth, linkage = world
    spec = SPEC.model_copy(update={"threshold": threshold})
    clusters = link(records, identifiers, spec, shared_con, model=linkage.model).clusters
    crosswalk = clusters.rename_columns({"cluster": "customer_id"})
    expected = evaluate_linkage(crosswalk, truth, shared_con)
    (found,) = [f for f in compared[0] if f["threshold"] == threshold]
    for name in ("customers", "precision", "recall", "f1", "b3_f1"):
        assert found[name] == pytest.approx(expected[name])


def test_a_higher_threshold_links_less(compared):
    found, _ = compared
    assert [f["threshold"] for f in found] == [0.1, SPEC.threshold, 0.9, 0.999]
    recall, customers = ([f[n] for f in found] for n in ("recall", "customers"))
    assert recall == sorted(recall, reverse=True)
    assert customers == sorted(customers)
    assert found[2]["match_weight"] == pytest.approx(np.log2(9))


def test_the_histogram_tells_pairs_of_one_person_from_others(compared):
    rows = compared[1].to_pylist()
    assert [r["match_weight"] for r in rows] == sorted({r["match_weight"] for r in rows})
    assert sum(r["true"] for r in rows if r["match_weight"] >= 5) > 300
    assert sum(r["false"] for r in rows if r["match_weight"] >= 5) < 30


def test_charts_of_an_evaluation_are_drawn(compared, tmp_path):
    figures = evaluation_figures(*compared, SPEC.threshold)
    paths = save_figures(figures, tmp_path / "charts")
    assert {p.name for p in paths} == {
        "precision_recall.png", "f1_by_threshold.png", "pair_weights.png",
    }  # fmt: skip
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)


# ---- labels -------------------------------------------------------------------------------------


def labels(*pairs: tuple[str, str, str]) -> pa.Table:
    names = ("record_l", "record_r", "decision")
    schema = pa.schema([(name, pa.string()) for name in names])
    return pa.Table.from_pylist([dict(zip(names, p, strict=True)) for p in pairs], schema)


def edge(one: int, other: int, kind: str = "probabilistic") -> dict:
    return {"record_l": f"crm:{one}", "record_r": f"crm:{other}", "kind": kind}


def test_labels_by_hand():
    # Customers {0, 1, 2} and {3, 4}; the edges are 0-1, 1-2 and, against the clusters, 2-3.
    crosswalk, _ = tables(["a", "a", "a", "b", "b"], [0] * 5)
    edges = rows("edges", edge(0, 1), edge(1, 2), edge(2, 3), edge(0, 4, "cannot-link"))
    found = evaluate_labels(
        labels(
            ("crm:1", "crm:0", "same"),  # linked by both, whatever the order
            ("crm:0", "crm:2", "same"),  # in one cluster, without an edge
            ("crm:1", "crm:2", "different"),  # linked wrongly
            ("crm:2", "crm:3", "different"),  # an edge that the clusters did not follow
            ("crm:3", "crm:0", "same"),  # missed
            ("crm:0", "crm:4", "different"),  # told apart: a cannot-link is no edge
        ),
        crosswalk,
        edges,
        rows("overrides"),
    )
    assert (found["judged"], found["same"], found["different"]) == (6, 3, 3)
    assert (found["clusters"]["precision"], found["clusters"]["recall"]) == (2 / 3, 2 / 3)
    assert (found["edges"]["precision"], found["edges"]["recall"]) == (1 / 3, 1 / 3)
    assert (found["clusters"]["precision_low"], found["clusters"]["precision_high"]) == wilson(2, 3)


def test_labels_that_tell_nothing_are_left_out_and_counted():
    crosswalk, _ = tables(["a", "a", "b"], [0] * 3)
    decided = {
        "override_id": "o",
        "record_l": "crm:0",
        "record_r": "crm:1",
        "decision": "must-link",
        "event_timestamp": utc(2026, 1, 1),
    }
    undone = {"record_r": "crm:2", "undone_at": utc(2026, 1, 2)}
    found = evaluate_labels(
        labels(
            ("crm:0", "crm:1", "same"),
            ("crm:0", "crm:2", "same"),
            ("crm:1", "crm:2", "same"),
            ("crm:2", "crm:1", "different"),
            ("crm:0", "crm:99", "different"),
            ("crm:0", "crm:0", "same"),
        ),
        crosswalk,
        rows("edges"),
        rows("overrides", decided, {**decided, **undone}),
    )
    assert [found[k] for k in ("judged", "applied", "contradictory", "unknown")] == [1, 1, 1, 1]
    assert (found["clusters"]["precision"], found["clusters"]["recall"]) == (1, 0)


def test_an_empty_sample_of_labels_says_so():
    found = evaluate_labels(labels(), tables([], [])[0], rows("edges"), rows("overrides"))
    assert found["judged"] == 0
    assert (found["clusters"]["recall_low"], found["clusters"]["recall_high"]) == (0, 1)


def test_wilson_as_published():
    """Newcombe (1998), table I: 81 of 263, and 0 of 20."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)

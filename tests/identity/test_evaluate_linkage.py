from itertools import combinations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdp_ml.config import Engine
from cdp_ml.engine import connect
from cdp_ml.identity.evaluate import evaluate_linkage


def evaluate(con, customers: list, people: list) -> dict[str, float]:
    """Record n is of customer `customers[n]` and of person `people[n]`."""

    def keyed(name, values):
        numbers = [str(n) for n in range(len(values))]
        return pa.table(
            {
                "source": pa.array(["crm"] * len(values), pa.string()),
                "source_record_id": pa.array(numbers, pa.string()),
                name: pa.array([str(v) for v in values], pa.string()),
            }
        )

    return evaluate_linkage(keyed("customer_id", customers), keyed("person_id", people), con)


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


def test_perfect_links_are_certain(con):
    found = evaluate(con, [1, 1, 2], ["x", "x", "y"])
    assert found["f1"] == found["f1_low"] == found["f1_high"] == found["b3_f1"] == 1


def test_only_records_with_a_known_truth_count(con):
    found = evaluate(con, [1, 1, 1], ["x", "x"])
    assert (found["records"], found["precision"]) == (2, 1)


def test_nothing_to_compare(con):
    found = evaluate(con, [], [])
    assert (found["records"], found["pairs_linked"], found["precision"]) == (0, 0, 1)


@pytest.fixture(scope="module")
def shared_con():
    return connect(Engine())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=25))
def test_counts_equal_those_of_listing_every_pair(shared_con, records):
    found = evaluate(shared_con, *map(list, zip(*records, strict=True)))
    pairs = [*combinations(records, 2)]
    linked = sum(a[0] == b[0] for a, b in pairs)
    true = sum(a[1] == b[1] for a, b in pairs)
    right = sum(a == b for a, b in pairs)
    assert (found["pairs_linked"], found["pairs_true"], found["pairs_right"]) == (
        linked, true, right,
    )  # fmt: skip
    assert found["precision"] == pytest.approx(right / linked if linked else 1)
    assert found["recall"] == pytest.approx(right / true if true else 1)
    assert found["f1_low"] <= found["f1_high"]

import numpy as np
import pyarrow as pa
import pytest

from cdp_ml.learn.drift import Drift, profile


def table(values):
    return pa.table({"orders": pa.array(values, pa.float64())})


def drift_of(reference, *blocks):
    drift = Drift(reference)
    assert [*drift.passing(blocks)] == [*blocks]
    return drift


def psi(before, now):
    reference = profile(table(before), ("orders",), np.zeros(1))
    return drift_of(reference, table(now)).table()["psi"][0].as_py()


def test_a_hand_computed_case():
    """Half and half becomes one to three: 1/4 ln(1/2) less and 1/4 ln(3/2) more."""
    before, now = [0.0, 1] * 50, [0.0] + [1.0] * 3
    expected = -0.25 * np.log(0.5) + 0.25 * np.log(1.5)
    assert psi(before, now) == pytest.approx(expected, abs=2e-3)


def test_the_same_customers_have_not_drifted_and_others_have():
    random = np.random.default_rng(0)
    before = random.normal(size=5_000)
    assert psi(before, before) == 0
    assert psi(before, random.normal(size=5_000)) < 0.02
    assert psi(before, random.normal(1, size=5_000)) > 0.25


def test_values_that_became_unknown_count():
    assert psi([1.0, 2, 3, 4], [None, None, 3, 4]) > 0.25


def test_a_feature_never_known_or_gone_is_no_fault():
    assert psi([None, None], [None]) == 0
    reference = profile(table([1.0, 2]), ("orders",), np.array([0.5]))
    assert drift_of(reference, pa.table({"visits": [1]})).table().num_rows == 0


def test_the_score_is_compared_too_and_the_largest_comes_first():
    reference = profile(table([1.0, 2] * 50), ("orders",), np.linspace(0, 1, 100))
    drift = drift_of(reference, table([1.0, 2] * 50), pa.table({"score": np.ones(100)}))
    assert drift.table()["feature"].to_pylist() == ["score", "orders"]
    assert list(drift.metrics()) == ["psi_score", "psi_max", "psi/orders"]


def test_customers_counted_in_parts_drift_as_they_do_together():
    reference = profile(table([1.0, 2, 3] * 50), ("orders",), np.linspace(0, 1, 100))
    together = drift_of(reference, table([1.0, 1, 2, None]))
    assert together.table() == drift_of(reference, table([1.0, 1]), table([2.0, None])).table()


def test_without_a_profile_nothing_is_said():
    assert drift_of({}, table([1.0, 2])).metrics() == {}

"""Gates: no change may link the shipped worlds and the public sets worse than it did.

Each bound is a little below what was measured; the sets and the call are those of
benchmarks/identity_accuracy.py, which prints the figures.
"""

import importlib
import sys

import pytest
from conftest import ROOT

from cdp_ml.identity.evaluate import evaluate_linkage
from cdp_ml.standardize import standardize_people
from cdp_ml.synthetic import generate_records


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("identity_accuracy")
    sys.modules.pop("identity_accuracy")


def measured(benchmark, data) -> dict[str, float]:
    return evaluate_linkage(benchmark.ours(data), data.truth, benchmark.CON)


@pytest.mark.parametrize("seed", [7, 8])
def test_people_and_households_of_the_demo_world(benchmark, seed):
    records, identifiers, truth = generate_records(4_000, seed)
    records = standardize_people(records, "GB", benchmark.CON)
    found = measured(benchmark, benchmark.Dataset(records, identifiers, truth))
    assert found["f1"] >= 0.962
    assert found["precision"] >= 0.955


@pytest.mark.parametrize(
    ("name", "f1", "precision"),
    [
        ("fake_1000", 0.97, 0.99),
        ("febrl3", 0.998, 0.998),
        ("historical_figures", 0.93, 0.97),
    ],
)
def test_published_people_with_errors_are_found_without_labels(
    shared_data, benchmark, name, f1, precision
):
    found = measured(benchmark, benchmark.from_file(name))
    assert found["f1"] >= f1
    assert found["precision"] >= precision

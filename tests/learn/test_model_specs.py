"""What a file in models/ must hold for its task."""

import pytest
from pydantic import ValidationError

from cdp_ml.config import ModelSpec, Settings, load_models

PROPENSITY = {"task": "propensity", "features": "purchase_30d"}
CLUSTERS = {"task": "clustering", "features": "clusters"}
UPLIFT = {"task": "uplift", "features": "purchase_30d", "campaign": "spring"}


def spec(**given) -> ModelSpec:
    return ModelSpec(**{"name": "model", "description": "", **given})


def test_an_uplift_model_has_a_campaign_and_an_arm():
    assert spec(**UPLIFT).treatment == "treatment"
    assert spec(**UPLIFT, treatment="mens").treatment == "mens"


def test_next_items_need_no_features():
    found = spec(task="next_category")
    assert (found.features, found.item, found.top) == ("", "category", 3)
    assert spec(task="next_category", item="product", top=10).top == 10


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "propensity"}, "features: is missing"),
        ({"task": "uplift", "campaign": "spring"}, "features: is missing"),
        ({"task": "uplift", "features": "all"}, "campaign: is missing"),
        ({**UPLIFT, "task": "propensity"}, "campaign: is for uplift, not for propensity"),
        ({**UPLIFT, "snapshots": {"count": 3}}, "snapshots: is for propensity or value, not"),
        (
            {"task": "next_category", "features": "all"},
            "features: is for .* next_category",
        ),
        ({"task": "next_category", "segments": {"a": {"top": 0.1}}}, "segments: is for"),
        ({"task": "next_category", "population": "true"}, "population: is for"),
        ({**CLUSTERS, "label": {"within_days": 7}}, "label: is for propensity or value or uplift"),
        ({**CLUSTERS, "segments": {"a": {"top": 0.1}}}, "segments: .*not for clustering"),
        ({**PROPENSITY, "beat_baselines_by": -0.1}, "greater than or equal to 0"),
        ({**PROPENSITY, "label": {"within_days": 36_501}}, "less than or equal to 36500"),
        ({**PROPENSITY, "label": {"within_days": 0}}, "greater than 0"),
        ({**PROPENSITY, "snapshots": {"count": 1_001}}, "less than or equal to 1000"),
        ({**PROPENSITY, "snapshots": {"every_days": 36_501}}, "less than or equal to 36500"),
        ({"task": "next_category", "top": 0}, "top"),
        ({"task": "next_category", "item": "brand"}, "'category' or 'product'"),
    ],
)
def test_what_a_task_lacks_or_does_not_take_is_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        spec(**given)


def test_both_are_among_the_shipped_models():
    tasks = {s.task for s in load_models(Settings(sources={})).values()}
    assert tasks == {"propensity", "value", "clustering", "uplift", "next_category"}

"""What a file in models/ must hold for its task."""

import pytest
from pydantic import ValidationError

from cdp_ml.config import ModelSpec, Settings, load_models

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
        ({"task": "uplift", "features": "all"}, "campaign: an uplift model"),
        ({**UPLIFT, "task": "propensity"}, "campaign: an uplift model, and no other"),
        ({"task": "next_category", "features": "all"}, "features: a next_category model"),
        ({"task": "next_category", "segments": {"a": {"top": 0.1}}}, "segments: a next_category"),
        ({"task": "next_category", "population": "true"}, "population: a next_category"),
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

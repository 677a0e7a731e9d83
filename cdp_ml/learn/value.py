"""What a customer will spend: boosted trees, half and half with BG/NBD and Gamma-Gamma.

The trees rank better, the expectation keeps its level where seasons differ; their mean has the
rank of the one and less of the bias of the other (measured in benchmarks/models.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cdp_ml.learn.baselines import Expectation
from cdp_ml.learn.bgnbd import BgNbd, GammaGamma

if TYPE_CHECKING:
    import lightgbm as lgb
    import numpy as np


@dataclass(frozen=True)
class ValueModel:
    """Trees with a Tweedie loss, and the expectation if the features tell the history.

    Its `predict` is a LightGBM booster's.
    """

    booster: lgb.Booster
    features: tuple[str, ...]
    expectation: Expectation | None = None

    def predict(self, x: np.ndarray, **options: Any) -> np.ndarray:
        """The spend of each row; with pred_contrib the contributions to the trees' logarithm."""
        found: np.ndarray = self.booster.predict(x, **options)
        if self.expectation is None or options.get("pred_contrib"):
            return found
        blended: np.ndarray = (found + self.expectation.spend(x, self.features)) / 2
        return blended

    def expectation_fields(self) -> dict[str, Any] | None:
        """The expectation as plain numbers, for the model's metadata."""
        return asdict(self.expectation) if self.expectation else None


def expectation_of(fields: dict[str, Any] | None) -> Expectation | None:
    """The expectation from `ValueModel.expectation_fields`."""
    if fields is None:
        return None
    return Expectation(BgNbd(**fields["bgnbd"]), GammaGamma(**fields["value"]), fields["ahead"])

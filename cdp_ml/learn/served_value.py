"""A value model as MLflow serves it: code in place of a pickle, stored beside the model's text.

MLflow runs this file when it loads the model by its own means; cdp-ml itself reads the trees and
the numbers without running anything, see `cdp_ml.learn.registry.load_model`.
"""

import json
from pathlib import Path
from typing import Any

import lightgbm
import mlflow
import pandas

from cdp_ml.learn.datasets import matrix
from cdp_ml.learn.value import ValueModel, expectation_of


class ServedValue(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Trees and expectation, read from the model's folder."""

    def load_context(self, context: Any) -> None:
        """Read the trees (LightGBM's text) and the expectation (JSON)."""
        booster = lightgbm.Booster(model_file=context.artifacts["trees"])
        fields = json.loads(Path(context.artifacts["expectation"]).read_text(encoding="utf-8"))
        self._model = ValueModel(booster, tuple(booster.feature_name()), expectation_of(fields))

    def predict(self, context: Any, model_input: pandas.DataFrame, params: Any = None) -> Any:
        """The expected spend of each row of a frame with the features."""
        return self._model.predict(matrix(model_input, self._model.features))


mlflow.models.set_model(ServedValue())

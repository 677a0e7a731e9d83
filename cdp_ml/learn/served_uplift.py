"""An uplift model as MLflow serves it: code in place of a pickle, stored beside the model's parts.

MLflow runs this file when it loads the model by its own means; cdp-ml itself reads the parts, see
`cdp_ml.learn.registry.load_model`.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas

from cdp_ml.learn.datasets import matrix
from cdp_ml.learn.uplift import load_uplift


class ServedUplift(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """The parts of the learner, read from the model's folder."""

    def load_context(self, context: Any) -> None:
        """Read trees (LightGBM's text), pipelines (skops) and numbers (JSON)."""
        self._model = load_uplift(Path(context.artifacts["uplift"]))

    def predict(self, context: Any, model_input: pandas.DataFrame, params: Any = None) -> Any:
        """The uplift of each row of a frame with the features."""
        return self._model.predict(matrix(model_input, self._model.features))


mlflow.models.set_model(ServedUplift())

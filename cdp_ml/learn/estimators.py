"""Estimators of a probability: LightGBM, and the baselines that it has to beat.

They see matrices and know nothing of customers, instants or MLflow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cdp_ml.errors import ConfigError, nearest

if TYPE_CHECKING:
    import lightgbm as lgb
    import numpy as np
    from sklearn.pipeline import Pipeline

AUTO = "auto"
LEAVES = (4, 8, 15, 31)
"""The numbers of leaves that are tried on earlier customers where `num_leaves` is `AUTO`."""
DEFAULTS: Mapping[str, int | float | str] = {
    "n_estimators": 300,
    "num_leaves": 15,
    "extra_trees": False,
    "learning_rate": 0.03,
    "min_child_samples": 50,
    "subsample": 0.8,
    "subsample_freq": 1,
    "colsample_bytree": 0.7,
    "reg_lambda": 5.0,
    "seed": 1,
}
"""Parameters of LightGBM, regularized and fixed in advance rather than tuned on the test."""


def parameters(given: Mapping[str, int | float | str], rows: int, origin: str) -> dict[str, Any]:
    """The parameters of LightGBM: what the specification gives, over `DEFAULTS`.

    Few rows get small trees, or a logistic regression does better: 4 leaves below 5,000 rows and 8
    below 20,000, and a leaf holds no more than a fiftieth of the rows, but at least 5. `num_leaves`
    `AUTO` stands for that too, until `cdp_ml.learn.training` has found a better number.

    Args:
        given: the model's `estimator`.
        rows: training rows.
        origin: where `given` is written, for the message.

    Raises:
        ConfigError: if a parameter is unknown, or a text other than `AUTO`.
    """
    chosen = {name: value for name, value in given.items() if (name, value) != ("num_leaves", AUTO)}
    check_parameters(chosen, DEFAULTS, origin)
    leaf = max(5, min(int(DEFAULTS["min_child_samples"]), rows // 50))
    leaves = 4 if rows < 5_000 else 8 if rows < 20_000 else DEFAULTS["num_leaves"]
    return {**DEFAULTS, "min_child_samples": leaf, "num_leaves": leaves, **chosen}


def check_parameters(given: Mapping[str, Any], known: Mapping[str, Any], origin: str) -> None:
    """Refuse parameters that there are not, and texts for numbers.

    Raises:
        ConfigError: if there is one; the message begins with `origin`.
    """
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"{origin}: no parameter '{name}'; {nearest(name, known)}")
        if isinstance(value, str):
            raise ConfigError(f"{origin}: {name}: must be a number, not '{value}'")


@contextmanager
def limited_threads(x: np.ndarray) -> Iterator[None]:
    """Hold scikit-learn's and NumPy's own threads to `threads`."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(threads(x.size)):
        yield


def threads(cells: int) -> int:
    """How many threads to fit with: one up to five million cells, all cores beyond.

    Threads meet after every split, and wait in a busy loop: beside another program on the same
    cores, two threads took 16 times as long as one for 29,000 rows of 42 features.
    """
    return 1 if cells < 5_000_000 else os.cpu_count() or 1


def fit_lightgbm(
    x: np.ndarray, y: np.ndarray, features: tuple[str, ...], params: Mapping[str, Any]
) -> lgb.Booster:
    """Fit gradient-boosted trees to a 0/1 outcome; the same rows give the same trees.

    Args:
        x: rows x features, NaN where unknown.
        y: 0 or 1 a row.
        features: names of the columns.
        params: as from `parameters`.
    """
    import lightgbm as lgb

    fixed = {
        "objective": "binary",
        "num_threads": threads(x.size),
        "extra_trees": bool(params["extra_trees"]),
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    rest = {k: v for k, v in params.items() if k != "n_estimators"}
    data = lgb.Dataset(x, y, feature_name=list(features), params={"verbosity": -1})
    return lgb.train({**rest, **fixed}, data, num_boost_round=params["n_estimators"])


def fit_logistic(x: np.ndarray, y: np.ndarray) -> Pipeline:
    """Fit a logistic regression: median for unknown values, log for skew, standardized, L2.

    A feature without any value, or with one value only, gets no weight.
    """
    import numpy as np
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    pipeline = make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        FunctionTransformer(lambda v: np.sign(v) * np.log1p(np.abs(v))),
        StandardScaler(),
        LogisticRegression(C=0.1, max_iter=500),
    )
    with limited_threads(x):
        return pipeline.fit(x, y)


def baseline_scores(
    train: tuple[np.ndarray, np.ndarray], x: np.ndarray, features: tuple[str, ...], happens: bool
) -> dict[str, np.ndarray]:
    """Score test rows as one would without a model.

    Recency ranks by `days_since_last_order` (the fewer, the likelier to buy; unknown is last),
    frequency by the first of `orders_365d`, `orders_lifetime`; each is left out where its feature
    is. Only `logistic` is a probability.

    Args:
        train: matrix and outcome to fit the logistic regression.
        x: test rows.
        features: names of the columns.
        happens: whether the outcome is the order, or its absence, which turns the ranks around.

    Returns:
        Scores by baseline; the higher, the likelier the outcome.
    """
    import numpy as np

    sign = 1.0 if happens else -1.0
    scores = {"logistic": fit_logistic(*train).predict_proba(x)[:, 1]}
    if "days_since_last_order" in features:
        days = x[:, features.index("days_since_last_order")]
        scores["recency"] = -sign * np.nan_to_num(days, nan=1e6)
    for name in ("orders_365d", "orders_lifetime"):
        if name in features and "frequency" not in scores:
            scores["frequency"] = sign * np.nan_to_num(x[:, features.index(name)])
    return scores

"""Estimators: LightGBM with good defaults, and a logistic regression beside it.

They see matrices and know nothing of customers, instants or MLflow.
"""

from __future__ import annotations

import os
import re
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
"""The numbers of leaves that are tried on earlier customers, unless `num_leaves` is given."""
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
PROPENSITY_DEFAULTS: Mapping[str, int | float | str] = {**DEFAULTS, "logistic_share": 0.5}
"""The same of a propensity, and the share of a logistic regression in its log-odds."""
STEPS, STEP_ROWS = 64, 50_000
"""The steps by which a curve is followed, and the most rows that say where they matter."""

RANGES: Mapping[str, tuple[float, float]] = {
    "n_estimators": (1, 100_000),
    "num_leaves": (2, 131_072),
    "learning_rate": (1e-6, 10),
    "subsample": (1e-3, 1),
    "colsample_bytree": (1e-3, 1),
    "seed": (0, 2**31 - 1),
    "logistic_share": (0, 1),
    "folds": (2, 100),
    "repeats": (1, 100),
    "neighbors": (1, 100_000),
    "group": (1, 10_000),
    "decay_within": (0, 1),
    "decay_between": (0, 1),
    "own_share": (0, 1),
    "candidates": (1, 10_000),
    "within_days": (1, 3_650),
    "windows": (1, 100),
    "min_clusters": (2, 100),
    "max_clusters": (2, 100),
    "min_share": (0, 1),
    "min_stability": (0, 1),
    "max_inertia": (1, 100),
}
"""The least and most of parameters of all tasks; the others begin at 0."""


def parameters(
    given: Mapping[str, int | float | str],
    rows: int,
    origin: str,
    defaults: Mapping[str, int | float | str] = DEFAULTS,
) -> dict[str, Any]:
    """The parameters of LightGBM: what the specification gives, over the defaults.

    Few rows get small trees, or a logistic regression does better: 4 leaves below 5,000 rows and 8
    below 20,000, and a leaf holds no more than a fiftieth of the rows, but at least 5. `num_leaves`
    `AUTO` stands for that too, until `cdp_ml.learn.training` has found a better number.

    Args:
        given: the model's `estimator`.
        rows: training rows.
        origin: where `given` is written, for the message.
        defaults: `DEFAULTS`, or those of the task.

    Raises:
        ConfigError: if a parameter is unknown, or a text other than `AUTO`.
    """
    chosen = {name: value for name, value in given.items() if (name, value) != ("num_leaves", AUTO)}
    completed = with_defaults(chosen, defaults, origin)
    leaf = max(5, min(int(DEFAULTS["min_child_samples"]), rows // 50))
    leaves = 4 if rows < 5_000 else 8 if rows < 20_000 else DEFAULTS["num_leaves"]
    return {**completed, "min_child_samples": leaf, "num_leaves": leaves, **chosen}


def with_defaults(
    given: Mapping[str, int | float | str],
    defaults: Mapping[str, int | float | str],
    origin: str,
) -> dict[str, int | float | str]:
    """What a specification gives, over the defaults of its task.

    Raises:
        ConfigError: if a parameter is unknown, a text, or out of its range; the message begins with
            `origin`.
    """
    for name, value in given.items():
        if name not in defaults:
            raise ConfigError(f"{origin}: no parameter '{name}'; {nearest(name, defaults)}")
        if isinstance(value, str):
            raise ConfigError(f"{origin}: {name}: must be a number, not '{value}'")
        if type(defaults[name]) is int and value != int(value):
            raise ConfigError(f"{origin}: {name}: must be a whole number, not {value}")
        least, most = RANGES.get(name, (0, float("inf")))
        if not least <= value <= most:
            meant = f"at least {least}" if value < least else f"at most {most}"
            raise ConfigError(f"{origin}: {name}: must be {meant}, not {value}")
    return {**defaults, **given}


def estimator_of(name: str) -> str:
    """Where a model's parameters are written, for messages."""
    return f"models/{name}.yaml: estimator"


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
    x: np.ndarray,
    y: np.ndarray,
    features: tuple[str, ...],
    params: Mapping[str, Any],
    objective: str = "binary",
) -> lgb.Booster:
    """Fit gradient-boosted trees; the same rows give the same trees.

    Args:
        x: rows x features, NaN where unknown.
        y: the outcome of each row: 0 or 1, or for `tweedie` an amount that is 0 or more.
        features: names of the columns.
        params: as from `parameters`.
        objective: LightGBM's: `binary` or `tweedie`.
    """
    import lightgbm as lgb

    fixed = {
        "objective": objective,
        "num_threads": threads(x.size),
        "extra_trees": bool(params["extra_trees"]),
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    rest = {k: v for k, v in params.items() if k not in ("n_estimators", "logistic_share")}
    data = lgb.Dataset(x, y, feature_name=list(features), params={"verbosity": -1})
    return lgb.train({**rest, **fixed}, data, num_boost_round=params["n_estimators"])


def recalibrate(booster: lgb.Booster, slope: float, shift: float) -> lgb.Booster:
    """Turn the log-odds f of a booster into slope * f + shift, within its own trees.

    So a recalibrated model is a booster like any other, for scoring, reasons and registry.
    """
    import lightgbm as lgb

    changed = lgb.Booster(model_str=booster.model_to_string())
    for number, tree in enumerate(changed.dump_model()["tree_info"]):
        added = shift if number == 0 else 0.0
        for leaf in range(tree["num_leaves"]):
            value = slope * changed.get_leaf_output(number, leaf) + added
            changed.set_leaf_output(number, leaf, value)
    return changed


def mixed(trees: np.ndarray, logistic: np.ndarray, share: float) -> np.ndarray:
    """Mix probabilities by their log-odds, a share of the logistic regression's."""
    import numpy as np

    odds = (1 - share) * log_odds(trees) + share * log_odds(logistic)
    found: np.ndarray = 1 / (1 + np.exp(-odds))
    return found


def log_odds(score: np.ndarray) -> np.ndarray:
    """The log-odds of probabilities, of which none is taken for certain."""
    import numpy as np

    p = np.clip(score, 1e-12, 1 - 1e-12)
    odds: np.ndarray = np.log(p / (1 - p))
    return odds


def log_losses(y: np.ndarray, score: np.ndarray) -> np.ndarray:
    """The log-loss of each probability."""
    import numpy as np

    found: np.ndarray = np.logaddexp(0, np.where(y > 0, -1, 1) * log_odds(score))
    return found


def join_logistic(
    booster: lgb.Booster, logistic: Pipeline, x: np.ndarray, share: float
) -> lgb.Booster:
    """Mix the log-odds of trees and of a logistic regression into one booster, as `mixed` does.

    The regression is a sum of curves, each of one feature; each becomes a tree that splits by this
    feature alone, in `STEPS` steps, flat beyond what was seen. So a mixture is a booster like any
    other, for scoring, reasons and registry.

    Args:
        booster: of the objective `binary`.
        logistic: of `fit_logistic`, for the same features.
        x: rows that show which values occur.
        share: of the regression.
    """
    import numpy as np

    # The row of unknown values tells each tree what the regression takes for one.
    x = np.vstack([x[:: 1 + len(x) // STEP_ROWS], np.full(x.shape[1], np.nan)])
    weights, level = logistic[-1].coef_[0], float(logistic[-1].intercept_[0])
    curves = share * weights * logistic[:-1].transform(x)
    moved = recalibrate(booster, 1 - share, share * level)
    followed = [n for n, curve in enumerate(curves.T) if np.ptp(curve) > 0]
    return _with_trees(moved, [_followed(x[:, n], curves[:, n], n) for n in followed])


def _followed(values: np.ndarray, curve: np.ndarray, feature: int) -> str:
    """A tree, in LightGBM's text, that follows a function of one feature."""
    import lightgbm as lgb

    binned = {"min_data_in_bin": 1, "verbosity": -1}
    exact = {"learning_rate": 1.0, "boost_from_average": False, "min_data_in_leaf": 1}
    fixed = {"objective": "regression", "num_leaves": STEPS, "num_threads": 1, **exact}
    data = lgb.Dataset(values[:, None], curve, params=binned)
    tree = lgb.train({**binned, **fixed, "deterministic": True}, data, 1).model_to_string()
    tree = tree[tree.index("Tree=0") : tree.index("end of trees")]

    def renamed(line: re.Match[str]) -> str:
        return line[1] + " ".join([str(feature)] * len(line[2].split()))

    return re.sub(r"(?m)^(split_feature=)(.*)$", renamed, tree)


def _with_trees(booster: lgb.Booster, trees: list[str]) -> lgb.Booster:
    """A booster with more trees, given in its text."""
    import lightgbm as lgb

    head, end, rest = booster.model_to_string().partition("end of trees")
    head = re.sub(r"(?m)^tree_sizes=.*\n", "", head)  # else it would read no more than those
    first = booster.num_trees()
    numbered = [t.replace("Tree=0", f"Tree={first + n}", 1) for n, t in enumerate(trees)]
    return lgb.Booster(model_str=head + "".join(numbered) + end + rest)


def fit_sigmoid(score: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and shift of the log-odds that fit the outcomes best (Platt 1999)."""
    from sklearn.linear_model import LogisticRegression

    odds = log_odds(score)[:, None]
    found = LogisticRegression(C=1e6).fit(odds, y)
    return float(found.coef_[0, 0]), float(found.intercept_[0])


def fit_logistic(x: np.ndarray, y: np.ndarray) -> Pipeline:
    """Fit a logistic regression: median for unknown values, log for skew, standardized, L2.

    A feature without any value, or with one value only, gets no weight. Infinity is unknown.
    """
    import numpy as np
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    pipeline = make_pipeline(
        FunctionTransformer(lambda v: np.where(np.isfinite(v), v, np.nan)),
        SimpleImputer(strategy="median", keep_empty_features=True),
        FunctionTransformer(lambda v: np.sign(v) * np.log1p(np.abs(v))),
        StandardScaler(),
        LogisticRegression(C=0.1, max_iter=500),
    )
    with limited_threads(x):
        return pipeline.fit(x, y)

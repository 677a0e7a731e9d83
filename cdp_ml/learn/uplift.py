"""Models of uplift: whom a campaign changes, learned from one in which chance decided on treatment.

A customer's uplift is the outcome's probability if treated less that if not. A T-learner has a
model of the outcome in each arm, and takes their difference. An X-learner has models of the
differences between customers' outcomes and what the other arm's model expects of them (Künzel,
Sekhon, Bickel, Yu 2019). Beside them stand targeting by propensity, and a rule of one feature.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.learn.estimators import fit_lightgbm
from cdp_ml.learn.evaluate import ratio

if TYPE_CHECKING:
    import lightgbm as lgb
    import numpy as np
    from sklearn.pipeline import Pipeline

    from cdp_ml.learn.uplift_experiment import Experiment

DEFAULTS: Mapping[str, int | float | str] = {
    "n_estimators": 100,
    "num_leaves": 4,
    "extra_trees": False,
    "learning_rate": 0.03,
    "min_child_samples": 100,
    "subsample": 0.8,
    "subsample_freq": 1,
    "colsample_bytree": 0.7,
    "reg_lambda": 5.0,
    "folds": 5,
    "repeats": 2,
    "seed": 1,
}
"""Parameters: of LightGBM (an effect is far fainter than an outcome), and of cross-fitting."""
LEARNERS = ("t_logistic", "t_lightgbm", "x_lightgbm")
KINDS = (*LEARNERS, "propensity", "rule")
FEWEST_A_SIDE = 10
"""Fewer customers of an arm on one side of a rule, and their difference is not looked at."""
_SKOPS_TYPES = ["numpy.dtype"]


@dataclass(frozen=True)
class UpliftModel:
    """A fitted model of uplift: one of `KINDS`, and what it is made of.

    `parts` are boosters, pipelines and `share` treated; those of a rule are feature, threshold,
    and the uplift `above` it and `below` (or where it is unknown).
    """

    kind: str
    features: tuple[str, ...]
    parts: Mapping[str, Any]

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The uplift of each row of a matrix of `features`; of `propensity`, the outcome's odds."""
        return _PREDICT[self.kind](self, x)

    def __str__(self) -> str:
        if self.kind != "rule":
            return self.kind
        p = self.parts
        return (
            f"customers with {p['feature']} above {p['threshold']:g} gain {p['above']:+.3f}, "
            f"others {p['below']:+.3f}"
        )


def fit_models(
    experiment: Experiment, params: Mapping[str, Any], kinds: Iterable[str] = KINDS
) -> dict[str, UpliftModel]:
    """Fit models of uplift on the same customers.

    Args:
        experiment: customers of both arms.
        params: all of `DEFAULTS`.
        kinds: some of `KINDS`.

    Returns:
        The models by kind.
    """
    fitting = _Fitting(experiment, params)
    return {k: UpliftModel(k, experiment.features, _FIT[k](fitting)) for k in kinds}


def logistic() -> Pipeline:
    """As in `estimators.fit_logistic`, of parts that skops stores."""
    import numpy as np
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    return make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        # A logarithm for negative values too: a fitted power takes 20 times as long to find.
        FunctionTransformer(np.arcsinh),
        StandardScaler(),
        LogisticRegression(C=0.1, max_iter=500),
    )


def tree_parameters(params: Mapping[str, Any]) -> dict[str, Any]:
    """Those of LightGBM among the parameters."""
    return {k: v for k, v in params.items() if k not in ("folds", "repeats")}


def save_uplift(model: UpliftModel, folder: Path) -> None:
    """Write a model without pickle: LightGBM as text, scikit-learn by skops, the rest as JSON."""
    import skops.io

    folder.mkdir(parents=True, exist_ok=True)
    plain: dict[str, Any] = {}
    for name, part in model.parts.items():
        if hasattr(part, "save_model"):
            part.save_model(str(folder / f"{name}.lgb"))
        elif hasattr(part, "fit"):
            skops.io.dump(part, folder / f"{name}.skops")
        else:
            plain[name] = part
    described = {"kind": model.kind, "features": model.features, "parts": plain}
    (folder / "uplift.json").write_text(json.dumps(described))


def load_uplift(folder: Path) -> UpliftModel:
    """Read a model that `save_uplift` wrote, without executing pickled code."""
    import lightgbm
    import skops.io

    described = json.loads((folder / "uplift.json").read_text())
    parts = described["parts"]
    parts |= {p.stem: lightgbm.Booster(model_file=str(p)) for p in folder.glob("*.lgb")}
    parts |= {p.stem: skops.io.load(p, trusted=_SKOPS_TYPES) for p in folder.glob("*.skops")}
    return UpliftModel(described["kind"], tuple(described["features"]), parts)


# ---- fitting ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fitting:
    """Customers to fit models on, and the trees that two of the learners have in common."""

    e: Experiment
    params: Mapping[str, Any]

    def trees(self, chosen: np.ndarray, y: np.ndarray, objective: str = "binary") -> lgb.Booster:
        """Trees of an outcome, fitted on the chosen customers."""
        fixed = tree_parameters(self.params)
        return fit_lightgbm(self.e.x[chosen], y[chosen], self.e.features, fixed, objective)

    @cached_property
    def outcome(self) -> dict[str, lgb.Booster]:
        """Trees of the outcome in each arm."""
        return {arm: self.trees(members, self.e.y) for arm, members in self.e.arms.items()}


def _fit_t_logistic(f: _Fitting) -> dict[str, Any]:
    return {arm: logistic().fit(f.e.x[m], f.e.y[m]) for arm, m in f.e.arms.items()}


def _fit_t_lightgbm(f: _Fitting) -> dict[str, Any]:
    return f.outcome


def _fit_x_lightgbm(f: _Fitting) -> dict[str, Any]:
    x, y = f.e.x, f.e.y
    gain = {
        "treated": y - f.outcome["control"].predict(x, num_threads=1),
        "control": f.outcome["treated"].predict(x, num_threads=1) - y,
    }
    parts = {arm: f.trees(m, gain[arm], "regression") for arm, m in f.e.arms.items()}
    return {**parts, "share": float(f.e.treated.mean())}


def _fit_propensity(f: _Fitting) -> dict[str, Any]:
    import numpy as np

    return {"outcome": f.trees(np.full(len(f.e.y), True), f.e.y)}


def _fit_rule(f: _Fitting) -> dict[str, Any]:
    """The feature and threshold that part the customers into those with more and less uplift.

    A rule's Qini curve is a triangle above the random line, whose area grows with the product of
    the two groups' sizes and the difference of their uplifts.
    """
    nothing = {"feature": f.e.features[0], "threshold": 0.0, "above": 0.0, "below": 0.0}
    rules = (_best_rule(f.e, column) for column in range(len(f.e.features)))
    return max(filter(None, rules), key=lambda rule: rule[0], default=(0.0, nothing))[1]


def _best_rule(e: Experiment, column: int) -> tuple[float, dict[str, Any]] | None:
    """The largest triangle, and its rule, at the tenths of a feature's values.

    None if no threshold leaves `FEWEST_A_SIDE` customers of both arms on both sides.
    """
    import numpy as np

    values = e.x[:, column]
    known = values[~np.isnan(values)]
    thresholds = np.unique(np.quantile(known, np.arange(0, 1, 0.1))) if len(known) else known
    # How many thresholds are below a value; unknown values are below all of them.
    place = np.where(np.isnan(values), 0, np.searchsorted(thresholds, values))
    total = {n: np.bincount(place, w, len(thresholds) + 1) for n, w in e.summands.items()}
    below = {n: t.cumsum()[:-1] for n, t in total.items()}
    above = {n: t.sum() - below[n] for n, t in total.items()}
    smallest = np.min([side[arm] for side in (above, below) for arm in e.arms], axis=0)
    if not (smallest >= FEWEST_A_SIDE).any():
        return None
    share = (above["treated"] + above["control"]) / len(values)
    gains = [_effects(side) for side in (above, below)]
    area = share * (1 - share) * abs(gains[0] - gains[1]) * (smallest >= FEWEST_A_SIDE)
    best = int(np.argmax(area))
    rule = {"feature": e.features[column], "threshold": float(thresholds[best])}
    return float(area[best]), {
        **rule,
        "above": float(gains[0][best]),
        "below": float(gains[1][best]),
    }


def _effects(sums: Mapping[str, np.ndarray]) -> np.ndarray:
    """The differences between the arms' shares of outcomes."""
    treated, control = (ratio(sums[f"y_{arm}"], sums[arm]) for arm in ("treated", "control"))
    effects: np.ndarray = treated - control
    return effects


_FIT: Mapping[str, Callable[[_Fitting], dict[str, Any]]] = {
    "t_logistic": _fit_t_logistic,
    "t_lightgbm": _fit_t_lightgbm,
    "x_lightgbm": _fit_x_lightgbm,
    "propensity": _fit_propensity,
    "rule": _fit_rule,
}


# ---- predicting ---------------------------------------------------------------------------------


def _predict_t_logistic(model: UpliftModel, x: np.ndarray) -> np.ndarray:
    treated, control = (model.parts[a].predict_proba(x)[:, 1] for a in ("treated", "control"))
    gain: np.ndarray = treated - control
    return gain


def _predict_t_lightgbm(model: UpliftModel, x: np.ndarray) -> np.ndarray:
    treated, control = (model.parts[a].predict(x, num_threads=1) for a in ("treated", "control"))
    gain: np.ndarray = treated - control
    return gain


def _predict_x_lightgbm(model: UpliftModel, x: np.ndarray) -> np.ndarray:
    """Each arm's model weighs as much as the other arm has customers to expect outcomes from."""
    treated, control = (model.parts[a].predict(x, num_threads=1) for a in ("treated", "control"))
    share = model.parts["share"]
    gain: np.ndarray = share * control + (1 - share) * treated
    return gain


def _predict_propensity(model: UpliftModel, x: np.ndarray) -> np.ndarray:
    chance: np.ndarray = model.parts["outcome"].predict(x, num_threads=1)
    return chance


def _predict_rule(model: UpliftModel, x: np.ndarray) -> np.ndarray:
    import numpy as np

    p = model.parts
    over = x[:, model.features.index(p["feature"])] > p["threshold"]
    gain: np.ndarray = np.where(over, p["above"], p["below"])
    return gain


_PREDICT: Mapping[str, Callable[[UpliftModel, np.ndarray], np.ndarray]] = {
    "t_logistic": _predict_t_logistic,
    "t_lightgbm": _predict_t_lightgbm,
    "x_lightgbm": _predict_x_lightgbm,
    "propensity": _predict_propensity,
    "rule": _predict_rule,
}

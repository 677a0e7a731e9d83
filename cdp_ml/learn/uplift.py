"""Uplift: whom a campaign changes, learned from one in which chance decided who was treated.

A customer's uplift is the outcome's probability if treated less that if not. Nobody is seen both
ways, so a model is judged by groups: each customer is scored by models that have not seen her
(cross-fitting), and customers with high scores must show a larger difference between the arms.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.errors import NotPromotedError
from cdp_ml.learn.datasets import as_arrow, matrix
from cdp_ml.learn.estimators import estimator_of, fit_lightgbm, limited_threads, with_defaults
from cdp_ml.learn.evaluate import Estimate, Evaluation

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from ibis.expr.types import Table
    from sklearn.pipeline import Pipeline

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
DRAWS = 300
FEWEST = 50
"""Fewer customers of an arm with the outcome, or without, and no difference can be judged."""
BALANCE = 0.53
"""An AUC of telling the arms apart that means more than chance if its interval is above 0.5."""
_SKOPS_TYPES = ["numpy.dtype"]


@dataclass(frozen=True)
class Experiment:
    """A campaign's customers: what was known before, who was treated, who had the outcome.

    `x` is customers x features, NaN where unknown; `treated` and `y` are 0 or 1.
    """

    x: np.ndarray
    treated: np.ndarray
    y: np.ndarray
    features: tuple[str, ...]

    def rows(self, chosen: np.ndarray) -> Experiment:
        """The experiment with some of its customers, by a mask or their positions."""
        return Experiment(self.x[chosen], self.treated[chosen], self.y[chosen], self.features)


@dataclass(frozen=True)
class UpliftModel:
    """A fitted model of uplift: one of `LEARNERS`, `propensity` or `rule`, and what it is made of.

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


@dataclass(frozen=True)
class Trial:
    """A trained uplift model with its evaluation; `scores` by learner, each out of fold."""

    model: UpliftModel
    evaluation: Evaluation
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)


def campaign_customers(exposures: Table, campaign: str) -> Table:
    """Who was in which arm of a campaign, and since when.

    Args:
        exposures: table `exposures` with customer_id, as of an instant (`activity_as_of`).
        campaign: its campaign_id.

    Returns:
        customer_id, event_timestamp (the first exposure) and arm; customers whose records were in
        several arms are left out: they show no arm's outcome.
    """
    inside = exposures.filter(exposures.campaign_id == campaign)
    arms = inside.group_by("customer_id").aggregate(
        event_timestamp=inside.event_timestamp.min(),
        arm=inside.arm.min(),
        arms=inside.arm.nunique(),
    )
    return arms.filter(arms.arms == 1).drop("arms")


def experiment_of(frame: Any, features: tuple[str, ...], treatment: str, name: str) -> Experiment:
    """The experiment in a frame.

    Args:
        frame: customer_id, event_timestamp (of the exposure), arm, label (0 or 1) and the features
            as known at that time; one row a customer (Arrow or pandas).
        features: the columns to learn from.
        treatment: the arm to compare with all others.
        name: the model's name, for messages.

    Returns:
        The experiment, its rows by event_timestamp and customer_id.

    Raises:
        ContractError: if a column is missing.
        NotPromotedError: if nobody or everybody was treated.
    """
    import pyarrow.compute as pc

    table = as_arrow(frame)
    treated = pc.equal(table["arm"], treatment).to_numpy().astype(float)
    if not 0 < treated.sum() < len(treated):
        raise NotPromotedError(
            f"model '{name}': {int(treated.sum())} of {len(treated)} customers are in the arm "
            f"'{treatment}'; an effect shows only beside customers who were left out"
        )
    return Experiment(matrix(table, features), treated, matrix(table, ("label",))[:, 0], features)


def train_uplift(
    experiment: Experiment, given: Mapping[str, int | float | str], name: str
) -> Trial:
    """Train the learners on a campaign, and choose the one to serve, or none.

    T-learner: a model of the outcome in each arm, and their difference. X-learner: models of the
    differences between customers' outcomes and what the other arm's model expects of them (Künzel,
    Sekhon, Bickel, Yu 2019). All are compared by cross-fitting with targeting by propensity and
    with a rule of one feature, chosen within the folds as well. What is returned is fitted on all
    customers, by the learner that the cross-fitting was about.

    It is promoted if chance decided who was treated (`check_randomized`), the 95% interval of its
    Qini coefficient is above 0, and so is that of its lead over targeting by propensity (paired
    bootstrap). Where the rule meets this too and the best learner's lead over it is not clear of
    0, the rule is promoted instead: it says the same in a sentence.

    Args:
        experiment: the campaign.
        given: the model's `estimator`, over `DEFAULTS`.
        name: the model's name, for messages.

    Raises:
        ConfigError: if a parameter is unknown or no number.
        NotPromotedError: if an arm is too small or no feature varies.
    """
    params = with_defaults(given, DEFAULTS, estimator_of(name))
    _check_learnable(experiment, name)
    with limited_threads(experiment.x):
        scores = cross_fit(experiment, params)
        balance = check_randomized(experiment, int(params["seed"]))
        kind, evaluation = judge_uplift(name, experiment, scores, balance)
        model = _FIT[kind](experiment, params)
    if kind == "rule":
        said = f"{evaluation.verdict} The rule: {model}."
        evaluation = Evaluation(evaluation.metrics, evaluation.tables, evaluation.promoted, said)
    return Trial(model, evaluation, scores)


def cross_fit(
    experiment: Experiment,
    params: Mapping[str, int | float | str],
    kinds: tuple[str, ...] = (*LEARNERS, "propensity", "rule"),
) -> dict[str, np.ndarray]:
    """Score each customer by models that were fitted without her.

    Returns:
        By learner repeats x customers, a new division into folds for each repeat: her rank by
        uplift within her fold, above 0 to 1, ties in one. The folds' models are not the same, so
        their uplifts would not compare.
    """
    import numpy as np
    from scipy.stats import rankdata

    repeats, rows = int(params["repeats"]), len(experiment.y)
    scores = {kind: np.empty((repeats, rows)) for kind in kinds}
    for repeat in range(repeats):
        for fit, held in _folds(experiment, params, repeat):
            part = experiment.rows(fit)
            for kind in kinds:
                gain = _FIT[kind](part, params).predict(experiment.x[held])
                scores[kind][repeat, held] = rankdata(gain) / len(held)
    return scores


@dataclass(frozen=True)
class Balance:
    """Whether the arms are alike: `auc` of telling them apart by what was known before.

    `table` holds each feature's means by arm, and the difference in standard deviations.
    """

    auc: Estimate
    table: pa.Table

    @property
    def randomized(self) -> bool:
        """Whether nothing but chance can be seen in who was treated."""
        return self.auc.low <= 0.5 or self.auc.value < BALANCE


def check_randomized(experiment: Experiment, seed: int = 1) -> Balance:
    """Try to tell the treated from the others by what was known before: chance leaves no trace.

    A logistic regression and boosted trees, cross-fitted; the better of the two counts.
    """
    import numpy as np
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    x, treated = experiment.x, experiment.treated
    halves = StratifiedKFold(5, shuffle=True, random_state=seed)
    guess = cross_val_predict(_logistic(), x, treated, cv=halves, method="predict_proba")[:, 1]
    trees = np.empty(len(treated))
    for fit, held in halves.split(x, treated):
        booster = fit_lightgbm(x[fit], treated[fit], experiment.features, _trees(DEFAULTS))
        trees[held] = booster.predict(x[held], num_threads=1)
    found = [_auc_estimate(treated, score) for score in (guess, trees)]
    return Balance(max(found, key=lambda e: e.value), _balance_table(experiment))


def uplift_metrics(
    y: np.ndarray, treated: np.ndarray, scores: Mapping[str, np.ndarray], draws: int | None = None
) -> dict[str, Estimate]:
    """Judge scores of uplift, with paired 95% bootstrap intervals over customers.

    Args:
        y: outcomes, 0 or 1.
        treated: 0 or 1.
        scores: by name one score a customer, or repeats x customers, over which metrics are means.
        draws: bootstrap draws; `DRAWS` by default.

    Returns:
        By `NAME/METRIC`: qini (area between the Qini curve and the random line, over that of a
        perfect ranking; Radcliffe 2007, normalized as in scikit-uplift), auuc (mean over the share
        targeted of the share's uplift times the share, half the average effect if random) and
        uplift_top_decile; and `NAME/qini_lead/OTHER`, how much larger the Qini of NAME is.
    """
    import numpy as np

    measures = {
        name: [_measurer(y, treated, one) for one in np.atleast_2d(score)]
        for name, score in scores.items()
    }
    drawn = [_measured(measures, w) for w in [np.ones(len(y)), *_weights(len(y), draws or DRAWS)]]
    return {
        key: _estimate(drawn[0][key], np.array([d[key] for d in drawn[1:]])) for key in drawn[0]
    }


def judge_uplift(
    name: str, experiment: Experiment, scores: Mapping[str, np.ndarray], balance: Balance
) -> tuple[str, Evaluation]:
    """Decide which learner may be served, if any; the rules stand in `train_uplift`.

    Args:
        name: the model's name.
        experiment: the campaign.
        scores: as from `cross_fit`.
        balance: as from `check_randomized`.

    Returns:
        The learner that the evaluation is about: the one promoted, or else the best.
    """
    found = uplift_metrics(experiment.y, experiment.treated, scores)
    learner = max((k for k in scores if k in LEARNERS), key=lambda k: found[f"{k}/qini"].value)
    chosen = _simplest(found, learner)
    promoted, verdict = _verdict(name, found, learner, chosen, balance)
    metrics = {m: found[f"{chosen}/{m}"] for m in ("qini", "auuc", "uplift_top_decile")}
    for lead in found:
        if lead.startswith(f"{chosen}/qini_lead/"):
            metrics[f"qini_lead_over_{lead.rpartition('/')[2]}"] = found[lead]
    metrics["average_effect"] = _average_effect(experiment)
    metrics["balance_auc"] = balance.auc
    for other in scores:
        if other != chosen:
            for m in ("qini", "auuc", "uplift_top_decile"):
                metrics[f"baseline_{other}/{m}"] = found[f"{other}/{m}"]
    tables = {
        "balance": balance.table,
        "deciles": decile_table(experiment, scores[chosen][0]),
        "qini": curve_table(experiment, {k: s[0] for k, s in scores.items()}),
    }
    return chosen, Evaluation(metrics, tables, promoted, verdict)


def decile_table(experiment: Experiment, score: np.ndarray) -> pa.Table:
    """The customers in ten bins of equal size, by score from high to low.

    Returns:
        decile, customers, treated, rate_treated, rate_control and uplift.
    """
    import numpy as np
    import pyarrow as pa

    y, t = experiment.y, experiment.treated
    rank = np.empty(len(y), dtype=np.int64)
    rank[np.argsort(-score, kind="stable")] = np.arange(len(y))
    bins = rank * 10 // max(len(y), 1)
    total = {n: np.bincount(bins, w, minlength=10) for n, w in _sums(y, t).items()}
    size = total["treated"] + total["control"]
    rates = [_over(total[f"y_{a}"], total[a]) for a in ("treated", "control")]
    return pa.table(
        {
            "decile": np.arange(1, 11),
            "customers": size.astype(int),
            "treated": total["treated"].astype(int),
            "rate_treated": rates[0],
            "rate_control": rates[1],
            "uplift": rates[0] - rates[1],
        }
    )


def curve_table(experiment: Experiment, scores: Mapping[str, np.ndarray]) -> pa.Table:
    """The Qini curves: further outcomes per customer of the campaign, by share targeted.

    Returns:
        share, random and a column for each score; 51 rows.
    """
    import numpy as np
    import pyarrow as pa

    rows, share = len(experiment.y), np.linspace(0, 1, 51)
    ones, curves = np.ones(rows), {}
    for name, score in scores.items():
        n, qini, _ = _curves(experiment.y, experiment.treated, score)(ones)
        curves[name] = np.interp(share * rows, n, qini) / rows
    end = next(iter(curves.values()))[-1]
    return pa.table({"share": share, "random": share * end, **curves})


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


# ---- learners -----------------------------------------------------------------------------------


def _fit_t_logistic(e: Experiment, params: Mapping[str, Any]) -> UpliftModel:
    arms = {n: _logistic().fit(e.x[m], e.y[m]) for n, m in _arms(e).items()}
    return UpliftModel("t_logistic", e.features, arms)


def _fit_t_lightgbm(e: Experiment, params: Mapping[str, Any]) -> UpliftModel:
    fixed = _trees(params)
    arms = {n: fit_lightgbm(e.x[m], e.y[m], e.features, fixed) for n, m in _arms(e).items()}
    return UpliftModel("t_lightgbm", e.features, arms)


def _fit_x_lightgbm(e: Experiment, params: Mapping[str, Any]) -> UpliftModel:
    arms, fixed = _arms(e), _trees(params)
    outcome = _fit_t_lightgbm(e, params).parts
    gain = {
        "treated": e.y - outcome["control"].predict(e.x, num_threads=1),
        "control": outcome["treated"].predict(e.x, num_threads=1) - e.y,
    }
    parts = {
        n: fit_lightgbm(e.x[m], gain[n][m], e.features, fixed, objective="regression")
        for n, m in arms.items()
    }
    return UpliftModel("x_lightgbm", e.features, {**parts, "share": float(e.treated.mean())})


def _fit_propensity(e: Experiment, params: Mapping[str, Any]) -> UpliftModel:
    booster = fit_lightgbm(e.x, e.y, e.features, _trees(params))
    return UpliftModel("propensity", e.features, {"outcome": booster})


def _fit_rule(e: Experiment, params: Mapping[str, Any]) -> UpliftModel:
    """The feature and threshold that part the customers into those with more and less uplift.

    A rule's Qini curve is a triangle above the random line, whose area grows with the product of
    the two groups' sizes and the difference of their uplifts.
    """
    rules = [rule for column in range(len(e.features)) for rule in _rules(e, column)]
    if not rules:
        nothing = {"feature": e.features[0], "threshold": 0.0, "above": 0.0, "below": 0.0}
        return UpliftModel("rule", e.features, nothing)
    return UpliftModel("rule", e.features, max(rules, key=lambda rule: rule[0])[1])


def _rules(e: Experiment, column: int) -> Iterator[tuple[float, dict[str, Any]]]:
    """The area of its triangle, and the rule, for each tenth of a feature's values."""
    import numpy as np

    values = e.x[:, column]
    known = values[~np.isnan(values)]
    for threshold in np.unique(np.quantile(known, np.arange(0, 1, 0.1))) if len(known) else ():
        over = values > threshold
        above, below = (_effect(e.y[side], e.treated[side]) for side in (over, ~over))
        if above is not None and below is not None:
            found = {"threshold": float(threshold), "above": above, "below": below}
            area = float(over.mean() * (1 - over.mean()) * abs(above - below))
            yield area, {"feature": e.features[column], **found}


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
    gain: np.ndarray = np.where(
        x[:, model.features.index(p["feature"])] > p["threshold"], p["above"], p["below"]
    )
    return gain


_FIT: Mapping[str, Callable[[Experiment, Mapping[str, Any]], UpliftModel]] = {
    "t_logistic": _fit_t_logistic,
    "t_lightgbm": _fit_t_lightgbm,
    "x_lightgbm": _fit_x_lightgbm,
    "propensity": _fit_propensity,
    "rule": _fit_rule,
}
_PREDICT: Mapping[str, Callable[[UpliftModel, np.ndarray], np.ndarray]] = {
    "t_logistic": _predict_t_logistic,
    "t_lightgbm": _predict_t_lightgbm,
    "x_lightgbm": _predict_x_lightgbm,
    "propensity": _predict_propensity,
    "rule": _predict_rule,
}


def _arms(e: Experiment) -> dict[str, np.ndarray]:
    return {"treated": e.treated == 1, "control": e.treated == 0}


def _trees(params: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in params.items() if k not in ("folds", "repeats")}


def _logistic() -> Pipeline:
    """As in `estimators.fit_logistic`, of parts that skops stores."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PowerTransformer

    return make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        PowerTransformer(),
        LogisticRegression(C=0.1, max_iter=500),
    )


# ---- judgment -----------------------------------------------------------------------------------


def _check_learnable(e: Experiment, name: str) -> None:
    import numpy as np

    for arm, members in _arms(e).items():
        size, outcomes = int(members.sum()), int(e.y[members].sum())
        if min(outcomes, size - outcomes) < FEWEST:
            raise NotPromotedError(
                f"model '{name}': the arm '{arm}' has {size} customers, {outcomes} of them with "
                f"the outcome; needs at least {FEWEST} with it and {FEWEST} without: no model "
                "this time"
            )
    if not any(len(np.unique(c[~np.isnan(c)])) > 1 for c in e.x.T):
        raise NotPromotedError(
            f"model '{name}': none of its {len(e.features)} features varies over {len(e.y)} "
            "customers: nothing to tell them apart by"
        )


def _simplest(found: Mapping[str, Estimate], learner: str) -> str:
    """The rule if it passes the gate and the learner is not clearly better, else the learner."""
    clear = found[f"{learner}/qini_lead/rule"].low > 0
    return "rule" if _passes(found, "rule") and not clear else learner


def _passes(found: Mapping[str, Estimate], kind: str) -> bool:
    return min(found[f"{kind}/qini"].low, found[f"{kind}/qini_lead/propensity"].low) > 0


def _verdict(
    name: str, found: Mapping[str, Estimate], learner: str, chosen: str, balance: Balance
) -> tuple[bool, str]:
    compared = (
        f"Qini of {chosen} {found[f'{chosen}/qini']}, of targeting by propensity "
        f"{found['propensity/qini']}, lead {found[f'{chosen}/qini_lead/propensity']}"
    )
    if not balance.randomized:
        return False, (
            f"{name} is not promoted: who was treated can be told from what was known before (AUC "
            f"{balance.auc}), so it was not chance, and the arms' difference is no effect."
        )
    if found[f"{chosen}/qini"].low <= 0:
        return False, f"{name} is not promoted: {compared}; the Qini's interval must be above 0."
    if found[f"{chosen}/qini_lead/propensity"].low <= 0:
        return False, f"{name} is not promoted: {compared}; the lead's interval must be above 0."
    if chosen != "rule":
        lead = found[f"{chosen}/qini_lead/rule"]
        return True, f"{name} is promoted: {compared}; lead over a rule of one feature {lead}."
    return True, (
        f"{name} is promoted as a rule of one feature, which does as well as {learner} (Qini "
        f"{found[f'{learner}/qini']}): {compared}."
    )


def _folds(
    e: Experiment, params: Mapping[str, Any], repeat: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Parts of the customers to fit and to score, with arms and outcomes alike in all."""
    from sklearn.model_selection import StratifiedKFold

    seed = int(params["seed"]) + repeat
    folds = StratifiedKFold(int(params["folds"]), shuffle=True, random_state=seed)
    yield from folds.split(e.x, 2 * e.treated + e.y)


def _measured(
    measures: Mapping[str, list[Callable[[np.ndarray], np.ndarray]]], weights: np.ndarray
) -> dict[str, float]:
    import numpy as np

    means = {name: np.mean([m(weights) for m in each], axis=0) for name, each in measures.items()}
    names = ("qini", "auuc", "uplift_top_decile")
    found = {f"{k}/{n}": float(v) for k, mean in means.items() for n, v in zip(names, mean)}  # noqa: B905
    for one in means:
        for other in ("propensity", "rule"):
            if other in means and other != one:
                found[f"{one}/qini_lead/{other}"] = float(means[one][0] - means[other][0])
    return found


def _measurer(
    y: np.ndarray, treated: np.ndarray, score: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from weights of the customers to qini, auuc and uplift_top_decile."""
    import numpy as np

    curves = _curves(y, treated, score)

    def measure(weights: np.ndarray) -> np.ndarray:
        n, qini, uplift = curves(weights)
        outcomes = [float(weights @ (y * arm)) for arm in (treated, 1 - treated)]
        random = n[-1] * qini[-1] / 2
        best = _perfect_area(n[-1], outcomes, qini[-1]) - random
        coefficient = (np.trapezoid(qini, n) - random) / best if best > 0 else 0.0
        top = np.interp(n[-1] / 10, n, uplift) / (n[-1] / 10)
        return np.array([coefficient, np.trapezoid(uplift, n) / n[-1] ** 2, top])

    return measure


def _perfect_area(total: float, outcomes: list[float], end: float) -> float:
    """Under the Qini curve if all treated outcomes came first, all others last."""
    import numpy as np

    first, last = outcomes
    return float(np.trapezoid([0, first, first, end], [0, first, total - last, total]))


def _curves(y: np.ndarray, treated: np.ndarray, score: np.ndarray) -> Callable[..., Any]:
    """A function from weights to customers targeted, Qini curve and uplift curve, ties in one."""
    import numpy as np

    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    sums = {name: values[order] for name, values in _sums(y, treated).items()}

    def curves(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        w = weights[order]
        total = {n: np.append(0, (w * v).cumsum()[ends]) for n, v in sums.items()}
        t, c = total["treated"], total["control"]
        qini = total["y_treated"] - _over(total["y_control"] * t, c)
        uplift = (_over(total["y_treated"], t) - _over(total["y_control"], c)) * (t + c)
        return t + c, qini, uplift

    return curves


def _sums(y: np.ndarray, treated: np.ndarray) -> dict[str, np.ndarray]:
    control = 1 - treated
    return {
        "treated": treated,
        "control": control,
        "y_treated": y * treated,
        "y_control": y * control,
    }


def _effect(y: np.ndarray, treated: np.ndarray) -> float | None:
    """The difference between the arms; None if one has fewer than ten customers."""
    number = treated.sum()
    if min(number, len(y) - number) < 10:
        return None
    return float(y @ treated / number - y @ (1 - treated) / (len(y) - number))


def _average_effect(e: Experiment) -> Estimate:
    import numpy as np

    sums = np.stack(list(_sums(e.y, e.treated).values()))

    def effect(weights: np.ndarray) -> float:
        t, c, yt, yc = sums @ weights
        return float(yt / max(t, 1) - yc / max(c, 1))

    drawn = [effect(w) for w in _weights(len(e.y), DRAWS)]
    return _estimate(effect(np.ones(len(e.y))), np.array(drawn))


def _auc_estimate(y: np.ndarray, score: np.ndarray) -> Estimate:
    """The AUC with its interval by the normal approximation of Hanley and McNeil (1982)."""
    import numpy as np
    from sklearn.metrics import roc_auc_score

    auc, ones, zeros = float(roc_auc_score(y, score)), y.sum(), len(y) - y.sum()
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (ones - 1) * (q1 - auc**2) + (zeros - 1) * (q2 - auc**2)
    half = 1.96 * float(np.sqrt(variance / (ones * zeros)))
    return Estimate(auc, auc - half, auc + half)


def _balance_table(e: Experiment) -> pa.Table:
    """Feature, mean_treated, mean_control and difference (in standard deviations)."""
    import numpy as np
    import pyarrow as pa

    known = ~np.isnan(e.x)
    x = np.where(known, e.x, 0.0)
    sums = [(x[m].sum(axis=0), known[m].sum(axis=0)) for m in _arms(e).values()]
    means = [_over(total, number.astype(float)) for total, number in sums]
    everyone = _over(x.sum(axis=0), known.sum(axis=0).astype(float))
    squares = (known * (x - everyone) ** 2).sum(axis=0)
    spread = np.sqrt(_over(squares, known.sum(axis=0).astype(float)))
    return pa.table(
        {
            "feature": e.features,
            "mean_treated": means[0],
            "mean_control": means[1],
            "difference": _over(means[0] - means[1], spread),
        }
    )


def _over(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    import numpy as np

    quotient: np.ndarray = np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
    return quotient


def _weights(rows: int, draws: int) -> Iterator[np.ndarray]:
    import numpy as np

    random = np.random.default_rng(1)
    for _ in range(draws):
        yield np.bincount(random.integers(0, rows, rows), minlength=rows).astype(float)


def _estimate(value: float, drawn: np.ndarray) -> Estimate:
    import numpy as np

    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high))

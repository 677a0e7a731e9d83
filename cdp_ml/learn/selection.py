"""Choosing parameters and calibration on instants before the test, as they could be known then.

A forward trial fits on the training instants whose label windows had closed by an instant, and
predicts that instant. The test is never looked at.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cdp_ml.errors import CdpError
from cdp_ml.learn import estimators
from cdp_ml.learn.datasets import TimeSplit, matrix, rows_at
from cdp_ml.learn.estimators import fit_lightgbm, fit_logistic, mixed, threads
from cdp_ml.learn.evaluate import is_learnable, propensity_metrics, value_metrics

if TYPE_CHECKING:
    import lightgbm as lgb
    import numpy as np
    import pyarrow as pa
    from sklearn.pipeline import Pipeline

    from cdp_ml.config import ModelSpec

MOST_ROWS = 200_000
"""A trial is fitted to, and judged on, no more rows than these: what suits them suits more."""
OBJECTIVES = {"propensity": "binary", "value": "tweedie"}
DEFAULTS = {"propensity": estimators.PROPENSITY_DEFAULTS, "value": estimators.DEFAULTS}
DECISIVE = {"propensity": ("log_loss", -1), "value": ("gini", 1)}
"""By task, the metric that decides between candidates; 1 if higher is better."""


@dataclass(frozen=True)
class Candidate:
    """Parameters that were tried, and how they did on the newest training instant.

    `losses` are a propensity's log-losses by row.
    """

    parameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    seconds: float
    losses: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Choice:
    """The parameters to train with, the best of `candidates`, if any could be tried.

    `sigmoid` is the slope and shift with which the log-odds are recalibrated; None: left as they
    are. `calibration` says why, in a sentence.
    """

    parameters: dict[str, Any]
    candidates: tuple[Candidate, ...] = ()
    sigmoid: tuple[float, float] | None = None
    calibration: str = ""


@dataclass(frozen=True)
class Forward:
    """The training instants of a model, for trials."""

    spec: ModelSpec
    past: pa.Table
    split: TimeSplit
    features: tuple[str, ...]
    _fitted: dict[Any, lgb.Booster] = field(default_factory=dict)
    _logistic: dict[datetime, Pipeline] = field(default_factory=dict)

    @property
    def newest(self) -> datetime:
        """The newest training instant."""
        return self.split.train[-1]

    def closed_by(self, instant: datetime) -> tuple[datetime, ...]:
        """The training instants whose label windows had closed by an instant, oldest first."""
        return tuple(t for t in self.split.train if t + self.split.horizon <= instant)

    def rows(self, instants: tuple[datetime, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Matrix and outcomes at these instants, of `MOST_ROWS` rows drawn at random at most."""
        rows = _sampled(rows_at(self.past, instants))
        return matrix(rows, self.features), matrix(rows, ("label",))[:, 0]

    def is_possible(self, instant: datetime) -> bool:
        """Whether there is enough to learn before the instant, and to judge at it."""
        instants = (self.closed_by(instant), (instant,))
        labels = (matrix(rows_at(self.past, t), ("label",))[:, 0] for t in instants)
        return all(is_learnable(y > 0) for y in labels)

    def predict(
        self, params: Mapping[str, Any], instant: datetime
    ) -> tuple[np.ndarray, np.ndarray]:
        """Outcomes at an instant, and the scores by what was known then."""
        x, y = self.rows((instant,))
        options = {"num_iteration": params["n_estimators"], "num_threads": threads(x.size)}
        score = self._trees(params, instant).predict(x, **options)
        if share := params.get("logistic_share", 0):
            score = mixed(score, self.regression(instant).predict_proba(x)[:, 1], share)
        return y, score

    def _trees(self, params: Mapping[str, Any], instant: datetime) -> lgb.Booster:
        """Trees fitted to what was known at an instant; fewer of the same are not fitted again."""
        other = {k: v for k, v in params.items() if k not in ("n_estimators", "logistic_share")}
        key = (instant, *sorted(other.items()))
        held = self._fitted.get(key)
        if held is None or held.num_trees() < params["n_estimators"]:
            x, y = self.rows(self.closed_by(instant))
            held = fit_lightgbm(x, y, self.features, params, OBJECTIVES[self.spec.task])
            self._fitted[key] = held
        return held

    def regression(self, instant: datetime) -> Pipeline:
        """A logistic regression fitted to what was known at an instant."""
        if instant not in self._logistic:
            self._logistic[instant] = fit_logistic(*self.rows(self.closed_by(instant)))
        return self._logistic[instant]

    def candidate(self, params: Mapping[str, Any]) -> Candidate:
        """Try parameters on the newest training instant."""
        started = time.perf_counter()
        y, score = self.predict(params, self.newest)
        if self.spec.task == "value":
            found, losses = value_metrics(y, score, draws=1), None
        else:
            found, losses = propensity_metrics(y, score, draws=1), estimators.log_losses(y, score)
        values = {name: e.value for name, e in found.items()}
        return Candidate(dict(params), values, time.perf_counter() - started, losses)

    def early_stopped(self, params: Mapping[str, Any]) -> Candidate:
        """Try parameters with all the trees, two thirds and one third; the best number counts."""
        trees = params["n_estimators"]
        stages = [{**params, "n_estimators": max(1, trees * n // 3)} for n in (3, 2, 1)]
        tried = [self.candidate(p) for p in stages]
        seconds = sum(c.seconds for c in tried)
        return replace(_best(tried, self.spec.task), seconds=seconds)


def choose(spec: ModelSpec, past: pa.Table, split: TimeSplit, features: tuple[str, ...]) -> Choice:
    """Choose the parameters, and for a probability whether to recalibrate it.

    Unless the specification gives `num_leaves`, those of `cdp_ml.learn.estimators.LEAVES` are
    tried on the newest training instant, each with the number of trees that does best there unless
    that is given; with `tuning`, further parameters within its minutes. Of a propensity, the fewest
    leaves are taken that are no worse than the best by a standard error (Breiman et al. 1984), and
    the logistic regression is left out, unless its share is given, if that is better by one.

    Args:
        spec: the model.
        past: rows of the training instants: customer_id, event_timestamp, features and label.
        split: the instants.
        features: the columns to learn from.

    Raises:
        ConfigError: if a parameter is unknown.
        CdpError: if `tuning` is asked for without the extra `tune`.
    """
    origin = estimators.estimator_of(spec.name)
    params = estimators.parameters(spec.estimator, past.num_rows, origin, DEFAULTS[spec.task])
    forward = Forward(spec, past, split, features)
    given = spec.estimator.get("num_leaves", estimators.AUTO) != estimators.AUTO
    alone = "logistic_share" in params and "logistic_share" not in spec.estimator
    settled = given and not alone and spec.tuning is None
    if settled or not forward.is_possible(forward.newest):
        return _calibrated(Choice(params), forward)
    fixed = "n_estimators" in spec.estimator
    attempt = forward.candidate if fixed else forward.early_stopped
    tried = _side_by_side(attempt, _leaves(params, given), forward)
    best = _simplest(tried, spec.task)
    if alone:
        tried.append(attempt({**best.parameters, "logistic_share": 0}))
        best = tried[-1] if _is_better(tried[-1], best) else best
    if spec.tuning is not None:
        further = _tune(forward, best.parameters, spec.tuning.minutes * 60)
        best, tried = _best([best, *further], spec.task), tried + further
    return _calibrated(Choice(dict(best.parameters), tuple(tried)), forward)


def candidates_table(candidates: tuple[Candidate, ...]) -> pa.Table:
    """The parameters in which candidates differ, and their metrics, the best first.

    Args:
        candidates: as tried; the better metric is that of their task.
    """
    import pyarrow as pa

    task = "value" if "gini" in candidates[0].metrics else "propensity"
    metric, sign = DECISIVE[task]
    ordered = sorted(candidates, key=lambda c: -sign * c.metrics[metric])
    names = [
        n for n, v in ordered[0].parameters.items() if any(c.parameters[n] != v for c in ordered)
    ]
    shown = (metric, "auc") if task == "propensity" else (metric, "top_decile_share")
    return pa.Table.from_pylist(
        [
            {
                **{n: c.parameters[n] for n in names or ["num_leaves"]},
                **{m: c.metrics[m] for m in shown},
            }
            for c in ordered
        ]
    )


def _side_by_side(
    attempt: Callable[[Mapping[str, Any]], Candidate],
    candidates: list[dict[str, Any]],
    forward: Forward,
) -> list[Candidate]:
    """Try candidates, one on each core if a fit takes one core."""
    rows = rows_at(forward.past, forward.closed_by(forward.newest)).num_rows
    cells = min(rows, MOST_ROWS) * len(forward.features)
    cores = (os.cpu_count() or 1) if threads(cells) == 1 else 1
    if candidates[0].get("logistic_share"):
        forward.regression(forward.newest)  # once, before all ask for it
    with ThreadPoolExecutor(cores) as pool:
        return list(pool.map(attempt, candidates))


def _leaves(params: Mapping[str, Any], given: bool) -> list[dict[str, Any]]:
    leaves = [params["num_leaves"]] if given else estimators.LEAVES
    return [{**params, "num_leaves": n} for n in leaves]


def _best(tried: list[Candidate], task: str) -> Candidate:
    metric, sign = DECISIVE[task]
    return max(tried, key=lambda c: sign * c.metrics[metric])


def _simplest(tried: list[Candidate], task: str) -> Candidate:
    """The first that is not worse than the best by more than a standard error of the difference.

    The best, of values: their metric has no error by row.
    """
    best = _best(tried, task)
    return next(c for c in tried if c is best or (c.losses is not None and not _is_better(best, c)))


def _is_better(one: Candidate, other: Candidate) -> bool:
    """Whether one's log-loss is lower, on the same rows, by more than a standard error."""
    assert one.losses is not None
    assert other.losses is not None
    gain = other.losses - one.losses
    return bool(gain.mean() > gain.std() / len(gain) ** 0.5)


def _calibrated(choice: Choice, forward: Forward) -> Choice:
    """Recalibrate where a sigmoid had lowered the log-loss at both of two forward instants.

    The sigmoid of an instant is fitted to the newest one that had closed by then. Isotonic
    regression is not tried: it cost up to 0.02 of average precision on real data.
    """
    if forward.spec.task != "propensity":
        return choice
    wins, compared = [], []
    for instant in forward.split.train[-2:]:
        earlier = forward.closed_by(instant)
        if not (earlier and forward.is_possible(instant) and forward.is_possible(earlier[-1])):
            why = "too little history to try a sigmoid on two forward snapshots"
            return _with(choice, None, f"Probabilities are the trees' own: {why}.")
        raw, sigmoid = _losses(choice, forward, instant, earlier[-1])
        wins.append(sigmoid < raw)
        compared.append(f"{raw:.4f} raw, {sigmoid:.4f} with a sigmoid on {instant:%Y-%m-%d}")
    said = "log-loss " + " and ".join(compared)
    if len(wins) < 2 or not all(wins):
        return _with(choice, None, f"Probabilities are the trees' own: {said}.")
    y, score = forward.predict(choice.parameters, forward.newest)
    return _with(choice, estimators.fit_sigmoid(score, y), f"Recalibrated by a sigmoid: {said}.")


def _losses(
    choice: Choice, forward: Forward, instant: datetime, earlier: datetime
) -> tuple[float, float]:
    import numpy as np

    before, before_score = forward.predict(choice.parameters, earlier)
    y, score = forward.predict(choice.parameters, instant)
    slope, shift = estimators.fit_sigmoid(before_score, before)
    changed = 1 / (1 + np.exp(-slope * estimators.log_odds(score) - shift))
    raw, sigmoid = (propensity_metrics(y, s, draws=1)["log_loss"].value for s in (score, changed))
    return raw, sigmoid


def _with(choice: Choice, sigmoid: tuple[float, float] | None, why: str) -> Choice:
    return Choice(choice.parameters, choice.candidates, sigmoid, why)


def _tune(forward: Forward, start: Mapping[str, Any], seconds: float) -> list[Candidate]:
    """Search parameters with Optuna's TPE (Akiba et al. 2019), beginning from the best so far."""
    try:
        import optuna
    except ImportError:
        raise CdpError("'tuning' needs Optuna: pip install 'cdp-ml[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tried: list[Candidate] = []
    metric, sign = DECISIVE[forward.spec.task]

    def attempt(trial: Any) -> float:
        tried.append(forward.candidate({**start, **_suggested(trial)}))
        return sign * tried[-1].metrics[metric]

    sampler = optuna.samplers.TPESampler(seed=int(start["seed"]))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial({name: start[name] for name in dict(_ranges())})
    study.optimize(attempt, timeout=seconds)
    return tried


def _ranges() -> Iterator[tuple[str, tuple[float, float, bool]]]:
    """By parameter the least, the most, and whether it is searched by its logarithm."""
    yield "n_estimators", (100, 800, True)
    yield "num_leaves", (3, 63, True)
    yield "learning_rate", (0.01, 0.1, True)
    yield "min_child_samples", (5, 200, True)
    yield "colsample_bytree", (0.3, 1.0, False)
    yield "reg_lambda", (0.1, 50.0, True)


def _suggested(trial: Any) -> dict[str, Any]:
    return {
        name: trial.suggest_int(name, low, high, log=log)
        if isinstance(low, int)
        else trial.suggest_float(name, low, high, log=log)
        for name, (low, high, log) in _ranges()
    }


def _sampled(rows: pa.Table) -> pa.Table:
    import numpy as np

    if rows.num_rows <= MOST_ROWS:
        return rows
    drawn = np.random.default_rng(1).choice(rows.num_rows, MOST_ROWS, replace=False)
    return rows.take(np.sort(drawn))

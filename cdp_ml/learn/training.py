"""From a training frame to a fitted and judged model.

The model that is registered is the one that was judged: it is not fitted again with the test rows,
so that its metrics describe what is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from cdp_ml.errors import ContractError, NotPromotedError
from cdp_ml.learn import baselines, clusters, estimators, next_category, selection, uplift
from cdp_ml.learn.datasets import (
    TimeSplit,
    as_arrow,
    check_no_copy,
    check_no_leak,
    feature_names,
    in_order,
    matrix,
    rows_at,
    too_good,
)
from cdp_ml.learn.drift import SCORE, Drift, Profile, profile
from cdp_ml.learn.evaluate import (
    Estimate,
    Evaluation,
    check_learnable,
    judge_propensity,
    judge_value,
)
from cdp_ml.learn.next_category_features import FEATURES as NEXT_FEATURES
from cdp_ml.learn.next_category_training import train_next
from cdp_ml.learn.score import Predictor
from cdp_ml.learn.selection import OBJECTIVES, Choice, candidates_table, choose
from cdp_ml.learn.uplift_experiment import experiment_of
from cdp_ml.learn.uplift_training import train_uplift
from cdp_ml.learn.value import ValueModel

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from sklearn.pipeline import Pipeline

    from cdp_ml.config import ModelSpec


YEAR = timedelta(days=330)
"""Instants that span so much cover the seasons: the rest lies between two snapshots."""
_DEFAULTS = {
    **selection.DEFAULTS,
    "clustering": clusters.DEFAULTS,
    "uplift": uplift.DEFAULTS,
    "next_category": next_category.DEFAULTS,
}
"""The parameters of each task."""
EXPLAINED = 500
"""How many test rows are explained for the summary of contributions: each costs a millisecond."""


@dataclass(frozen=True)
class Trained:
    """A fitted model with everything that its report and its registration need.

    `typical` is the median of each feature (an example without personal data), `excluded` the
    features without at least two values, `importance` the trees' total gain by feature. `outcomes`
    and `scores` (of `model`, of each baseline, and of the `champion`) are those of the test rows.
    `choice` tells what was tried, `profile` what later customers are compared with: those of the
    test, the newest that the model was judged on. `explained` holds the features of some test rows
    and their contributions to the scores, `champion` is the version that it was compared with.
    """

    spec: ModelSpec
    split: TimeSplit
    predictor: Predictor
    evaluation: Evaluation
    parameters: Mapping[str, Any]
    rows: Mapping[str, int]
    typical: Mapping[str, float]
    excluded: tuple[str, ...] = ()
    importance: Mapping[str, float] = field(default_factory=dict)
    outcomes: np.ndarray | None = None
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    choice: Choice | None = None
    profile: Profile = field(default_factory=dict)
    explained: tuple[np.ndarray, np.ndarray] | None = None
    champion: int | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The values of the metrics by name, without intervals."""
        return {name: estimate.value for name, estimate in self.evaluation.metrics.items()}

    @property
    def promoted(self) -> bool:
        """Whether the gate lets the model be served."""
        return self.evaluation.promoted

    @property
    def verdict(self) -> str:
        """Why it may be served, or why not, in a sentence."""
        return self.evaluation.verdict


def check_parameters(spec: ModelSpec) -> None:
    """Refuse an `estimator` with which a model could not be trained.

    Raises:
        ConfigError: if a parameter is unknown, or its value makes no sense.
    """
    origin, defaults = estimators.estimator_of(spec.name), _DEFAULTS[spec.task]
    if spec.task in OBJECTIVES:
        estimators.parameters(spec.estimator, 0, origin, defaults)
    else:
        estimators.with_defaults(spec.estimator, defaults, origin)


def train(
    spec: ModelSpec, frame: Any, split: TimeSplit, champion: Predictor | None = None
) -> Trained:
    """Fit a model on the training instants and judge it on the test instant.

    Args:
        spec: the model.
        frame: customer_id, event_timestamp, features, and label for propensities; one row for each
            eligible customer and instant (Arrow or pandas). For uplift also `arm`; for a
            next_category the lines of `cdp_ml.learn.next_category_training.train_next`.
        split: the instants, of `cdp_ml.learn.datasets.time_split`.
        champion: the present champion, to compare with on the same test, unless it needs features
            that are gone or has seen what came of the test; clusters begin at its.

    Raises:
        LeakageError: if the frame knows the future.
        ContractError: if a column is missing or a label is null.
        ConfigError: if `spec.estimator` names an unknown parameter.
        NotPromotedError: if there is too little data to learn or to judge.
    """
    if spec.task == "next_category":
        table = as_arrow(frame)
    else:
        table = in_order(frame)
        check_no_leak(table, split, spec.name)
    if spec.task == "clustering":
        return _train_clusters(spec, table, split, champion)
    fit = {"next_category": _train_next, "uplift": _train_uplift}.get(spec.task, _train_supervised)
    unlike = _why_not_compared(champion, table, split) if champion else ""
    trained = fit(spec, table, split, None if unlike else champion)
    if unlike:
        said = f"{trained.verdict} {unlike}"
        return replace(trained, evaluation=replace(trained.evaluation, verdict=said))
    return replace(trained, champion=champion.version) if champion else trained


def _why_not_compared(champion: Predictor, table: pa.Table, split: TimeSplit) -> str:
    """Why a champion cannot be compared with on this test, in a sentence; empty if it can."""
    known = champion.features if champion.task == "next_category" else table.column_names
    said = f"It was not compared with version {champion.version}, which"
    if gone := sorted(set(champion.features) - set(known)):
        return f"{said} needs '{gone[0]}', a feature that is gone."
    until = champion.learned_until
    if until is None:
        return f"{said} does not tell until when it learned."
    if until > split.test:
        return f"{said} learned from outcomes until {until:%Y-%m-%d}: it has seen this test."
    return ""


def _train_supervised(
    spec: ModelSpec, table: pa.Table, split: TimeSplit, champion: Predictor | None
) -> Trained:
    """Train a propensity or a value model: alike but for objective, baselines and judgement."""
    past, test = rows_at(table, split.train), rows_at(table, (split.test,))
    y, y_test = _labels(past, spec.name), _labels(test, spec.name)
    check_learnable(y > 0, spec.name, "training")
    check_learnable(y_test > 0, spec.name, "test")
    features, excluded = _informative(spec, past)
    x = matrix(past, features)
    check_no_copy(x, y, features, spec.name)
    doubt = too_good(x, y, features)
    choice = choose(spec, past, split, features)
    newest = matrix(rows_at(past, split.train[-1:]), features)
    logistic = estimators.fit_logistic(x, y) if spec.task == "propensity" else None
    model = _fitted(spec, choice, (x, y), newest, features, logistic)
    predictor = _predictor(spec, split, features, model)
    score = predictor.predict(test)
    rivals = _rivals(spec, features, matrix(test, features), logistic)
    judge = judge_value if spec.task == "value" else judge_propensity
    theirs = champion.predict(test) if champion else None
    judged = judge(spec.name, y_test, score, rivals, spec.beat_baselines_by, theirs)
    judged = replace(judged, verdict=f"{judged.verdict} {doubt}".strip())
    seasonal = _seasonal(past, features)  # differ they must: that is no drift
    watched = tuple(f for f in features if f not in seasonal)
    tables = _tables(choice, profile(past, watched, score), test, score)
    gain = predictor.booster.feature_importance("gain", choice.parameters["n_estimators"])
    return Trained(
        spec=spec,
        split=split,
        predictor=predictor,
        evaluation=replace(judged, tables={**judged.tables, **tables}),
        parameters=choice.parameters,
        rows={
            "train_rows": len(y),
            "train_positives": int((y > 0).sum()),
            "test_rows": len(y_test),
            "test_positives": int((y_test > 0).sum()),
        },
        typical=_typical(x, features),
        excluded=excluded,
        importance=dict(zip(features, map(float, gain), strict=True)),
        outcomes=y_test,
        scores={"model": score, **rivals, **({} if theirs is None else {"champion": theirs})},
        choice=choice,
        profile=profile(test, watched, score),
        explained=_explained(predictor, test),
    )


def _predictor(
    spec: ModelSpec,
    split: TimeSplit,
    features: tuple[str, ...],
    model: Any,
    clusters: tuple[str, ...] = (),
) -> Predictor:
    """A fitted model that is not registered yet."""
    return Predictor(
        *(spec.name, 0, spec.task, features, model, clusters),
        learned_until=split.train[-1] + split.horizon,
        question=spec.question(),
    )


def _fitted(
    spec: ModelSpec,
    choice: Choice,
    train: tuple[np.ndarray, np.ndarray],
    newest: np.ndarray,
    features: tuple[str, ...],
    logistic: Pipeline | None,
) -> Any:
    """The booster of a propensity, recalibrated if so chosen; a value model."""
    params, objective = choice.parameters, OBJECTIVES[spec.task]
    booster = estimators.fit_lightgbm(*train, features, params, objective)
    if logistic is None:
        # All orders tell nothing of the level of what is spent on some.
        narrow = spec.label.category or spec.label.product
        ahead = spec.label.within_days
        expected = None if narrow else baselines.expectation_at(newest, features, ahead)
        return ValueModel(booster, features, expected)
    if params["logistic_share"]:
        booster = estimators.join_logistic(booster, logistic, train[0], params["logistic_share"])
    return estimators.recalibrate(booster, *choice.sigmoid) if choice.sigmoid else booster


def _rivals(
    spec: ModelSpec, features: tuple[str, ...], x: np.ndarray, logistic: Pipeline | None
) -> Mapping[str, np.ndarray]:
    """The baselines' scores of the test rows."""
    ahead = spec.label.within_days
    if logistic is None:
        return baselines.value_baselines(x, features, ahead)
    return baselines.propensity_baselines(logistic, x, features, spec.label.happens, ahead)


def _tables(choice: Choice, profiled: Profile, test: pa.Table, score: np.ndarray) -> dict[str, Any]:
    """What was tried, and how far the test customers are from the training's."""
    import pyarrow as pa

    drift = Drift(profiled)
    drift.count(test)
    drift.count(pa.table({SCORE: score}))
    found = {"drift": drift.table()}
    if choice.candidates:
        found["candidates"] = candidates_table(choice.candidates)
    return found


def _explained(predictor: Predictor, test: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Values and contributions of the features of some test rows, drawn at random."""
    import numpy as np

    rows = np.random.default_rng(1).permutation(test.num_rows)[:EXPLAINED]
    x = matrix(test.take(np.sort(rows)), predictor.features)
    return x, predictor.booster.predict(x, pred_contrib=True, num_threads=1)[:, :-1]


def _train_uplift(
    spec: ModelSpec, table: pa.Table, split: TimeSplit, champion: Predictor | None
) -> Trained:
    features, excluded = _informative(spec, table)
    experiment = experiment_of(table, features, spec.treatment, spec.name)
    theirs = champion.predict(table) if champion else None
    trial = train_uplift(experiment, spec.estimator, spec.name, theirs)
    return Trained(
        spec=spec,
        split=split,
        predictor=_predictor(spec, split, features, trial.model),
        evaluation=trial.evaluation,
        parameters={
            **_completed(spec, uplift.DEFAULTS),
            "learner": trial.model.kind,
        },
        rows={
            "train_rows": len(experiment.y),
            "train_treated": int(experiment.treated.sum()),
            "train_positives": int(experiment.y.sum()),
        },
        typical=_typical(experiment.x, features),
        excluded=excluded,
        profile=profile(table, features, trial.model.predict(experiment.x)),
    )


def _train_next(
    spec: ModelSpec, lines: pa.Table, split: TimeSplit, champion: Predictor | None
) -> Trained:
    if "as_of" not in lines.column_names:
        raise ContractError(f"model '{spec.name}': the training frame has no column 'as_of'")
    rival = champion.model if champion else None
    trial = train_next(lines, split, spec.estimator, spec.name, spec.top, rival)
    features, booster, x = NEXT_FEATURES, trial.ranker.booster, trial.sample
    gain = booster.feature_importance("gain")
    return Trained(
        spec=spec,
        split=split,
        predictor=_predictor(spec, split, features, trial.ranker),
        evaluation=trial.evaluation,
        parameters=trial.ranker.parameters,
        rows=trial.rows,
        typical=_typical(x, features),
        importance=dict(zip(features, map(float, gain), strict=True)),
        explained=(x, booster.predict(x, pred_contrib=True, num_threads=1)[:, :-1]),
    )


def _train_clusters(
    spec: ModelSpec, table: pa.Table, split: TimeSplit, champion: Predictor | None
) -> Trained:
    features, excluded = _informative(spec, table)
    x = matrix(table, features)
    former = champion if champion and champion.features == features else None
    start = former.model if former else None
    chosen, candidates = clusters.fit_clusters(x, spec.estimator, spec.name, start)
    params = _completed(spec, clusters.DEFAULTS)
    names = clusters.name_clusters(chosen.pipeline, features)
    if former:
        names = clusters.keep_names(chosen.pipeline, features, x, (former.model, former.clusters))
    assigned = chosen.pipeline.predict(x)
    profiles = clusters.profile_table(x, assigned, names, features)
    predictor = _predictor(spec, split, features, chosen.pipeline, names)
    return Trained(
        spec=spec,
        split=split,
        predictor=predictor,
        evaluation=Evaluation(
            metrics={**_cluster_metrics(chosen), **_staying(predictor, former, table)},
            tables={"profiles": profiles, "candidates": clusters.candidates_table(candidates)},
            promoted=clusters.qualifies(chosen, params),
            verdict=_cluster_verdict(spec.name, chosen, params),
        ),
        parameters={**params, "clusters": chosen.k},
        rows={"train_rows": len(x)},
        typical=_typical(x, features),
        excluded=excluded,
    )


def _completed(
    spec: ModelSpec, defaults: Mapping[str, int | float | str]
) -> dict[str, int | float | str]:
    origin = estimators.estimator_of(spec.name)
    return estimators.with_defaults(spec.estimator, defaults, origin)


def _staying(
    predictor: Predictor, former: Predictor | None, table: pa.Table
) -> dict[str, Estimate]:
    """The share of customers whom the former model puts into the cluster of the same name."""
    if former is None:
        return {}
    share = float((predictor.assign(table) == former.assign(table)).mean())
    return {"same_as_champion": Estimate(share, share, share)}


def _cluster_metrics(chosen: clusters.Candidate) -> dict[str, Estimate]:
    exact = {"silhouette": chosen.silhouette, "smallest_share": chosen.smallest_share}
    exact["clusters"] = float(chosen.k)
    return {"stability": chosen.stability} | {k: Estimate(v, v, v) for k, v in exact.items()}


def _cluster_verdict(name: str, chosen: clusters.Candidate, params: Mapping[str, Any]) -> str:
    found = (
        f"{chosen.k} clusters, stability {chosen.stability.value:.2f}, silhouette "
        f"{chosen.silhouette:.2f}, the smallest {chosen.smallest_share:.0%} of customers"
    )
    if clusters.qualifies(chosen, params):
        return f"{name} is promoted: {found}."
    needed = f"{params['min_stability']:.2f} and {params['min_share']:.0%}"
    return f"{name} is not promoted: {found}; needs a stability and a share of at least {needed}."


def _labels(rows: pa.Table, name: str) -> np.ndarray:
    """The outcomes of the rows, refusing unknown ones."""
    if "label" not in rows.column_names:
        raise ContractError(f"model '{name}': the training frame has no column 'label'")
    if rows["label"].null_count:
        raise ContractError(f"model '{name}': {rows['label'].null_count} rows without a label")
    return matrix(rows, ("label",))[:, 0]


def _informative(spec: ModelSpec, rows: pa.Table) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The features with at least two values among the rows, and the others.

    What is the same for all customers at each instant, such as the day of the year, tells seasons
    apart only if the instants cover a year; else it would stand for whatever else has changed.
    """
    import pyarrow.compute as pc

    names = feature_names(spec, rows)
    if not rows.num_rows:
        raise NotPromotedError(
            f"model '{spec.name}': nobody to learn from: its 'population' has 0 customers"
        )
    kept = tuple(n for n in names if _varies(matrix(rows, (n,))[:, 0]))
    instants = rows["event_timestamp"]
    if pc.max(instants).as_py() - pc.min(instants).as_py() < YEAR:
        seasonal = _seasonal(rows, kept)
        kept = tuple(n for n in kept if n not in seasonal)
    if not kept:
        raise NotPromotedError(
            f"model '{spec.name}': none of its {len(names)} features varies over {rows.num_rows} "
            "rows: nothing to learn from"
        )
    return kept, tuple(n for n in names if n not in kept)


def _seasonal(rows: pa.Table, features: tuple[str, ...]) -> tuple[str, ...]:
    """The features that are the same for all customers at each instant; rows are in order."""
    import numpy as np

    instants = rows["event_timestamp"].to_numpy()
    begins = np.flatnonzero(np.append(True, instants[1:] != instants[:-1]))

    def is_same(values: np.ndarray) -> bool:
        least, most = (f.reduceat(values, begins) for f in (np.minimum, np.maximum))
        return bool((least == most).all())

    return tuple(n for n in features if is_same(matrix(rows, (n,))[:, 0]))


def _varies(values: np.ndarray) -> bool:
    import numpy as np

    known = values[~np.isnan(values)]
    return bool(len(known) and known.min() < known.max())


def _typical(x: np.ndarray, features: tuple[str, ...]) -> dict[str, float]:
    import numpy as np

    known = (column[~np.isnan(column)] for column in x.T)
    medians = (float(np.median(values)) if len(values) else 0.0 for values in known)
    return dict(zip(features, medians, strict=True))

"""From a training frame to a fitted and judged model.

The model that is registered is the one that was judged: it is not fitted again with the test rows,
so that its metrics describe what is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cdp_ml.errors import ContractError, NotPromotedError
from cdp_ml.learn import clusters, estimators
from cdp_ml.learn.datasets import (
    TimeSplit,
    as_arrow,
    check_no_leak,
    feature_names,
    matrix,
    rows_at,
)
from cdp_ml.learn.evaluate import (
    Estimate,
    Evaluation,
    check_learnable,
    is_learnable,
    judge_propensity,
    propensity_metrics,
)
from cdp_ml.learn.score import Predictor

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from cdp_ml.config import ModelSpec


@dataclass(frozen=True)
class Trained:
    """A fitted model with everything that its report and its registration need.

    `typical` is the median of each feature (an example without personal data), `excluded` the
    features without at least two values, `importance` the total gain by feature. `outcomes` and
    `scores` (of `model` and of each baseline) are those of the test rows.
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


def train(
    spec: ModelSpec, frame: Any, split: TimeSplit, champion: Predictor | None = None
) -> Trained:
    """Fit a model on the training instants and judge it on the test instant.

    Args:
        spec: the model.
        frame: customer_id, event_timestamp, features, and label for propensities; one row for each
            eligible customer and instant (Arrow or pandas).
        split: the instants, of `cdp_ml.learn.datasets.time_split`.
        champion: the present champion, to compare with on the same test.

    Raises:
        LeakageError: if the frame knows the future.
        ContractError: if a column is missing or a label is null.
        ConfigError: if `spec.estimator` names an unknown parameter.
        NotPromotedError: if there is too little data to learn or to judge.
    """
    table = as_arrow(frame)
    check_no_leak(table, split, spec.name)
    if spec.task == "clustering":
        return _train_clusters(spec, table, split)
    return _train_propensity(spec, table, split, champion)


def _train_propensity(
    spec: ModelSpec, table: pa.Table, split: TimeSplit, champion: Predictor | None
) -> Trained:
    past, test = rows_at(table, split.train), rows_at(table, (split.test,))
    y, y_test = _labels(past, spec.name), _labels(test, spec.name)
    check_learnable(y, spec.name, "training")
    check_learnable(y_test, spec.name, "test")
    features, excluded = _informative(spec, past)
    x, x_test = matrix(past, features), matrix(test, features)
    params, tried = _chosen_parameters(spec, past, split, features)
    booster = estimators.fit_lightgbm(x, y, features, params)
    predictor = Predictor(spec.name, 0, spec.task, features, booster)
    score = predictor.predict(test)
    rivals = estimators.baseline_scores((x, y), x_test, features, spec.label.happens)
    judged = judge_propensity(
        spec.name, y_test, score, rivals, spec.beat_baselines_by, _champion_scores(champion, test)
    )
    gain = booster.feature_importance("gain")
    return Trained(
        spec=spec,
        split=split,
        predictor=predictor,
        evaluation=replace(judged, tables={**judged.tables, **tried}),
        parameters=params,
        rows={
            "train_rows": len(y),
            "train_positives": int(y.sum()),
            "test_rows": len(y_test),
            "test_positives": int(y_test.sum()),
        },
        typical=_typical(x, features),
        excluded=excluded,
        importance=dict(zip(features, (float(g) for g in gain), strict=True)),
        outcomes=y_test,
        scores={"model": score, **rivals},
    )


def _chosen_parameters(
    spec: ModelSpec, past: pa.Table, split: TimeSplit, features: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    """The parameters of LightGBM, and what was tried to find those that the specification asks for.

    Raises:
        ConfigError: if a parameter is unknown.
    """
    origin = f"models/{spec.name}.yaml: estimator"
    params = estimators.parameters(spec.estimator, past.num_rows, origin)
    if spec.estimator.get("num_leaves") != estimators.AUTO:
        return params, {}
    tried = _try_leaves(params, past, split, features)
    if tried is None:
        return params, {}
    return {**params, "num_leaves": tried["num_leaves"][0].as_py()}, {"leaves": tried}


def _try_leaves(
    params: Mapping[str, Any], past: pa.Table, split: TimeSplit, features: tuple[str, ...]
) -> pa.Table | None:
    """Try numbers of leaves on the newest training instant, before the test is looked at.

    Each is fitted on the training instants whose label windows had closed by then.

    Returns:
        num_leaves, log_loss and auc, the least log-loss first; None if no window had closed, or
        there is too little to learn or to judge.
    """
    import pyarrow as pa

    newest = split.train[-1]
    closed = tuple(t for t in split.train if t + split.horizon <= newest)
    fit, held = rows_at(past, closed), rows_at(past, (newest,))
    (x, y), (x_held, y_held) = (
        (matrix(rows, features), matrix(rows, ("label",))[:, 0]) for rows in (fit, held)
    )
    if not (is_learnable(y) and is_learnable(y_held)):
        return None
    tried = []
    for leaves in estimators.LEAVES:
        booster = estimators.fit_lightgbm(x, y, features, {**params, "num_leaves": leaves})
        found = propensity_metrics(y_held, booster.predict(x_held, num_threads=1), draws=1)
        measured = {name: found[name].value for name in ("log_loss", "auc")}
        tried.append({"num_leaves": leaves, **measured})
    return pa.Table.from_pylist(sorted(tried, key=lambda row: row["log_loss"]))


def _train_clusters(spec: ModelSpec, table: pa.Table, split: TimeSplit) -> Trained:
    features, excluded = _informative(spec, table)
    x = matrix(table, features)
    chosen, candidates = clusters.fit_clusters(x, spec.estimator, spec.name)
    params = clusters.clustering_parameters(spec.estimator, spec.name)
    names = clusters.name_clusters(chosen.pipeline, features)
    assigned = chosen.pipeline.predict(x)
    profiles = clusters.profile_table(x, assigned, names, features)
    return Trained(
        spec=spec,
        split=split,
        predictor=Predictor(spec.name, 0, spec.task, features, chosen.pipeline, names),
        evaluation=Evaluation(
            metrics=_cluster_metrics(chosen),
            tables={"profiles": profiles, "candidates": clusters.candidates_table(candidates)},
            promoted=clusters.qualifies(chosen, params),
            verdict=_cluster_verdict(spec.name, chosen, params),
        ),
        parameters={**params, "clusters": chosen.k},
        rows={"train_rows": len(x)},
        typical=_typical(x, features),
        excluded=excluded,
    )


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
    """The features with at least two values among the rows, and the others."""
    import numpy as np

    names = feature_names(spec, rows)
    x = matrix(rows, names)
    varies = [len(np.unique(column[~np.isnan(column)])) > 1 for column in x.T]
    kept = tuple(n for n, v in zip(names, varies, strict=True) if v)
    if not kept:
        raise NotPromotedError(
            f"model '{spec.name}': none of its {len(names)} features varies over {rows.num_rows} "
            "rows: nothing to learn from"
        )
    return kept, tuple(n for n in names if n not in kept)


def _typical(x: np.ndarray, features: tuple[str, ...]) -> dict[str, float]:
    import numpy as np

    return dict(zip(features, (float(v) for v in np.nanmedian(x, axis=0)), strict=True))


def _champion_scores(champion: Predictor | None, test: pa.Table) -> np.ndarray | None:
    """The champion's scores of the test rows; none if it needs features that are gone."""
    if champion is None or not set(champion.features) <= set(test.column_names):
        return None
    return champion.predict(test)

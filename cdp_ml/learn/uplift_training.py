"""Training a model of uplift: compare the learners on a campaign, and choose one to serve, or none.

Nobody is seen both treated and not, so a model is judged by groups: each customer is scored by
models that have not seen her (cross-fitting), and customers with high scores must show a larger
difference between the arms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cdp_ml.errors import NotPromotedError
from cdp_ml.learn.estimators import estimator_of, limited_threads, with_defaults
from cdp_ml.learn.evaluate import Estimate, Evaluation, too_few_to_tell
from cdp_ml.learn.uplift import DEFAULTS, KINDS, LEARNERS, UpliftModel, fit_models
from cdp_ml.learn.uplift_balance import Balance, check_randomized
from cdp_ml.learn.uplift_metrics import (
    METRICS,
    average_effect,
    curve_table,
    decile_table,
    qini,
    uplift_metrics,
)

if TYPE_CHECKING:
    import numpy as np

    from cdp_ml.learn.uplift_experiment import Experiment

FEWEST = 50
"""Fewer customers of an arm with the outcome, or without, and no difference can be judged."""


@dataclass(frozen=True)
class Trial:
    """A trained uplift model with its evaluation; `scores` by kind, each out of fold."""

    model: UpliftModel
    evaluation: Evaluation
    scores: Mapping[str, np.ndarray]


def train_uplift(
    experiment: Experiment,
    given: Mapping[str, int | float | str],
    name: str,
    champion: np.ndarray | None = None,
) -> Trial:
    """Train the learners on a campaign, and choose the one to serve, or none.

    The learners are compared by cross-fitting with targeting by propensity and with a rule of one
    feature, chosen within the folds as well. What is returned is fitted on all customers, by the
    learner that the cross-fitting was about.

    It is promoted if chance decided who was treated (`check_randomized`), the interval of its Qini
    coefficient is above 0, so is that of its lead over targeting by propensity (paired bootstrap),
    and that of its gain over the champion does not reach below 0. Where the rule beats propensity
    too and the best learner's lead over it is not clear of 0, the rule is promoted instead: it
    says the same in a sentence.

    Args:
        experiment: the campaign.
        given: the model's `estimator`, over `DEFAULTS`.
        name: the model's name, for messages.
        champion: the uplifts by the present champion, which learned from an earlier campaign.

    Raises:
        ConfigError: if a parameter is unknown or no number.
        NotPromotedError: if an arm is too small or no feature varies.
    """
    import numpy as np

    params = with_defaults(given, DEFAULTS, estimator_of(name))
    _check_learnable(experiment, name)
    with limited_threads(experiment.x):
        scores = cross_fit(experiment, params)
        balance = check_randomized(experiment, int(params["seed"]))
        learner, out_of_fold = choose_learner(experiment, scores, params)
        compared = {**scores, learner: out_of_fold}
        if champion is not None:
            compared["champion"] = np.atleast_2d(champion)
        kind, evaluation = judge_uplift(name, experiment, compared, learner, balance)
        model = fit_models(experiment, params, [kind])[kind]
    if kind == "rule":
        evaluation = replace(evaluation, verdict=f"{evaluation.verdict} The rule: {model}.")
    return Trial(model, evaluation, scores)


def cross_fit(
    experiment: Experiment, params: Mapping[str, int | float | str]
) -> dict[str, np.ndarray]:
    """Score each customer by models that were fitted without her.

    Returns:
        By kind repeats x customers, a new division into folds for each repeat: her rank by uplift
        within her fold, above 0 to 1, ties in one. The folds' models are not the same, so their
        uplifts would not compare.
    """
    import numpy as np
    from scipy.stats import rankdata

    repeats, rows = int(params["repeats"]), len(experiment.y)
    scores = {kind: np.empty((repeats, rows)) for kind in KINDS}
    for repeat in range(repeats):
        for fit, held in _folds(experiment, params, repeat):
            for kind, model in fit_models(experiment.rows(fit), params).items():
                gain = model.predict(experiment.x[held])
                scores[kind][repeat, held] = rankdata(gain) / len(held)
    return scores


def _folds(
    e: Experiment, params: Mapping[str, Any], repeat: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Parts of the customers to fit and to score, with arms and outcomes alike in all."""
    from sklearn.model_selection import StratifiedKFold

    seed = int(params["seed"]) + repeat
    folds = StratifiedKFold(int(params["folds"]), shuffle=True, random_state=seed)
    yield from folds.split(e.x, 2 * e.treated + e.y)


def choose_learner(
    experiment: Experiment,
    scores: Mapping[str, np.ndarray],
    params: Mapping[str, int | float | str],
) -> tuple[str, np.ndarray]:
    """The learner with the best Qini, and scores that owe nothing to that choice.

    Returns:
        Its name; and repeats x customers, in each fold the scores of the learner that did best on
        the other folds: what the choice of a best one is worth.
    """
    import numpy as np

    def best(rows: np.ndarray, repeats: Sequence[int]) -> str:
        y, treated = experiment.y[rows], experiment.treated[rows]

        def worth(kind: str) -> float:
            return sum(qini(y, treated, scores[kind][repeat, rows]) for repeat in repeats)

        return max((kind for kind in scores if kind in LEARNERS), key=worth)

    every, repeats = np.arange(len(experiment.y)), range(int(params["repeats"]))
    found = np.empty((len(repeats), len(every)))
    for repeat in repeats:
        for fit, held in _folds(experiment, params, repeat):
            found[repeat, held] = scores[best(fit, [repeat])][repeat, held]
    return best(every, repeats), found


def judge_uplift(
    name: str,
    experiment: Experiment,
    scores: Mapping[str, np.ndarray],
    learner: str,
    balance: Balance,
) -> tuple[str, Evaluation]:
    """Decide which model may be served, if any; the rules stand in `train_uplift`.

    Args:
        name: the model's name.
        experiment: the campaign.
        scores: as from `cross_fit`, of the learner as from `choose_learner`; perhaps the
            `champion`'s.
        learner: the one that may be served.
        balance: as from `check_randomized`.

    Returns:
        The kind that the evaluation is about: the one promoted, or else the best learner.
    """
    found = uplift_metrics(experiment.y, experiment.treated, scores)
    chosen = _simplest(found, learner)
    refusal = _refusal(found, chosen, balance, len(experiment.y))
    if refusal:
        verdict = f"{name} is not promoted: {refusal}."
    else:
        verdict = f"{name} is promoted{_praise(found, learner, chosen)}."
    metrics = {
        **_metrics_of(found, chosen),
        "average_effect": average_effect(experiment),
        "balance_auc": balance.auc,
        **{
            f"{'' if k == 'champion' else 'baseline_'}{k}/{m}": found[f"{k}/{m}"]
            for k in scores
            if k != chosen
            for m in METRICS
        },
    }
    tables = {
        "balance": balance.table,
        "deciles": decile_table(experiment, scores[chosen][0]),
        "qini": curve_table(experiment, {k: s[0] for k, s in scores.items()}),
    }
    return chosen, Evaluation(metrics, tables, not refusal, verdict)


def _metrics_of(found: Mapping[str, Estimate], kind: str) -> dict[str, Estimate]:
    """The metrics of one kind, and its leads over others."""
    lead = f"{kind}/qini_lead/"
    leads = {n.removeprefix(lead): e for n, e in found.items() if n.startswith(lead)}
    gain = {"champion/qini_gain": leads.pop("champion")} if "champion" in leads else {}
    return {
        **{m: found[f"{kind}/{m}"] for m in METRICS},
        **{f"qini_lead_over_{other}": estimate for other, estimate in leads.items()},
        **gain,
    }


def _simplest(found: Mapping[str, Estimate], learner: str) -> str:
    """The rule if it passes the gate and the learner is not clearly better, else the learner."""
    passes = min(found["rule/qini"].low, found["rule/qini_lead/propensity"].low) > 0
    clear = found[f"{learner}/qini_lead/rule"].low > 0
    return "rule" if passes and not clear else learner


def _refusal(found: Mapping[str, Estimate], chosen: str, balance: Balance, rows: int) -> str:
    """Why the chosen kind may not be served; empty if it may."""
    if not balance.randomized:
        return (
            f"who was treated can be told from what was known before (AUC {balance.auc}), so it "
            "was not chance, and the arms' difference is no effect"
        )
    compared, qini = _compared(found, chosen), found[f"{chosen}/qini"]
    if qini.low <= 0:
        return f"{compared}; the Qini's interval must be above 0{too_few_to_tell(qini, rows)}"
    lead = found[f"{chosen}/qini_lead/propensity"]
    if lead.low <= 0:
        return f"{compared}; the lead's interval must be above 0{too_few_to_tell(lead, rows)}"
    gain = found.get(f"{chosen}/qini_lead/champion")
    if gain and gain.low < 0:
        return f"{compared}; its gain's interval must not reach below 0"
    return ""


def _praise(found: Mapping[str, Estimate], learner: str, chosen: str) -> str:
    if chosen != "rule":
        lead = found[f"{chosen}/qini_lead/rule"]
        return f": {_compared(found, chosen)}; lead over a rule of one feature {lead}"
    return (
        f" as a rule of one feature, which does as well as {learner} (Qini "
        f"{found[f'{learner}/qini']}): {_compared(found, chosen)}"
    )


def _compared(found: Mapping[str, Estimate], chosen: str) -> str:
    gain = found.get(f"{chosen}/qini_lead/champion")
    return (
        f"Qini of {chosen} {found[f'{chosen}/qini']}, of targeting by propensity "
        f"{found['propensity/qini']}, lead {found[f'{chosen}/qini_lead/propensity']}"
        + (f"; of the champion {found['champion/qini']}, gain over it {gain}" if gain else "")
    )


def _check_learnable(e: Experiment, name: str) -> None:
    import numpy as np

    for arm, members in e.arms.items():
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

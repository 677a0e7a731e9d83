"""Training a model of the next items, and judging it on a later window beside what is simpler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdp_ml.errors import NotPromotedError
from cdp_ml.learn.estimators import estimator_of, fit_lightgbm, with_defaults
from cdp_ml.learn.evaluate import (
    Estimate,
    Evaluation,
    bootstrap_weights,
    interval,
    too_few_to_tell,
)
from cdp_ml.learn.next_category import DEFAULTS, TOP, Ranker, rank_items
from cdp_ml.learn.next_category_candidates import Ranked, rank_popular, rank_tifu
from cdp_ml.learn.next_category_features import FEATURES, candidates
from cdp_ml.learn.next_category_purchases import (
    Purchases,
    bought_between,
    item_names,
    purchases_before,
)

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    import numpy as np
    import pyarrow as pa

    from cdp_ml.learn.datasets import TimeSplit

_NOT_TREES = ("neighbors", "group", "decay_within", "decay_between", "own_share", "candidates",
              "within_days", "windows")  # fmt: skip
SMALL = 10_000
"""Fewer customers than this, over all windows, get trees of 8 leaves unless the number is given."""
SAMPLE = 500
DRAWS = 300
SEED = 1
FEWEST = 50
"""With fewer customers who bought something in the window, nothing can be learned or judged."""

Window = tuple[Purchases, "np.ndarray"]
"""Purchases before an instant, and what was bought from then on: customer and item, two columns."""


@dataclass(frozen=True)
class Trial:
    """A trained model of the next items, judged on a later window than it was trained on.

    `sample` holds the `FEATURES` of some candidates of that window.
    """

    ranker: Ranker
    evaluation: Evaluation
    rows: Mapping[str, int]
    sample: np.ndarray


def train_next(
    lines: pa.Table,
    split: TimeSplit,
    given: Mapping[str, int | float | str],
    name: str,
    top: int = TOP,
    champion: Ranker | None = None,
) -> Trial:
    """Train on the windows of the training instants, and judge on that of the test.

    In each window those are looked at who had bought before it and bought in it; windows in which
    they are too few are left out.

    Args:
        lines: as_of, and the columns that `next_category.recommend` takes: for each instant what
            had been bought before it, and what was bought within the horizon from it.
        split: the instants.
        given: the model's `estimator`, over `DEFAULTS`.
        name: the model's name, for messages.
        top: items a customer.
        champion: the present champion, to compare with on the same test.

    Raises:
        ConfigError: if a parameter is unknown or no number.
        NotPromotedError: if too few customers bought something in a window.
    """
    params = with_defaults(given, DEFAULTS, estimator_of(name))
    names = item_names(lines, split.as_of)
    *earlier, test = (_window(lines, at, split.horizon, names) for at in split.instants)
    known = [one for one in earlier if len(_buyers(one)) >= FEWEST]
    ranker = fit_ranker(known or earlier[-1:], given, name)
    rows = {
        "train_customers": sum(len(_buyers(one)) for one in known),
        "test_customers": len(_buyers(test)),
        "train_windows": len(known),
        "items": len(names),
    }
    evaluation = judge_next(*test, ranker, name, top, champion)
    return Trial(ranker, evaluation, rows, _sample(test, params))


def fit_ranker(
    windows: Sequence[Window], given: Mapping[str, int | float | str], name: str
) -> Ranker:
    """Learn to rank candidates from what customers bought next.

    Args:
        windows: of earlier instants.
        given: the model's `estimator`, over `DEFAULTS`.
        name: the model's name, for messages.

    Raises:
        ConfigError: if a parameter is unknown or no number.
        NotPromotedError: if fewer than `FEWEST` customers bought something, or nobody a candidate,
            or all of them.
    """
    import numpy as np

    params = with_defaults(given, DEFAULTS, estimator_of(name))
    for window in windows:
        _check_enough(window, name, "training")
    examples = [_examples(window, params) for window in windows]
    x, y = (np.concatenate(part) for part in zip(*examples, strict=True))
    if not 0 < y.sum() < len(y):
        raise NotPromotedError(
            f"model '{name}': {int(y.sum())} of {len(y)} candidates were bought: nothing to learn"
        )
    if sum(len(_buyers(w)) for w in windows) < SMALL and "num_leaves" not in given:
        params["num_leaves"] = 8
    trees = {k: v for k, v in params.items() if k not in _NOT_TREES}
    return Ranker(fit_lightgbm(x, y, FEATURES, trees), params)


def judge_next(
    p: Purchases,
    future: np.ndarray,
    ranker: Ranker,
    name: str,
    top: int = TOP,
    champion: Ranker | None = None,
) -> Evaluation:
    """Judge recommendations by what customers bought next, beside baselines.

    Recall is the share of what a customer bought that is among her `top` items, NDCG also counts
    their ranks; means over the customers who bought something, with 95% bootstrap intervals over
    them. The ranking is promoted if its recall exceeds that of the best baseline with the interval
    of the difference above 0 (paired bootstrap), and that of its gain over the champion does not
    reach below 0.

    Args:
        p: purchases before an instant.
        future: customer and item, two columns: what was bought from then on.
        ranker: trained on an earlier instant.
        name: the model's name.
        top: items a customer.
        champion: the present champion, trained on earlier instants too, if there is one.

    Raises:
        NotPromotedError: if fewer than `FEWEST` customers bought something.
    """
    import numpy as np

    _check_enough((p, future), name, "test")
    buyers = _buyers((p, future))
    lists = {
        "": rank_items(p, ranker, top, buyers),
        "baseline_global_top/": rank_popular(p, top, own=0.0),
        "baseline_personal_top/": rank_popular(p, top, all_=0.0),
        "baseline_personal_then_global/": rank_popular(p, top),
        "baseline_tifu_knn/": rank_tifu(p, ranker.parameters, top, buyers),
    }
    if champion is not None:
        lists["champion/"] = rank_items(p, champion, top, buyers)
    means = _bootstrap(np.stack([hits(p, one, future, top) for one in lists.values()]))
    recall, ndcg = (dict(zip(lists, part, strict=True)) for part in means)
    return _judged(name, _metrics(recall, ndcg, top), top, len(buyers))


def _judged(name: str, metrics: dict[str, Estimate], top: int, buyers: int) -> Evaluation:
    """The evaluation by these metrics; its own gain is over the best baseline."""
    recall = f"recall_at_{top}"
    rivals = [n.removesuffix("_gain") for n in metrics if n.endswith(f"/{recall}_gain")]
    best = max((r for r in rivals if r != f"champion/{recall}"), key=lambda r: metrics[r].value)
    lead = metrics[f"{recall}_gain"] = metrics[f"{best}_gain"]
    kind = best.removeprefix("baseline_").removesuffix(f"/{recall}")
    compared = (
        f"recall@{top} {metrics[recall]}, of the best baseline ({kind}) {metrics[best]}, "
        f"lead {lead}"
    )
    gain, needed = metrics.get(f"champion/{recall}_gain"), ""
    if lead.low <= 0:
        needed = f"the lead's interval must be above 0{too_few_to_tell(lead, buyers)}"
    elif gain is not None:
        compared += f"; gain over the champion on the same customers {gain}"
        needed = "" if gain.low >= 0 else "its interval must not reach below 0"
    if needed:
        return Evaluation(metrics, {}, False, f"{name} is not promoted: {compared}; {needed}.")
    return Evaluation(metrics, {}, True, f"{name} is promoted: {compared}.")


def realized_recall(offered: pa.Table, lines: pa.Table) -> dict[str, float]:
    """What recommendations turned out to be worth, once it is known what customers bought next.

    Args:
        offered: customer_id, item and rank.
        lines: customer_id and item of what was bought from then on; of others too.

    Returns:
        realized_recall_at_N, where N items were offered: the mean share of what a customer bought
        that was offered, over those who were offered and bought something; nothing if they are
        fewer than `FEWEST`.
    """
    import pyarrow.compute as pc

    key = ["customer_id", "item"]
    known = pc.is_in(lines["customer_id"], offered["customer_id"].combine_chunks())
    bought = lines.filter(known).select(key).drop_null().group_by(key).aggregate([])
    found = bought.join(offered.select(key), key, join_type="inner")
    hit, all_ = (t.group_by("customer_id").aggregate([("item", "count")]) for t in (found, bought))
    if all_.num_rows < FEWEST:
        return {}
    each = all_.join(hit, "customer_id", right_suffix="_hit")
    shares = pc.divide(pc.fill_null(each["item_count_hit"], 0).cast("float64"), each["item_count"])
    return {f"realized_recall_at_{pc.max(offered['rank'])}": pc.mean(shares).as_py()}


def hits(p: Purchases, ranked: Ranked, future: np.ndarray, top: int) -> np.ndarray:
    """Recall and NDCG of each customer who bought something, two columns."""
    import numpy as np

    wanted = np.unique(p.pair(*future.T))
    size = np.bincount(wanted // p.items, minlength=p.customers)
    hit = np.isin(p.pair(ranked.customer, ranked.item), wanted)
    found = np.bincount(ranked.customer[hit], minlength=p.customers)
    worth = 1 / np.log2(np.arange(2, top + 2))
    gain = np.bincount(ranked.customer[hit], worth[ranked.rank[hit] - 1], minlength=p.customers)
    buyers = size > 0
    ideal = worth.cumsum()[np.minimum(size[buyers], top) - 1]
    return np.column_stack([found[buyers] / size[buyers], gain[buyers] / ideal])


def _window(lines: pa.Table, start: datetime, length: timedelta, names: pa.Array) -> Window:
    """What had been bought at an instant, and what was bought from then on, as in `train_next`."""
    import pyarrow.compute as pc

    seen = lines.filter(pc.equal(lines["as_of"], start))
    p, customers = purchases_before(seen, start, names)
    return p, bought_between(seen, start, start + length, customers, names)


def _buyers(window: Window) -> np.ndarray:
    """The numbers of the customers who bought something in the window."""
    import numpy as np

    return np.unique(window[1][:, 0])


def _examples(window: Window, params: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """What is known of the candidates of those who bought something, and whether they bought it."""
    import numpy as np

    p, future = window
    found, x = candidates(p, params, _buyers(window))
    return x, np.isin(p.pair(found.customer, found.item), p.pair(*future.T)).astype(float)


def _sample(window: Window, params: Mapping[str, Any]) -> np.ndarray:
    """Some candidates of some of the customers who bought something."""
    import numpy as np

    random = np.random.default_rng(int(params["seed"]))
    buyers = np.sort(random.permutation(_buyers(window))[:SAMPLE])
    x = candidates(window[0], params, buyers)[1]
    return np.asarray(x[random.permutation(len(x))[:SAMPLE]])


def _metrics(
    recall: Mapping[str, np.ndarray], ndcg: Mapping[str, np.ndarray], top: int
) -> dict[str, Estimate]:
    """By prefix of the names recall and NDCG, and how much more the model, "", recalls."""
    found = {}
    for prefix, drawn in recall.items():
        found[f"{prefix}recall_at_{top}"] = _estimate(drawn)
        found[f"{prefix}ndcg_at_{top}"] = _estimate(ndcg[prefix])
        if prefix:
            found[f"{prefix}recall_at_{top}_gain"] = _estimate(recall[""] - drawn)
    return found


def _bootstrap(values: np.ndarray) -> np.ndarray:
    """Means over customers, of all and then of `DRAWS` draws of them.

    Args:
        values: lists x customers x metrics.

    Returns:
        metrics x lists x draws.
    """
    import numpy as np

    rows = values.shape[1]
    weights = np.array([np.ones(rows), *bootstrap_weights(rows, DRAWS, SEED)])
    means: np.ndarray = np.einsum("dn,lnm->mld", weights / rows, values)
    return means


def _estimate(drawn: np.ndarray) -> Estimate:
    return interval(drawn[0], drawn[1:])


def _check_enough(window: Window, name: str, part: str) -> None:
    p, buyers = window[0], len(_buyers(window))
    if buyers < FEWEST or p.items < 2 or not len(p.item):
        raise NotPromotedError(
            f"model '{name}': {part} has {buyers} customers who bought something next, of "
            f"{p.items} items; needs at least {FEWEST}, and 2 items: no model this time"
        )

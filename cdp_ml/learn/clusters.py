"""Clusters of customers: how many, which, and what to call them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

from cdp_ml.errors import ConfigError, NotPromotedError
from cdp_ml.learn.estimators import estimator_of, limited_threads, with_defaults
from cdp_ml.learn.evaluate import Estimate

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from sklearn.cluster import KMeans
    from sklearn.pipeline import Pipeline

DEFAULTS: Mapping[str, int | float | str] = {
    "min_clusters": 3,
    "max_clusters": 7,
    "min_share": 0.05,
    "min_stability": 0.75,
    "max_inertia": 1.1,
    "seed": 1,
}
"""`max_inertia` is a multiple of that of a fresh fit."""
SAMPLE = 5_000
REFITS = 20
STARTS = 10
FEWEST = 100
"""Fewer customers than this, and clusters are chance."""
TAIL = 0.01
"""The share of customers at either end of a feature who count as its outliers."""
STRUCTURE = 0.5
"""A silhouette from here on means groups that are there (Kaufman and Rousseeuw 1990)."""
FIRM = 0.85
"""A stability from here on is high, from 0.75 on is valid (Hennig 2007)."""
SAME = 0.5
"""The share of customers in common (Jaccard) from which on a cluster is still the former one."""

_WORDS = {
    "days_since_last_order": ("long inactive", "recently active"),
    "days_since_first_order": ("long-standing", "new"),
    "average_order_value": ("large baskets", "small baskets"),
    "orders": ("frequent", "infrequent"),
    "spend": ("high spend", "low spend"),
    "visits": ("many visits", "few visits"),
    "returns": ("many returns", "few returns"),
    "emails_clicked": ("clicks e-mails", "ignores e-mails"),
    "tenure_days": ("long-standing", "new"),
}


@dataclass(frozen=True)
class Candidate:
    """A number of clusters, and how it does on the same customers.

    `kept` says that they are the former model's, moved along with the customers.
    """

    k: int
    silhouette: float
    stability: Estimate
    smallest_share: float
    pipeline: Pipeline
    kept: bool = False


def fit_clusters(
    x: np.ndarray,
    given: Mapping[str, int | float | str],
    name: str,
    former: Pipeline | None = None,
) -> tuple[Candidate, tuple[Candidate, ...]]:
    """Cluster customers by k-means on features made symmetric, bounded and standardized.

    A feature is made symmetric by the power transform of Yeo and Johnson (2000), fitted without
    its outliers, which are then moved to the edge: else a handful of them would be a cluster.

    The number of clusters is chosen among those whose mean adjusted Rand index over bootstrap
    refits reaches `min_stability` (Hennig 2007), without a cluster below `min_share`: silhouette
    alone would choose one tiny cluster of outliers. Where customers fall into groups by themselves
    (a silhouette of `STRUCTURE`), the best silhouette decides. Where they do not, any number
    divides a continuum, and the largest says most about them (Tibshirani and Walther 2005 take the
    largest that is found again). All this among those with a stability of `FIRM`, if there are:
    else the most stable is taken, and where none qualifies the gate refuses it.

    Given a former model, its transform stays and its centers start the search, so that clusters
    move with the customers and keep their numbers. Only if these no longer qualify, or a fresh
    fit in the same space is better by `max_inertia`, it begins anew; `keep_names` then finds the
    clusters again.

    Args:
        x: customers x inputs, NaN where unknown.
        given: the model's `estimator`, over `DEFAULTS`.
        name: the model's name, for messages.
        former: the pipeline of the former model of the same inputs.

    Returns:
        The chosen candidate, and all.

    Raises:
        ConfigError: if a parameter is unknown, no number or out of its range.
        NotPromotedError: if there are fewer than `FEWEST` customers, or too few distinct ones.
    """
    import numpy as np

    params = with_defaults(given, DEFAULTS, estimator_of(name))
    smallest, largest = int(params["min_clusters"]), int(params["max_clusters"])
    if smallest > largest:
        raise ConfigError(
            f"{estimator_of(name)}: min_clusters: {smallest} is more than max_clusters, {largest}"
        )
    _check_enough(x, x, largest, name)
    random = np.random.default_rng(int(params["seed"]))
    with limited_threads(x):
        kept = _moved(x, former, params, random) if former else None
        if kept and qualifies(kept, params):
            return kept, (kept,)
        steps = _fit_steps(x)
        z = steps.transform(x)
        _check_enough(x, z, largest, name)
        sample = _sample(z, random)
        tried = range(smallest, largest + 1)
        found = tuple(_candidate(steps, z, sample, k, random) for k in tried)
    return _choose(found, params), found


def qualifies(candidate: Candidate, params: Mapping[str, int | float | str]) -> bool:
    """Whether a clustering is stable and has no tiny cluster."""
    return candidate.stability.value >= float(
        params["min_stability"]
    ) and candidate.smallest_share >= float(params["min_share"])


def name_clusters(pipeline: Pipeline, inputs: tuple[str, ...]) -> tuple[str, ...]:
    """Name each cluster by what stands out in it, such as "frequent, high spend".

    The two inputs whose centers lie farthest from the mean of all customers, if by at least half a
    standard deviation; more of them where two clusters would share a name.

    Args:
        pipeline: as from `fit_clusters`.
        inputs: names of its columns.

    Returns:
        A different name for each cluster, by its number.
    """
    import numpy as np

    centers = pipeline[-1].cluster_centers_
    order = np.argsort(-np.abs(centers), axis=1, kind="stable")
    phrases = [_phrases(center, by, inputs) for center, by in zip(centers, order, strict=True)]
    said = [p[:2] for p in phrases]
    for length in range(3, len(inputs) + 1):
        words = [frozenset(s) for s in said]
        said = [
            p[:length] if words.count(frozenset(s)) > 1 else s
            for s, p in zip(said, phrases, strict=True)
        ]
    return _numbered([", ".join(sorted(s, key=_rank)) or "average" for s in said])


def keep_names(
    pipeline: Pipeline,
    inputs: tuple[str, ...],
    x: np.ndarray,
    former: tuple[Pipeline, tuple[str, ...]],
) -> tuple[str, ...]:
    """Name clusters as before where they are the same, so that no name passes to others overnight.

    Clusters are matched with the former ones one to one such that most customers stay (Kuhn 1955);
    a pair is the same cluster if it shares `SAME` of its customers. Others get names of their own.

    Args:
        pipeline: the new model, as from `fit_clusters`.
        inputs: names of its columns.
        x: customers x inputs.
        former: pipeline and names of the former model of the same inputs.

    Returns:
        A different name for each cluster, by its number.
    """
    from scipy.optimize import linear_sum_assignment

    shared = _shared(pipeline.predict(x), former[0].predict(x), len(former[1]))
    pairs = zip(*linear_sum_assignment(-shared), strict=True)
    same = {int(new): former[1][old] for new, old in pairs if shared[new, old] >= SAME}
    described = name_clusters(pipeline, inputs)
    return _numbered([same.get(k) or n for k, n in enumerate(described)], set(same))


def profile_table(
    x: np.ndarray, assigned: np.ndarray, names: tuple[str, ...], inputs: tuple[str, ...]
) -> pa.Table:
    """What the customers of each cluster are like.

    Returns:
        cluster, customers, share, the median of each input, and of each input that is a spend the
        cluster's share of the total (`share_of_spend_365d`); the largest first.
    """
    import numpy as np
    import pyarrow as pa

    members = [x[assigned == number] for number in range(len(names))]
    medians = np.array([_medians(m) for m in members])
    sizes = np.array([len(m) for m in members])
    totals = np.array([np.nansum(m, axis=0) for m in members])
    return pa.table(
        {"cluster": names, "customers": sizes, "share": sizes / max(len(x), 1)}
        | {name: medians[:, i] for i, name in enumerate(inputs)}
        | {
            f"share_of_{name}": totals[:, i] / (totals[:, i].sum() or 1.0)
            for i, name in enumerate(inputs)
            if name.startswith("spend")
        }
    ).sort_by([("customers", "descending")])


def candidates_table(candidates: tuple[Candidate, ...]) -> pa.Table:
    """The numbers of clusters that were tried, and how each did."""
    import pyarrow as pa

    return pa.Table.from_pylist(
        [
            {
                "clusters": c.k,
                "silhouette": c.silhouette,
                "stability": c.stability.value,
                "stability_low": c.stability.low,
                "stability_high": c.stability.high,
                "smallest_share": c.smallest_share,
            }
            for c in candidates
        ]
    )


def _check_enough(x: np.ndarray, z: np.ndarray, largest: int, name: str) -> None:
    import numpy as np

    distinct = len(np.unique(z, axis=0)) if z.size else 0
    if len(x) < FEWEST or distinct <= largest:
        raise NotPromotedError(
            f"model '{name}': {len(x)} customers, {distinct} of them distinct; clusters need at "
            f"least {FEWEST} customers and more than {largest} distinct ones: no model this time"
        )


def _choose(found: tuple[Candidate, ...], params: Mapping[str, int | float | str]) -> Candidate:
    firm = max(FIRM, float(params["min_stability"]))
    good = [c for c in found if qualifies(c, params) and c.stability.value >= firm]
    if not good:
        return max(found, key=lambda c: (qualifies(c, params), c.stability.value))
    clearest = max(good, key=lambda c: c.silhouette)
    return clearest if clearest.silhouette >= STRUCTURE else max(good, key=lambda c: c.k)


def _fit_steps(x: np.ndarray) -> Pipeline:
    """Unknown values to the median, Yeo-Johnson, outliers to the edge, mean 0 and deviation 1."""
    import numpy as np
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, PowerTransformer, StandardScaler

    imputer = SimpleImputer(strategy="median", keep_empty_features=True).fit(x)
    known = imputer.transform(x)
    usual = np.clip(known, *np.quantile(known, [TAIL, 1 - TAIL], axis=0))
    power = PowerTransformer(method="yeo-johnson", standardize=False).fit(usual)
    # Only what lies within the usual range is seen here: `clip` moves the rest to its edge.
    bounds = MinMaxScaler(clip=True).fit(power.transform(usual))
    scaler = StandardScaler().fit(bounds.transform(power.transform(known)))
    return make_pipeline(imputer, power, bounds, scaler)


def _sample(z: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return z if len(z) <= SAMPLE else z[random.choice(len(z), SAMPLE, replace=False)]


def _candidate(
    steps: Pipeline, z: np.ndarray, sample: np.ndarray, k: int, random: np.random.Generator
) -> Candidate:
    """Fit on the sample from several starts, then on all customers from there."""
    from sklearn.cluster import KMeans

    rough = KMeans(k, n_init=STARTS, random_state=1).fit(sample)
    means = KMeans(k, init=rough.cluster_centers_, n_init=1).fit(z)
    refits = _refits(sample, random, KMeans(k, n_init=STARTS, random_state=1))
    return _judged(steps, means, z, sample, refits)


def _moved(
    x: np.ndarray,
    former: Pipeline,
    params: Mapping[str, int | float | str],
    random: np.random.Generator,
) -> Candidate | None:
    """The former clusters moved to the middle of their present customers, if they still fit them.

    Stability is that of the same procedure: refits on resamples begin at the former centers too.
    """
    from sklearn.cluster import KMeans

    steps, centers = former[:-1], former[-1].cluster_centers_
    if not int(params["min_clusters"]) <= len(centers) <= int(params["max_clusters"]):
        return None
    z = steps.transform(x)
    sample = _sample(z, random)
    means = KMeans(len(centers), init=centers, n_init=1).fit(z)
    fresh = KMeans(len(centers), n_init=STARTS, random_state=1).fit(sample)
    if means.score(sample) < float(params["max_inertia"]) * fresh.score(sample):
        return None
    refits = _refits(sample, random, KMeans(len(centers), init=centers, n_init=1))
    return replace(_judged(steps, means, z, sample, refits), kept=True)


def _judged(
    steps: Pipeline, means: KMeans, z: np.ndarray, sample: np.ndarray, refits: Iterator[KMeans]
) -> Candidate:
    import numpy as np
    from sklearn.metrics import silhouette_score
    from sklearn.pipeline import make_pipeline

    k, assigned = means.n_clusters, means.predict(sample)
    sizes = np.bincount(means.labels_, minlength=k)
    means.labels_ = means.labels_[:0]  # a model holds nothing of single customers
    some = {"sample_size": min(2_000, len(sample)), "random_state": 1}
    return Candidate(
        k=k,
        silhouette=float(silhouette_score(sample, assigned, **some)),
        stability=_stability(assigned, (refit.predict(sample) for refit in refits)),
        smallest_share=float(sizes.min() / len(z)),
        pipeline=make_pipeline(*(step for _, step in steps.steps), means),
    )


def _refits(sample: np.ndarray, random: np.random.Generator, means: KMeans) -> Iterator[KMeans]:
    n = len(sample)
    for _ in range(REFITS):
        yield means.fit(sample[random.integers(0, n, n)])


def _stability(assigned: np.ndarray, others: Iterator[np.ndarray]) -> Estimate:
    """Agreement of the clusters found with those of refits on resampled customers (Hennig 2007)."""
    import numpy as np
    from sklearn.metrics import adjusted_rand_score

    agreed = [adjusted_rand_score(assigned, other) for other in others]
    low, high = np.quantile(agreed, [0.025, 0.975])
    return Estimate(float(np.mean(agreed)), float(low), float(high))


def _shared(new: np.ndarray, old: np.ndarray, former: int) -> np.ndarray:
    """The Jaccard index of each new cluster (row) with each former one (column)."""
    import numpy as np

    rows = int(new.max()) + 1
    both = np.bincount(new * former + old, minlength=rows * former).reshape(rows, former)
    either = both.sum(axis=1, keepdims=True) + both.sum(axis=0) - both
    shares: np.ndarray = both / np.maximum(either, 1)
    return shares


def _phrases(center: np.ndarray, order: np.ndarray, inputs: tuple[str, ...]) -> list[str]:
    """What stands out in a cluster, most first, each thing said once."""
    said = [_phrase(inputs[i], center[i] > 0) for i in order if abs(center[i]) >= 0.5]
    return list(dict.fromkeys(said))


def _phrase(trait: str, high: bool) -> str:
    for stem, words in _WORDS.items():
        if trait.startswith(stem):
            return words[0 if high else 1]
    return f"{'high' if high else 'low'} {trait}"


def _rank(phrase: str) -> tuple[int, str]:
    """Where a phrase stands in a name: as in `_WORDS`, so that the same words are one name."""
    known = [word for words in _WORDS.values() for word in words]
    return (known.index(phrase) if phrase in known else len(known), phrase)


def _numbered(names: list[str], fixed: Set[int] = frozenset()) -> tuple[str, ...]:
    """The names, with a number behind those that still occur twice; the `fixed` ones stay."""
    order = sorted(range(len(names)), key=lambda i: (i not in fixed, i))
    said: dict[int, str] = {}
    for i in order:
        tries = (names[i] + (f" ({n})" if n > 1 else "") for n in count(1))
        said[i] = next(name for name in tries if name not in said.values())
    return tuple(said[i] for i in range(len(names)))


def _medians(members: np.ndarray) -> np.ndarray:
    import numpy as np

    known = ~np.isnan(members).all(axis=0)
    medians = np.full(members.shape[1], np.nan)
    if len(members):
        medians[known] = np.nanmedian(members[:, known], axis=0)
    return medians

"""Clusters of customers: how many, which, and what to call them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdp_ml.errors import NotPromotedError
from cdp_ml.learn.estimators import check_parameters, limited_threads
from cdp_ml.learn.evaluate import Estimate

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from sklearn.pipeline import Pipeline

DEFAULTS: Mapping[str, int | float | str] = {
    "min_clusters": 3,
    "max_clusters": 7,
    "min_share": 0.05,
    "min_stability": 0.8,
    "seed": 1,
}
SAMPLE = 5_000
REFITS = 20
FEWEST = 100
"""Fewer customers than this, and clusters are chance."""

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
    """A number of clusters, and how it does on the same customers."""

    k: int
    silhouette: float
    stability: Estimate
    smallest_share: float
    pipeline: Pipeline


def fit_clusters(
    x: np.ndarray, given: Mapping[str, int | float | str], name: str
) -> tuple[Candidate, tuple[Candidate, ...]]:
    """Cluster customers by k-means on features made symmetric and standardized (Yeo-Johnson).

    The number of clusters is the one with the highest silhouette among those that are stable (mean
    adjusted Rand index, over bootstrap refits, of at least `min_stability`) and have no cluster
    below `min_share`. Silhouette alone would choose one tiny cluster of outliers. If none
    qualifies, the most stable is returned, for the gate to refuse.

    Args:
        x: customers x inputs, NaN where unknown; no constant column.
        given: the model's `estimator`, over `DEFAULTS`.
        name: the model's name, for messages.

    Returns:
        The chosen candidate, and all.

    Raises:
        ConfigError: if a parameter is unknown or no number.
        NotPromotedError: if there are fewer than `FEWEST` customers, or too few distinct ones.
    """
    import numpy as np

    params = clustering_parameters(given, name)
    distinct = len(np.unique(x, axis=0)) if x.size else 0
    largest = int(params["max_clusters"])
    if len(x) < FEWEST or distinct <= largest:
        raise NotPromotedError(
            f"model '{name}': {len(x)} customers, {distinct} of them distinct; clusters need at "
            f"least {FEWEST} customers and more than {largest} distinct ones: no model this time"
        )
    random = np.random.default_rng(int(params["seed"]))
    sample = x if len(x) <= SAMPLE else x[random.choice(len(x), SAMPLE, replace=False)]
    tried = range(int(params["min_clusters"]), largest + 1)
    with limited_threads(x):
        found = tuple(_candidate(x, sample, k, random) for k in tried)
    good = [c for c in found if qualifies(c, params)]
    if good:
        return max(good, key=lambda c: c.silhouette), found
    return max(found, key=lambda c: c.stability.value), found


def clustering_parameters(
    given: Mapping[str, int | float | str], name: str
) -> dict[str, int | float | str]:
    """What the specification gives, over `DEFAULTS`.

    Raises:
        ConfigError: if a parameter is unknown.
    """
    check_parameters(given, DEFAULTS, f"models/{name}.yaml: estimator")
    return {**DEFAULTS, **given}


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


def profile_table(
    x: np.ndarray, assigned: np.ndarray, names: tuple[str, ...], inputs: tuple[str, ...]
) -> pa.Table:
    """What the customers of each cluster are like.

    Returns:
        cluster, customers, share, and the median of each input.
    """
    import numpy as np
    import pyarrow as pa

    members = [x[assigned == number] for number in range(len(names))]
    medians = np.array([_medians(m) for m in members])
    sizes = np.array([len(m) for m in members])
    return pa.table(
        {"cluster": names, "customers": sizes, "share": sizes / max(len(x), 1)}
        | {name: medians[:, i] for i, name in enumerate(inputs)}
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


def _candidate(x: np.ndarray, sample: np.ndarray, k: int, random: np.random.Generator) -> Candidate:
    import numpy as np
    from sklearn.metrics import silhouette_score

    pipeline = _pipeline(k).fit(x)
    assigned = pipeline.predict(sample)
    transformed = pipeline[:-1].transform(sample)
    silhouette = silhouette_score(transformed, assigned, sample_size=2_000, random_state=1)
    sizes = np.bincount(pipeline.predict(x), minlength=k)
    stability = _stability(transformed, assigned, k, random)
    return Candidate(k, float(silhouette), stability, float(sizes.min() / len(x)), pipeline)


def _stability(
    transformed: np.ndarray, assigned: np.ndarray, k: int, random: np.random.Generator
) -> Estimate:
    """Agreement of refits on resampled customers with the clusters found (Hennig 2007)."""
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    n = len(transformed)
    resamples = (transformed[random.integers(0, n, n)] for _ in range(REFITS))
    refits = (KMeans(k, n_init=5, random_state=1).fit(sample) for sample in resamples)
    agreed = [adjusted_rand_score(assigned, refit.predict(transformed)) for refit in refits]
    low, high = np.quantile(agreed, [0.025, 0.975])
    return Estimate(float(np.mean(agreed)), float(low), float(high))


def _pipeline(k: int) -> Pipeline:
    from sklearn.cluster import KMeans
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PowerTransformer

    return make_pipeline(
        SimpleImputer(strategy="median"),
        PowerTransformer(method="yeo-johnson", standardize=True),
        KMeans(k, n_init=10, random_state=1),
    )


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


def _numbered(names: list[str]) -> tuple[str, ...]:
    """The names, with a number behind those that still occur twice."""
    earlier = [names[:i].count(name) for i, name in enumerate(names)]
    return tuple(f"{n} ({e + 1})" if e else n for n, e in zip(names, earlier, strict=True))


def _medians(members: np.ndarray) -> np.ndarray:
    import numpy as np

    known = ~np.isnan(members).all(axis=0)
    medians = np.full(members.shape[1], np.nan)
    if len(members):
        medians[known] = np.nanmedian(members[:, known], axis=0)
    return medians

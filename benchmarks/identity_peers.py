"""Other tools that link records, as `identity_accuracy.py` runs them on fake_1000.

Each takes the standardized records as a pandas frame and returns a cluster for each of its rows.
dedupe alone sees labels: 200 pairs, half of them matches, in place of the questions that it would
ask a person. What it learns depends much on which they are, and a little on the order of Python's
sets, which differs from run to run.
"""

import random
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

FIELDS = ("given_name", "surname", "birth_date", "city", "email")
LABELS = 200


def by_email(people: pd.DataFrame) -> np.ndarray:
    """Those who have the same e-mail are one."""
    alone = pd.Series(people.index.astype(str), people.index)
    return pd.factorize(people["email"].fillna(alone))[0]


def by_ecm(people: pd.DataFrame) -> np.ndarray:
    """recordlinkage: expectation maximization over agreement or not; components of its matches.

    Of the blockings tried this one did best; with the city in it, the matches drown.
    """
    import recordlinkage

    index, compare = recordlinkage.Index(), recordlinkage.Compare()
    for field in ("surname", "birth_date", "email"):
        index.block(field)
    for field in FIELDS:
        compare.string(field, field, method="jarowinkler", threshold=0.85, label=field)
    agreements = compare.compute(index.index(people), people)
    matches = recordlinkage.ECMClassifier().fit_predict(agreements)
    return components(len(people), matches)


def by_dedupe(people: pd.DataFrame, person: pd.Series, seed: int) -> np.ndarray:
    """dedupe: a classifier and blocking rules learned from labeled pairs; its own clustering."""
    import dedupe

    random.seed(seed)
    np.random.seed(seed)
    data = people[list(FIELDS)].to_dict("index")
    variables = [dedupe.variables.String(field, has_missing=True) for field in FIELDS]
    deduper = dedupe.Dedupe(variables, num_cores=1, in_memory=True)
    deduper.prepare_training(data)
    found = agreeing(people)
    match = [(one, other) for one, other in found if person[one] == person[other]]
    pairs = {"match": match, "distinct": sorted(set(found) - set(match))}
    deduper.mark_pairs({
        kind: [(data[one], data[other]) for one, other in random.sample(known, LABELS // 2)]
        for kind, known in pairs.items()
    })  # fmt: skip
    deduper.train()
    cluster = np.empty(len(people), dtype=int)
    for number, (members, _) in enumerate(deduper.partition(data, threshold=0.5)):
        cluster[list(members)] = number
    return cluster


def agreeing(people: pd.DataFrame) -> list[tuple[int, int]]:
    """The pairs that agree on some field; others would teach nothing."""
    groups = (rows.index for field in FIELDS for _, rows in people.groupby(field))
    return sorted({pair for rows in groups for pair in combinations(sorted(rows), 2)})


def components(rows: int, links: pd.MultiIndex) -> np.ndarray:
    ends = tuple(links.get_level_values(end) for end in (0, 1))
    graph = coo_array((np.ones(len(links)), ends), shape=(rows, rows))
    return connected_components(graph, directed=False)[1]

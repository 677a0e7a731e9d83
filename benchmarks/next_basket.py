"""What grocery customers buy next: the model beside TIFU-kNN and what is bought most.

    python benchmarks/next_basket.py

On Ta-Feng (in the folder CDP_SHARED_DATA, or else shared/data beside the checkout), as in "A Next
Basket Recommendation Reality Check": each customer's future basket is the test. The model learns
from the last basket of the history, with all that came before it; parameters of TIFU-kNN are those
published for Ta-Feng. Baskets have no dates: they are taken to be 30 days apart.

Prints a Markdown table with 95% bootstrap intervals over customers.
"""

import json
import os
import time
from pathlib import Path

import numpy as np

from cdp_ml.learn.next_category_purchases import Purchases
from cdp_ml.learn.next_category_training import fit_ranker, judge_next

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("CDP_SHARED_DATA", ROOT.parent / "shared" / "data"))
DAYS_APART = 30


def lines(name: str) -> np.ndarray:
    """Customer, basket (0 is the latest) and item of each line; -1 only marks the ends."""
    users = json.loads((DATA / f"tafeng_{name}.json").read_text())
    found = [
        (number, back, item)
        for number, key in enumerate(sorted(users, key=int))
        for back, basket in enumerate(reversed([b for b in users[key] if b != [-1]]))
        for item in basket
    ]
    return np.unique(np.array(found), axis=0)


def purchases(rows: np.ndarray, customers: int, items: int) -> Purchases:
    customer, order, item = rows.T
    return Purchases(customer, order, item, (order + 1.0) * DAYS_APART, customers, items)


def tafeng() -> tuple[tuple[Purchases, np.ndarray], tuple[Purchases, np.ndarray]]:
    """The history before its last basket and that basket; the whole history and the future."""
    history, future = lines("history"), lines("future")
    customers = int(history[:, 0].max()) + 1
    items = int(max(history[:, 2].max(), future[:, 2].max())) + 1
    last = history[:, 1] == 0
    before = history[~last] - [0, 1, 0]
    return (
        (purchases(before, customers, items), history[last][:, [0, 2]]),
        (purchases(history, customers, items), future[:, [0, 2]]),
    )


def main() -> None:
    (before, last), (history, future) = tafeng()
    start = time.process_time()
    ranker = fit_ranker([(before, last)], {}, "next_basket")
    seconds = time.process_time() - start
    found = judge_next(history, future, ranker, "next_basket")
    print("| | recall@10 | NDCG@10 |\n|---|---:|---:|")
    for kind in ("global_top", "personal_top", "personal_then_global", "tifu_knn", "model"):
        prefix = "" if kind == "model" else f"baseline_{kind}/"
        cells = (str(found.metrics[f"{prefix}{m}_at_10"]) for m in ("recall", "ndcg"))
        print(f"| {kind.replace('_', ' ')} | {' | '.join(cells)} |")
    print(f"\n{found.verdict} Training took {seconds:.0f} CPU seconds.")


if __name__ == "__main__":
    main()

"""Clusters of customers: stable, told apart, good for something, and the same three months later.

    python benchmarks/clusters.py

On Online Retail (in the folder CDP_SHARED_DATA, or else shared/data beside the checkout): recency,
frequency and net spend of all who had bought by 2011-06-12, and again by 2011-09-10. Prints
Markdown tables with 95% bootstrap intervals over customers.

*Stability* is the mean adjusted Rand index over bootstrap refits. *eta²* is the share of the
variance of log(1 + spend) in the next 90 days, of which the model knows nothing, that lies between
clusters; beside it that of the RFM sum, the sum of three quintiles. *Agreement* is the share of the
customers who were there in June whom the model of June and that of September put into the cluster
of the same number, both by what is known in September.
"""

import os
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from cdp_ml.config import ModelSpec, load_spec
from cdp_ml.learn.clusters import Candidate, fit_clusters, keep_names, name_clusters, profile_table

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("CDP_SHARED_DATA", ROOT.parent / "shared" / "data"))
CUTS = ("2011-06-12", "2011-09-10")
INPUTS = ("days_since_last_order", "orders_lifetime", "spend_lifetime")
DRAWS = 500
CUSTOMERS = """
    WITH lines AS (
        SELECT CustomerID AS customer, InvoiceNo AS invoice, InvoiceDate AS day,
            Quantity > 0 AS bought, Quantity * UnitPrice AS spend
        FROM '{data}/online_retail.parquet' WHERE CustomerID IS NOT NULL AND UnitPrice > 0)
    SELECT customer,
        date_diff('second', max(day) FILTER (bought AND day < {cut}), {cut}) / 86400 AS recency,
        count(DISTINCT invoice) FILTER (bought AND day < {cut}) AS frequency,
        sum(spend) FILTER (day < {cut}) AS monetary,
        coalesce(sum(spend) FILTER (day >= {cut} AND day < {cut} + INTERVAL 90 DAY), 0) AS future
    FROM lines GROUP BY customer HAVING frequency > 0 ORDER BY customer"""


def customers(cut: str) -> pd.DataFrame:
    return duckdb.sql(CUSTOMERS.format(data=DATA, cut=f"TIMESTAMP '{cut}'")).df()


def matrix(known: pd.DataFrame) -> np.ndarray:
    return known[["recency", "frequency", "monetary"]].to_numpy(dtype=float)


def eta2(group: np.ndarray, y: np.ndarray) -> float:
    size, total = np.bincount(group), np.bincount(group, y)
    between = (total**2 / np.maximum(size, 1)).sum() - y.sum() ** 2 / len(y)
    return float(between / ((y - y.mean()) ** 2).sum())


def rfm_sum(known: pd.DataFrame) -> np.ndarray:
    ranked = [-known.recency, known.frequency, known.monetary]
    fifths = [pd.qcut(v.rank(method="first"), 5, labels=False) + 1 for v in ranked]
    return np.asarray(sum(fifths))


def interval(measure, rows: int) -> str:
    """A measure of row numbers, on all rows and on bootstrap draws of them."""
    random = np.random.default_rng(1)
    drawn = [measure(random.integers(0, rows, rows)) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{measure(np.arange(rows)):.3f} ({low:.3f} to {high:.3f})"


def row(name: str, chosen: Candidate, known: pd.DataFrame) -> str:
    group, y = (
        chosen.pipeline.predict(matrix(known)),
        np.log1p(known.future.clip(lower=0)).to_numpy(),
    )
    rfm, n = rfm_sum(known), len(known)
    s = chosen.stability
    cells = [
        name, n, chosen.k, f"{s.value:.3f} ({s.low:.3f} to {s.high:.3f})",
        f"{chosen.silhouette:.3f}", f"{chosen.smallest_share:.1%}",
        interval(lambda i: eta2(group[i], y[i]), n), interval(lambda i: eta2(rfm[i], y[i]), n),
        interval(lambda i: eta2(group[i], y[i]) / eta2(rfm[i], y[i]), n),
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def agreement(old: np.ndarray, new: np.ndarray, matched: bool) -> str:
    if matched:
        met = np.zeros((old.max() + 1, new.max() + 1))
        np.add.at(met, (old, new), 1)
        to_old = {int(b): int(a) for a, b in zip(*linear_sum_assignment(-met), strict=True)}
        new = np.array([to_old.get(int(c), -1) for c in new])
    return interval(lambda i: float((old[i] == new[i]).mean()), len(old))


def main() -> None:
    estimator = load_spec(ROOT / "models" / "clusters.yaml", ModelSpec).estimator
    june, september = (customers(cut) for cut in CUTS)
    first, tried = fit_clusters(matrix(june), estimator, "clusters")
    moved, _ = fit_clusters(matrix(september), estimator, "clusters", first.pipeline)
    fresh, _ = fit_clusters(matrix(september), estimator, "clusters")
    print(
        "| model | customers | clusters | stability | silhouette | smallest | eta² | eta² of the "
        "RFM sum | ratio |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    print(row("June", first, june))
    print(row("September, after June's", moved, september))
    print(row("September, anew", fresh, september))
    there = matrix(september[september.customer.isin(june.customer)])
    old = first.pipeline.predict(there)
    print("\n| September's model | agreement with June's |\n|---|---:|")
    print(f"| after June's | {agreement(old, moved.pipeline.predict(there), False)} |")
    anew = agreement(old, fresh.pipeline.predict(there), True)
    print(f"| anew, numbers matched (Hungarian) | {anew} |")
    print("\n| clusters | stability | silhouette | smallest |\n|---:|---:|---:|---:|")
    for c in tried:
        print(f"| {c.k} | {c.stability} | {c.silhouette:.3f} | {c.smallest_share:.1%} |")
    show_profiles(first, moved, september)


def show_profiles(first: Candidate, moved: Candidate, september: pd.DataFrame) -> None:
    x = matrix(september)
    former = (first.pipeline, name_clusters(first.pipeline, INPUTS))
    names = keep_names(moved.pipeline, INPUTS, x, former)
    profiles = profile_table(x, moved.pipeline.predict(x), names, INPUTS)
    print("\n| " + " | ".join(profiles.column_names) + " |\n|---" + "|---:" * 6 + "|")
    for values in zip(*profiles.to_pydict().values(), strict=True):
        cells = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
